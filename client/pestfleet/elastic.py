"""Fleets that grow and shrink with the runs: how many workers, and which of them may go.

More workers come at once when runs wait. Fewer are wanted only after a while in which fewer were
needed, so that a fleet stays between the batches of an engine; and at once where the runs under way
still take long, for an engine asks for more when it has them all. Workers that are too many are
drained first: they finish what they have, and then their target ends them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pestfleet.desk import WorkerState

# Seconds. What a worker costs that waits so long is what it costs to start another later.
IDLE = 60.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A fleet as it should be: how many workers, and those that shall take no new run."""

    workers: int
    draining: frozenset[str]


class _Peak:
    """The highest value within the last `span` seconds."""

    def __init__(self, span: float) -> None:
        self._span = span
        self._values: deque[tuple[float, int]] = deque()  # falling, each newer than the one before

    def add(self, now: float, value: int) -> int:
        while self._values and self._values[-1][1] <= value:
            self._values.pop()
        self._values.append((now, value))
        while len(self._values) > 1 and self._values[0][0] <= now - self._span:
            self._values.popleft()
        return self._values[0][1]

    def forget(self) -> None:
        self._values.clear()


class Elastic:
    """How many workers the runs need. It asks nobody, and changes nothing."""

    def __init__(
        self,
        least: int,
        most: int,
        idle: float = IDLE,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`idle`: seconds in which fewer workers were needed, before there are fewer."""
        self.least = least
        self.most = most
        self.idle = idle
        self.clock = clock
        self._needed = _Peak(idle)
        self._began: float | None = None

    def fix(self, workers: int) -> None:
        """Have that many, whatever the runs need."""
        self.least = self.most = workers

    def decide(
        self, runs: int, slots: int, workers: Sequence[WorkerState], run_seconds: float = 0.0
    ) -> Wanted:
        """`runs`: that wait, or are made; `slots`: of each worker; `workers`: who is there.

        `run_seconds`: what a run takes, 0 where nobody knows yet.
        """
        now = self.clock()
        if self._began is None:
            self._began = now
        if find_time_left(runs, workers, run_seconds) > self.idle:
            self._needed.forget()  # too long to wait for an engine that may want more then
        peak = self._needed.add(now, -(-runs // slots))
        # After a restart of the master nobody knows yet what the workers there were needed for.
        young = now - self._began < self.idle
        wanted = min(max(peak, self.least, len(workers) if young else 0), self.most)
        # First those that have nothing to do. Of the others, whoever is drained stays so; a worker
        # that runs something finishes that.
        surplus = sorted(workers, key=lambda w: (w.running > 0, not w.draining, w.running, w.name))
        count = max(0, len(workers) - wanted)
        return Wanted(wanted, frozenset(worker.name for worker in surplus[:count]))


def find_time_left(runs: int, workers: Sequence[WorkerState], run_seconds: float) -> float:
    """Seconds until the last of these runs is made, if each takes `run_seconds`, at the least."""
    behind = [state.seconds for w in workers for state in w.states if state.run is not None]
    if not runs:
        return 0.0
    return run_seconds - (min(behind) if len(behind) >= runs else 0.0)


class FleetScaler:
    """Brings a session's fleet to what the policy wants, a step at each call of `step`."""

    def __init__(
        self,
        policy: Elastic,
        *,
        size: int,
        slots: int,
        drain: Callable[[Collection[str]], None],
        scale: Callable[[int, Collection[str]], None],
    ) -> None:
        """`size`: workers that were launched. `drain`: the desk's, `scale`: the target's."""
        self.policy = policy
        self.size = size
        self._slots = slots
        self._drain = drain
        self._scale = scale
        self._there = _Peak(policy.idle)
        self._draining: frozenset[str] = frozenset()
        self._ended: set[str] = set()  # workers that the target was told to end

    def step(self, runs: int, workers: Sequence[WorkerState], run_seconds: float = 0.0) -> None:
        """`runs`: that wait, or are made; `workers`: who is there; `run_seconds`: of a run."""
        wanted = self.policy.decide(runs, self._slots, workers, run_seconds)
        there = self._there.add(self.policy.clock(), len(workers))
        if wanted.draining != self._draining:
            self._draining = wanted.draining
            self._drain(wanted.draining)
        drained = {w.name for w in workers if w.drained and w.name in wanted.draining}
        self._ended &= drained
        new = drained - self._ended
        # Those that have not come for a while are not waited for; all others are drained first.
        size = max(wanted.workers, min(self.size - len(new), there))
        if size == self.size and not new:
            return
        self.size = size
        self._ended |= drained
        self._scale(size, tuple(sorted(drained)))
