"""What runs in a session's tasks: parameters of RegisterTaskDefinition, without secrets.

Each task begins with the container `secrets`, which alone gets the role's secret: as a variable,
from ECS. It writes the files that the main container, which has the role's name, mounts at
/secrets to read, and ends. What a container writes to is a volume of the task; Fargate gives it
owner and mode of the folder that the image names as VOLUME (ECS developer guide, "Use bind mounts
with Amazon ECS"), so that users without rights can write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pestfleet.costs.charges import Charge
from pestfleet.folder import SessionSpec
from pestfleet.targets.ecs.naming import PATH, Names, as_list, make_tags
from pestfleet.targets.ecs.sizes import DISK, Size, choose_sizes

BROKER_PORT, RELAY_PORT, TUNNEL_PORT = 5671, 4004, 2222
USER = "10001:10001"
PYTHON = "/opt/pestfleet/bin/python"  # of the images of worker and master
SECRET_FILES = "PESTFLEET_SECRET_FILES"  # variable that pestfleet_worker.unpack reads
INIT = "secrets"  # name of the container that unpacks them, and of their volume
STOP_SECONDS = 120  # the longest that Fargate gives
UNKNOWN = "-??????"  # how the ARN of a secret ends that is not made yet
ARCHITECTURE = "X86_64"


@dataclass(frozen=True, slots=True)
class Images:
    """References of the images. `worker` has the case in it; "": there is no such task."""

    worker: str
    broker: str = ""
    master: str = ""
    tunnel: str = ""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """What the tasks of a session are made of.

    `bucket`: with the session's store. `launch`: name of this launch (`pestfleet host --launch`).
    `secrets`: role -> ARN of its secret, where that is known. `case_bytes`: size of the case.
    `architecture`: of the images, X86_64 or ARM64. `tags`: owner, expires, folder, see
    `naming.make_tags`. The broker's task is there where `images` has one, the master's where the
    session's master is there.
    """

    spec: SessionSpec
    images: Images
    account: str
    region: str
    bucket: str
    partition: str = "aws"
    launch: str = "1"
    secrets: Mapping[str, str] = field(default_factory=dict)
    case_bytes: int = 0
    architecture: str = ARCHITECTURE
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> Names:
        return Names(self.spec.session)

    @property
    def cluster(self) -> str:
        return self.spec.place.amazon.cluster or self.names.cluster

    @property
    def roles(self) -> tuple[str, ...]:
        """Of whom there are tasks."""
        there = {
            "broker": bool(self.images.broker),
            "master": self.spec.place.master == "there",
            "worker": True,
            "tunnel": self.spec.place.tunnel,
        }
        return tuple(role for role, wanted in there.items() if wanted)

    def find_role_arn(self, role: str) -> str:
        """ARN of a role of IAM of the session's: of tasks, or `execution`."""
        return f"arn:{self.partition}:iam::{self.account}:role{PATH}{self.names.role(role)}"

    def find_secret_arn(self, role: str) -> str:
        """ARN of a role's secret; it ends with `UNKNOWN` before that is made."""
        place = f"arn:{self.partition}:secretsmanager:{self.region}:{self.account}:secret"
        return self.secrets.get(role) or f"{place}:{self.names.secret(role)}{UNKNOWN}"


def make_tasks(plan: TaskPlan) -> dict[str, dict[str, Any]]:
    """Role -> parameters of RegisterTaskDefinition. Raises `ConfigurationError`."""
    sizes = choose_sizes(plan.spec, case_bytes=plan.case_bytes)
    return {role: _make_task(plan, role, sizes[role]) for role in plan.roles}


def list_charges(plan: TaskPlan, *, per_machine: int = 1) -> dict[str, tuple[Charge, ...]]:
    """Role -> what one task of it costs. `per_machine`: workers on one EC2 machine."""
    sizes = choose_sizes(plan.spec, case_bytes=plan.case_bytes)
    place = plan.spec.place.amazon
    charges: dict[str, tuple[Charge, ...]] = {}
    for role in plan.roles:
        size = sizes[role]
        spot = _find_spot_share(place.capacity) if role == "worker" else 0.0
        if role == "worker" and place.instances:
            found = _charge_machine(place.instances, spot, per_machine)
        else:
            found = _charge_fargate(role, size, spot)
        if place.public and not (role == "worker" and place.instances):
            found.append(Charge("public-ipv4-hour", 1.0, role, "its public address"))
        charges[role] = tuple(found)
    return charges


def _find_spot_share(capacity: str) -> float:
    """Of the workers that are paid for as spot: spot, ondemand, mixed:PERCENT on demand."""
    kind, _, percent = capacity.partition(":")
    return {"spot": 1.0, "ondemand": 0.0}.get(kind, 1.0 - float(percent or 0) / 100)


