"""What a session has cost: paid worker time, model time, and dollars, by its journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pestfleet.costs.plan import FREE_ZONE_HOURS, START_SECONDS, WORKER


@dataclass(frozen=True, slots=True)
class CostReport:
    """Seconds and US dollars so far. `dollars`: by item, such as `worker/fargate-vcpu-hour`.

    `worker_seconds`: of all workers, from their start to their end; `slot_seconds`: that, times the
    slots of each; `model_seconds`: of all runs that were answered, also those that failed.
    """

    workers: int
    runs: int
    seconds: float
    worker_seconds: float
    slot_seconds: float
    model_seconds: float
    dollars: Mapping[str, float] = field(default_factory=dict)
    paid: bool = True

    @property
    def ratio(self) -> float | None:
        """Paid time of slots / model time; None before the first run."""
        return self.slot_seconds / self.model_seconds if self.model_seconds else None

    @property
    def total(self) -> float:
        return sum(self.dollars.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "workers": self.workers,
            "runs": self.runs,
            "seconds": round(self.seconds, 1),
            "worker_seconds": round(self.worker_seconds, 1),
            "slot_seconds": round(self.slot_seconds, 1),
            "model_seconds": round(self.model_seconds, 1),
            "paid_to_model": None if self.ratio is None else round(self.ratio, 4),
            "usd": round(self.total, 4) if self.paid else None,
            "usd_by_item": {name: round(value, 4) for name, value in self.dollars.items()},
        }


@dataclass(slots=True)
class _Stay:
    """A worker that is there."""

    since: float
    slots: int


@dataclass(slots=True)
class _Account:
    """Adds a journal's events up."""

    start_seconds: float
    workers: int = 0
    runs: int = 0
    model: float = 0.0
    worker: float = 0.0
    slot: float = 0.0
    session: float = 0.0
    _began: float | None = None
    _last: float = 0.0
    _ended: float = 0.0
    _there: dict[str, _Stay] = field(default_factory=dict)
    # Those that an earlier master had when it was heard last; they may come back to this one.
    _left: dict[str, _Stay] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        kind, now = event["event"], float(event.get("time") or self._last)
        if kind == "start":
            self._start(now)
        elif kind == "worker-joined":
            self._join(str(event["worker"]), int(event.get("slots", 1)), now)
        elif kind == "worker-left":
            self._close(self._there.pop(str(event["worker"]), None), now)
        elif kind == "run":
            self.runs += 1
            self.model += float(event.get("seconds", 0.0))
        elif kind == "end":
            self.finish(now)
        self._last = max(self._last, now)

    def _start(self, now: float) -> None:
        if self._began is None:
            self._began = now
        self._close_left()
        self._left, self._there = self._there, {}
        self._ended = self._last

    def _join(self, name: str, slots: int, now: float) -> None:
        if name in self._there:
            return
        known = self._left.pop(name, None)
        if known is None:
            self.workers += 1
            known = _Stay(now - self.start_seconds, slots)
        self._there[name] = known

    def _close(self, stay: _Stay | None, now: float) -> None:
        if stay is not None:
            seconds = max(0.0, now - stay.since)
            self.worker += seconds
            self.slot += seconds * stay.slots

    def _close_left(self) -> None:
        """They never came back: they ended with their master, as far as anybody knows."""
        for stay in self._left.values():
            self._close(stay, self._ended)
        self._left = {}

    def finish(self, now: float) -> None:
        """No worker is there any more, or nobody looks further."""
        self._close_left()
        for stay in self._there.values():
            self._close(stay, now)
        self._there = {}
        if self._began is not None:
            self.session += max(0.0, now - self._began)
            self._began = None


def make_report(
    events: Iterable[Mapping[str, Any]],
    prices: Mapping[str, float],
    *,
    now: float | None = None,
) -> CostReport:
    """The cost of a session until its end, or until `now` where it runs.

    `prices`: of `SessionSpec`; without any, the session was free, as far as pestfleet knows.
    """
    account = _Account(START_SECONDS if prices else 0.0)
    for event in events:
        account.take(event)
    account.finish(max(account._last, now or 0.0))
    return CostReport(
        workers=account.workers,
        runs=account.runs,
        seconds=account.session,
        worker_seconds=account.worker,
        slot_seconds=account.slot,
        model_seconds=account.model,
        dollars=_count_dollars(prices, account.worker / 3600, account.session / 3600),
        paid=bool(prices),
    )


def _count_dollars(
    prices: Mapping[str, float], worker_hours: float, hours: float
) -> dict[str, float]:
    found: dict[str, float] = {}
    for role, length in ((WORKER, worker_hours), ("rest", hours)):
        items = {name: rate for name, rate in prices.items() if name.startswith(f"{role}/")}
        for name, rate in (items or {role: prices.get(role, 0.0)}).items():
            found[name] = rate * length
    found["once"] = prices.get("once", 0.0)
    found["late"] = prices.get("late", 0.0) if hours > FREE_ZONE_HOURS else 0.0
    return {name: dollars for name, dollars in found.items() if dollars}
