"""What a target does: it hosts the workers of one session's fleet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pestfleet_worker.errors import SessionError


class Taken(SessionError):
    """The id is another session's there: nothing of it is ours to fetch or to remove."""


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The fleet that a session wants. `source`: the case's folder as the master sees it.

    `on_end(worker, reason)` is told by a target that sees a worker end before its time.
    """

    session: str
    folder: Path
    source: Path
    broker_url: str
    workers: int
    slots: int
    scratch: Path
    on_end: Callable[[str, str], None] = lambda worker, reason: None


@dataclass(frozen=True, slots=True)
class Site:
    """Where the workers of a session are, as its master sees it.

    `case_in_image`: they have the case in their image; otherwise they see the session's copy.
    `relay_host`, `relay_port`: where the master's relay listens (agent mode); `advertised` and
    `advertised_port`: how workers reach it, where that differs. `platform`: of the workers, for
    the run cache; "": this machine's. `broker_patience`: seconds to wait for a broker that starts.
    `keep_workers`: a master that is interrupted leaves them to the next one. `began`: when the
    session was launched, in seconds since 1970, where that was before this master began; 0: then.
    """

    make_target: Callable[[FleetPlan], Target]
    case_in_image: bool = False
    relay_host: str = "127.0.0.1"
    relay_port: int = 0
    advertised: str = ""
    advertised_port: int = 0
    platform: str = ""
    broker_patience: float = 0.0
    keep_workers: bool = False
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class Where:
    """Which of several places a target means: `context` of the kubeconfig, and namespace there;
    `region` and `profile` of the AWS configuration.

    "": the current one.
    """

    context: str = ""
    namespace: str = ""
    region: str = ""
    profile: str = ""


KEPT = "results kept"  # state of a session of which there is a volume only


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as the labels of its resources tell it. `began`: seconds since 1970.

    `folder`: the session's on the machine that launched it. `parts`: what there is of it, in words.
    """

    name: str
    target: str
    state: str
    workers: int
    began: float
    folder: str = ""
    parts: tuple[str, ...] = ()
    where: Where = Where()


class RemoteSession(Protocol):
    """What any shell can do with a session, by the labels of its resources alone."""

    @property
    def info(self) -> SessionInfo: ...

    def read_state(self) -> dict[str, Any]:
        """The last state of a master there; {} when there is none."""
        ...

    def scale(self, workers: int) -> list[str]:
        """Have that many workers; says what was done, a line each."""
        ...

    def follow_log(self, worker: str | None, *, lines: int, follow: bool) -> Iterator[str]:
        """The log of the master or of a worker, line by line. Raises `SessionError`."""
        ...

    def fetch(self, folder: Path) -> bool:
        """Copy the session's files into its folder here; False when there are none there."""
        ...

    def stop(self) -> None:
        """Have the master stop, as Ctrl-C would, and wait for its end."""
        ...

    def list_parts(self, *, discard_results: bool) -> list[str]:
        """What `down` would remove, a line each."""
        ...

    def down(self, *, discard_results: bool) -> list[str]:
        """Remove all of it, but the results unless `discard_results`; says what was removed."""
        ...


class Fleet(Protocol):
    """All that a session has on a platform of containers."""

    def stop_master(self) -> None:
        """Have the master end the session, and wait for it."""
        ...

    def down(self, *, discard_results: bool = False) -> list[str]:
        """Remove all that was launched, but the results unless `discard_results`."""
        ...


class Target(Protocol):
    """The verbs of a target. A verb that changes something is safe to repeat.

    One with an attribute `protects_runs` that is true ends no worker that has runs: those that are
    too many must be drained.
    """

    def launch(self) -> None:
        """Start the workers. Raises `TargetError`; what was started is torn down by `teardown`."""
        ...

    def check(self) -> None:
        """Raises `TargetError` when workers cannot come, with the reason."""
        ...

    def scale(self, workers: int, surplus: Collection[str] = ()) -> None:
        """Have that many workers, soon.

        `surplus`: workers that have been drained, and go first where some must go.
        """
        ...

    def replace(self, worker: str) -> None:
        """A worker is lost: make sure that it is gone and start another."""
        ...

    def describe(self) -> list[str]:
        """What `launch` would do, one line a step, without secrets."""
        ...

    def logs(self, worker: str) -> Path | None:
        """The log of a worker, if there is one."""
        ...

    def teardown(self) -> None:
        """End all workers and remove what `launch` made. Never raises for what is gone already."""
        ...
