"""A worker: announces itself, gets its run config from the master's desk, and makes runs.

Threads: Celery's event loop (main), one a slot, the outbox, and the pulse, which sends
heartbeats and ends the worker when the master is gone. Every way out goes through `_leave`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

from pestfleet_worker.agent_duty import AgentDuty
from pestfleet_worker.channel import RUN_TASK, Queues, count_deliveries, make_app, pack
from pestfleet_worker.consumer import end_loop
from pestfleet_worker.control import (
    ControlStep,
    await_run_config,
    follow_control,
    make_announcement,
)
from pestfleet_worker.draining import Drainage
from pestfleet_worker.endpoint import read_endpoint
from pestfleet_worker.errors import ConfigurationError, PestfleetError
from pestfleet_worker.health import Health
from pestfleet_worker.kits import KitQuota
from pestfleet_worker.messages import (
    Cancel,
    Drain,
    Failure,
    Farewell,
    GivenBack,
    Heartbeat,
    MasterBeat,
    MessageError,
    Refusal,
    Result,
    Run,
    RunConfig,
    SlotState,
    Stop,
    decode,
)
from pestfleet_worker.outbox import Outbox, Ticket
from pestfleet_worker.processes import Guardian
from pestfleet_worker.protection import Protection
from pestfleet_worker.runs import Outcome
from pestfleet_worker.workplace import Workplace, find_source

logger = logging.getLogger(__name__)

# Exit codes of a worker; docs/exit-codes.md says what a target does with each.
SESSION_OVER = 0
BROKEN = 1
REFUSED = 10
MASTER_GONE = 11
SENT_AWAY = 12

GLANCE = 0.5  # seconds; a run that lasts longer is told before the next heartbeat is due
LAST_WORDS = 5.0  # seconds for the broker to take what a leaving worker still has to say


class Worker:
    """One worker with its slots. `serve` returns the process's exit code."""

    def __init__(
        self,
        url: str,
        session: str,
        *,
        name: str,
        slots: int,
        scratch: Path,
        digest: str = "",
        source: Path | None = None,
        health_port: int = 0,
    ) -> None:
        if slots < 1:
            raise ConfigurationError(f"a worker has at least 1 slot, not {slots}")
        read_endpoint(url)
        self.name = name
        # Of this process alone: what carries it is killed when the process is gone.
        self._process = uuid.uuid4().hex
        self._mark = f"{session}/{name}/{self._process}"
        self._url = url
        self._session = session
        self._queues = Queues(session)
        self._health = Health(scratch, port=health_port)
        self._digest = digest
        self._source = source
        self._place = Workplace(scratch, name=name, process=self._process, count=slots)
        self._drainage = Drainage(self._queues.runs.name)
        self._protection = Protection.find()
        self._config: RunConfig | None = None
        self._kits = KitQuota()
        self._running: dict[int, tuple[int, float]] = {}  # slot -> run, when it began
        self._cancelled: set[int] = set()
        self._met = ""  # the last master that was new
        self._finished = 0
        self._silence = 0.0
        self._exit_code: int | None = None
        self._refused = ""  # why the broker does not want us
        self._leaving = threading.Event()
        self._ended = threading.Event()
        self._celery: Any = None
        self._duty: AgentDuty | None = None

    def serve(self) -> int:
        """Work until the session is over, the master is gone, or `leave` is called."""
        self._outbox = Outbox(self._url, on_refused=self._give_up, on_beat=self._health.touch)
        try:
            with closing(Guardian.start(self._mark)):
                config = self._announce_until_configured()
                if config is not None and config.mode == "agent":
                    self._serve_agents(config)
                elif config is not None:
                    self._prepare_slots(config)
                    self._serve_runs(config)
        except PestfleetError as error:
            self._say(Farewell(self.name, error.message))
            logger.error("%s", error)
            self._exit_code = REFUSED
        except Exception as error:
            self._say(Farewell(self.name, f"{type(error).__name__}: {error}"))
            # The last line is what a target shows.
            logger.exception("the worker is broken")
            logger.error("%s: %s", type(error).__name__, error)
            self._exit_code = BROKEN
        finally:
            self._leaving.set()
            self._ended.set()
            self._protection.close()
            self._outbox.close(timeout=0.0 if self._refused else LAST_WORDS)
            self._place.remove()
            self._health.remove()
        if self._refused:
            logger.error("%s", self._refused)  # the last line is what a target shows
        # Only the end of the session may look like success: a target replaces the others.
        return BROKEN if self._exit_code is None else self._exit_code

    def leave(self, exit_code: int, reason: str) -> None:
        """End the worker, from any thread: runs in hand are given back to the fleet."""
        if self._leaving.is_set():
            return
        logger.info("leaving: %s", reason)
        self._exit_code = exit_code
        self._leaving.set()
        threading.Thread(target=self._leave, args=(reason,), daemon=True).start()

    def _give_up(self, reason: str) -> None:
        self._refused = f"{reason}; check the user, the password and the rights in the URL"
        self.leave(REFUSED, reason)

    # -- joining -------------------------------------------------------------------------------

    def announce(self) -> None:
        """Say who we are; the desk answers with the run config."""
        self._say(make_announcement(self.name, slots=self._place.count, digest=self._digest))

    def _announce_until_configured(self) -> RunConfig | None:
        answer = await_run_config(
            self._url, self._queues, name=self.name, announce=self.announce, leaving=self._leaving
        )
        if isinstance(answer, Stop):
            self._exit_code = SESSION_OVER
            return None
        self._config = answer
        return answer

    def _prepare_slots(self, config: RunConfig) -> None:
        source = find_source(config, self._source)
        self._place.prepare(config, source=source, mark=self._mark)

    # -- keeping agents ------------------------------------------------------------------------

    def _serve_agents(self, config: RunConfig) -> None:
        self._duty = AgentDuty(
            config,
            source=find_source(config, self._source),
            directories=[self._place.directory_of(slot) for slot in range(self._place.count)],
            mark=self._mark,
            name=self.name,
        )
        try:
            self._duty.configure(config.agent)
            threading.Thread(target=self._keep_pulse, args=(config,), daemon=True).start()
            follow_control(
                self._url,
                self._queues,
                name=self.name,
                announce=self.announce,
                on_message=self._on_control,
                leaving=self._leaving,
            )
        finally:
            self._duty.stop()

    # -- making runs ---------------------------------------------------------------------------

    def _serve_runs(self, config: RunConfig) -> None:
        app = make_app(self._url, self._session)
        app.set_default()  # Celery looks for the task in the default app, in the slot's thread
        app.task(self._make_task(config), name=RUN_TASK, bind=True, acks_late=True)
        app.steps["consumer"].add(
            ControlStep.bind(self._queues, self.name, self._on_control, self.announce)
        )
        self._celery = app.WorkController(
            pool="threads",
            concurrency=self._place.count,
            hostname=self.name,
            without_mingle=True,
            without_gossip=True,
            without_heartbeat=True,
        )
        threading.Thread(target=self._keep_pulse, args=(config,), daemon=True).start()
        self._celery.start()

    def _make_task(self, config: RunConfig) -> Any:
        def make_run(task: Any, data: bytes) -> None:
            try:
                run = decode(data)
            except MessageError as error:
                logger.error("a run that cannot be read is dropped: %s", error)
                return
            deliveries = count_deliveries(vars(task.request))
            if deliveries >= config.limits.deliveries:
                killed = Failure.of_killed_workers(run.id, deliveries)
                self._answer(run, 0, Outcome(b"", killed, 0.0))
            else:
                self._make_run(run)

        return make_run

    def _make_run(self, run: Run) -> None:
        number = self._place.free.get()
        try:
            self._running[number] = (run.id, time.monotonic())
            # While it drains: what the broker had sent before it knew.
            if run.id in self._cancelled or self._leaving.is_set() or self._drainage.active:
                del self._running[number]
                self._give_back(run)
                return
            try:
                outcome = self._place.slots[number].execute(run.parameters)
            except Exception as error:  # a defect of ours must not lose the run
                logger.exception("run %d", run.id)
                failure = Failure("worker-error", f"{type(error).__name__}: {error}")
                outcome = Outcome(b"", failure, 0.0)
            finally:
                del self._running[number]
            # "Cancelled" may have been meant for the run that was in this slot a moment before.
            unmade = outcome.failure is not None and outcome.failure.reason == "cancelled"
            if outcome.failure is not None and (self._leaving.is_set() or unmade):
                self._give_back(run)
                return
            if outcome.failure is not None:
                outcome = self._place.slots[number].add_kit(outcome, run, self._kits)
            self._answer(run, number, outcome)
        finally:
            self._place.free.put(number)

    def _answer(self, run: Run, slot: int, outcome: Outcome) -> None:
        """Send the result; return when the broker has it, so that the run may be acknowledged."""
        ticket = self._say_of_run(outcome.make_result(run, worker=self.name, slot=slot))
        while not ticket.wait(1.0):
            if self._ended.is_set() or self._refused:
                # Unacknowledged, the broker gives the run to another worker.
                raise SystemExit
        self._finished += 1

    def _give_back(self, run: Run) -> None:
        """Have the master send the run afresh: leaving in good order is no failed delivery."""
        if run.id in self._cancelled:
            return
        if not self._say_of_run(GivenBack(run.id, self.name)).wait(LAST_WORDS):
            raise SystemExit

    def _say_of_run(self, answer: Result | GivenBack) -> Ticket:
        return self._outbox.publish(pack(self._queues.address_of(self._queues.results), answer))

    # -- being led -----------------------------------------------------------------------------

    def _on_control(self, message: Any) -> None:
        self._silence = 0.0
        if isinstance(message, Cancel):
            self._cancelled.update(message.runs)
            self._kill_cancelled()
        elif isinstance(message, RunConfig):
            self._take_config(message)
        elif isinstance(message, Refusal):
            self.leave(MASTER_GONE, f"the next master refused this worker: {message.reason}")
        elif isinstance(message, MasterBeat) and self._config is not None:
            if message.master != self._config.master:
                self._meet(message.master)
        elif isinstance(message, Drain) and self._celery is not None:
            self._drainage.switch(self.name in message.workers, self._celery.consumer)
        elif isinstance(message, Stop) and message.worker in ("", self.name):
            self.leave(SESSION_OVER, message.reason)

    def _meet(self, master: str) -> None:
        """A new master's desk answers with its run config. Its runs may have the ids of others."""
        if master != self._met:
            self._met = master
            self._cancelled.clear()
        self.announce()

    def _take_config(self, config: RunConfig) -> None:
        """Go on with a master that came after ours, where it asks for the same."""
        if self._config is not None and not self._config.asks_the_same(config):
            self.leave(MASTER_GONE, "the session has another run config now")
            return
        self._config = config
        if self._duty is not None:
            self._duty.configure(config.agent)

    def _keep_pulse(self, config: RunConfig) -> None:
        try:
            self._beat(config)
        except Exception as error:  # without a pulse nobody would end this worker
            logger.exception("the pulse stopped")
            self.leave(BROKEN, f"{type(error).__name__}: {error}")

    def _beat(self, config: RunConfig) -> None:
        before = sent = time.monotonic()
        while not self._leaving.wait(min(config.heartbeat, GLANCE)):
            now = time.monotonic()
            # A frozen worker must not take its own sleep for the master's silence.
            self._silence += min(now - before, 2 * config.heartbeat)
            before = now
            if self._silence > (self._config or config).master_timeout:
                self.leave(MASTER_GONE, f"no sign of the master for {self._silence:.0f} s")
                return
            if self._drainage.forgotten:
                self.leave(SENT_AWAY, "drained, and nobody has ended this worker")
                return
            drained = self._drainage.update(bool(self._running))
            self._health.hide(self._drainage.drained)
            self._protection.update(busy=bool(self._running), drained=self._drainage.drained)
            if drained or now - sent >= config.heartbeat or self._has_news(sent, now):
                sent = now
                self._say_heartbeat(now)
            self._kill_cancelled()  # one that was just about to start when it was cancelled

    def _has_news(self, sent: float, now: float) -> bool:
        """Has a run begun, of those that last a while, since the last heartbeat?"""
        return any(sent < began < now - GLANCE for _, began in list(self._running.values()))

    def _say_heartbeat(self, now: float) -> None:
        if self._duty is not None:
            states, finished = self._duty.states(), self._duty.starts
        else:
            slots = range(self._place.count)
            states = tuple(self._slot_state(number, now) for number in slots)
            finished = self._finished
        drainage = self._drainage
        self._say(Heartbeat(self.name, states, finished, drainage.active, drainage.drained))

    def _kill_cancelled(self) -> None:
        for number, (run, _) in list(self._running.items()):
            if run in self._cancelled:
                self._place.slots[number].cancel()

    def _slot_state(self, number: int, now: float) -> SlotState:
        run, began = self._running.get(number, (None, now))
        return SlotState(run, now - began)

    # -- leaving -------------------------------------------------------------------------------

    def _leave(self, reason: str) -> None:
        deadline = threading.Timer(4 * LAST_WORDS, self._drop_everything)
        deadline.daemon = True
        deadline.start()
        over = self._exit_code == SESSION_OVER  # nobody hands out runs any more
        if over:
            self._cancelled.update(run for run, _ in list(self._running.values()))
        elif (consumer := getattr(self._celery, "consumer", None)) is not None:
            self._drainage.switch(True, consumer)
        self._say(Farewell(self.name, reason))
        while self._running:
            for number in list(self._running):
                self._place.slots[number].cancel()
            time.sleep(0.02)  # a run that was just about to start does not notice
        end_loop(self._celery, self._exit_code, patience=0.0 if over else LAST_WORDS)

    def _drop_everything(self) -> None:
        logger.error("could not leave in time; the broker gives the runs in hand to others")
        if self._refused:
            logger.error("%s", self._refused)
        for slot in self._place.slots:
            slot.cancel()
        os._exit(MASTER_GONE if self._exit_code is None else self._exit_code)

    def _say(self, message: Any) -> None:
        address = self._queues.address_of(self._queues.desk)
        self._outbox.publish(pack(address, message, persistent=False))
