"""The folder of a session: what is where, and who may write to it.

session.json     the spec: case, engine, target, options
case/            the case as it was at launch; the workers copy it
journal.jsonl    everything that happened (pestfleet.journal)
state.json       how far the session is, renewed while it runs
master.log       the master's log; logs/ has one of each worker
results/         the engine's files
kits/            of failed runs, one .tar.gz each (pestfleet.kits)
lock             held by the master while it lives
stop             its presence asks the master to stop
scale            asks the master for another number of workers
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pestfleet.placement import Placement, read_placement, take_known
from pestfleet_worker.errors import ConfigurationError, SessionError

logger = logging.getLogger(__name__)

DEFAULT_ROOT = Path("pestfleet-sessions")
LOCK_PATIENCE = 2.0  # seconds; who only looks whether there is a master holds the lock a moment
FRESH = 10.0  # seconds; a state.json that is older is not of a master that runs

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a session was asked to do. Holds no secret.

    `workers`: how many, or the fewest where there are `most` (0: as many all the time). It is
    ended when it has wanted no run for `idle_minutes`, after `max_hours`, and when it has cost
    `budget` US dollars (0: never). `prices`: what a worker, and all the rest, cost an hour in US
    dollars, as known at launch; empty where nothing is paid.
    """

    session: str
    control_file: str
    digest: str
    engine: str
    target: str
    workers: int
    slots: int
    seconds: float = 0.0
    threads: int = 1
    deliveries: int = 3
    own_broker: bool = True
    scratch: str = ""
    options: dict[str, str] = field(default_factory=dict)
    mode: str = "queue"  # or agent: the workers run the engine's own agents
    arguments: list[str] = field(default_factory=list)  # for an engine that is a program
    cache: str = "none"  # place of the run cache
    place: Placement = field(default_factory=Placement)
    version: str = ""
    most: int = 0
    idle_minutes: float = 0.0
    max_hours: float = 0.0
    budget: float = 0.0
    prices: dict[str, float] = field(default_factory=dict)


