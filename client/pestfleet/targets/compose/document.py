"""The compose file of a session, as a document; docker compose v2 and docker-compose 1.29 read it.

One-shot services make the session's secrets (`credentials`) and copy the case out of its image
(`case`); `broker`, `master`, `worker` and `tunnel` stay. Each gets only its own secrets, as files.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from typing import Any

from pestfleet.placement import Placement

# Labels. DOCUMENT: on the network, all of the compose file; FOLDER: the session's on the
# launching machine; IMAGE: on the session's volume, one that can read it.
SESSION, ROLE = "pestfleet.session", "pestfleet.role"
DOCUMENT, FOLDER, IMAGE = "pestfleet.compose", "pestfleet.folder", "pestfleet.image"
BROKER_PORT, TUNNEL_PORT, RELAY_PORT = 5671, 2222, 4004
PARTS = ("broker", "master", "worker", "tunnel", "home")  # whom the secrets are for
HOUSEKEEPING = 64  # processes and threads of a worker beside those of its models
INPUT = "/input"  # where the master has the volume with the case
RESTARTS = 10  # of a container, by the Docker engine
# A volume takes mode and files of the first folder that it is mounted on; a reader has no say.
READ = "ro,nocopy"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Images:
    """References of the images. `worker` has the case in it; `tunnel` "" where there is none."""

    worker: str
    master: str
    broker: str
    tunnel: str = ""


@dataclass(frozen=True, slots=True)
class ComposePlan:
    """What a session wants on a Docker engine.

    `host`: words for `pestfleet host`, for a master there. `user`: uid:gid of all containers.
    `broker`: is one wanted? For a master here: `address` of the engine's machine, on which the
    ports of broker and tunnel are published, and which these are; they stay the same when a
    container is started again (0: any, for a look at the plan).
    """

    session: str
    images: Images
    workers: int
    slots: int
    place: Placement
    user: str
    host: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    broker_port: int = 0
    tunnel_port: int = 0
    broker: bool = True
    folder: str = ""

    @property
    def project(self) -> str:
        """Name of the compose project: lower case letters, digits, - and _ only."""
        plain = re.sub(r"[^a-z0-9_-]", "-", self.session.lower())
        if plain != self.session:  # others may become the same
            plain += f"-{zlib.crc32(self.session.encode()):08x}"
        return f"pestfleet-{plain}"

    @property
    def there(self) -> bool:
        return self.place.master == "there"


def make_document(plan: ComposePlan) -> Document:
    """The compose file. Its network's label has all of it, for whoever scales the fleet later."""
    services: Document = {"credentials": _make_credentials(plan)}
    if plan.broker:
        services["broker"] = _make_broker(plan)
    if plan.place.tunnel:
        services["tunnel"] = _make_tunnel(plan)
    if plan.there:
        services["case"] = _make_case(plan)
        services["master"] = _make_master(plan)
    services["worker"] = _make_worker(plan)
    used = {
        words.partition(":")[0]
        for service in services.values()
        for words in service.get("volumes", ())
        if ":" in words
    }
    document = {
        "services": services,
        "networks": {"default": {"name": plan.project, "labels": {SESSION: plan.session}}},
        "volumes": {
            name: {"name": f"{plan.project}-{name}", "labels": {SESSION: plan.session, ROLE: name}}
            for name in sorted(used)
        },
    }
    if "session" in document["volumes"]:
        document["volumes"]["session"]["labels"][IMAGE] = plan.images.master
    return add_label(document)


def add_label(document: Document) -> Document:
    """The document with itself as the label of its network; `read_label` is the reverse."""
    labels = document["networks"]["default"]["labels"]
    if DOCUMENT not in labels:
        labels[DOCUMENT] = json.dumps(document, sort_keys=True)
    return document


def read_label(text: str) -> Document:
    """The document that `add_label` put into a label."""
    document: Document = json.loads(text)
    document["networks"]["default"]["labels"][DOCUMENT] = text
    return document


def dump_document(document: Document, *, whole: bool = True) -> str:
    """As YAML. Not `whole`: for people, without the copy of itself."""
    import yaml

    document = json.loads(json.dumps(document))
    if not whole:
        del document["networks"]["default"]["labels"][DOCUMENT]
    # Compose reads $ as the begin of a variable.
    return yaml.safe_dump(_escape(document), sort_keys=False, width=100, allow_unicode=True)


