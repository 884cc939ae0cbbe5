"""Makes an embedded engine's runs on the fleet, a batch at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pestfleet.control.model import ControlFile
from pestfleet.engines.base import Matrix, RunSet
from pestfleet.ledger import RunLedger
from pestfleet_worker.messages import Result

POLL = 0.2  # seconds between looks at a request to stop


@dataclass(slots=True)
class Batch:
    """Runs that an engine waits for. `known` of them were not made for it."""

    purpose: str
    total: int
    done: int = 0
    failed: int = 0
    known: int = 0


class FleetRunner:
    """The `Runner` of a session. `on_batch` is told of each batch when it begins."""

    def __init__(
        self, ledger: RunLedger, control: ControlFile, *, on_batch: Callable[[Batch], None]
    ) -> None:
        self._ledger = ledger
        self._on_batch = on_batch
        self._scale = np.array([p.scale for p in control.parameters])
        self._offset = np.array([p.offset for p in control.parameters])
        self._observations = len(control.observations)
        self.batch = Batch("", 0)

    @property
    def slots(self) -> int:
        return max(1, self._ledger.slots)

    def run(self, parameters: Matrix, *, purpose: str, names: Sequence[str] = ()) -> RunSet:
        """Make the runs; see `Runner.run`."""
        vectors = self._to_vectors(parameters)
        batch = Batch(purpose, len(vectors))
        observations = np.full((len(vectors), self._observations), np.nan)
        failures: dict[int, str] = {}
        changed = threading.Condition()

        def take(row: int, result: Result) -> None:
            with changed:
                if result.failure is None:
                    observations[row] = np.frombuffer(result.observations, dtype="<f8")
                else:
                    failures[row] = str(result.failure)
                    batch.failed += 1
                batch.done += 1
                if batch.done == batch.total:
                    changed.notify_all()

        known = self._ledger.counts.known
        requests = [
            self._ledger.request(vector, partial(take, row), name=names[row] if names else "")
            for row, vector in enumerate(vectors)
        ]
        batch.known = self._ledger.counts.known - known
        self.batch = batch
        self._on_batch(batch)
        try:
            with changed:
                while batch.done < batch.total:
                    changed.wait(POLL)
                    self._ledger.check_stop()
        except BaseException:
            self._ledger.cancel(requests)
            raise
        return RunSet(observations, failures)

    def _to_vectors(self, parameters: Matrix) -> list[bytes]:
        # Adding 0.0 turns -0.0 into 0.0: equal values must be one run.
        model = np.ascontiguousarray(parameters * self._scale + self._offset + 0.0, dtype="<f8")
        return [row.tobytes() for row in model]
