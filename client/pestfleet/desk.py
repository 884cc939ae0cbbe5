"""The master's desk: workers announce themselves here and get the session's run config."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pestfleet_worker.messages import (
    Announce,
    Farewell,
    Heartbeat,
    Refusal,
    RunConfig,
    SlotState,
)

# Heartbeat intervals without a word after which a worker counts as lost.
PATIENCE = 6


@dataclass(slots=True)
class WorkerState:
    """What the desk knows of a worker. `heard`: seconds on the monotonic clock."""

    name: str
    host: str
    process: int
    slots: int
    platform: str
    heard: float
    finished: int = 0
    states: tuple[SlotState, ...] = ()
    lost: bool = False


@dataclass(frozen=True, slots=True)
class DeskEvents:
    """What the desk tells: a worker came, or went (with the reason)."""

    joined: Callable[[WorkerState], None]
    left: Callable[[WorkerState, str], None]
    refused: Callable[[str, str], None]


@dataclass(slots=True)
class Desk:
    """Knows the session's workers. `send(worker, message)` answers one of them."""

    config: RunConfig
    send: Callable[[str, RunConfig | Refusal], object]
    events: DeskEvents
    _workers: dict[str, WorkerState] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def receive(self, message: Announce | Heartbeat | Farewell) -> None:
        """Take a message from a worker."""
        with self._lock:
            if isinstance(message, Announce):
                self._admit(message)
                return
            worker = self._workers.get(message.worker)
            if worker is None:
                return  # of a worker that was declared lost; it announces itself again
            if isinstance(message, Farewell):
                self._remove(worker, message.reason)
                return
            worker.heard = time.monotonic()
            worker.states = message.slots
            worker.finished = message.finished

    def _admit(self, message: Announce) -> None:
        if message.digest and message.digest != self.config.case.digest:
            reason = (
                f"its image holds case {message.digest[:12]}, this session's case is "
                f"{self.config.case.digest[:12]}; build the image again"
            )
            self.send(message.worker, Refusal(reason))
            self.events.refused(message.worker, reason)
            return
        self.send(message.worker, self.config)
        if message.worker not in self._workers:
            worker = WorkerState(
                name=message.worker,
                host=message.host,
                process=message.process,
                slots=message.slots,
                platform=message.platform,
                heard=time.monotonic(),
            )
            self._workers[message.worker] = worker
            self.events.joined(worker)

    def _remove(self, worker: WorkerState, reason: str) -> None:
        del self._workers[worker.name]
        self.events.left(worker, reason)

    def drop_silent(self) -> list[WorkerState]:
        """Forget the workers that have been silent too long; returns them."""
        limit = time.monotonic() - PATIENCE * self.config.heartbeat
        with self._lock:
            silent = [worker for worker in self._workers.values() if worker.heard < limit]
            for worker in silent:
                worker.lost = True
                self._remove(worker, f"silent for {PATIENCE * self.config.heartbeat:.0f} s")
        return silent

    @property
    def workers(self) -> list[WorkerState]:
        with self._lock:
            return list(self._workers.values())

    @property
    def slots(self) -> int:
        """Slots of the workers that are there."""
        return sum(worker.slots for worker in self.workers)
