"""A master on the user's machine, whose workers live on a platform of containers.

Everything that is launched for it serves one run of the command: it is removed at the end, for the
session's folder, with all results, is here.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pestfleet.bookkeeping import keep_case, keep_state, log_to
from pestfleet.costs.meter import keep_cost
from pestfleet.host import Outcome
from pestfleet.targets.addresses import find_place, pack_url
from pestfleet.targets.base import FleetPlan, Site, Taken
from pestfleet.tunnel.keys import LISTEN_PORT
from pestfleet_worker.errors import Interrupted, PestfleetError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent
    from pestfleet.master import Master
    from pestfleet.session import Session
    from pestfleet.tunnel.connection import Tunnel, TunnelPlace

logger = logging.getLogger(__name__)

BROKER_PATIENCE = 120.0  # seconds for a broker that starts

Say = Callable[[str], None]


class HomeMaster(ABC):
    """Launches what the master needs, hosts it, and removes all that it launched.

    What a platform does in its own way is in the abstract methods; each may raise one of
    `trouble`, or a `PestfleetError`.
    """

    trouble: ClassVar[tuple[type[Exception], ...]]  # how the platform fails
    parts: ClassVar[str]  # what may be left of a fleet, in words

    def __init__(self, session: Session, *, broker_url: str, on_event: OnEvent) -> None:
        """`broker_url`: of the user's own broker; "": one beside the workers, or an embedded one
        that they reach through the tunnel.
        """
        self._session = session
        self._broker_url = broker_url
        self._on_event = on_event
        self._interrupted = threading.Event()
        self._master: Master | None = None
        self._kept: dict[str, Any] = {}  # what its earlier launches cost: the master counts on
        self._failures: tuple[type[Exception], ...] = (*self.trouble, PestfleetError)

    # -- what a platform does ------------------------------------------------------------------

    @abstractmethod
    def _launch_all(self, say: Say) -> tuple[str, Site]:
        """Start all but the workers: the broker's URL for the master ("": an embedded one), and
        the site whose target starts the workers. Safe to repeat. `say("")` looks for a stop.
        """

    @abstractmethod
    def _remove_all(self) -> None:
        """Remove all that was launched."""

    @abstractmethod
    def _explain(self, trouble: Exception) -> TargetError:
        """A failure of the platform in the middle of a session."""

    # -- see `pestfleet.host.Host` ---------------------------------------------------------------

    def interrupt(self) -> None:
        """See `Master.interrupt`."""
        self._interrupted.set()
        if self._master is not None:
            self._master.interrupt()

    def snapshot(self) -> dict[str, Any]:
        """See `Master.snapshot`."""
        if self._master is None:
            return {"session": self._session.name, "state": "running", **self._kept}
        return self._master.snapshot()

    def host(self) -> Outcome:
        """See `Master.host`."""
        folder = self._session.folder
        folder.acquire()  # nobody else may launch for it
        self._kept = keep_cost(folder.read_state())
        with ExitStack() as stack:
            stack.callback(folder.release)
            clearing = stack.enter_context(ExitStack())
            clearing.callback(self._clear_away)
            try:
                with log_to(folder.log), keep_state(folder, self.snapshot):
                    keep_case(folder, self._session.spec)
                    url, site = self._launch_all(self._note)
                master = self._session.make_master(
                    broker_url=url, site=site, on_event=self._on_event
                )
            except Interrupted:
                return self._end("stopped", Interrupted(f"session {folder.name} was stopped"))
            except Taken as error:
                clearing.pop_all()  # drops it: what is there is another's
                return self._end("failed", error)
            except PestfleetError as error:
                return self._end("failed", error)
            except self.trouble as trouble:
                return self._end("failed", self._explain(trouble))
            self._master = master
            if self._wants_stop():
                master.interrupt()
            return master.host()

    def _end(self, state: str, error: PestfleetError) -> Outcome:
        folder = self._session.folder
        folder.write_state({**self.snapshot(), "state": state})
        return Outcome(folder, {}, error)

    def _clear_away(self) -> None:
        folder = self._session.folder
        try:
            with log_to(folder.log) if folder.path.is_dir() else nullcontext():
                self._remove_all()
        except self._failures as trouble:
            logger.info("not all could be removed: %s", trouble)
            words = folder.words
            self._warn(f"{self.parts} may be left; remove them with: pestfleet down {words}")

    # -- telling -------------------------------------------------------------------------------

    def _wants_stop(self) -> bool:
        return self._interrupted.is_set() or self._session.folder.stop_requested

    def _note(self, text: str) -> None:
        """Tell how far the launch is. Raises `Interrupted` when a stop is asked for."""
        if self._wants_stop():
            raise Interrupted("stopped")
        if text:
            self._tell("note", text)

    def _warn(self, text: str) -> None:
        self._tell("warn", text)

    def _tell(self, event: str, text: str) -> None:
        try:
            self._on_event({"time": time.time(), "event": event, "text": text})
        except Exception:  # a display that fails must not end a session of hours
            logger.exception("the event %s could not be shown", event)


class HomeTarget(ABC):
    """The workers of a master here, with the tunnel through which they reach it, if there is one.

    See `pestfleet.targets.base.Target`. What a platform does in its own way is in the abstract
    methods; each may raise one of `trouble`, or a `TargetError`.
    """

    trouble: ClassVar[tuple[type[Exception], ...]]
    tunnel_host: str = "tunnel"  # the name by which workers find the tunnel

    def __init__(self, wanted: FleetPlan, *, tunnel: bool, relay_port: int, note: Say) -> None:
        """`relay_port`: the relay's on loopback, when it is what the tunnel leads to; else 0, and
        a tunnel leads to the broker.
        """
        self._wanted = wanted
        self._wants_tunnel = tunnel
        self._relay_port = relay_port
        self._note = note
        self._tunnel: Tunnel | None = None
        self._failures: tuple[type[Exception], ...] = (*self.trouble, PestfleetError)

    # -- what a platform does ------------------------------------------------------------------

    @abstractmethod
    def describe(self) -> list[str]: ...

    @abstractmethod
    def _start_workers(self) -> None: ...

    @abstractmethod
    def _find_tunnel(self) -> TunnelPlace:
        """Where the tunnel's server is; it runs."""

    @abstractmethod
    def _hand_out(self, files: dict[str, bytes]) -> None:
        """Give the workers, before they start, their secrets: file name -> content."""

    @abstractmethod
    def _look(self) -> None:
        """Say what does not run, and keep the rest going. Raises `TargetError` for what will
        never run.
        """

    @abstractmethod
    def _set_number(self, workers: int, surplus: Collection[str]) -> None: ...

    @abstractmethod
    def _renew(self, host: str) -> None:
        """End what has this host name, so that another takes its place."""

    @abstractmethod
    def _end_workers(self) -> None:
        """Keep the workers' logs, and end the workers."""

    @abstractmethod
    def _explain(self, trouble: Exception) -> TargetError: ...

    # -- see `pestfleet.targets.base.Target` -----------------------------------------------------

    def launch(self) -> None:
        try:
            if self._wants_tunnel:
                self._open_tunnel()
            self._start_workers()
        except self.trouble as trouble:
            raise self._explain(trouble) from trouble

    def check(self) -> None:
        if self._tunnel is not None and self._tunnel.error is not None:
            raise self._tunnel.error
        self._look()

    def scale(self, workers: int, surplus: Collection[str] = ()) -> None:
        with self._tolerate("the fleet could not be scaled"):
            self._set_number(workers, surplus)

    def replace(self, worker: str) -> None:
        host = worker.rpartition("-")[0]
        with self._tolerate(f"worker {worker} could not be replaced"):
            if host:
                self._renew(host)

    def logs(self, worker: str) -> Path | None:
        return None

    def teardown(self) -> None:
        if self._tunnel is not None:
            self._tunnel.stop()
        try:
            self._end_workers()
        except self._failures as trouble:
            logger.warning("the workers could not be removed: %s", trouble)

    # -- the tunnel ----------------------------------------------------------------------------

    def _open_tunnel(self) -> None:
        """Let workers reach the relay here, in agent mode, or else the broker."""
        from pestfleet.tunnel.connection import open_tunnel

        to = ("127.0.0.1", self._relay_port)
        if not self._relay_port:
            url = self._wanted.broker_url
            to = find_place(url)
            self._hand_out(pack_url(url, place=(self.tunnel_host, LISTEN_PORT)))
        self._tunnel = open_tunnel(self._find_tunnel(), to=to, on_event=self._tell)

    def _tell(self, event: str, reason: str) -> None:
        self._note(f"the tunnel is {event}" + (f": {reason}" if reason else ""))

    @contextmanager
    def _tolerate(self, what: str) -> Iterator[None]:
        """A platform that fails for once is told, and ends no session."""
        try:
            yield
        except self._failures as trouble:
            logger.warning("%s: %s", what, trouble)
            self._note(what)


def place_tunnel(address: tuple[str, int], files: Mapping[str, str]) -> TunnelPlace:
    """A tunnel's server that is reached at `address`. `files`: home's end of its keys, by name."""
    from pestfleet.tunnel.connection import TunnelPlace

    return TunnelPlace(
        *address,
        user_key=files["tunnel_key"],
        host_public=files["host_key.pub"],
        listen=LISTEN_PORT,
    )
