"""What a master looks at while its engine works, and what makes it end the session.

Requests of the user, workers and broker that do not come, an elastic fleet, the session's limits.
None of it waits for the engine, which may compute for long between two batches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol

from pestfleet.costs.meter import Budget, Meter
from pestfleet.elastic import Elastic, FleetScaler
from pestfleet.fleet import Fleet
from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.targets.base import Target
from pestfleet_worker.errors import (
    Interrupted,
    LimitReached,
    PestfleetError,
    SentAway,
    SessionError,
)

logger = logging.getLogger(__name__)

BROKER_SILENCE = 5.0  # seconds without the broker after which the user is told
NO_WORKERS = 30.0  # seconds without any worker after which the user is told
STEP = 1.0  # seconds between two looks at the size of the fleet


class Teller(Protocol):
    """Where the user hears of it."""

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


class Requests:
    """What the user asks of the master: by a signal, or by a file in the session's folder."""

    def __init__(self, folder: SessionFolder, spec: SessionSpec, *, keep_workers: bool) -> None:
        """`keep_workers`: a signal ends the master, and not the session."""
        self._folder = folder
        self._spec = spec
        self._keep_workers = keep_workers
        self.interrupted = threading.Event()

    def check(self) -> None:
        """Raises `Interrupted` or `SentAway`."""
        if self._folder.stop_requested:
            raise self.make_interrupted()
        if self.interrupted.is_set():
            raise self.make_sent_away() if self._keep_workers else self.make_interrupted()

    def make_interrupted(self) -> Interrupted:
        name = self._folder.name
        if self._spec.mode == "agent":
            return Interrupted(
                f"session {name} was stopped; its agents' runs are in the engine's files only",
                remedy=f"Start the engine anew with: pestfleet resume {self._folder.words}",
            )
        return Interrupted(
            f"session {name} was stopped; its finished runs are kept",
            remedy=f"Go on with: pestfleet resume {self._folder.words}",
        )

    def make_sent_away(self) -> SentAway:
        return SentAway(
            f"this master of session {self._folder.name} was told to end; its workers wait for "
            "the next one",
            remedy="Start the same command again, or end the session with: pestfleet stop "
            f"{self._folder.words}",
        )


