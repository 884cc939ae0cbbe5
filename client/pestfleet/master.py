"""Hosts a session: its engine, its desk, its broker when it has no other, and its target."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pestfleet.bookkeeping import keep_case, keep_state, log_to
from pestfleet.case import Case
from pestfleet.costs.meter import Meter, resume_meter
from pestfleet.desk import DeskEvents, WorkerState
from pestfleet.engine_thread import run_engine
from pestfleet.engines import load_engine
from pestfleet.engines.base import AgentService, Job
from pestfleet.fleet import Fleet
from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.host import OnEvent, Outcome
from pestfleet.journal import Journal, read_finished_runs, read_journal
from pestfleet.kits import KitFolder
from pestfleet.ledger import Counts, RunLedger, RunStore
from pestfleet.lobby import check_broker
from pestfleet.runner import Batch, FleetRunner
from pestfleet.snapshot import take_snapshot
from pestfleet.targets import make_target
from pestfleet.targets.base import FleetPlan, Site, Target
from pestfleet.watch import Limits as SessionLimits
from pestfleet.watch import Requests, Watch
from pestfleet_worker.errors import (
    ChannelError,
    Interrupted,
    PestfleetError,
    RunsFailedError,
    SentAway,
    SessionError,
)
from pestfleet_worker.messages import CaseSpec, Limits, RunConfig

if TYPE_CHECKING:
    from pestfleet.relay import FleetAgents

logger = logging.getLogger(__name__)

NO_CACHE = "none"
HEARTBEAT = 2.0  # seconds between the heartbeats of a worker
# Seconds for which workers wait for their master: own broker, which ends with it; one of the
# user's; and for the next master, which may take a while where a machine is replaced.
OWN_BROKER, OTHER_BROKER, NEXT_MASTER = 12.0, 120.0, 900.0
BROKER_PAUSE = 0.5  # seconds between two looks for a broker that starts


class Master:
    """One session's master. `host` runs it to its end, in the calling thread."""

    def __init__(
        self,
        folder: SessionFolder,
        spec: SessionSpec,
        *,
        broker_url: str = "",
        site: Site | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        """`on_event` gets each journal event but `run`, from any thread.

        `site`: where the workers are, when that is not the target on this machine.
        """
        self._folder = folder
        self._spec = spec
        self._broker_url = broker_url
        self._site = site or Site(lambda plan: make_target(spec.target, plan))
        self._on_event = on_event
        self._state = "running"
        self._began = time.time()
        self._requests = Requests(folder, spec, keep_workers=self._site.keep_workers)
        self._fleet: Fleet | None = None
        self._ledger: RunLedger | None = None
        self._runner: FleetRunner | None = None
        self._target: Target | None = None
        self._iteration: dict[str, Any] = {}
        self._agents: FleetAgents | None = None
        self._watch: Watch | None = None
        self._meter: Meter | None = None

    def interrupt(self) -> None:
        """Ask the session to stop, or this master where workers are kept. From any thread."""
        self._requests.interrupted.set()

    def host(self) -> Outcome:
        """Run the session. Raises only for what keeps it from starting at all."""
        self._folder.acquire()
        with ExitStack() as stack:
            stack.callback(self._folder.release)
            began = self._site.began or self._began
            state = self._folder.read_state()
            self._meter = resume_meter(self._spec.prices, state, launched=began)
            try:
                stack.enter_context(log_to(self._folder.log))
                finished, first_run = self._read_past()
                self._journal = stack.enter_context(closing(Journal(self._folder.journal)))
                self._tell(
                    "start",
                    session=self._spec.session,
                    known_runs=len(finished),
                    first_run=first_run,
                )
            except OSError as error:
                raise self._make_unwritable(error) from error
            try:
                with keep_state(self._folder, self.snapshot):
                    summary = self._calibrate(finished, first_run)
            except KeyboardInterrupt:
                return self._end("stopped", error=self._requests.make_interrupted())
            except Interrupted as error:
                return self._end("stopped", error=error)
            except SentAway as error:
                return self._hand_over(error)
            except PestfleetError as error:
                return self._end("failed", error=error)
            except OSError as error:
                logger.exception("the session ended by an error of the system")
                return self._end("failed", error=self._make_unwritable(error))
            except BaseException:
                logger.exception("the session ended by a defect")
                self._end("failed", error=PestfleetError("a defect in pestfleet; see master.log"))
                raise
            return self._end("finished", summary=summary, error=_find_gap(summary))

    def snapshot(self) -> dict[str, Any]:
        """How far the session is, as plain data; the same that state.json has."""
        runner, fleet, ledger, watch = self._runner, self._fleet, self._ledger, self._watch
        return take_snapshot(
            self._spec,
            state=self._state,
            began=self._began,
            iteration=self._iteration,
            batch=runner.batch if runner else Batch("", 0),
            counts=ledger.counts if ledger else Counts(),
            workers=fleet.desk.workers if fleet else [],
            wanted=watch.workers_wanted if watch else self._spec.workers,
            cost=self._meter.to_json(ended=self._state != "running") if self._meter else None,
        )

    # -- the session's life --------------------------------------------------------------------

    def _read_past(self) -> tuple[dict[bytes, bytes], int]:
        """Runs that an earlier master of this session finished, and the next free run id."""
        if not self._folder.journal.exists():
            return {}, 1
        last = 0
        for event in read_journal(self._folder.journal):
            handed_out = event.get({"run": "id", "start": "first_run"}.get(event["event"], ""))
            if isinstance(handed_out, int):
                last = max(last, handed_out)
        # Ids that were handed out but not answered may still come back; stay clear of them.
        return read_finished_runs(self._folder.journal), last + 1_000_000

    def _calibrate(self, finished: dict[bytes, bytes], first_run: int) -> dict[str, Any]:
        spec, folder = self._spec, self._folder
        keep_case(folder, spec)
        case = Case.read(folder.case / Path(spec.control_file).name)
        same_case = case.digest == spec.digest
        if finished and not same_case:
            finished.clear()
            self.warn(f"{folder.case} is not as it was: its runs of before do not count")
        with ExitStack() as stack:
            if self._broker_url:
                self._await_broker()
            url = self._broker_url or self._start_broker(stack)
            config = RunConfig(
                session=spec.session,
                mode=spec.mode,
                case=case.spec,
                limits=Limits(spec.seconds, spec.threads, spec.deliveries),
                source="" if self._site.case_in_image else str(folder.case.resolve()),
                heartbeat=HEARTBEAT,
                master_timeout=self._find_patience(),
            )
            target = self._target = self._launch(stack, url)
            engine = load_engine(spec.engine)  # while the workers start
            events = DeskEvents(self._on_joined, self._on_left, self._on_refused)
            fleet = self._fleet = Fleet(
                url, config, events, first_run=first_run, take_over=same_case and first_run > 1
            )
            stack.callback(fleet.close, "the session is over")
            watch = self._watch = Watch(
                folder,
                spec,
                fleet=fleet,
                target=target,
                requests=self._requests,
                limits=SessionLimits(folder, spec, began=self._site.began or self._began),
                teller=self,
                meter=self._meter,
                find_run_seconds=lambda: self._ledger.counts.mean_seconds if self._ledger else 0.0,
            )
            ledger = self._ledger = RunLedger(
                fleet,
                case.spec,
                self._journal,
                finished=finished,
                check_stop=watch.check,
                store=self._open_cache(stack, case.spec),
                kits=KitFolder(folder, self.warn),
            )
            fleet.adopt(ledger.adopt)
            runner = self._runner = FleetRunner(ledger, case.control, on_batch=self._on_batch)
            job = Job(
                case.control,
                runner,
                self,
                folder.results,
                spec.options,
                engine=spec.engine,
                arguments=tuple(spec.arguments),
                service=ledger,
                agents=self._make_agents(fleet, ledger) if spec.mode == "agent" else None,
            )
            self._tell("engine-started", engine=spec.engine)
            summary = run_engine(engine, job, look=watch.look, end=watch.end)
            fleet.stay()  # an engine that was faster than a signal: it is over for all workers
            return summary

    def _find_patience(self) -> float:
        """For how long workers wait for a sign of their master, in seconds."""
        if not self._broker_url:
            return OWN_BROKER
        return NEXT_MASTER if self._site.keep_workers else OTHER_BROKER

    def _open_cache(self, stack: ExitStack, case: CaseSpec) -> RunStore | None:
        if self._spec.cache == NO_CACHE:
            return None
        from pestfleet.cache import CachedRuns, open_cache
        from pestfleet.cache.rerun import describe_platform

        cache = open_cache(self._spec.cache, on_warning=self.warn)
        stack.callback(cache.close)
        runs = CachedRuns(cache, case, platform=self._site.platform or describe_platform())
        stack.callback(runs.close)
        return runs

    def _make_agents(self, fleet: Fleet, ledger: RunLedger) -> AgentService:
        from pestfleet.relay import FleetAgents

        site = self._site
        agents = self._agents = FleetAgents(
            fleet.desk.hand_out,
            lambda: fleet.slots,
            check_stop=ledger.check_stop,
            host=site.relay_host,
            port=site.relay_port,
            advertised=site.advertised,
            advertised_port=site.advertised_port,
        )
        return agents

    def _await_broker(self) -> None:
        deadline = time.monotonic() + self._site.broker_patience
        told = ""
        while True:
            try:
                check_broker(self._broker_url, self._spec.session)
                return
            except (ChannelError, SessionError) as error:
                if time.monotonic() > deadline:
                    raise
                logger.info("waiting for the broker: %s", error.message)
                # Perhaps it has just died, and the broker does not know that yet.
                if isinstance(error, SessionError) and error.message != told:
                    told = error.message
                    self.note(f"waiting: {told}")
            self._requests.interrupted.wait(BROKER_PAUSE)
            self._requests.check()

    def _start_broker(self, stack: ExitStack) -> str:
        from pestfleet.broker import EmbeddedBroker

        broker = EmbeddedBroker()
        broker.start()
        stack.callback(broker.stop)
        return broker.url

    def _launch(self, stack: ExitStack, url: str) -> Target:
        spec, folder = self._spec, self._folder
        scratch = Path(spec.scratch) if spec.scratch else folder.path / "slots"
        plan = FleetPlan(
            session=spec.session,
            folder=folder.path,
            source=folder.case,
            broker_url=url,
            workers=spec.workers,
            slots=spec.slots,
            scratch=scratch.resolve(),
            on_end=self._on_end,
        )
        target = self._site.make_target(plan)
        stack.callback(shutil.rmtree, folder.path / "slots", ignore_errors=True)
        stack.callback(target.teardown)
        target.launch()
        return target

    def _make_unwritable(self, error: OSError) -> SessionError:
        return SessionError(
            f"session {self._folder.name} cannot go on: {error}",
            remedy="Check the space and the permissions there, then: pestfleet resume "
            f"{self._folder.name}",
        )

    def _hand_over(self, error: SentAway) -> Outcome:
        """End this master; for everybody else the session runs."""
        self._fleet = None
        try:
            self.note(error.message)
            self._folder.write_state(self.snapshot())
        except OSError as unwritable:
            logger.error("the end of this master cannot be written: %s", unwritable)
        return Outcome(self._folder, {}, error)

    def _end(
        self,
        state: str,
        *,
        summary: dict[str, Any] | None = None,
        error: PestfleetError | None = None,
    ) -> Outcome:
        self._state = state
        self._fleet = None
        try:
            self._tell(
                "end",
                state=state,
                summary=summary or {},
                error=error.message if error else "",
                remedy=error.remedy if error else "",
                exit_code=error.exit_code if error else 0,
            )
            self._folder.write_state(self.snapshot())
        except OSError as unwritable:  # it must not hide how the session ended
            logger.error("the end of the session cannot be written: %s", unwritable)
        return Outcome(self._folder, summary or {}, error)

    # -- the engine's report -------------------------------------------------------------------

    def iteration(self, number: int, *, phi: float, **detail: float | int | str) -> None:
        """See `Report.iteration`."""
        self._iteration = {"iteration": number, "phi": phi, "detail": detail}
        self._tell("iteration", number=number, phi=phi, **detail)

    def note(self, text: str) -> None:
        """See `Report.note`."""
        self._tell("note", text=text)

    def warn(self, text: str) -> None:
        """See `Report.warn`."""
        self._tell("warn", text=text)

    def _on_batch(self, batch: Batch) -> None:
        self._tell("batch", purpose=batch.purpose, runs=batch.total, known=batch.known)

    # -- what the desk tells -------------------------------------------------------------------

    def _on_joined(self, worker: WorkerState) -> None:
        self._tell("worker-joined", worker=worker.name, host=worker.host, slots=worker.slots)

    def _on_left(self, worker: WorkerState, reason: str) -> None:
        self._tell("worker-left", worker=worker.name, reason=reason)
        if self._agents is not None:
            self._agents.drop(worker.name)
        if worker.lost and self._target is not None:
            self._target.replace(worker.name)

    def _on_end(self, worker: str, reason: str) -> None:
        if self._fleet is not None:
            self._fleet.desk.lose(worker, reason)

    def _on_refused(self, worker: str, reason: str) -> None:
        self._tell("worker-refused", worker=worker, reason=reason)

    # -- telling -------------------------------------------------------------------------------

    def _tell(self, event: str, **fields: Any) -> None:
        self._journal.write(event, **fields)
        self._show(event, **fields)

    def _show(self, event: str, **fields: Any) -> None:
        if self._on_event is not None:
            try:
                self._on_event({"time": time.time(), "event": event, **fields})
            except Exception:  # a display that fails must not end a session of hours
                logger.exception("the event %s could not be shown", event)


def _find_gap(summary: dict[str, Any]) -> PestfleetError | None:
    """The error of an engine that came to its end without all results."""
    return RunsFailedError(summary["incomplete"]) if summary.get("incomplete") else None
