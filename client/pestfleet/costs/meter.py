"""What a session has cost so far, as its master counts it, and its budget.

Workers that are there × time × their price, and the rest × time: from the launch on, also while
there was no master. What was counted is in the session's state, so the next master goes on with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pestfleet.costs.plan import FREE_ZONE_HOURS, START_SECONDS, WORKER

WARN_AT = 0.8  # of the budget
# Seconds without a master that are paid for at the most: the lease of its machines is not longer.
LONGEST_GAP = 1200.0


class Meter:
    """Counts. `look` is called often, with the workers that are there."""

    def __init__(
        self,
        prices: Mapping[str, float],
        *,
        launched: float = 0.0,
        before: Mapping[str, Any] | None = None,
        known: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`prices`: of `SessionSpec`. `launched`: when this launch of the session began.

        `before`: what the session's last master had counted (`to_json`), and `known`: the workers
        that it had. A time without a master counts, unless that had ended the session.
        """
        self._prices = prices
        self._clock = clock
        before = before or {}
        self._worker_seconds = float(before.get("worker_seconds", 0.0))
        self._seconds = float(before.get("seconds", 0.0))
        self._workers = int(before.get("workers", 0))
        self._known = set(known)
        self._last = clock()
        self._launched = launched
        same = bool(before) and before.get("launched") == launched
        # A session that is resumed has its budget once more.
        self._before = float(before.get("usd_before", 0.0)) if same else self.dollars
        if not before:
            self._before = 0.0
        if launched and not same:  # what the launch took until now
            self._seconds += max(0.0, self._last - launched)
        last = float(before.get("time", 0.0))
        if last and not before.get("ended"):
            self._add(min(max(0.0, self._last - last), LONGEST_GAP))

    def look(self, workers: Collection[str]) -> float:
        """Count the time since the last look; returns the dollars so far.

        `workers`: the names of those that are there. A new one is paid for from before it came on,
        `START_SECONDS`.
        """
        now = self._clock()
        self._add(max(0.0, now - self._last))  # a clock that is set back pays nothing back
        self._last = now
        new = set(workers) - self._known
        self._known |= new
        self._worker_seconds += START_SECONDS * len(new)
        self._workers = len(workers)
        return self.dollars

    def _add(self, seconds: float) -> None:
        self._seconds += seconds
        self._worker_seconds += seconds * self._workers

    @property
    def dollars(self) -> float:
        prices = self._prices
        late = prices.get("late", 0.0) if self._seconds > 3600 * FREE_ZONE_HOURS else 0.0
        return (
            self._worker_seconds / 3600 * prices.get(WORKER, 0.0)
            + self._seconds / 3600 * prices.get("rest", 0.0)
            + prices.get("once", 0.0)
            + late
        )

    @property
    def launch_dollars(self) -> float:
        """Of this launch alone: what counts for its budget."""
        return self.dollars - self._before

    @property
    def hourly(self) -> float:
        """Dollars an hour, with the workers of the last look."""
        return self._workers * self._prices.get(WORKER, 0.0) + self._prices.get("rest", 0.0)

    def to_json(self, *, ended: bool = False) -> dict[str, Any]:
        """For the session's state. `ended`: its workers are gone."""
        return {
            "usd": round(self.dollars, 4),
            "usd_an_hour": 0.0 if ended else round(self.hourly, 4),
            "worker_seconds": round(self._worker_seconds, 1),
            "seconds": round(self._seconds, 1),
            "workers": 0 if ended else self._workers,
            "time": round(self._last, 1),
            "launched": self._launched,
            "usd_before": self._before,
            "ended": ended,
        }


def keep_cost(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a state tells of the costs of earlier launches, as the state before a new one has it.

    Nothing of it is paid by the hour any more; {} where nothing was counted.
    """
    cost = state.get("cost")
    return {"cost": {**cost, "usd_an_hour": 0.0}} if cost else {}


class Budget:
    """Says when it is nearly spent, once, and when it is."""

    def __init__(self, dollars: float) -> None:
        """`dollars`: for each launch of a session; 0 is no budget."""
        self.dollars = dollars
        self._warned = False

    def check(self, spent: float) -> str:
        """`spent`, `nearly` (the first time), or ""."""
        if not self.dollars:
            return ""
        if spent >= self.dollars:
            return "spent"
        if spent >= WARN_AT * self.dollars and not self._warned:
            self._warned = True
            return "nearly"
        return ""

    def find_seconds_left(self, meter: Meter) -> float:
        """For how long it lasts with the workers of now; for the lease of their machines."""
        left = max(0.0, self.dollars - meter.launch_dollars)
        if not self.dollars or not meter.hourly:
            return float("inf")
        return 3600 * left / meter.hourly


def resume_meter(
    prices: Mapping[str, float], state: Mapping[str, Any], *, launched: float
) -> Meter | None:
    """A meter that goes on from the session's last state; None for a session that is free."""
    if not prices:
        return None
    known = [worker["name"] for worker in state.get("workers", ())]
    return Meter(prices, launched=launched, before=state.get("cost"), known=known)