class Limits:
    """Ends a session that wants no runs any more, or has had its hours."""

    def __init__(
        self,
        folder: SessionFolder,
        spec: SessionSpec,
        *,
        began: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`began`: when the session was launched, by this clock."""
        self._spec = spec
        self._name = folder.name
        self._remedy = f"Go on with: pestfleet resume {folder.words}"
        self._clock = clock
        self._wanted = clock()  # when runs were wanted last
        self._end = began + 3600 * spec.max_hours if spec.max_hours else float("inf")

    def check(self, runs: int) -> None:
        """`runs`: that wait, or are made. Raises `LimitReached`."""
        now = self._clock()
        if now >= self._end:
            raise LimitReached(
                f"session {self._name} has had its {self._spec.max_hours:g} hours (max_hours) and "
                "was stopped; its finished runs are kept",
                remedy=self._remedy,
            )
        # In agent mode nobody but the engine knows of its runs.
        if runs or self._spec.mode == "agent":
            self._wanted = now
        minutes = self._spec.idle_minutes
        if minutes and now - self._wanted >= 60 * minutes:
            raise LimitReached(
                f"session {self._name} has wanted no run for {minutes:g} minutes (idle_minutes) "
                f"and was stopped; does {self._spec.engine} hang? Its finished runs are kept",
                remedy=self._remedy,
            )


class Spending:
    """Counts what a session costs, and ends one that has cost its budget."""

    def __init__(
        self, folder: SessionFolder, spec: SessionSpec, meter: Meter | None, teller: Teller
    ) -> None:
        """`meter`: None where nobody knows of prices."""
        self._name = folder.name
        self._words = folder.words
        self._meter = meter
        self._budget = Budget(spec.budget)
        self._teller = teller
        if spec.budget and meter is None:
            teller.warn(f"nobody knows what {spec.target} costs: the budget ends nothing")

    def check(self, workers: Collection[str]) -> None:
        """`workers`: names of those that are there. Raises `LimitReached`."""
        if self._meter is None:
            return
        self._meter.look(workers)
        spent, budget = self._meter.launch_dollars, self._budget.dollars
        state = self._budget.check(spent)
        if state == "nearly":
            hourly = self._meter.hourly
            self._teller.warn(
                f"{spent:.2f} of the budget of {budget:.2f} USD are spent, {hourly:.2f} USD/h now"
            )
        elif state == "spent":
            raise LimitReached(
                f"session {self._name} has cost {spent:.2f} USD, its budget is {budget:.2f} USD "
                "(budget); it was stopped, its finished runs are kept",
                remedy=f"Go on, with as much once more: pestfleet resume {self._words}",
            )


class Watch:
    """Looks after a session's fleet. `look` raises what ends the session."""

    def __init__(
        self,
        folder: SessionFolder,
        spec: SessionSpec,
        *,
        fleet: Fleet,
        target: Target,
        requests: Requests,
        limits: Limits,
        teller: Teller,
        meter: Meter | None = None,
        find_run_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`meter`: counts what the session costs; None where it is free.

        `find_run_seconds`: what a run takes so far, on the average; 0 before the first.
        """
        self._folder = folder
        self._fleet = fleet
        self._target = target
        self._requests = requests
        self._limits = limits
        self._teller = teller
        self._slots = spec.slots
        self._find_run_seconds = find_run_seconds
        self._spending = Spending(folder, spec, meter, teller)
        self._wanted = spec.workers
        self._scaler = self._make_scaler(spec.workers, spec.most) if spec.most else None
        # Where no worker that has runs is ended, those that are too many must be drained.
        self._drains = spec.mode == "queue" and getattr(target, "protects_runs", False)
        self._end: BaseException | None = None
        self._broker_away = False
        self._workers_seen = self._stepped = time.monotonic()

    @property
    def workers_wanted(self) -> int:
        return self._wanted

    def check(self) -> None:
        """For the engine, from any thread. Raises why it shall end."""
        if self._end is not None:
            raise self._end

    def end(self, error: BaseException) -> None:
        """Have the engine end, for that reason."""
        if isinstance(error, SentAway):
            self._fleet.leave()  # before the engine cancels its runs
        mild = isinstance(error, PestfleetError)
        self._end = error if mild else self._requests.make_interrupted()

    def look(self) -> None:
        """Raises what ends the session."""
        self._requests.check()
        if not self._folder.path.is_dir():
            raise SessionError(f"the session's folder {self._folder.path} has vanished")
        self._limits.check(self._fleet.outstanding)
        self._spending.check([worker.name for worker in self._fleet.desk.workers])
        workers = self._folder.take_workers_request()
        if workers is not None:
            self._take_request(workers)
        self._target.check()
        self._fleet.check()
        self._watch_broker()
        self._watch_workers()
        now = time.monotonic()
        if self._scaler is not None and now - self._stepped >= STEP:
            self._stepped = now
            there = self._fleet.desk.workers
            self._scaler.step(self._fleet.outstanding, there, self._find_run_seconds())

    def _take_request(self, workers: int) -> None:
        self._teller.note(f"{workers} workers are wanted now")
        if self._scaler is not None:
            self._scaler.policy.fix(workers)
            return
        self._scale(workers, ())
        if self._drains:
            self._scaler = self._make_scaler(workers, workers)

    def _make_scaler(self, least: int, most: int) -> FleetScaler:
        return FleetScaler(
            Elastic(least, most),
            size=least,
            slots=self._slots,
            drain=self._fleet.desk.drain,
            scale=self._scale,
        )

    def _scale(self, workers: int, surplus: Collection[str]) -> None:
        self._wanted = workers
        logger.info("scaling to %d workers; %d are drained", workers, len(surplus))
        self._target.scale(workers, surplus)

    def _watch_broker(self) -> None:
        trouble = self._fleet.broker_trouble
        if trouble is None and self._broker_away:
            self._broker_away = False
            self._teller.note("the broker is there again")
        elif trouble is not None and trouble[0] > BROKER_SILENCE and not self._broker_away:
            self._broker_away = True
            self._teller.warn(f"the broker does not answer, trying again: {trouble[1]}")

    def _watch_workers(self) -> None:
        now = time.monotonic()
        if self._fleet.slots:
            self._workers_seen = now
        elif now - self._workers_seen > NO_WORKERS:
            self._workers_seen = now
            self._teller.warn(
                f"no worker is there for {NO_WORKERS:.0f} s; see their logs (pestfleet logs)"
            )
