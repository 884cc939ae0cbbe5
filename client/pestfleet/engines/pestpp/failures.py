"""Keeps why runs failed: the engine itself is told a line that it writes into its .rmr only."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable

from pestfleet.engines.base import RunService
from pestfleet_worker.messages import CaseSpec, Result


class WatchedService:
    """A run service that counts the failures of another one by their reason."""

    def __init__(self, service: RunService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._failures: Counter[str] = Counter()

    @property
    def failures(self) -> dict[str, int]:
        """Reason -> runs. A copy."""
        with self._lock:
            return dict(self._failures)

    @property
    def spec(self) -> CaseSpec:
        return self._service.spec

    @property
    def slots(self) -> int:
        return self._service.slots

    def request(self, parameters: bytes, on_result: Callable[[Result], None]) -> int:
        def take(result: Result) -> None:
            if result.failure is not None and result.failure.reason != "cancelled":
                with self._lock:
                    self._failures[str(result.failure)] += 1
            on_result(result)

        return self._service.request(parameters, take)

    def cancel(self, runs: Iterable[int]) -> None:
        self._service.cancel(runs)

    def check_stop(self) -> None:
        self._service.check_stop()
