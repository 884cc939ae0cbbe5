"""Sizes of tasks: what a session asks for, and what Fargate has."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pestfleet.folder import SessionSpec
from pestfleet_worker.errors import ConfigurationError

MEMORY, CPUS = "2g", 1.0  # of a slot that names no other, as on Kubernetes
MANY = 300  # slots; more want a larger master and broker
DISK = 20  # GiB of a task on Fargate that are not paid for; its images are on it, too
MOST_DISK = 200
IMAGES = 6  # GiB of that for images
_COPIES = 2  # of the case a slot has, with what its model writes

# CPU units (1024: one vCPU) -> MiB: least, most, step. Amazon ECS developer guide, "Amazon ECS
# task definition parameters for Fargate", task size; as of 2025. There 256 units have 512, 1024
# and 2048 MiB, which no step makes.
FARGATE = {
    256: (512, 2048, 512),
    512: (1024, 4096, 1024),
    1024: (2048, 8192, 1024),
    2048: (4096, 16384, 1024),
    4096: (8192, 30720, 1024),
    8192: (16384, 61440, 4096),
    16384: (32768, 122880, 8192),
}


@dataclass(frozen=True, slots=True)
class Size:
    """Of a task: `cpu` in units of 1/1024 vCPU, `memory` in MiB, `disk` in GiB."""

    cpu: int
    memory: int
    disk: int = DISK

    @property
    def vcpus(self) -> float:
        return self.cpu / 1024

    @property
    def gigabytes(self) -> float:
        """Memory as it is paid for: units of 1024 MiB."""
        return self.memory / 1024


def choose_sizes(spec: SessionSpec, *, case_bytes: int = 0) -> dict[str, Size]:
    """Role -> size of its tasks. `case_bytes`: size of the case's files.

    Raises `ConfigurationError` where no task can be so large.
    """
    many = max(spec.workers, spec.most) * spec.slots > MANY
    case_gib = case_bytes / 2**30
    disk = _round_disk(IMAGES + case_gib * (1 + _COPIES * spec.slots))
    cpus = (spec.place.cpus or CPUS) * spec.slots
    memory = parse_mebibytes(spec.place.memory or MEMORY) * spec.slots
    if spec.place.amazon.instances:
        worker = Size(max(128, math.ceil(cpus * 1024)), max(128, math.ceil(memory)))
    else:
        worker = fit_fargate(cpus, memory, slots=spec.slots, disk=disk)
    # Its case, the journal, and results of which nobody knows how large they are.
    session = _round_disk(IMAGES + 10 + 2 * case_gib)
    return {
        "broker": Size(1024, 4096) if many else Size(512, 2048),
        "master": Size(2048, 8192, session) if many else Size(1024, 4096, session),
        "worker": worker,
        "tunnel": Size(256, 512),
    }


def fit_fargate(cpus: float, memory: float, *, slots: int = 1, disk: int = DISK) -> Size:
    """The smallest size of Fargate that has `cpus` vCPUs and `memory` MiB.

    Raises `ConfigurationError` where there is none.
    """
    for cpu, (least, most, step) in FARGATE.items():
        if cpu < cpus * 1024 or memory > most:
            continue
        size = max(least, math.ceil(memory / step) * step)
        if cpu == 256 and size == 1536:
            size = 2048
        return Size(cpu, size, disk)
    top = max(FARGATE)
    asked = f"{cpus:g} vCPU and {memory / 1024:g} GiB"
    of = f" for {slots} slots" if slots > 1 else ""
    raise ConfigurationError(
        f"a worker of {asked}{of} is larger than any task of Fargate, which has up to "
        f"{top // 1024} vCPU and {FARGATE[top][1] // 1024} GiB",
        remedy="Ask for fewer --slots a worker, less --memory or --cpus a slot, or for machines of "
        "EC2: --instances TYPE.",
    )


def parse_mebibytes(size: str) -> float:
    """A size in docker's form (2g: of 1024 bytes and their powers; plain: bytes), in MiB."""
    match = re.fullmatch(r"([\d.]+)([bkmgt]?)b?", size.lower())
    if match is None:
        raise ConfigurationError(f"{size!r} is not a size of memory, such as 2g")
    return float(match[1]) * 1024.0 ** ("bkmgt".index(match[2] or "b") - 2)


def _round_disk(gib: float) -> int:
    return min(MOST_DISK, max(DISK, math.ceil(gib)))