def _charge_fargate(role: str, size: Size, spot: float) -> list[Charge]:
    found = []
    for kind, share in (("fargate", 1.0 - spot), ("fargate-spot", spot)):
        if share:
            part = "" if share == 1.0 else f", {share:.0%} of them"
            words = "Fargate Spot" if kind == "fargate-spot" else "Fargate"
            vcpus, memory = size.vcpus * share, size.gigabytes * share
            found += [
                Charge(f"{kind}-vcpu-hour", vcpus, role, f"{size.vcpus:g} vCPU on {words}{part}"),
                Charge(f"{kind}-gb-hour", memory, role, f"{size.gigabytes:g} GB on {words}{part}"),
            ]
    if size.disk > DISK:
        more = size.disk - DISK
        found.append(
            Charge("fargate-disk-gb-hour", more, role, f"{more} GB of disk beyond the first {DISK}")
        )
    return found


def _charge_machine(kind: str, spot: float, per_machine: int) -> list[Charge]:
    shares = ((f"ec2:{kind}-hour", 1.0 - spot), (f"ec2-spot:{kind}-hour", spot))
    why = f"its share of a machine {kind}, with {per_machine} on each"
    return [Charge(item, share / per_machine, "worker", why) for item, share in shares if share]


def _make_task(plan: TaskPlan, role: str, size: Size) -> dict[str, Any]:
    fargate = not (role == "worker" and plan.spec.place.amazon.instances)
    main = _MAKERS[role](plan)
    mounted = [name for name in _MOUNTS[role] if name != INIT]
    task: dict[str, Any] = {
        "family": plan.names.family(role),
        "executionRoleArn": plan.find_role_arn("execution"),
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE" if fargate else "EC2"],
        "cpu": str(size.cpu),
        "memory": str(size.memory),
        "runtimePlatform": {
            "operatingSystemFamily": "LINUX",
            "cpuArchitecture": plan.architecture,
        },
        "volumes": [{"name": name} for name in (INIT, *mounted)],
        "containerDefinitions": [
            _finish(plan, role, _make_init(plan, role), fargate=fargate),
            _finish(plan, role, main, fargate=fargate),
        ],
        "tags": as_list(make_tags(plan.spec.session, role, **plan.tags), key="key", value="value"),
    }
    if role in ("master", "worker"):
        task["taskRoleArn"] = plan.find_role_arn(role)
    if fargate and size.disk > DISK:
        task["ephemeralStorage"] = {"sizeInGiB": size.disk}
    return task


# Role -> volume -> where its main container has it.
_MOUNTS = {
    "broker": {INIT: "/secrets", "data": "/var/lib/rabbitmq", "tmp": "/tmp"},
    "master": {INIT: "/secrets", "session": "/session", "tmp": "/tmp"},
    "worker": {INIT: "/secrets", "scratch": "/scratch", "tmp": "/tmp"},
    "tunnel": {INIT: "/secrets"},
}


def _finish(
    plan: TaskPlan, role: str, container: dict[str, Any], *, fargate: bool
) -> dict[str, Any]:
    """What all containers have."""
    container |= {
        "user": USER,
        "readonlyRootFilesystem": True,
        "linuxParameters": {"capabilities": {"drop": ["ALL"]}, "initProcessEnabled": False},
        "logConfiguration": {
            "logDriver": "awslogs",
            "options": {
                "awslogs-group": plan.names.logs,
                "awslogs-region": plan.region,
                "awslogs-stream-prefix": role,
                # A container never waits for CloudWatch.
                "mode": "non-blocking",
                "max-buffer-size": "4m",
            },
        },
    }
    if not fargate:  # Fargate knows no such option
        container["dockerSecurityOptions"] = ["no-new-privileges"]
    return container


def _make_init(plan: TaskPlan, role: str) -> dict[str, Any]:
    # The master's image is the smaller one: the worker's has the case in it.
    image = plan.images.worker if role == "worker" else plan.images.master or plan.images.worker
    mounts = [{"sourceVolume": INIT, "containerPath": "/secrets"}]
    if role == "broker":
        # RabbitMQ's image does not say how /tmp is; ours does, and this container is the first.
        mounts.append({"sourceVolume": "tmp", "containerPath": "/tmp"})
    return {
        "name": INIT,
        "image": image,
        "essential": False,
        "entryPoint": [PYTHON, "-m", "pestfleet_worker.unpack"],
        "command": ["/secrets"],
        "secrets": [{"name": SECRET_FILES, "valueFrom": plan.find_secret_arn(role)}],
        "mountPoints": mounts,
    }