class SessionFolder:
    """A session's folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.case = path / "case"
        self.journal = path / "journal.jsonl"
        self.results = path / "results"
        self.kits = path / "kits"
        self.log = path / "master.log"
        self._lock = FileLock(path / "lock")

    @property
    def name(self) -> str:
        return self.path.name

    def kit_of(self, run: int) -> Path:
        """Where the kit of a failed run is, if there is one."""
        return self.kits / f"run-{run}.tar.gz"

    @property
    def words(self) -> str:
        """What names this session on a command line: its id, and where it is if that is unusual."""
        root = self.path.parent
        usual = (DEFAULT_ROOT, Path(os.environ.get("PESTFLEET_SESSIONS", DEFAULT_ROOT)))
        return self.name if root in usual else f"{self.name} --sessions {root}"

    def create(self, spec: SessionSpec) -> None:
        """Make the folder. Raises `SessionError` when there is such a session already."""
        if not _ID.fullmatch(spec.session):
            raise ConfigurationError(
                f"{spec.session!r} cannot be the id of a session",
                remedy="Use up to 60 letters, digits, dots, hyphens and underscores.",
            )
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise SessionError(
                f"there is a session {spec.session} already: {self.path}",
                remedy=f"Go on with it (pestfleet resume {spec.session}), or choose another id.",
            ) from None
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        try:
            self.results.mkdir()
            _replace(self.path / "session.json", asdict(spec))
        except OSError as error:
            shutil.rmtree(self.path, ignore_errors=True)  # the id stays free
            raise _cannot_write(self.path, error) from error

    def write_spec(self, spec: SessionSpec) -> None:
        """Write what is known of the session now. Raises `SessionError`."""
        try:
            _replace(self.path / "session.json", asdict(spec))
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def read_spec(self) -> SessionSpec:
        """Raises `SessionError` when this is not a session's folder."""
        path = self.path / "session.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            place = read_placement(values.pop("place", {}))
            return SessionSpec(**take_known(SessionSpec, values), place=place)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SessionError(f"{path} is not the spec of a session: {error}") from error

    def acquire(self) -> None:
        """Become the session's master. Raises `SessionError` when it has one."""
        try:
            self._lock.acquire(timeout=LOCK_PATIENCE)
        except Timeout:
            raise self._make_running() from None
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        for request in ("stop", "scale", "scale.taken"):  # meant for the master before
            (self.path / request).unlink(missing_ok=True)

    def refuse_running(self) -> None:
        """Raises `SessionError` where the session has a master, or a follower, on this machine."""
        if self.running:
            raise self._make_running()

    def _make_running(self) -> SessionError:
        return SessionError(
            f"session {self.name} is running",
            remedy=f"See pestfleet status {self.name}; end it with pestfleet stop {self.name}.",
        )

    def release(self) -> None:
        self._lock.release()

    @property
    def running(self) -> bool:
        """Is there a master?"""
        probe = FileLock(self.path / "lock")
        try:
            probe.acquire(blocking=False)
        except Timeout:
            return True
        except OSError:  # not ours to lock: another user's, or a disk that cannot be written
            return self._state_age() < FRESH
        probe.release()
        return False

    def _state_age(self) -> float:
        try:
            return time.time() - (self.path / "state.json").stat().st_mtime
        except OSError:
            return FRESH

    def request_stop(self) -> None:
        """Raises `SessionError` where the folder cannot be written."""
        try:
            (self.path / "stop").touch()
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def request_workers(self, workers: int) -> None:
        """Ask the master for that many workers. Raises as `request_stop` does."""
        try:
            _replace(self.path / "scale", {"workers": workers})
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def take_workers_request(self) -> int | None:
        """The workers that somebody asked for, once; None where nobody did."""
        taken = self.path / "scale.taken"  # whoever asks meanwhile makes a new request
        try:
            (self.path / "scale").replace(taken)
        except FileNotFoundError:
            return None
        except OSError as error:  # Windows, while it is being written
            logger.info("a request for workers waits: %s", error)
            return None
        try:
            return max(1, int(json.loads(taken.read_text(encoding="utf-8"))["workers"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s does not say how many workers to have: %s", taken, error)
            return None
        finally:
            taken.unlink(missing_ok=True)

    @property
    def stop_requested(self) -> bool:
        return (self.path / "stop").exists()

    def write_state(self, state: dict[str, Any]) -> None:
        _replace(self.path / "state.json", state)

    def read_state(self) -> dict[str, Any]:
        """The last state that the master wrote; {} when there is none yet."""
        try:
            state: dict[str, Any] = json.loads(
                (self.path / "state.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError):
            return {}
        return state


def list_sessions(root: Path) -> list[SessionFolder]:
    """The sessions below `root`, newest first."""
    if not root.is_dir():
        return []
    found = [SessionFolder(path.parent) for path in root.glob("*/session.json")]
    return sorted(found, key=lambda folder: _age_key(folder.path), reverse=True)


def find_session(root: Path, name: str | None) -> SessionFolder:
    """A session by its id, or the newest. Raises `SessionError` when there is none."""
    sessions = list_sessions(root)
    if name is None:
        if sessions:
            return sessions[0]
        raise SessionError(
            f"there is no session in {root.resolve()}",
            remedy="Start one with pestfleet run, or name the folder with --sessions.",
        )
    for folder in sessions:
        if folder.name == name:
            return folder
    known = ", ".join(folder.name for folder in sessions[:5]) or "none"
    raise SessionError(
        f"there is no session {name} in {root.resolve()}",
        remedy=f"Sessions there: {known}. Name another folder with --sessions.",
    )


def _cannot_write(path: Path, error: OSError) -> SessionError:
    return SessionError(
        f"the session's folder {path} cannot be written: {error.strerror or error}",
        remedy="Check the space and the permissions there, or name another with --sessions.",
    )


def _age_key(path: Path) -> float:
    return (path / "session.json").stat().st_mtime


def _replace(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    text = json.dumps(content, indent=1, ensure_ascii=False)
    try:
        temporary.write_text(text, encoding="utf-8")
    except OSError:
        temporary.unlink(missing_ok=True)  # half of it, on a full disk
        raise
    for attempt in range(5):
        try:
            temporary.replace(path)
            return
        except PermissionError:  # Windows, while another process has the file open
            if attempt == 4:
                raise
            time.sleep(0.01 * 2**attempt)
