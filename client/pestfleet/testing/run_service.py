"""A fleet without workers: a Python function makes the runs."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from pestfleet_worker.messages import CaseSpec, Failure, Result, pack_vector, unpack_vector

Model = Callable[[Sequence[float]], "Sequence[float] | Failure"]
OnResult = Callable[[Result], None]


def make_spec(parameters: Sequence[str], observations: Sequence[str]) -> CaseSpec:
    """A case that has names only."""
    return CaseSpec("fake", "0" * 64, tuple(parameters), tuple(observations), (), (), ())


class FakeRunService:
    """A `RunService` of `slots` slots, each of which takes `seconds` for a run.

    `model` gets parameters and gives observations, or a `Failure`, both in `spec`'s order.
    With `seconds` 0 a run is answered before `request` returns, as one from the cache is; else
    by a thread, which starts with the context (`with FakeRunService(...) as service`).
    `slots` may be changed at any time. A cancelled run frees its slot and is never answered.
    """

    def __init__(
        self, spec: CaseSpec, model: Model, *, slots: int = 1, seconds: float = 0.0
    ) -> None:
        self.spec = spec
        self.slots = slots
        self.seconds = seconds
        self.requested: list[bytes] = []
        self.cancelled: list[int] = []
        self.busiest = 0  # most runs under way at a time
        self._model = model
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[bytes, OnResult]] = {}
        self._busy: dict[int, tuple[bytes, OnResult]] = {}
        self._ends: list[tuple[float, int]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="fake fleet", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def request(self, parameters: bytes, on_result: OnResult) -> int:
        """See `RunService.request`."""
        number = next(self._numbers)
        self.requested.append(parameters)
        if not self.seconds:
            on_result(self._make(number, parameters))
            return number
        with self._changed:
            self._waiting[number] = (parameters, on_result)
            self._changed.notify_all()
        return number

    def cancel(self, runs: Iterable[int]) -> None:
        """See `RunService.cancel`."""
        with self._changed:
            for number in runs:
                self.cancelled.append(number)
                self._waiting.pop(number, None)
                self._busy.pop(number, None)
            self._changed.notify_all()

    def check_stop(self) -> None:
        """See `RunService.check_stop`: nobody stops this one."""

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                self._fill_slots()
                wait = self._ends[0][0] - time.monotonic() if self._ends else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                run = self._busy.pop(number := heapq.heappop(self._ends)[1], None)
            if run is not None:
                run[1](self._make(number, run[0]))

    def _fill_slots(self) -> None:
        while self._waiting and len(self._busy) < self.slots:
            number = next(iter(self._waiting))
            self._busy[number] = self._waiting.pop(number)
            heapq.heappush(self._ends, (time.monotonic() + self.seconds, number))
            self.busiest = max(self.busiest, len(self._busy))

    def _make(self, number: int, parameters: bytes) -> Result:
        made = self._model(unpack_vector(parameters))
        if isinstance(made, Failure):
            return Result(number, "fake", 0, self.seconds, failure=made)
        return Result(number, "fake", 0, self.seconds, pack_vector(made))
