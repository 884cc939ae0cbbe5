"""Keeps a session's folder in a store while its master works, and brings it what users ask for."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pestfleet.folder import SessionFolder
from pestfleet.store.claim import STALE
from pestfleet.store.errors import ClaimLost, FileChanged, StoreError
from pestfleet.store.names import ENDED, FOLDERS, STATE, list_kept
from pestfleet.store.session import SessionStore

logger = logging.getLogger(__name__)

TICK = 0.5  # seconds between two looks at what is due
LONGEST_PAUSE = 30.0  # seconds between two tries where the store fails
SILENCE = 20.0  # seconds of that after which the user hears of it


@dataclass(frozen=True, slots=True)
class Pace:
    """How often what is sent. Seconds, but where it says otherwise.

    `claim`: between two renewals; `requests`: between two looks for requests; `state`: between two
    states; `files`: between two looks for changed files, and sendings of the same one, which is
    sent less often the larger it is: `rate` bytes a second of it. A result counts as written when
    it did not change for `settled`, or has been changing for `longest`. Of results, kits and logs
    at most `burst` are sent at once and `per_second` in the long run.
    """

    claim: float = 15.0
    requests: float = 5.0
    state: float = 5.0
    files: float = 10.0
    rate: float = 1 << 20
    settled: float = 5.0
    longest: float = 300.0
    burst: int = 500
    per_second: float = 0.5


class Mirror:
    """Runs beside a session's engine, for as long as the context lasts; with one thread.

    On entering it claims the session (waiting for a master that has just died), and fetches its
    case and its files. Then it sends what changes, takes requests (`stop`, `scale`) into the
    session's folder once the master has begun, and renews the claim. A store that fails is asked
    again and again, for hours if need be. On leaving it sends all that is left and releases the
    claim. Where another master has taken the session over, nothing is sent any more.

    What it costs: with the usual pace about 2,400 requests an hour (240 for the claim, 720 for
    requests, 720 for the state, 360 for each of the journal and the log), and at the very most
    4,700, with results, kits and logs that change all the time; that is 0.012 to 0.024 US dollars
    an hour where 1,000 requests cost 0.005. Of files above 8 MB each 8 MB take another request.
    """

    def __init__(
        self,
        sessions: SessionStore,
        folder: SessionFolder,
        *,
        holder: str,
        on_warning: Callable[[str], None] | None = None,
        on_lost: Callable[[ClaimLost], None] | None = None,
        patience: float = 2 * STALE,
        end_patience: float = 90.0,
        fetch: bool = True,
        pace: Pace | None = None,
    ) -> None:
        """`holder`: what others are told of this master, and of no other: such as its task.

        `on_warning` gets sentences, `on_lost` is called when another master has the session (end
        this one); both from the mirror's thread. `patience`: seconds for another master's end;
        `end_patience`: for the last sending. `fetch`: without it nothing is fetched on entering.
        """
        self._sessions = sessions
        self._folder = folder
        self._holder = holder
        self._on_warning = on_warning
        self._on_lost = on_lost
        self._patience = patience
        self._end_patience = end_patience
        self._fetches = fetch
        self._pace = pace or Pace()
        self._over = threading.Event()
        self._ready = False  # is all here that was there?
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._due: dict[str, float] = {}  # what was done when last (monotonic)
        self._sent: dict[str, float] = {}  # file -> when it was sent last
        self._changing: dict[str, float] = {}  # result -> since when it is seen to change
        self._allowance, self._counted = float(self._pace.burst), time.monotonic()
        self._first_state = 0  # mtime of the state before the master began
        self._failing: tuple[float, int] | None = None  # since when the store does, and tries
        self._again = 0.0  # when it is asked next
        self._warned = False
        self._told: set[str] = set()
        self.lost: ClaimLost | None = None

    # -- the context -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Raises `ClaimHeld`, `NotStored` (no case), `StoreError`, `OSError`."""
        self._sessions.claim(self._holder, patience=self._patience)
        self._due["claim"] = time.monotonic()
        self._thread.start()
        try:
            if self._fetches:
                self._folder.path.mkdir(parents=True, exist_ok=True)
                self._sessions.get_case(self._folder)
                self._sessions.pull(self._folder)
        except BaseException:
            self._stop()
            raise
        self._first_state = self._read_mtime(STATE)
        self._ready = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises `StoreError` or `OSError` where not all was sent, and `ClaimLost`.

        Where the context ends with an error, that one is raised, and what failed here is told.
        """
        self._over.set()
        self._thread.join()
        failure = self.lost or self._send_rest()
        self._stop()
        if failure is None:
            return
        self._warn(f"not all of session {self._folder.name} is in the store: {failure}")
        if error is None:
            raise failure

    def _stop(self) -> None:
        self._over.set()
        self._thread.join()
        if self.lost is None:
            try:
                self._sessions.release()
            except StoreError as error:  # it grows old
                logger.warning("the claim was not given back: %s", error.message)

    def _send_rest(self) -> StoreError | OSError | ClaimLost | None:
        """Send all; the answer is what kept that from being done."""
        deadline = time.monotonic() + self._end_patience
        tries = 0
        while True:
            try:
                self._renew()
                self._sessions.push(self._folder, on_progress=self._attend)
                return None
            except ClaimLost as error:
                self.lost = error
                return error
            except (StoreError, OSError) as error:
                logger.warning("the last files could not be sent: %s", error)
                tries += 1
                hopeless = isinstance(error, OSError) and tries > 2
                if time.monotonic() > deadline or hopeless:
                    return error
            # Nobody else can end this wait, but what it waits for is the store's.
            time.sleep(min(5.0, 0.2 * 2**tries))

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._over.wait(TICK):
            if time.monotonic() < self._again:
                continue
            try:
                self._step()
            except ClaimLost as error:
                self.lost = error
                logger.error("%s", error)
                if self._on_lost is not None:
                    self._on_lost(error)
                return
            except FileChanged as error:
                logger.info("sent again later: %s", error.message)
            except OSError as error:
                logger.warning("a file of the session cannot be sent: %s", error)
                self._warn_once(f"a file of the session cannot be sent: {error}")
            except StoreError as error:
                self._note_failure(error)
            except Exception:  # a defect here must not end a session of hours
                logger.exception("the session's files could not be sent")
                self._again = time.monotonic() + LONGEST_PAUSE
            else:
                self._note_success()

    def _step(self) -> None:
        # First, and before anything is written: the claim may have been taken meanwhile.
        if self._is_due("claim", self._pace.claim):
            self._renew()
        if not self._ready:
            return
        if self._take_turn("requests", self._pace.requests) and self._has_master():
            self._sessions.take_requests(self._deliver)
        if self._take_turn("state", self._pace.state):
            self._sessions.push(self._folder, [STATE])
        if self._take_turn("files", self._pace.files):
            self._send(list(self._choose()))

    def _has_master(self) -> bool:
        """Has the master of this process begun? Before, it removes older requests."""
        return self._read_mtime(STATE) != self._first_state

    def _send(self, names: list[str]) -> None:
        if not names:
            return
        self._sent |= dict.fromkeys(names, time.monotonic())
        try:
            self._sessions.push(self._folder, names, on_progress=self._attend)
        except StoreError:
            for name in names:  # as soon as the store answers
                self._sent.pop(name)
            raise

    def _attend(self, done: int, total: int) -> None:
        """Between the parts of a long sending: what cannot wait for its end."""
        if self._is_due("claim", self._pace.claim):
            self._renew()

    def _renew(self) -> None:
        self._sessions.renew()
        self._due["claim"] = time.monotonic()

    def _is_due(self, what: str, seconds: float) -> bool:
        return time.monotonic() - self._due.get(what, -seconds) >= seconds

    def _take_turn(self, what: str, seconds: float) -> bool:
        """Is it due? Then it is not for the next `seconds`."""
        if not self._is_due(what, seconds):
            return False
        self._due[what] = time.monotonic()
        return True

    # -- which files -----------------------------------------------------------------------------

    def _choose(self) -> Iterator[str]:
        """The files that are to be sent now."""
        now = time.monotonic()
        passed, self._counted = now - self._counted, now
        self._allowance = min(self._pace.burst, self._allowance + passed * self._pace.per_second)
        for name in list_kept(self._folder.path):
            # The end is sent with all the rest, when the master has written all of it.
            if name in (STATE, ENDED) or not self._sessions.has_changed(self._folder, name):
                self._changing.pop(name, None)
                continue
            if not self._is_file_due(name, now):
                continue
            if name.split("/")[0] in FOLDERS:
                if self._allowance < 1 or not self._is_settled(name, now):
                    continue
                self._allowance -= 1
            self._changing.pop(name, None)
            yield name

    def _is_file_due(self, name: str, now: float) -> bool:
        try:
            size = (self._folder.path / name).stat().st_size
        except FileNotFoundError:
            return False
        # A little less than the pause between two looks, so that none is missed.
        pause = max(0.9 * self._pace.files, size / self._pace.rate)
        return now - self._sent.get(name, -pause) >= pause

    def _is_settled(self, name: str, now: float) -> bool:
        since = self._changing.setdefault(name, now)
        quiet = time.time() - self._read_mtime(name) / 1e9
        return quiet >= self._pace.settled or now - since >= self._pace.longest

    def _read_mtime(self, name: str) -> int:
        """Nanoseconds; 0 where there is no such file."""
        try:
            return (self._folder.path / name).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    # -- requests, and what is told --------------------------------------------------------------

    def _deliver(self, name: str, text: str) -> None:
        logger.info("somebody asks for %s: %s", name, text)
        if name == "stop":
            self._folder.request_stop()
            return
        try:
            workers = int(json.loads(text)["workers"])
        except (ValueError, KeyError, TypeError):
            self._warn(f"a request for workers does not say how many: {text[:80]!r}")
            return
        self._folder.request_workers(workers)

    def _note_failure(self, error: StoreError) -> None:
        now = time.monotonic()
        since, tries = self._failing or (now, 0)
        self._failing = (since, tries + 1)
        self._again = now + min(LONGEST_PAUSE, 2.0**tries)
        logger.warning("the store fails: %s", error)
        if not self._warned and now - since >= SILENCE:
            self._warned = True
            self._warn(
                f"the session's files have not been sent for {now - since:.0f} s, and are tried "
                f"again: {error}"
            )

    def _note_success(self) -> None:
        if self._failing is not None and self._warned:
            passed = time.monotonic() - self._failing[0]
            self._warn(f"the store answers again, after {passed:.0f} s")
        self._failing, self._warned = None, False

    def _warn_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._warn(text)

    def _warn(self, text: str) -> None:
        if self._on_warning is None:
            logger.warning("%s", text)
            return
        try:
            self._on_warning(text)
        except Exception:  # a display that fails must not end a session of hours
            logger.exception("a warning could not be shown: %s", text)
