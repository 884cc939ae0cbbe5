"""The master's side of the channel: accepts runs, gives each exactly one result.

Runs may be delivered, made and answered more than once (workers die, networks are cut); the
first answer to a run counts and later ones are dropped here.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from kombu import Connection

from pestfleet.desk import Desk, DeskEvents, WorkerState
from pestfleet.inbox import Inbox
from pestfleet_worker.channel import Queues, make_app, pack, pack_run
from pestfleet_worker.errors import ChannelError
from pestfleet_worker.messages import (
    Announce,
    Cancel,
    Farewell,
    GivenBack,
    Heartbeat,
    MasterBeat,
    Result,
    Run,
    RunConfig,
    Stop,
)
from pestfleet_worker.outbox import Outbox, Ticket

logger = logging.getLogger(__name__)

# Runs in the channel at a time; what more there is waits here, where it takes little memory.
LEAST_IN_CHANNEL, RUNS_A_SLOT = 500, 4

# Seconds without the broker after which the session ends; its finished runs are kept.
BROKER_PATIENCE = 600.0
# Seconds after which the queues are declared again: one that nobody uses expires (`ABANDONED`).
RENEWAL = 600.0

OnResult = Callable[[Run, Result], None]
OnEarlier = Callable[[Result], None]


class Fleet:
    """A session's workers, seen from the master. All methods may be called from any thread."""

    def __init__(
        self,
        url: str,
        config: RunConfig,
        events: DeskEvents,
        *,
        first_run: int = 1,
        take_over: bool = False,
    ) -> None:
        """Connect and open the desk. Run ids count up from `first_run`.

        `take_over`: what workers have answered, or will, to an earlier master of the same session
        and case counts: `adopt` gets it. Its run ids must be below `first_run`.
        """
        config = replace(config, master=uuid.uuid4().hex)
        self._queues = Queues(config.session, owner=True)
        self._app = make_app(url, config.session)
        self._lock = threading.Lock()
        self._wanted: dict[int, tuple[Run, OnResult]] = {}
        self._backlog: deque[Run] = deque()
        self._in_channel: set[int] = set()
        self._first_run = self._next_run = first_run
        self._take_over = take_over
        self._earlier: list[Result] = []
        self._on_earlier: OnEarlier | None = None
        self._leaving = False
        self._master = config.master
        self._declared = threading.Event()
        self._failure: Exception | None = None
        self._connection: Connection | None = None  # the outbox's, for its thread alone
        self._renewed = 0.0
        self._outbox = Outbox(
            url, on_connect=self._declare, on_refused=self._give_up, on_beat=self._renew
        )
        self.desk = Desk(config, self._send_to_worker, events)
        self._inbox = Inbox(url, self._queues, self._take, declared=self._declared)
        self._closing = threading.Event()
        self._beat_interval = config.heartbeat
        self._beating = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._beating.start()

    @property
    def slots(self) -> int:
        return self.desk.slots

    @property
    def outstanding(self) -> int:
        """Runs that were asked for and have no result yet."""
        return len(self._wanted)

    @property
    def broker_trouble(self) -> tuple[float, str] | None:
        """For how many seconds the broker has been away, and why; None when it is there."""
        trouble = self._outbox.trouble
        return None if trouble is None else (time.monotonic() - trouble[0], trouble[1])

    def check(self) -> None:
        """Raise what keeps the fleet from ever giving its results, if there is something."""
        if self._failure is not None:
            raise self._failure
        trouble = self.broker_trouble
        if trouble is not None and trouble[0] > BROKER_PATIENCE:
            raise ChannelError(
                f"the broker has been away for {trouble[0]:.0f} s: {trouble[1]}",
                remedy="Finished runs are kept: resume the session when it is back.",
            )

    def submit(self, parameters: bytes, on_result: OnResult) -> int:
        """Ask for a run; `on_result(run, result)` is called once, from the inbox's thread."""
        with self._lock:
            run = Run(self._next_run, parameters)
            self._next_run += 1
            self._wanted[run.id] = (run, on_result)
            self._backlog.append(run)
        self._fill_channel()
        return run.id

    def adopt(self, on_earlier: OnEarlier) -> None:
        """Who gets, from the inbox's thread, the results of runs that an earlier master wanted."""
        with self._lock:
            self._on_earlier, earlier = on_earlier, self._earlier
            self._earlier = []
        for result in earlier:
            on_earlier(result)

    def leave(self) -> None:
        """From now on nothing is cancelled: the next master takes workers and runs over."""
        self._leaving = True

    def stay(self) -> None:
        """The reverse of `leave`: the session has come to its end all the same."""
        self._leaving = False

    def cancel(self, runs: Iterable[int]) -> None:
        """These runs are not wanted any more; no result of theirs is reported."""
        if self._leaving:
            return
        with self._lock:
            unwanted = tuple(run for run in runs if self._wanted.pop(run, None))
            self._in_channel.difference_update(unwanted)
        if unwanted:
            self._broadcast(Cancel(unwanted))

    def _fill_channel(self) -> None:
        """Keep as many runs in the channel as the slots need for a while, not more."""
        window = max(LEAST_IN_CHANNEL, RUNS_A_SLOT * self.desk.slots)
        with self._lock:
            while self._backlog and len(self._in_channel) < window:
                run = self._backlog.popleft()
                if run.id in self._wanted:
                    self._in_channel.add(run.id)
                    self._outbox.publish(pack_run(self._app, run))

    def close(self, reason: str) -> None:
        """The session is over: workers stop, the queues go. After `leave`, both stay."""
        self._closing.set()
        if self._leaving:
            self._inbox.close()  # first: what it has in hand is kept
            self._outbox.close()
            return
        with self._lock:
            self._wanted.clear()
            self._backlog.clear()
            self._in_channel.clear()
        self._broadcast(Stop(reason))
        self._inbox.close()
        self._outbox.close()
        if self._outbox.trouble is None:
            self._delete_queues()

    def _broadcast(self, message: Any) -> Ticket:
        return self._outbox.publish(pack(self._queues.everybody, message, persistent=False))

    def _send_to_worker(self, worker: str, message: Any) -> None:
        address = self._queues.address_of_worker(worker)
        self._outbox.publish(pack(address, message, persistent=False))

    def _take(self, message: Any) -> None:
        try:
            self._receive(message)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Keep what went wrong in a thread of ours for `check`, which the engine's thread calls."""
        logger.exception("the fleet failed")
        self._failure = self._failure or error

    def _give_up(self, reason: str) -> None:
        self._failure = self._failure or ChannelError(
            reason, remedy="Check the user, the password and the rights in the broker's URL."
        )

    def _receive(self, message: Any) -> None:
        if isinstance(message, GivenBack):
            self._send_again(message.id)
        elif isinstance(message, Result):
            with self._lock:
                wanted = self._wanted.get(message.id)
                if wanted is not None and message.parameters not in (b"", wanted[0].parameters):
                    # Of a worker that an earlier master of this id has left behind.
                    logger.warning("run %d came back with other parameters: dropped", message.id)
                    return
                self._wanted.pop(message.id, None)
                self._in_channel.discard(message.id)
            self._fill_channel()
            if wanted is not None:
                run, on_result = wanted
                on_result(run, message)
            elif self._take_over and message.id < self._first_run:
                self._take_earlier(message)
        elif isinstance(message, Announce | Heartbeat | Farewell):
            self.desk.receive(message)
        else:
            logger.error("the desk got a %s message", message.kind)

    def _take_earlier(self, result: Result) -> None:
        with self._lock:
            on_earlier = self._on_earlier
            if on_earlier is None:
                self._earlier.append(result)
        if on_earlier is not None:
            on_earlier(result)

    def _beat(self) -> None:
        before, beat = time.monotonic(), self._broadcast(MasterBeat(self._master))
        while not self._closing.wait(self._beat_interval):
            # Neither our own sleep nor the broker's may count as the workers' silence.
            now = time.monotonic()
            elapsed, before = min(now - before, 2 * self._beat_interval), now
            heard = beat.wait(0) and self._inbox.listening
            try:
                if heard:
                    self.desk.drop_silent(elapsed)
                if beat.wait(0):
                    beat = self._broadcast(MasterBeat(self._master))
            except Exception as error:
                self._fail(error)

    def _declare(self, connection: Connection) -> None:
        """Make the queues; at first empty them, later notice a broker that has lost them."""
        lost = self._declared.is_set() and not self._is_declared(connection)
        channel = connection.channel()
        # `runs` comes last, and with it the exchange `control`, which workers wait for.
        results = self._queues.results
        for queue in (results, self._queues.desk, self._queues.runs):
            queue(channel).declare()
            if not self._declared.is_set() and not (self._take_over and queue is results):
                # Left by a master that died; the runs are asked for again, under new ids.
                queue(channel).purge()
        channel.close()
        self._connection, self._renewed = connection, time.monotonic()
        self._declared.set()
        if lost:
            self._publish_again()

    def _renew(self) -> None:
        """The queue of runs is used by workers only, and perhaps none has come for an hour."""
        if self._connection is not None and time.monotonic() - self._renewed > RENEWAL:
            self._declare(self._connection)

    def _is_declared(self, connection: Connection) -> bool:
        channel = connection.channel()
        try:
            for queue in (self._queues.results, self._queues.runs):
                queue(channel).queue_declare(passive=True)
        except connection.channel_errors:
            return False
        channel.close()
        return True

    def _send_again(self, run: int) -> None:
        """A worker gave it back: as a fresh message its deliveries count from the start."""
        with self._lock:
            wanted = self._wanted.get(run) if run in self._in_channel else None
        if wanted is not None:
            self._outbox.publish(pack_run(self._app, wanted[0]))

    def _publish_again(self) -> None:
        with self._lock:
            wanted = [self._wanted[run][0] for run in sorted(self._in_channel)]
        logger.warning("the broker has lost its queues; %d runs are sent again", len(wanted))
        for run in wanted:
            self._outbox.publish(pack_run(self._app, run))

    def _delete_queues(self) -> None:
        try:
            with self._app.connection_for_write() as connection:
                connection.connect()
                channel = connection.channel()
                for queue in (self._queues.runs, self._queues.results, self._queues.desk):
                    queue(channel).delete()
                for exchange in (self._queues.control, self._queues.answers):
                    exchange(channel).delete()
        except Exception as error:  # the session is over all the same
            logger.warning("the session's queues stay until the broker expires them: %s", error)


__all__ = ["DeskEvents", "Fleet", "OnResult", "WorkerState"]
