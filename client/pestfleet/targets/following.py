"""Follows a session whose master is in a container: the session's host on the user's machine.

The session's folder here is kept like that of a master: locked, with a state that is renewed, so
that other commands see the session as they see any other.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pestfleet.bookkeeping import keep_state, log_to
from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.host import Outcome
from pestfleet.journal import parse_event, read_journal
from pestfleet.targets.base import Fleet, Taken
from pestfleet_worker import errors
from pestfleet_worker.errors import Interrupted, PestfleetError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent

logger = logging.getLogger(__name__)

Say = Callable[[str], None]

INTERVAL = 1.0  # seconds between two looks
PATIENCE = 120.0  # seconds without an answer of the platform after which we give up
SILENCE = 5.0  # seconds of it after which the user hears of it
NO_RESTART = (2, 3, 4, 8)  # exit codes of a master that would end the same way again


class _Lost(Exception):
    """The platform has not answered for too long."""

    def __init__(self, trouble: Exception) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble


F = TypeVar("F", bound=Fleet)


class FollowedMaster(ABC, Generic[F]):
    """Launches a session, follows its master, fetches the results, removes all.

    What a platform of containers does in its own way is in the abstract methods; each may raise
    one of `trouble`, or a `PestfleetError`.
    """

    trouble: ClassVar[tuple[type[Exception], ...]]  # how the platform fails
    platform: ClassVar[str]  # in words
    lives_alone: ClassVar[bool] = False  # does a session go on when it is not followed any more?

    def __init__(
        self,
        folder: SessionFolder,
        spec: SessionSpec,
        fleet: F,
        *,
        launch: Callable[[Say], None],
        on_event: OnEvent,
    ) -> None:
        """`launch(say)` makes the images and starts everything; safe to repeat."""
        self._folder = folder
        self._spec = spec
        self._fleet = fleet
        self._launch_all = launch
        self._on_event = on_event
        self._interrupted = threading.Event()
        self._over = threading.Event()
        self._state: dict[str, Any] = {"session": spec.session, "state": "running"}
        self._failure: PestfleetError | None = None  # of a master that did not tell its end
        self._launched = time.time()  # when the launch began
        self._told = 0.0  # time of the last event that was passed on
        self._told_silence = False
        self._silent = 0.0  # when the platform last did not answer a look (monotonic)
        self._failures: tuple[type[Exception], ...] = (*self.trouble, OSError, PestfleetError)

    # -- what a platform does --------------------------------------------------------------------

    def _begin(self) -> None:
        """All is launched; looks at it follow."""

    @abstractmethod
    def _look(self, *, stopping: bool) -> bool:
        """Take the master's state, keep its fleet going; True when the master has ended."""

    @abstractmethod
    def _read_log(self, since: float) -> Iterator[str]:
        """The master's log from that time on, line by line, until that master's end."""

    @abstractmethod
    def _fetch_files(self) -> bool:
        """Copy the session's files into its folder here; False when there are none."""

    @abstractmethod
    def _explain(self, trouble: Exception) -> TargetError:
        """A failure of the platform in the middle of a session."""

    # -- see `pestfleet.host.Host` ---------------------------------------------------------------

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
            self._launch()
        except Taken:
            raise
        except BaseException:
            self._clear_away(discard_results=self._fetch() is False)
            raise
        finally:
            self._folder.release()

    def _host(self) -> Outcome:
        error: PestfleetError | None = None
        given_up = False
        try:
            self._launch()
            self._follow()
        except Interrupted:
            logger.info("interrupted")
        except KeyboardInterrupt:  # in Python; the command line asks for a stop
            self._try_to_stop()
        except _Lost as lost:
            error = self._explain(lost.trouble)
            if self.lives_alone:
                return self._read_outcome(error, fetched=False)
        except Taken as taken:
            return self._read_outcome(taken, fetched=False)
        except PestfleetError as problem:
            error, given_up = problem, True
        except BaseException:
            self._clear_away()
            raise
        fetched = self._fetch()
        outcome = self._read_outcome(error, fetched=fetched)
        finished = fetched and outcome.error is None
        # Where nobody knows whether there are results, they are kept.
        nothing = fetched is False or bool(fetched and given_up and not self._has_runs())
        self._clear_away(discard_results=bool(finished) or nothing)
        return outcome

    def _has_runs(self) -> bool:
        """Has the master finished a run, or come to an end of its own?"""
        if not self._folder.journal.exists():
            return False
        return any(event["event"] in ("run", "end") for event in read_journal(self._folder.journal))

    def _launch(self) -> None:
        self._launched = time.time()
        try:
            self._launch_all(self._note)
        except PestfleetError:
            raise
        except self.trouble as trouble:
            raise self._explain(trouble) from trouble
        self._begin()

    # -- following -----------------------------------------------------------------------------

    def _follow(self) -> None:
        listener = threading.Thread(target=self._listen, name="events", daemon=True)
        listener.start()
        heard = time.monotonic()
        stopping: threading.Thread | None = None
        while True:
            try:
                if self._wants_stop() and stopping is None:
                    stopping = threading.Thread(target=self._try_to_stop, daemon=True)
                    stopping.start()
                tried = stopping is not None and not stopping.is_alive()
                if self._look(stopping=stopping is not None) or tried:
                    break
                heard = self._hear(heard)
            except self.trouble as trouble:
                logger.warning("%s does not answer: %s", self.platform, trouble)
                self._silent = time.monotonic()
                if self._silent - heard > PATIENCE:
                    self._over.set()
                    raise _Lost(trouble) from trouble
                self._tell_silence(self._silent - heard)
            self._interrupted.wait(INTERVAL if stopping is None else 0.0)
            if stopping is not None:
                stopping.join(INTERVAL)
        self._over.set()
        listener.join(2 * INTERVAL)
        if stopping is not None:
            raise Interrupted("stopped")

    def _tell_silence(self, seconds: float) -> None:
        if seconds > SILENCE and not self._told_silence:
            self._told_silence = True
            text = f"{self.platform} does not answer, and is asked again for {PATIENCE:.0f} s"
            self._tell_all([text + "; the session goes on meanwhile" * self.lives_alone])

    def _hear(self, last: float) -> float:
        """The platform has answered, after a time without one since `last`."""
        now = time.monotonic()
        if self._told_silence:
            self._told_silence = False
            self._tell_all([f"{self.platform} answers again, after {now - last:.0f} s"])
        return now

    def _take_state(self, state: dict[str, Any]) -> None:
        if state:
            self._state = {**state, "case": self._spec.control_file}

    def _wants_stop(self) -> bool:
        return self._interrupted.is_set() or self._folder.stop_requested

    def _try_to_stop(self) -> None:
        try:
            self._fleet.stop_master()
        except self._failures as trouble:
            logger.warning("the master could not be stopped: %s", trouble)

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
            except self._failures as trouble:
                logger.info("the master's log has ended: %s", trouble)
            self._over.wait(INTERVAL)

    def _read_events(self) -> Iterator[dict[str, Any]]:
        for line in self._read_log(self._told):
            event = parse_event(line)
            if event is not None:
                yield event

    # -- the end -------------------------------------------------------------------------------

    def _fetch(self) -> bool | None:
        """Is there something, and was it fetched? None when that failed."""
        try:
            return self._fetch_files()
        except self._failures as trouble:
            logger.warning("the results could not be fetched: %s", trouble)
            words = self._folder.words
            self._tell_all(
                [f"the results could not be fetched; try: pestfleet results {words} --fetch"]
            )
            self._failure = self._failure or TargetError(
                f"the results of session {self._spec.session} could not be fetched: {trouble}",
                remedy=f"They are kept; try: pestfleet results {words} --fetch",
            )
            return None

    def _clear_away(self, *, discard_results: bool = False) -> None:
        try:
            self._fleet.down(discard_results=discard_results)
        except self._failures as trouble:
            logger.warning("not all could be removed: %s", trouble)
            words = self._folder.words
            self._tell_all([f"parts may be left; remove them with: pestfleet down {words}"])

    def _read_outcome(self, error: PestfleetError | None, *, fetched: bool | None) -> Outcome:
        end: dict[str, Any] = {}
        if fetched and self._folder.journal.exists():
            events = [event for event in read_journal(self._folder.journal)]
            if events and events[-1]["event"] == "end":
                end = events[-1]
        if fetched:
            self._take_state(self._folder.read_state())
        if error is None and not end:
            error = self._failure or Interrupted(
                f"session {self._spec.session} was stopped",
                remedy=f"Go on with: pestfleet resume {self._folder.words}",
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
