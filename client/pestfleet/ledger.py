"""Accounts for a session's runs: each parameter vector is made once, kept, and answered.

The ledger stands between engines and fleet. A vector that the session, or the run cache, knows
is answered at once; one that is under way already is waited for together; every finished run
goes into the journal before anybody hears of it.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from pestfleet.fleet import Fleet
from pestfleet.journal import Journal
from pestfleet.kits import KitFolder
from pestfleet_worker.errors import SessionError
from pestfleet_worker.messages import CaseSpec, Failure, Result, Run

logger = logging.getLogger(__name__)

OnResult = Callable[[Result], None]


class RunStore(Protocol):
    """Finished runs beyond this session. Neither verb raises."""

    def lookup(self, parameters: bytes) -> bytes | None:
        """The observations of that parameter vector, if they are known."""
        ...

    def store(self, parameters: bytes, observations: bytes, seconds: float) -> None:
        """Keep a successful run; `seconds` is how long it took."""
        ...


@dataclass(slots=True)
class Counts:
    """Of requests: asked for, answered, of these from memory. Of runs: made, of these failed."""

    requested: int = 0
    answered: int = 0
    known: int = 0
    made: int = 0
    failed: int = 0
    seconds: float = 0.0  # of all successful runs

    @property
    def mean_seconds(self) -> float:
        """Mean duration of the successful runs, in seconds; 0 before the first."""
        successful = self.made - self.failed
        return self.seconds / successful if successful else 0.0


@dataclass(slots=True)
class _Flight:
    """A run that is under way, and who waits for it: request -> callback.

    `name`: what who asked first calls it.
    """

    run: int = 0
    name: str = ""
    waiting: dict[int, OnResult] = field(default_factory=dict)


class RunLedger:
    """The `RunService` of a session. All methods may be called from any thread.

    `finished`: parameters -> observations that need not be made again; grows with every success.
    """

    def __init__(
        self,
        fleet: Fleet,
        spec: CaseSpec,
        journal: Journal,
        *,
        finished: dict[bytes, bytes],
        check_stop: Callable[[], None],
        store: RunStore | None = None,
        kits: KitFolder | None = None,
    ) -> None:
        self._fleet = fleet
        self._spec = spec
        self._journal = journal
        self._finished = finished
        self._check_stop = check_stop
        self._store = store
        self._kits = kits
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._flights: dict[bytes, _Flight] = {}
        self._vectors: dict[int, bytes] = {}  # request -> parameters, while under way
        self._broken: OSError | None = None
        self.counts = Counts()

    @property
    def spec(self) -> CaseSpec:
        return self._spec

    @property
    def slots(self) -> int:
        return self._fleet.slots

    def request(self, parameters: bytes, on_result: OnResult, *, name: str = "") -> int:
        """See `RunService.request`. `name`: what the user calls the run; for the journal."""
        number = next(self._numbers)
        stored = self._look_up(parameters)
        with self._lock:
            self.counts.requested += 1
            known = self._finished.get(parameters, stored)
            if known is None:
                self._wait_for(parameters, number, on_result, name)
            else:
                self.counts.answered += 1
                self.counts.known += 1
        if known is not None:
            on_result(Result(number, "", 0, 0.0, known))
        return number

    def cancel(self, runs: Iterable[int]) -> None:
        """See `RunService.cancel`. A run that others wait for goes on."""
        unwanted = []
        with self._lock:
            for number in runs:
                parameters = self._vectors.pop(number, None)
                if parameters is None:
                    continue  # answered already
                self.counts.requested -= 1
                flight = self._flights[parameters]
                del flight.waiting[number]
                if not flight.waiting:
                    del self._flights[parameters]
                    unwanted.append(flight.run)
        self._fleet.cancel(unwanted)

    def check_stop(self) -> None:
        """Raises when the session must stop: the user, the target, or a full disk wants it."""
        self._check_stop()
        if self._broken is not None:
            raise SessionError(
                f"the journal cannot be written: {self._broken}",
                remedy="Make room on the disk, then resume the session.",
            )

    def _look_up(self, parameters: bytes) -> bytes | None:
        if self._store is None or parameters in self._finished:
            return None
        observations = self._store.lookup(parameters)
        return observations if observations and len(observations) == self._size else None

    def _wait_for(self, parameters: bytes, number: int, on_result: OnResult, name: str) -> None:
        self._vectors[number] = parameters
        flight = self._flights.get(parameters)
        if flight is None:
            flight = self._flights[parameters] = _Flight(name=name)
            flight.run = self._fleet.submit(parameters, self._take)
        flight.waiting[number] = on_result

    @property
    def _size(self) -> int:
        return 8 * len(self._spec.observations)

    def _take(self, run: Run, result: Result) -> None:
        self._account(run, result)

    def _account(self, run: Run, result: Result) -> int:
        """Keep and answer a result; returns the run that the fleet has for these parameters."""
        result = self._check(result)
        with self._lock:
            name = self._flights.get(run.parameters, _Flight()).name
        kit_lost = ""
        if result.kit:
            kit_lost = self._kits.keep(run.id, result) if self._kits is not None else ""
        result = replace(result, kit=b"", parameters=b"")  # engines may keep results for long
        try:
            self._journal.write_run(run, result, name=name, kit_lost=kit_lost)
        except OSError as error:
            self._broken = error
            return run.id
        if result.failure is None and self._store is not None:
            self._store.store(run.parameters, result.observations, result.seconds)
        with self._lock:
            self.counts.made += 1
            if result.failure is None:
                self._finished[run.parameters] = result.observations
                self.counts.seconds += result.seconds
            else:
                self.counts.failed += 1
            flight = self._flights.pop(run.parameters, _Flight())
            self.counts.answered += len(flight.waiting)
            for number in flight.waiting:
                del self._vectors[number]
        for number, on_result in flight.waiting.items():
            on_result(replace(result, id=number))
        return flight.run

    def adopt(self, result: Result) -> None:
        """A result of a run that an earlier master of this session wanted.

        Nobody asked us for it, or somebody did meanwhile, and then no worker need make it again.
        """
        run = Run(result.id, result.parameters)
        if result.failure is not None or len(result.observations) != self._size:
            return  # whoever wants this run gets an answer of its own
        with self._lock:
            if run.parameters in self._finished:
                return
        self._fleet.cancel([self._account(run, result)])

    def _check(self, result: Result) -> Result:
        if result.failure is not None or len(result.observations) == self._size:
            return result
        text = f"worker {result.worker} sent {len(result.observations)} bytes, not {self._size}"
        logger.error("%s", text)
        return replace(result, observations=b"", failure=Failure("worker-error", text))