def _escape(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {name: _escape(item) for name, item in value.items()}
    return [_escape(item) for item in value] if isinstance(value, list) else value


def _make_service(plan: ComposePlan, role: str, image: str, **more: Any) -> Document:
    labels = {SESSION: plan.session, ROLE: role}
    if plan.folder:
        labels[FOLDER] = plan.folder
    return {
        "image": image,
        "user": plan.user,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": ["/tmp"],
        "labels": labels,
        "logging": {"driver": "json-file", "options": {"max-size": "20m", "max-file": "3"}},
        **more,
    }


def _after(*finished: str, started: tuple[str, ...] = ()) -> Document:
    return {
        **{name: {"condition": "service_completed_successfully"} for name in finished},
        **{name: {"condition": "service_started"} for name in started},
    }


def _make_credentials(plan: ComposePlan) -> Document:
    parts = ["worker", "master" if plan.there else "home"]
    if plan.broker:
        parts += ["broker", "master"]
    if plan.place.tunnel:
        parts += ["tunnel", "home"]
    parts = [part for part in PARTS if part in parts]
    words = [word for part in parts for word in ("--part", part)]
    return _make_service(
        plan,
        "credentials",
        plan.images.master,
        command=["credentials", "/secrets", "--session", plan.session, *words],
        network_mode="none",
        healthcheck={"disable": True},
        volumes=[f"{part}-secrets:/secrets/{part}" for part in parts],
    )


def _make_case(plan: ComposePlan) -> Document:
    # Every user may write to the image's /scratch, and so to a volume there.
    return _make_service(
        plan,
        "case",
        plan.images.worker,
        entrypoint=["cp", "-r", "--preserve=mode,timestamps", "/case", "/scratch/"],
        network_mode="none",
        healthcheck={"disable": True},
        volumes=["case:/scratch"],
    )


def _make_broker(plan: ComposePlan) -> Document:
    service = _make_service(
        plan,
        "broker",
        plan.images.broker,
        hostname="broker",
        environment={
            "RABBITMQ_CONFIG_FILE": "/secrets/rabbitmq.conf",
            "RABBITMQ_NODENAME": "pestfleet@localhost",
            # There is no such file, so no plugin: no management, no metrics.
            "RABBITMQ_ENABLED_PLUGINS_FILE": "/secrets/enabled_plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        },
        volumes=[f"broker-secrets:/secrets:{READ}", "broker-data:/var/lib/rabbitmq"],
        tmpfs=["/tmp", "/var/log/rabbitmq:mode=1777"],
        healthcheck={
            "test": ["CMD", "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{BROKER_PORT}"],
            "interval": "5s",
            "timeout": "3s",
            "retries": 12,
        },
        restart="unless-stopped",  # an engine that is shut down ends it without an error
        stop_grace_period="30s",
        depends_on=_after("credentials"),
    )
    if not plan.there:
        service["ports"] = [f"{plan.address}:{plan.broker_port or ''}:{BROKER_PORT}"]
    return service


def _make_master(plan: ComposePlan) -> Document:
    return _make_service(
        plan,
        "master",
        plan.images.master,
        command=["host", *plan.host],
        environment={"PESTFLEET_BROKER_FILE": "/secrets/broker-url"},
        volumes=["session:/session", f"case:{INPUT}:{READ}", f"master-secrets:/secrets:{READ}"],
        restart=f"on-failure:{RESTARTS}",
        stop_grace_period="60s",
        depends_on=_after("credentials", "case", started=("broker",)),
    )


def _make_tunnel(plan: ComposePlan) -> Document:
    return _make_service(
        plan,
        "tunnel",
        plan.images.tunnel,
        environment={"PESTFLEET_TUNNEL_PORT": str(RELAY_PORT)},
        volumes=[f"tunnel-secrets:/secrets:{READ}"],
        ports=[f"{plan.address}:{plan.tunnel_port or ''}:{TUNNEL_PORT}"],
        restart=f"on-failure:{RESTARTS}",
        stop_grace_period="5s",
        depends_on=_after("credentials"),
    )


def _make_worker(plan: ComposePlan) -> Document:
    place, slots = plan.place, plan.slots
    service = _make_service(
        plan,
        "worker",
        plan.images.worker,
        command=["--session", plan.session, "--slots", str(slots)],
        environment={"PESTFLEET_BROKER_FILE": "/secrets/broker-url"},
        volumes=[f"worker-secrets:/secrets:{READ}", "/scratch"],
        restart=f"on-failure:{RESTARTS}",
        stop_grace_period="30s",
        pids_limit=slots * place.pids + HOUSEKEEPING,
        scale=plan.workers,
        depends_on=_after("credentials"),
    )
    if place.memory:
        service["mem_limit"] = _multiply(place.memory, slots)
    if place.cpus:
        service["cpus"] = place.cpus * slots
    return service


def _multiply(size: str, slots: int) -> str:
    """A size in docker's form (settings.py has checked it), in bytes."""
    match = re.fullmatch(r"([\d.]+)([bkmgt]?)b?", size.lower())
    assert match is not None, size
    return str(round(float(match[1]) * slots * 1024 ** "bkmgt".index(match[2] or "b")))
