"""Where a session's machines are, and what they run there.

What a worker is, its session's task definition says: a machine runs the same image with the same
words, beside the same broker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.naming import Names
from pestfleet_worker.errors import ConfigurationError, SessionError

SECRETS = "secrets"  # the container that writes a role's secrets, in every task definition


@dataclass(frozen=True, slots=True)
class Unpacking:
    """How a container writes the role's secrets: `variable` holds them, `secret` is their ARN."""

    secret: str
    variable: str
    image: str
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """The session's worker, as its task definition has it. `logs`: options of awslogs."""

    image: str
    command: tuple[str, ...]
    unpacking: Unpacking
    entrypoint: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MachineSite:
    """Where machines go: the first of `subnets` that has room.

    `network`: of the subnets (a VPC). `groups`: security groups that the session has already.
    `cluster`, `service`: of the session on ECS, "" where it has none.
    """

    network: str
    subnets: tuple[str, ...]
    groups: tuple[str, ...] = ()
    public: bool = False
    cluster: str = ""
    service: str = ""
    worker: WorkerTask | None = None


def find_session_site(
    cloud: Cloud, session: str, *, cluster: str = "", subnets: Sequence[str] = ()
) -> MachineSite:
    """Beside the workers of a session on ECS. `cluster`: a shared one, "" for the session's own.

    Raises `SessionError` when the session has no workers' service in this region, `TargetError`.
    """
    names = Names(session)
    cluster, service = cluster or names.cluster, names.service("worker")
    try:
        found = cloud.call("ecs", "describe_services", cluster=cluster, services=[service])
    except Refused as error:
        if error.code != "ClusterNotFoundException":
            raise
        found = {}
    active = [item for item in found.get("services") or () if item["status"] == "ACTIVE"]
    if not active:
        raise SessionError(
            f"session {session} has no workers on ECS in {cloud.region}",
            remedy="Launch it first (pestfleet run CASE --on ecs), or start machines that join no "
            "session: --join none.",
        )
    network = active[0].get("networkConfiguration", {}).get("awsvpcConfiguration", {})
    chosen = tuple(subnets) or tuple(network.get("subnets") or ())
    return MachineSite(
        network=_find_network(cloud, chosen),
        subnets=chosen,
        groups=tuple(network.get("securityGroups") or ()),
        public=network.get("assignPublicIp") == "ENABLED",
        cluster=cluster,
        service=service,
        worker=_read_task(cloud, active[0]["taskDefinition"]),
    )


def find_plain_site(cloud: Cloud, *, subnets: Sequence[str] = (), public: bool) -> MachineSite:
    """Subnets by id, or those of the default VPC. Raises `ConfigurationError`, `TargetError`."""
    if subnets:
        return MachineSite(_find_network(cloud, subnets), tuple(subnets), public=public)
    default = [{"Name": "default-for-az", "Values": ["true"]}]
    found = list(cloud.find_all("ec2", "describe_subnets", "Subnets", Filters=default))
    found.sort(key=lambda subnet: (subnet["AvailabilityZone"], subnet["SubnetId"]))
    if not found:
        raise ConfigurationError(
            f"the account has no default VPC in {cloud.region}",
            remedy="Name subnets: --subnet subnet-…, or [amazon] subnets in pestfleet.toml.",
        )
    return MachineSite(
        found[0]["VpcId"], tuple(subnet["SubnetId"] for subnet in found), public=public
    )


def _find_network(cloud: Cloud, subnets: Sequence[str]) -> str:
    found = list(cloud.find_all("ec2", "describe_subnets", "Subnets", SubnetIds=list(subnets)))
    networks = {subnet["VpcId"] for subnet in found}
    if len(networks) != 1:
        raise ConfigurationError(
            f"the subnets {', '.join(subnets)} are of {len(networks)} VPCs: machines of a session "
            "are in one",
            remedy="Name subnets of one VPC, in different zones.",
        )
    return str(networks.pop())


def _read_task(cloud: Cloud, name: str) -> WorkerTask | None:
    """None where the definition is none of ours, and cannot be run without ECS."""
    definition = cloud.call("ecs", "describe_task_definition", taskDefinition=name)
    containers = {
        item["name"]: item for item in definition["taskDefinition"]["containerDefinitions"]
    }
    unpack = containers.pop(SECRETS, {})
    given = list(unpack.get("secrets") or [])
    main = [item for item in containers.values() if item.get("essential", True)]
    if len(main) != 1 or len(given) != 1:
        return None
    container: dict[str, Any] = main[0]
    logging = container.get("logConfiguration") or {}
    return WorkerTask(
        image=container["image"],
        command=tuple(container.get("command") or ()),
        unpacking=Unpacking(
            secret=given[0]["valueFrom"],
            variable=given[0]["name"],
            image=unpack["image"],
            entrypoint=tuple(unpack.get("entryPoint") or ()),
            command=tuple(unpack.get("command") or ()),
        ),
        entrypoint=tuple(container.get("entryPoint") or ()),
        environment={item["name"]: item["value"] for item in container.get("environment") or ()},
        logs=dict(logging.get("options") or {}) if logging.get("logDriver") == "awslogs" else {},
    )
