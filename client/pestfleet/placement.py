"""How a target of containers places a session; part of its spec."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

from pestfleet_worker.errors import ConfigurationError

# Docker's form: --memory 2g, of 1024 bytes and their powers.
MEMORY = re.compile(r"(\d+(\.\d+)?[bkmgt]?b?)?", re.IGNORECASE)
# How machines are paid for; mixed:20 is 20 percent on demand, the others spot.
CAPACITY = re.compile(r"spot|ondemand|mixed:(100|\d{1,2})")


@dataclass(frozen=True, slots=True)
class AmazonPlace:
    """Where in Amazon's cloud, and on what. "" is what the account has, or we make.

    `region`, `profile`: of the AWS configuration. `capacity`: spot, ondemand or mixed:PERCENT on
    demand, of the workers. `instances`: type of the EC2 machines of workers, "" for Fargate.
    `bucket`: with case, results and cache; `cluster`: of ECS, shared with others; `subnets`: ids;
    `network`: "found", or "make" for one of the session's own; `public`: tasks get public
    addresses; `allow_from`: CIDR block from which a master here comes.
    """

    region: str = ""
    profile: str = ""
    capacity: str = "spot"
    instances: str = ""
    bucket: str = ""
    cluster: str = ""
    subnets: tuple[str, ...] = ()
    network: str = "found"
    public: bool = False
    allow_from: str = ""

    def __post_init__(self) -> None:
        """Raises `ConfigurationError` for what cannot be."""
        if not CAPACITY.fullmatch(self.capacity):
            raise ConfigurationError(
                f"{self.capacity!r} in a session's placement is not spot, ondemand or mixed:PERCENT"
            )
        if self.network not in ("found", "make"):
            raise ConfigurationError(
                f"{self.network!r} in a session's placement is not found or make"
            )


@dataclass(frozen=True, slots=True)
class Placement:
    """How a target of containers places a session. Sizes are those of one slot.

    `master`: here, in the launching process, or there, beside the workers. `tunnel`: workers
    reach a master here through one. `memory`: such as 2g, "" for no limit; `cpus`: 0 for no
    limit; `pids`: processes and threads. `image`: of the workers, with the case in it.

    On Kubernetes: `context` of the kubeconfig and `namespace`; files (`values`) and words (`sets`)
    that change the chart's values. `least`: so many workers will do, where not all can start.
    `amazon`: see there.
    """

    master: str = "here"
    tunnel: bool = False
    memory: str = ""
    cpus: float = 0.0
    pids: int = 256
    image: str = ""
    context: str = ""
    namespace: str = ""
    values: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    least: int = 1
    amazon: AmazonPlace = AmazonPlace()

    def __post_init__(self) -> None:
        """Raises `ConfigurationError` for what cannot be."""
        for what, value, right in (
            ("here or there", self.master, self.master in ("here", "there")),
            ("a size of memory, such as 2g", self.memory, MEMORY.fullmatch(self.memory)),
            ("a number of cores", self.cpus, 0 <= self.cpus < math.inf),
            ("a number of processes", self.pids, self.pids >= 1),
        ):
            if not right:
                raise ConfigurationError(f"{value!r} in a session's placement is not {what}")


def read_placement(values: dict[str, Any]) -> Placement:
    """A placement as JSON has it. Raises `TypeError` or `ConfigurationError` for anything else."""
    place = take_known(Placement, values)
    place |= {name: tuple(place[name]) for name in ("values", "sets") if name in place}
    amazon = take_known(AmazonPlace, place.pop("amazon", {}))
    if "subnets" in amazon:
        amazon["subnets"] = tuple(amazon["subnets"])
    return Placement(**place, amazon=AmazonPlace(**amazon))


def take_known(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that a newer version has added."""
    known = {item.name for item in fields(kind)}
    return {name: values[name] for name in values.keys() & known}
