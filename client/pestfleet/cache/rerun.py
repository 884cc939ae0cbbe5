"""Makes a sample of cached runs again, to see whether the model gives the same bits."""

from __future__ import annotations

import platform
import random
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pestfleet.cache.entries import RunRecord
from pestfleet.cache.keys import RunKey
from pestfleet.cache.runcache import RunCache
from pestfleet.cache.shelf import CacheError
from pestfleet.cache.upkeep import list_records
from pestfleet.case import Case
from pestfleet_worker.errors import CaseError
from pestfleet_worker.messages import Limits

Item = TypeVar("Item")
Make = Callable[[bytes], tuple[bytes, str]]  # parameters -> observations, or why it failed


@dataclass(frozen=True, slots=True)
class Difference:
    """A run that gave other observations than the cached ones.

    `count`: observations that differ; `observation`: the one that differs most, relative to its
    cached value, with both values. `repeatable`: a second re-run gave the bits of the first.
    """

    hash: str
    count: int
    observation: str
    cached: float
    again: float
    platform: str
    repeatable: bool

    @property
    def relative(self) -> float:
        """|again - cached| / |cached|; infinite where the cached value is 0."""
        change = abs(self.again - self.cached)
        if not change:
            return 0.0
        return change / abs(self.cached) if self.cached else float("inf")


@dataclass(slots=True)
class Rerun:
    """`same` runs gave the same bits; `failed`: hash -> why a run that once worked did not."""

    cached: int = 0
    made: int = 0
    same: int = 0
    differences: list[Difference] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def deterministic(self) -> bool | None:
        """False: two runs here differed; None: nothing that can be said."""
        if any(not difference.repeatable for difference in self.differences):
            return False
        return True if self.made > len(self.failed) else None

    @property
    def sound(self) -> bool:
        """Every run that was made again gave what the cache has."""
        return self.same == self.made


def rerun_cached_runs(
    cache: RunCache,
    case: Case,
    *,
    runs: int,
    limits: Limits,
    scratch: Path | None = None,
    seed: int | None = None,
) -> Rerun:
    """Make `runs` runs of the case again, chosen at random, in a slot on this machine.

    A run that differs is made once more, to tell a model that is not deterministic from one that
    gives other bits on this machine. Raises `CacheError` when the cache has no run of this case,
    and `CaseError` when no run can be made.
    """
    kept = (
        (key, record)
        for key, record in list_records(cache, case.spec.digest)
        if len(record.observations) == 8 * len(case.spec.observations)
    )
    sample, cached = choose_sample(kept, runs, random.Random(seed))
    if not sample:
        raise CacheError(
            f"the run cache {cache.place} has no run of {case.control.path}, as it is now",
            remedy="List what it has: pestfleet cache list",
        )
    try:
        from pestfleet_worker.runs import Slot
    except ImportError as error:  # Windows
        raise CaseError(f"no run can be made here: {error}") from error
    with tempfile.TemporaryDirectory(prefix="pestfleet-verify-", dir=scratch) as folder:
        slot = Slot(
            case.spec,
            source=case.folder.resolve(),
            directory=Path(folder) / "slot",
            limits=limits,
            worker_id=Path(folder).name,
        )

        def make(parameters: bytes) -> tuple[bytes, str]:
            outcome = slot.execute(parameters)
            return outcome.observations, str(outcome.failure or "")

        slot.prepare()
        try:
            found = compare_runs(sample, make, case.spec.observations)
        finally:
            slot.close()
    found.cached = cached
    return found


def compare_runs(
    sample: Iterable[tuple[RunKey, RunRecord]], make: Make, observations: tuple[str, ...]
) -> Rerun:
    """Make each run again and compare bit by bit. `observations`: their names."""
    found = Rerun()
    for key, record in sample:
        found.made += 1
        again, failure = make(record.parameters)
        if failure:
            found.failed[key.hash] = failure
        elif again == record.observations:
            found.same += 1
        else:
            repeatable = make(record.parameters) == (again, "")
            found.differences.append(_describe(key, record, again, observations, repeatable))
    return found


def choose_sample(
    items: Iterable[Item], size: int, chance: random.Random
) -> tuple[list[Item], int]:
    """`size` items, each as likely as any other, and how many there were.

    Keeps no more than `size` in memory (algorithm R, Vitter 1985, section 2).
    """
    chosen: list[Item] = []
    count = 0
    for item in items:
        count += 1
        if len(chosen) < size:
            chosen.append(item)
        elif (place := chance.randrange(count)) < size:
            chosen[place] = item
    return chosen, count


def describe_platform() -> str:
    """This machine's platform, in the words of a worker that announces itself."""
    return f"{platform.system().lower()}/{platform.machine()}"


def _describe(
    key: RunKey, record: RunRecord, again: bytes, names: tuple[str, ...], repeatable: bool
) -> Difference:
    import numpy as np

    old = np.frombuffer(record.observations, dtype="<f8")
    new = np.frombuffer(again, dtype="<f8")
    change = np.abs(new - old)
    size = np.abs(old)
    relative = np.divide(change, size, out=np.full(len(old), np.inf), where=size > 0)
    relative[change == 0] = 0.0
    differs = old.view("<i8") != new.view("<i8")
    worst = int(np.argmax(np.where(differs, relative, -1.0)))
    return Difference(
        hash=key.hash,
        count=int(np.count_nonzero(differs)),
        observation=names[worst],
        cached=float(old[worst]),
        again=float(new[worst]),
        platform=str(record.about.get("platform", "")),
        repeatable=repeatable,
    )
