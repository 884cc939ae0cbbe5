"""Hosts a session: its engine, its desk, its broker when it has no other, and its target."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pestfleet.case import Case
from pestfleet.desk import DeskEvents, WorkerState
from pestfleet.engines import load_engine
from pestfleet.engines.base import Job
from pestfleet.fleet import Fleet
from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.journal import Journal, read_finished_runs, read_journal
from pestfleet.ledger import Counts, RunLedger
from pestfleet.runner import Batch, FleetRunner
from pestfleet.targets import make_target
from pestfleet.targets.base import FleetPlan, Target
from pestfleet_worker.errors import Interrupted, PestfleetError
from pestfleet_worker.messages import Limits, RunConfig
from pestfleet_worker.slots import prepare_slot

logger = logging.getLogger(__name__)

HEARTBEAT = 2.0  # seconds between the heartbeats of a worker
MASTER_TIMEOUT = {True: 12.0, False: 120.0}  # own broker: it ends with the master
STATE_INTERVAL = 0.5  # seconds between two states on disk

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended. `error` is set when the engine could not finish."""

    folder: SessionFolder
    summary: dict[str, Any]
    error: PestfleetError | None = None


class Master:
    """One session's master. `host` runs it to its end, in the calling thread."""

    def __init__(
        self,
        folder: SessionFolder,
        spec: SessionSpec,
        *,
        broker_url: str = "",
        on_event: OnEvent | None = None,
    ) -> None:
        """`on_event` gets each journal event but `run`, from any thread."""
        self._folder = folder
        self._spec = spec
        self._broker_url = broker_url
        self._on_event = on_event
        self._state = "running"
        self._began = time.time()
        self._interrupted = threading.Event()
        self._fleet: Fleet | None = None
        self._ledger: RunLedger | None = None
        self._runner: FleetRunner | None = None
        self._target: Target | None = None
        self._iteration: dict[str, Any] = {}

    def interrupt(self) -> None:
        """Ask the session to stop, from any thread."""
        self._interrupted.set()

    def host(self) -> Outcome:
        """Run the session. Raises only for what keeps it from starting at all."""
        self._folder.acquire()
        with ExitStack() as stack:
            stack.callback(self._folder.release)
            self._log_to_folder(stack)
            finished, first_run = self._read_past()
            self._journal = stack.enter_context(_closing(Journal(self._folder.journal)))
            self._tell("start", session=self._spec.session, known_runs=len(finished))
            try:
                with self._keep_state():
                    summary = self._calibrate(finished, first_run)
            except (KeyboardInterrupt, Interrupted):
                return self._end("stopped", error=self._make_interrupted())
            except PestfleetError as error:
                return self._end("failed", error=error)
            except BaseException:
                logger.exception("the session ended by a defect")
                self._end("failed", error=PestfleetError("a defect in pestfleet; see master.log"))
                raise
            return self._end("finished", summary=summary)

    def snapshot(self) -> dict[str, Any]:
        """How far the session is, as plain data; the same that state.json has."""
        runner, fleet = self._runner, self._fleet
        batch = runner.batch if runner else Batch("", 0)
        counts = self._ledger.counts if self._ledger else Counts()
        workers = fleet.desk.workers if fleet else []
        return {
            "session": self._spec.session,
            "state": self._state,
            "engine": self._spec.engine,
            "target": self._spec.target,
            "case": self._spec.control_file,
            "began": self._began,
            "now": time.time(),
            **self._iteration,
            "purpose": batch.purpose,
            "batch": {
                "total": batch.total,
                "done": batch.done,
                "failed": batch.failed,
                "known": batch.known,
            },
            "runs": {
                "made": counts.made,
                "failed": counts.failed,
                "mean_seconds": counts.mean_seconds,
            },
            "workers_wanted": self._spec.workers,
            "workers": [_describe(worker) for worker in workers],
        }

    # -- the session's life --------------------------------------------------------------------

    def _read_past(self) -> tuple[dict[bytes, bytes], int]:
        """Runs that an earlier master of this session finished, and the next free run id."""
        if not self._folder.journal.exists():
            return {}, 1
        last = max(
            (
                event["id"]
                for event in read_journal(self._folder.journal)
                if event["event"] == "run"
            ),
            default=0,
        )
        # Ids that were handed out but not answered may still come back; stay clear of them.
        return read_finished_runs(self._folder.journal), last + 1_000_000

    def _calibrate(self, finished: dict[bytes, bytes], first_run: int) -> dict[str, Any]:
        spec, folder = self._spec, self._folder
        if not folder.case.exists():
            prepare_slot(Path(spec.control_file).parent, folder.case)
        case = Case.read(folder.case / Path(spec.control_file).name)
        with ExitStack() as stack:
            url = self._broker_url or self._start_broker(stack)
            config = RunConfig(
                session=spec.session,
                mode="queue",
                case=case.spec,
                limits=Limits(spec.seconds, spec.threads, spec.deliveries),
                source=str(folder.case.resolve()),
                heartbeat=HEARTBEAT,
                master_timeout=MASTER_TIMEOUT[not self._broker_url],
            )
            target = self._target = self._launch(stack, url)
            engine = load_engine(spec.engine)  # while the workers start
            events = DeskEvents(self._on_joined, self._on_left, self._on_refused)
            fleet = self._fleet = Fleet(url, config, events, first_run=first_run)
            stack.callback(fleet.close, "the session is over")
            ledger = self._ledger = RunLedger(
                fleet,
                case.spec,
                self._journal,
                finished=finished,
                check_stop=lambda: self._check_stop(target),
            )
            runner = self._runner = FleetRunner(ledger, case.control, on_batch=self._on_batch)
            self._tell("engine-started", engine=spec.engine)
            return engine(Job(case.control, runner, self, folder.results, spec.options))

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
        )
        target = make_target(spec.target, plan)
        stack.callback(shutil.rmtree, folder.path / "slots", ignore_errors=True)
        stack.callback(target.teardown)
        target.launch()
        return target

    def _check_stop(self, target: Target) -> None:
        if self._interrupted.is_set() or self._folder.stop_requested:
            raise self._make_interrupted()
        target.check()

    def _make_interrupted(self) -> Interrupted:
        name = self._folder.name
        return Interrupted(
            f"session {name} was stopped; its finished runs are kept",
            remedy=f"Go on with: pestfleet resume {name}",
        )

    def _end(
        self,
        state: str,
        *,
        summary: dict[str, Any] | None = None,
        error: PestfleetError | None = None,
    ) -> Outcome:
        self._state = state
        self._tell(
            "end",
            state=state,
            summary=summary or {},
            error=error.message if error else "",
            exit_code=error.exit_code if error else 0,
        )
        self._fleet = None
        self._folder.write_state(self.snapshot())
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
        if worker.lost and self._target is not None:
            self._target.replace(worker.name)

    def _on_refused(self, worker: str, reason: str) -> None:
        self._tell("worker-refused", worker=worker, reason=reason)

    # -- telling -------------------------------------------------------------------------------

    def _tell(self, event: str, **fields: Any) -> None:
        self._journal.write(event, **fields)
        self._show(event, **fields)

    def _show(self, event: str, **fields: Any) -> None:
        if self._on_event is not None:
            self._on_event({"time": time.time(), "event": event, **fields})

    @contextmanager
    def _keep_state(self) -> Iterator[None]:
        over = threading.Event()

        def keep() -> None:
            while not over.wait(STATE_INTERVAL):
                try:
                    self._folder.write_state(self.snapshot())
                except OSError as error:
                    logger.warning("state.json cannot be written: %s", error)

        self._folder.write_state(self.snapshot())
        thread = threading.Thread(target=keep, name="state", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _log_to_folder(self, stack: ExitStack) -> None:
        handler = logging.FileHandler(self._folder.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        for name in ("pestfleet", "pestfleet_worker"):
            log = logging.getLogger(name)
            log.setLevel(logging.INFO)
            log.propagate = False  # the terminal has the progress display
            log.addHandler(handler)
            stack.callback(log.removeHandler, handler)
        stack.callback(handler.close)


@contextmanager
def _closing(journal: Journal) -> Iterator[Journal]:
    try:
        yield journal
    finally:
        journal.close()


def _describe(worker: WorkerState) -> dict[str, Any]:
    return {
        "name": worker.name,
        "host": worker.host,
        "process": worker.process,
        "platform": worker.platform,
        "finished": worker.finished,
        "silent_seconds": round(time.monotonic() - worker.heard, 1),
        "slots": [{"run": state.run, "seconds": round(state.seconds, 1)} for state in worker.states]
        or [{"run": None, "seconds": 0.0}] * worker.slots,
    }
