"""Makes an engine's runs on the fleet, each parameter vector once in a session."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pestfleet.control.model import ControlFile
from pestfleet.engines.base import Matrix, RunSet
from pestfleet.fleet import Fleet
from pestfleet.journal import Journal
from pestfleet_worker.errors import SessionError
from pestfleet_worker.messages import Failure, Result, Run

POLL = 0.2  # seconds between looks at a request to stop


@dataclass(slots=True)
class Batch:
    """Runs that an engine waits for. Counts rows, not distinct runs."""

    purpose: str
    total: int
    done: int = 0
    failed: int = 0
    known: int = 0  # taken from the journal or from an earlier batch


@dataclass(slots=True)
class _Pending:
    observations: Matrix
    failures: dict[int, str] = field(default_factory=dict)


class FleetRunner:
    """The `Runner` of a session.

    `finished`: parameters -> observations of runs that need not be made again; grows with
    every success. `check_stop` raises when the user wants the session to stop.
    """

    def __init__(
        self,
        fleet: Fleet,
        control: ControlFile,
        journal: Journal,
        *,
        finished: dict[bytes, bytes],
        check_stop: Callable[[], None],
        on_batch: Callable[[Batch], None],
    ) -> None:
        self._fleet = fleet
        self._journal = journal
        self._finished = finished
        self._check_stop = check_stop
        self._on_batch = on_batch
        self._scale = np.array([p.scale for p in control.parameters])
        self._offset = np.array([p.offset for p in control.parameters])
        self._observations = len(control.observations)
        self._changed = threading.Condition()
        self._broken: OSError | None = None
        self.batch = Batch("", 0)
        self.made = 0
        self.failed = 0
        self._seconds = 0.0  # of all successful runs

    @property
    def slots(self) -> int:
        return max(1, self._fleet.slots)

    @property
    def mean_seconds(self) -> float:
        """Mean duration of the successful runs, in seconds; 0 before the first."""
        successful = self.made - self.failed
        return self._seconds / successful if successful else 0.0

    def run(self, parameters: Matrix, *, purpose: str) -> RunSet:
        """Make the runs; see `Runner.run`."""
        vectors = self._to_vectors(parameters)
        batch = self.batch = Batch(purpose, len(vectors))
        pending = _Pending(np.full((len(vectors), self._observations), np.nan))
        rows: dict[bytes, list[int]] = {}
        for row, vector in enumerate(vectors):
            known = self._finished.get(vector)
            if known is None:
                rows.setdefault(vector, []).append(row)
            else:
                pending.observations[row] = np.frombuffer(known, dtype="<f8")
                batch.done += 1
                batch.known += 1
        self._journal.write("batch", purpose=purpose, runs=batch.total, known=batch.known)
        self._on_batch(batch)

        def on_result(run: Run, result: Result) -> None:
            self._take(run, result, rows[run.parameters], batch, pending)

        submitted = [self._fleet.submit(vector, on_result) for vector in rows]
        try:
            with self._changed:
                while batch.done < batch.total:
                    self._changed.wait(POLL)
                    self._check_stop()
                    if self._broken is not None:
                        raise SessionError(
                            f"the journal cannot be written: {self._broken}",
                            remedy="Make room on the disk, then resume the session.",
                        )
        except BaseException:
            self._fleet.cancel(submitted)
            raise
        return RunSet(pending.observations, pending.failures)

    def _to_vectors(self, parameters: Matrix) -> list[bytes]:
        # Adding 0.0 turns -0.0 into 0.0: equal values must be one run.
        model = np.ascontiguousarray(parameters * self._scale + self._offset + 0.0, dtype="<f8")
        return [row.tobytes() for row in model]

    def _take(
        self, run: Run, result: Result, rows: list[int], batch: Batch, pending: _Pending
    ) -> None:
        result = self._check(result)
        try:
            self._journal.write_run(run, result)
        except OSError as error:
            self._broken = error
            return
        with self._changed:
            if result.failure is None:
                self._seconds += result.seconds
                self._finished[run.parameters] = result.observations
                pending.observations[rows] = np.frombuffer(result.observations, dtype="<f8")
            else:
                pending.failures.update(dict.fromkeys(rows, str(result.failure)))
                batch.failed += len(rows)
                self.failed += 1
            self.made += 1
            batch.done += len(rows)
            if batch.done == batch.total:
                self._changed.notify_all()

    def _check(self, result: Result) -> Result:
        expected = 8 * self._observations
        if result.failure is not None or len(result.observations) == expected:
            return result
        text = f"worker {result.worker} sent {len(result.observations)} bytes, not {expected}"
        return replace(result, observations=b"", failure=Failure("worker-error", text))
