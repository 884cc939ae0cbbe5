"""Follows a session whose master is in a container: the session's host on the user's machine.

The session's folder here is kept like that of a master: locked, with a state that is renewed, so
that other commands see the session as they see any other.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pestfleet.bookkeeping import keep_state, log_to
from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.host import Outcome
from pestfleet.journal import read_journal
from pestfleet.targets.compose.fleet import TROUBLE, ComposeFleet, Container, split_lines
from pestfleet.targets.compose.keeper import INTERVAL, Keeper
from pestfleet_worker import errors
from pestfleet_worker.errors import Interrupted, PestfleetError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent

logger = logging.getLogger(__name__)

ENGINE_PATIENCE = 120.0  # seconds without the Docker engine after which we give up
STOP_DWELL = 5.0  # seconds for which a master that others have stopped may come back
ENGINE_DWELL = 30.0  # when all was stopped; the engine gives containers 15 s for their end
NO_RESTART = (2, 3, 4, 8)  # exit codes of a master that would end the same way again


class ContainerMaster:
    """Launches a session's containers, follows its master, fetches the results, removes all."""

    def __init__(
        self,
        folder: SessionFolder,
        spec: SessionSpec,
        fleet: ComposeFleet,
        *,
        launch: Callable[[Callable[[str], None]], None],
        on_event: OnEvent,
    ) -> None:
        """`launch(say)` makes the images and starts the containers; safe to repeat."""
        self._folder = folder
        self._spec = spec
        self._fleet = fleet
        self._launch = launch
        self._on_event = on_event
        self._keeper = Keeper(fleet)
        self._interrupted = threading.Event()
        self._over = threading.Event()
        self._state: dict[str, Any] = {"session": spec.session, "state": "running"}
        self._told = 0.0  # time of the last event that was passed on
        self._stopped = 0.0  # when the master was first seen to have been stopped by others

    def interrupt(self) -> None:
        """Ask the session to stop, from any thread."""
        self._interrupted.set()

    def snapshot(self) -> dict[str, Any]:
        """The last state that was read from the master."""
        return self._state

    def host(self) -> Outcome:
        """See `Master.host`."""
        self._folder.acquire()
        with ExitStack() as stack:
            stack.callback(self._folder.release)
            stack.enter_context(log_to(self._folder.path / "follow.log"))
            with keep_state(self._folder, self.snapshot):
                outcome = self._host()
            self._folder.write_state(self.snapshot())  # how it ended
            return outcome

    def launch(self) -> None:
        """Launch the session and leave it alone. Nothing is left of a launch that raises."""
        self._folder.acquire()
        try:
            self._launch(self._note)
        except TROUBLE as trouble:
            self._clear_away(discard_results=not self._fetch())
            raise explain(trouble) from trouble
        except BaseException:
            self._clear_away(discard_results=not self._fetch())
            raise
        finally:
            self._folder.release()

    def _host(self) -> Outcome:
        error: PestfleetError | None = None
        try:
            self._launch(self._note)
            self._follow()
        except Interrupted:
            logger.info("interrupted")
        except KeyboardInterrupt:  # in Python; the command line asks for a stop
            self._stop_master()
        except PestfleetError as problem:
            error = problem
        except TROUBLE as trouble:
            error = explain(trouble)
        except BaseException:
            self._clear_away()
            raise
        fetched = self._fetch()
        outcome = self._read_outcome(error, fetched=fetched)
        finished = fetched and outcome.error is None
        self._clear_away(discard_results=finished or not fetched)
        return outcome

    # -- following -----------------------------------------------------------------------------

    def _follow(self) -> None:
        listener = threading.Thread(target=self._listen, name="events", daemon=True)
        listener.start()
        heard = time.monotonic()
        stopping: threading.Thread | None = None
        while True:
            try:
                if self._wants_stop() and stopping is None:
                    stopping = threading.Thread(target=self._stop_master, daemon=True)
                    stopping.start()
                if self._look(stopping=stopping is not None):
                    break
                heard = time.monotonic()
            except TROUBLE as trouble:
                logger.warning("the Docker engine does not answer: %s", trouble)
                self._stopped = 0.0
                if time.monotonic() - heard > ENGINE_PATIENCE:
                    raise
            self._interrupted.wait(INTERVAL if stopping is None else 0.0)
            if stopping is not None:
                stopping.join(INTERVAL)
        self._over.set()
        listener.join(2 * INTERVAL)
        if stopping is not None:
            raise Interrupted("stopped")

    def _wants_stop(self) -> bool:
        return self._interrupted.is_set() or self._folder.stop_requested

    def _stop_master(self) -> None:
        try:
            self._fleet.stop(self._fleet.containers("master"))
        except TROUBLE as trouble:
            logger.warning("the master could not be stopped: %s", trouble)

    def _look(self, *, stopping: bool) -> bool:
        """Read the state, start again what has died; True when the master has ended."""
        master = self._fleet.find("master")
        if master is None:  # its results may be there still
            name = self._spec.session
            self._tell_all(
                [f"the containers of session {name} were removed: somebody has ended it"]
            )
            return True
        state = self._fleet.read_state()
        if state:
            self._state = {**state, "case": self._spec.control_file}
        if master.exit_code is None:
            self._stopped = 0.0
            if not stopping:
                self._tell_all(self._keeper.check())
            return False
        if stopping:
            return True
        if state.get("state", "running") != "running":
            return self._is_over(master)
        if master.exit_code in NO_RESTART:
            raise TargetError(self._fleet.describe_end(master))
        self._tell_all([self._keeper.restart(master)])
        return False

    def _is_over(self, master: Container) -> bool:
        """A Docker engine that shuts down stops the master, and starts it again at its return."""
        if master.exit_code != Interrupted.exit_code:
            return True
        self._stopped = self._stopped or time.monotonic()
        # Of a session that was stopped the workers end without an error, and the broker runs on.
        ended = [c for c in self._fleet.containers() if c.exit_code is not None]
        shut_down = any(c.role == "broker" or (c.role == "worker" and c.exit_code) for c in ended)
        dwell = ENGINE_DWELL if shut_down else STOP_DWELL
        return time.monotonic() - self._stopped > dwell

    def _tell_all(self, lines: list[str]) -> None:
        for line in filter(None, lines):
            self._tell({"time": time.time(), "event": "warn", "text": line})

    def _note(self, text: str) -> None:
        if self._wants_stop():
            raise Interrupted("stopped")
        if text:
            self._tell({"time": time.time(), "event": "note", "text": text})

    def _tell(self, event: dict[str, Any]) -> None:
        try:
            self._on_event(event)
        except Exception:  # a display that fails must not end a session of hours
            logger.exception("the event %s could not be shown", event["event"])

    def _listen(self) -> None:
        """Pass on the master's events, over its restarts."""
        while not self._over.is_set():
            try:
                for event in self._read_events():
                    if event["event"] != "progress" and event["time"] > self._told:
                        self._told = event["time"]
                        self._tell(event)
            except TROUBLE as trouble:
                logger.info("the master's log has ended: %s", trouble)
            self._over.wait(INTERVAL)

    def _read_events(self) -> Iterator[dict[str, Any]]:
        master = self._fleet.find("master")
        if master is None:
            return
        chunks = self._fleet.client.api.logs(
            master.id,
            stdout=True,
            stderr=False,
            stream=True,
            follow=True,
            since=max(1, int(self._told)),
        )
        for line in split_lines(chunks):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # not one of ours
            if isinstance(event, dict) and {"event", "time"} <= event.keys():
                yield event

    # -- the end -------------------------------------------------------------------------------

    def _fetch(self) -> bool:
        try:
            return self._fleet.fetch(self._folder.path)
        except (*TROUBLE, OSError, PestfleetError) as trouble:
            logger.warning("the results could not be fetched: %s", trouble)
            words = self._folder.words
            self._tell_all(
                [f"the results could not be fetched; try: pestfleet results {words} --fetch"]
            )
            return False

    def _clear_away(self, *, discard_results: bool = False) -> None:
        try:
            self._fleet.down(discard_results=discard_results)
        except TROUBLE as trouble:
            logger.warning("not all could be removed: %s", trouble)
            self._tell_all(
                [f"containers may be left; remove them with: pestfleet down {self._folder.words}"]
            )

    def _read_outcome(self, error: PestfleetError | None, *, fetched: bool) -> Outcome:
        end: dict[str, Any] = {}
        if fetched and self._folder.journal.exists():
            events = [event for event in read_journal(self._folder.journal)]
            if events and events[-1]["event"] == "end":
                end = events[-1]
        state = self._folder.read_state()
        if state and fetched:
            self._state = {**state, "case": self._spec.control_file}
        if error is None and not end:
            name = self._folder.words
            error = Interrupted(
                f"session {self._spec.session} was stopped",
                remedy=f"Go on with: pestfleet resume {name}",
            )
        if error is not None:
            stopped = isinstance(error, Interrupted)
            self._state = {**self._state, "state": "stopped" if stopped else "failed"}
            return Outcome(self._folder, {}, error)
        self._state = {**self._state, "state": end["state"]}
        return Outcome(self._folder, end.get("summary") or {}, _make_error(end))


def _make_error(end: dict[str, Any]) -> PestfleetError | None:
    """The error that ended the master, as its end event tells it."""
    code = end.get("exit_code", 0)
    if not code:
        return None
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kind = next(
        (k for k in kinds if issubclass(k, PestfleetError) and k.exit_code == code), PestfleetError
    )
    return kind(end.get("error", ""), remedy=end.get("remedy", ""))


def explain(trouble: Exception) -> TargetError:
    """A failure of the Docker engine in the middle of a session."""
    return TargetError(
        f"the Docker engine failed: {trouble}",
        remedy="Containers may be left; remove them with: pestfleet down",
    )
