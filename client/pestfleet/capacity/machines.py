"""The machines that carry a session's tag."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.naming import EXPIRES, OWNER, ROLE, SESSION, as_dict
from pestfleet_worker.errors import SessionError

MACHINE = "machine"  # the role of what this package makes
BATCH = 50  # machines a request
_ALIVE = ("pending", "running", "stopping", "stopped", "shutting-down")
_FILTERED = 200  # values that a filter of EC2 takes
_GROUP = "aws:autoscaling:groupName"

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as EC2 tells it. `launched`, `expires`: seconds since 1970, 0.0: not known.

    `launched` is its last start. `group`: the Auto Scaling group that keeps it, or "".
    """

    id: str
    session: str
    role: str
    state: str
    kind: str
    zone: str
    image: str
    launched: float
    spot: bool
    address: str = ""
    private_address: str = ""
    group: str = ""
    owner: str = ""
    expires: float = 0.0

    @property
    def paid(self) -> bool:
        """Is it paid for by the hour now?"""
        return self.state in ("pending", "running")

    def count_hours(self, now: float) -> float:
        """Since its last start; 0.0 when it does not run."""
        return max(0.0, now - self.launched) / 3600 if self.paid else 0.0

    def to_dict(self, now: float | None = None) -> dict[str, Any]:
        """For JSON."""
        hours = self.count_hours(time.time() if now is None else now)
        return asdict(self) | {"hours": round(hours, 3)}


def list_machines(cloud: Cloud, session: str = "") -> list[Machine]:
    """All machines that are not gone, of one session or of any, in an order that stays.

    Raises `TargetError`.
    """
    wanted = (
        {"Name": f"tag:{SESSION}", "Values": [session]}
        if session
        else {"Name": "tag-key", "Values": [SESSION]}
    )
    alive = {"Name": "instance-state-name", "Values": list(_ALIVE)}
    return sorted(_describe(cloud, [wanted, alive]), key=_order)


def find_machines(cloud: Cloud, ids: Sequence[str]) -> list[Machine]:
    """The machines of these ids. Raises `SessionError` for one that is gone, or not of a session.

    Machines that others made are none of ours, whoever names them.
    """
    found = read_machines(cloud, ids)
    gone = [name for name in ids if name not in found]
    if gone:
        raise SessionError(
            f"there is no machine {', '.join(gone[:5])} in {cloud.region}",
            remedy="See pestfleet capacity list; --region names another region.",
        )
    strange = [name for name in ids if not found[name].session]
    if strange:
        raise SessionError(
            f"{', '.join(strange[:5])} carries no tag {SESSION}: pestfleet has not made it, "
            "and leaves it alone",
            remedy="See pestfleet capacity list.",
        )
    return sorted((found[name] for name in dict.fromkeys(ids)), key=_order)


def read_machines(cloud: Cloud, ids: Sequence[str]) -> dict[str, Machine]:
    """Id -> machine, of those that are not gone, whoever made them."""
    found: dict[str, Machine] = {}
    for some in split(list(dict.fromkeys(ids)), _FILTERED):
        for machine in _describe(cloud, [{"Name": "instance-id", "Values": list(some)}]):
            if machine.state != "terminated":
                found[machine.id] = machine
    return found


def await_machines(
    cloud: Cloud, ids: Sequence[str], *, patience: float = 60.0, pause: float = 2.0
) -> list[Machine]:
    """Machines that have just been started: all of EC2 hears of them a little later.

    Those of which it has not heard after `patience` seconds are left out.
    """
    end = time.monotonic() + patience
    while True:
        found = read_machines(cloud, ids)
        if len(found) == len(set(ids)) or time.monotonic() > end:
            return sorted(found.values(), key=_order)
        time.sleep(pause)


def read_states(cloud: Cloud, ids: Sequence[str]) -> dict[str, str]:
    """Id -> state; a machine that EC2 no longer knows is terminated."""
    found = read_machines(cloud, ids)
    return {name: found[name].state if name in found else "terminated" for name in ids}


def split(items: Sequence[Item], size: int = BATCH) -> Iterator[Sequence[Item]]:
    """Batches of at most that size."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def find_group(cloud: Cloud, session: str, name: str, network: str) -> str:
    """Id of the security group of that name, which is the session's own.

    Raises `SessionError` when it is somebody else's.
    """
    wanted = [
        {"Name": "group-name", "Values": [name]},
        {"Name": "vpc-id", "Values": [network]},
        {"Name": f"tag:{SESSION}", "Values": [session]},
    ]
    groups = list(
        cloud.find_all("ec2", "describe_security_groups", "SecurityGroups", Filters=wanted)
    )
    if not groups:
        raise SessionError(
            f"there is a security group {name} that is not of session {session}",
            remedy="Choose another id with --session, or remove that group.",
        )
    return str(groups[0]["GroupId"])


def find_key(cloud: Cloud, name: str) -> bool:
    """Is there a key pair of that name?"""
    wanted = [{"Name": "key-name", "Values": [name]}]
    return bool(cloud.call("ec2", "describe_key_pairs", Filters=wanted).get("KeyPairs"))


def _describe(cloud: Cloud, filters: Iterable[dict[str, Any]]) -> Iterator[Machine]:
    for reservation in cloud.find_all(
        "ec2", "describe_instances", "Reservations", Filters=list(filters)
    ):
        for instance in reservation.get("Instances") or ():
            yield _read(instance)


def _read(instance: dict[str, Any]) -> Machine:
    tags = as_dict(instance.get("Tags"))
    launched = instance.get("LaunchTime")
    return Machine(
        id=instance["InstanceId"],
        session=tags.get(SESSION, ""),
        role=tags.get(ROLE, ""),
        state=instance["State"]["Name"],
        kind=instance.get("InstanceType", ""),
        zone=instance.get("Placement", {}).get("AvailabilityZone", ""),
        image=instance.get("ImageId", ""),
        launched=launched.timestamp() if launched is not None else 0.0,
        spot=instance.get("InstanceLifecycle") == "spot",
        address=instance.get("PublicIpAddress") or "",
        private_address=instance.get("PrivateIpAddress") or "",
        group=tags.get(_GROUP, ""),
        owner=tags.get(OWNER, ""),
        expires=read_time(tags.get(EXPIRES, "")),
    )


def write_time(seconds: float) -> str:
    """Seconds since 1970, as tags have them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_time(text: str) -> float:
    """The time of a tag, in seconds since 1970; 0.0 for what is none: tags can be edited."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def _order(machine: Machine) -> tuple[str, float, str]:
    return machine.session, machine.launched, machine.id
