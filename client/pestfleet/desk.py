"""The master's desk: workers announce themselves here and get the session's run config."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from pestfleet_worker.messages import (
    AgentSpec,
    Announce,
    Drain,
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
    """What the desk knows of a worker. `heard`: seconds on the monotonic clock.

    `silence`: seconds without a word from it in which the desk could have heard one. `draining`:
    it was told to take no new run; `drained`: it has none in hand, either.
    """

    name: str
    host: str
    process: int
    slots: int
    platform: str
    heard: float
    silence: float = 0.0
    finished: int = 0
    states: tuple[SlotState, ...] = ()
    lost: bool = False
    draining: bool = False
    drained: bool = False

    @property
    def running(self) -> int:
        """Runs that it had in hand when it was heard last."""
        return sum(state.run is not None for state in self.states)


@dataclass(frozen=True, slots=True)
class DeskEvents:
    """What the desk tells: a worker came, or went (with the reason)."""

    joined: Callable[[WorkerState], None]
    left: Callable[[WorkerState, str], None]
    refused: Callable[[str, str], None]


@dataclass(slots=True)
class Desk:
    """Knows the session's workers. `send(worker, message)` answers one of them.

    Events are told without the desk's lock: whoever hears them may look at the desk.
    """

    config: RunConfig
    send: Callable[[str, RunConfig | Refusal | Drain], object]
    events: DeskEvents
    _workers: dict[str, WorkerState] = field(default_factory=dict)
    _departed: set[str] = field(default_factory=set)  # said farewell
    _drained: frozenset[str] = frozenset()  # those that shall take no run
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def receive(self, message: Announce | Heartbeat | Farewell) -> None:
        """Take a message from a worker."""
        if isinstance(message, Announce):
            self._admit(message)
        elif isinstance(message, Heartbeat):
            self._note(message)
        else:
            self.lose(message.worker, message.reason)

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
        worker = WorkerState(
            name=message.worker,
            host=message.host,
            process=message.process,
            slots=message.slots,
            platform=message.platform,
            heard=time.monotonic(),
        )
        with self._lock:
            self._departed.discard(message.worker)
            before = self._workers.get(message.worker)
            if before is not None:  # it came back over a new connection
                worker.finished, worker.states = before.finished, before.states
                worker.draining, worker.drained = before.draining, before.drained
            self._workers[message.worker] = worker
        if before is None:
            self.events.joined(worker)

    def _note(self, message: Heartbeat) -> None:
        with self._lock:
            if message.worker in self._departed:
                return  # sent before it left
            worker = self._workers.get(message.worker)
            new = worker is None
            if worker is None:
                # It was given up too early, or it outlived an earlier master of the session.
                worker = WorkerState(message.worker, "", 0, len(message.slots), "", 0.0)
                self._workers[message.worker] = worker
            worker.heard = time.monotonic()
            worker.silence = 0.0
            worker.states = message.slots
            worker.finished = message.finished
            wanted = message.worker in self._drained
            worker.draining = wanted
            worker.drained = wanted and message.drained
        if message.draining != wanted:  # it has not heard of it, or from a master before us
            self.send(message.worker, Drain((message.worker,) if wanted else ()))
        if new:
            self.events.joined(worker)

    def lose(self, name: str, reason: str) -> None:
        """Forget a worker that said farewell, or that its target has seen end."""
        with self._lock:
            self._departed.add(name)
            worker = self._workers.pop(name, None)
        if worker is not None:
            self.events.left(worker, reason)

    def hand_out(self, agent: AgentSpec | None) -> None:
        """Have all workers run these agents, or none; those that come later too."""
        with self._lock:
            self.config = replace(self.config, agent=agent)
            names = list(self._workers)
        for name in names:
            self.send(name, self.config)

    def drain(self, names: Collection[str]) -> None:
        """Have these workers take no new run, and all others work on."""
        with self._lock:
            before, self._drained = self._drained, frozenset(names)
            changed = before ^ self._drained
            for name in changed & self._workers.keys():
                self._workers[name].draining = name in self._drained
                self._workers[name].drained = False
        for name in sorted(changed):
            self.send(name, Drain((name,) if name in names else ()))

    def drop_silent(self, elapsed: float) -> list[WorkerState]:
        """Forget the workers that have been silent too long; returns them.

        `elapsed`: seconds since the last call in which a word of theirs would have been heard.
        """
        limit = PATIENCE * self.config.heartbeat
        with self._lock:
            for worker in self._workers.values():
                worker.silence += elapsed
            silent = [worker for worker in self._workers.values() if worker.silence > limit]
            for worker in silent:
                worker.lost = True
                del self._workers[worker.name]
        for worker in silent:
            self.events.left(worker, f"silent for {limit:.0f} s")
        return silent

    @property
    def workers(self) -> list[WorkerState]:
        with self._lock:
            return list(self._workers.values())

    @property
    def slots(self) -> int:
        """Slots of the workers that are there."""
        return sum(worker.slots for worker in self.workers)