def _make_main(
    plan: TaskPlan,
    role: str,
    image: str,
    *,
    command: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    port: int = 0,
    **more: Any,
) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": role,
        "image": image,
        "essential": True,
        "dependsOn": [{"containerName": INIT, "condition": "SUCCESS"}],
        "environment": [
            {"name": name, "value": value} for name, value in (environment or {}).items()
        ],
        "mountPoints": [
            {"sourceVolume": name, "containerPath": path, "readOnly": name == INIT}
            for name, path in _MOUNTS[role].items()
        ],
        **more,
    }
    if command:
        container["command"] = list(command)
    if port:
        container["portMappings"] = [{"containerPort": port, "protocol": "tcp"}]
    return container


def _make_broker(plan: TaskPlan) -> dict[str, Any]:
    return _make_main(
        plan,
        "broker",
        plan.images.broker,
        environment={
            "RABBITMQ_CONFIG_FILE": "/secrets/rabbitmq.conf",
            "RABBITMQ_NODENAME": "pestfleet@localhost",
            "RABBITMQ_ENABLED_PLUGINS_FILE": "/secrets/enabled_plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": "/var/lib/rabbitmq/log",
        },
        port=BROKER_PORT,
        stopTimeout=30,
        healthCheck={
            "command": ["CMD", "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{BROKER_PORT}"],
            "interval": 10,
            "timeout": 5,
            "retries": 10,
            "startPeriod": 120,
        },
    )


def _make_master(plan: TaskPlan) -> dict[str, Any]:
    return _make_main(
        plan,
        "master",
        plan.images.master,
        command=write_host_words(plan),
        environment={
            "PESTFLEET_BROKER_FILE": "/secrets/broker-url",
            "AWS_DEFAULT_REGION": plan.region,
        },
        port=RELAY_PORT,
        stopTimeout=STOP_SECONDS,
        # ECS ends a task that is not healthy. A master first fetches its session.
        healthCheck={
            "command": [
                "CMD-SHELL",
                "test -n \"$(find /session -maxdepth 2 -name state.json -newermt '-30 seconds')\"",
            ],
            "interval": 30,
            "timeout": 10,
            "retries": 10,
            "startPeriod": 300,
        },
    )


def _make_worker(plan: TaskPlan) -> dict[str, Any]:
    # No health check: ECS would end all workers, in the middle of their runs, where the broker is
    # away for a while, and those that are drained.
    # No limit of processes either: Fargate has none to set, and each task is a machine of its own;
    # on EC2 the limit that there is (nproc) counts those of all tasks of a machine together.
    return _make_main(
        plan,
        "worker",
        plan.images.worker,
        command=["--session", plan.spec.session, "--slots", str(plan.spec.slots)],
        environment={"PESTFLEET_BROKER_FILE": "/secrets/broker-url"},
        stopTimeout=STOP_SECONDS,
    )


def _make_tunnel(plan: TaskPlan) -> dict[str, Any]:
    return _make_main(
        plan,
        "tunnel",
        plan.images.tunnel,
        environment={"PESTFLEET_TUNNEL_PORT": str(RELAY_PORT)},
        port=TUNNEL_PORT,
        stopTimeout=5,
        healthCheck={
            "command": ["CMD", "grep", "-qE", "^ *[0-9]+: 0+:08AE [0:]+ 0A ", "/proc/net/tcp"],
            "interval": 15,
            "timeout": 5,
            "retries": 3,
            "startPeriod": 30,
        },
    )


_MAKERS = {
    "broker": _make_broker,
    "master": _make_master,
    "worker": _make_worker,
    "tunnel": _make_tunnel,
}


def write_host_words(plan: TaskPlan) -> list[str]:
    """The command of the master's container. All else is in the session's spec, in the store."""
    spec, names = plan.spec, plan.names
    words = [
        "host", f"/session/{spec.session}/case/{Path(spec.control_file).name}",
        "--session", spec.session,
        "--launch", plan.launch,
        "--on", spec.target,
        "--keep-workers",
        "--workers", f"{spec.workers}..{spec.most}" if spec.most else str(spec.workers),
        "--slots", str(spec.slots),
        "--idle-minutes", f"{spec.idle_minutes:g}",
        "--max-hours", f"{spec.max_hours:g}",
        "--budget", f"{spec.budget:g}",
        "--relay-port", str(RELAY_PORT),
        "--advertise", f"master.{names.domain}",
        "--store", f"s3://{plan.bucket}",
        "--ecs", plan.cluster,
        "--lease", names.schedules,
    ]  # fmt: skip
    return words + (["--cache", spec.cache] if spec.cache.startswith("s3://") else ["--no-cache"])
