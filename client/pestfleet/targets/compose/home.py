"""A master on the user's machine, with its broker, tunnel and workers on a Docker engine."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pestfleet.bookkeeping import keep_case
from pestfleet.host import Outcome
from pestfleet.images.engine import find_engine_host
from pestfleet.targets.addresses import (
    BROKER_URL,
    CA,
    find_free_port,
    find_place,
    pack_url,
    readdress,
)
from pestfleet.targets.base import FleetPlan, Site
from pestfleet.targets.compose.document import (
    BROKER_PORT,
    RELAY_PORT,
    TUNNEL_PORT,
    ComposePlan,
    Document,
    make_document,
)
from pestfleet.targets.compose.fleet import TROUBLE, ComposeFleet
from pestfleet.targets.compose.follower import explain
from pestfleet.targets.compose.keeper import Keeper
from pestfleet.targets.compose.program import find_compose
from pestfleet_worker.errors import Interrupted, PestfleetError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent
    from pestfleet.master import Master
    from pestfleet.session import Session
    from pestfleet.tunnel.connection import Tunnel

logger = logging.getLogger(__name__)

BROKER_PATIENCE = 120.0  # seconds for a broker that starts


class HomeMaster:
    """Launches what the master needs, hosts it, and removes all that it launched."""

    def __init__(
        self,
        session: Session,
        fleet: ComposeFleet,
        *,
        make_plan: Callable[[Callable[[str], None]], ComposePlan],
        broker_url: str,
        on_event: OnEvent,
    ) -> None:
        """`broker_url`: of the user's own broker; "": one beside the workers, or an embedded one
        that they reach through the tunnel.
        """
        self._session = session
        self._fleet = fleet
        self._make_plan = make_plan
        self._broker_url = broker_url
        self._on_event = on_event
        self._interrupted = threading.Event()
        self._master: Master | None = None

    def interrupt(self) -> None:
        """See `Master.interrupt`."""
        self._interrupted.set()
        if self._master is not None:
            self._master.interrupt()

    def snapshot(self) -> dict[str, Any]:
        """See `Master.snapshot`."""
        if self._master is None:
            return {"session": self._session.name, "state": "running"}
        return self._master.snapshot()

    def host(self) -> Outcome:
        """See `Master.host`."""
        folder = self._session.folder
        folder.acquire()  # nobody else may launch for it
        with ExitStack() as stack:
            stack.callback(folder.release)
            stack.callback(self._clear_away)
            try:
                master = self._launch()
            except Interrupted:
                return self._end("stopped", Interrupted(f"session {folder.name} was stopped"))
            except PestfleetError as error:
                return self._end("failed", error)
            except TROUBLE as trouble:
                return self._end("failed", explain(trouble))
            self._master = master
            if self._interrupted.is_set() or folder.stop_requested:
                master.interrupt()
            return master.host()

    def _launch(self) -> Master:
        """Start what the master needs, but for the workers: those it launches itself."""
        keep_case(self._session.folder, self._session.spec)
        plan = self._make_plan(self._note)
        self._note("starting the containers")
        return self._make_master(plan, make_document(plan))

    def _end(self, state: str, error: PestfleetError) -> Outcome:
        folder = self._session.folder
        folder.write_state({**self.snapshot(), "state": state})
        return Outcome(folder, {}, error)

    def _clear_away(self) -> None:
        try:
            self._fleet.down(discard_results=True)  # its results are here
        except TROUBLE as trouble:
            logger.warning("not all could be removed: %s", trouble)
            words = self._session.folder.words
            self._on_note(f"containers may be left; remove them with: pestfleet down {words}")

    def _note(self, text: str) -> None:
        if self._interrupted.is_set():
            raise Interrupted("stopped")
        if not text:
            return
        self._on_event({"time": time.time(), "event": "note", "text": text})

    def _make_master(self, plan: ComposePlan, document: Document) -> Master:
        fleet = self._fleet
        first = [
            name for name in ("credentials", "broker", "tunnel") if name in document["services"]
        ]
        find_compose().up(plan.project, document, first)
        fleet.wait("credentials")
        through_tunnel = plan.place.tunnel and self._session.spec.mode == "agent"
        url = self._find_url() if plan.broker else self._broker_url
        relay_port = find_free_port() if through_tunnel else 0

        def make_target(wanted: FleetPlan) -> ComposeTarget:
            return ComposeTarget(
                wanted, plan, document, fleet, relay_port=relay_port, note=self._on_note
            )

        site = Site(
            make_target,
            case_in_image=True,
            relay_port=relay_port,
            advertised="tunnel" if through_tunnel else "",
            advertised_port=RELAY_PORT if through_tunnel else 0,
            platform=f"image {fleet.client.images.get(plan.images.worker).id}",
            broker_patience=BROKER_PATIENCE,
        )
        return self._session.make_master(broker_url=url, site=site, on_event=self._on_event)

    def _on_note(self, text: str) -> None:
        self._on_event({"time": time.time(), "event": "warn", "text": text})

    def _find_url(self) -> str:
        """The broker's URL for us: its published port, and a copy of the session's CA."""
        written = read_secret(self._fleet, "master", BROKER_URL)
        ca = self._session.path / "broker-ca.pem"
        ca.write_text(read_secret(self._fleet, "master", CA), encoding="ascii")
        port = self._fleet.find_port("broker", BROKER_PORT)
        return readdress(written, host=find_engine_host(), port=port, ca=str(ca.resolve()))


class ComposeTarget:
    """The workers of a session on a Docker engine, with the tunnel that they reach us through."""

    def __init__(
        self,
        wanted: FleetPlan,
        plan: ComposePlan,
        document: Document,
        fleet: ComposeFleet,
        *,
        relay_port: int,
        note: Callable[[str], None],
    ) -> None:
        """`relay_port`: the relay's on loopback, when it is what the tunnel leads to."""
        self._relay_port = relay_port
        self._wanted = wanted
        self._plan = plan
        self._document = document
        self._fleet = fleet
        self._note = note
        self._keeper = Keeper(fleet)
        self._tunnel: Tunnel | None = None

    def describe(self) -> list[str]:
        from pestfleet.targets.compose.document import dump_document

        return dump_document(self._document, whole=False).splitlines()

    def launch(self) -> None:
        try:
            if self._plan.place.tunnel:
                self._open_tunnel()
            find_compose().up(
                self._plan.project,
                self._document,
                ["--no-deps", "worker"],
                workers=self._wanted.workers,
            )
        except TROUBLE as trouble:
            raise explain(trouble) from trouble

    def _open_tunnel(self) -> None:
        """Let workers reach the relay here, in agent mode, or else the broker here."""
        from pestfleet.tunnel.connection import TunnelPlace, open_tunnel

        fleet, to = self._fleet, ("127.0.0.1", self._relay_port)
        if not self._relay_port:
            to = find_place(self._wanted.broker_url)
            secrets = pack_url(self._wanted.broker_url, place=("tunnel", RELAY_PORT))
            fleet.put_files("credentials", "/secrets/worker", secrets, user=self._plan.user)
        place = TunnelPlace(
            find_engine_host(),
            fleet.find_port("tunnel", TUNNEL_PORT),
            user_key=read_secret(fleet, "home", "tunnel_key"),
            host_public=read_secret(fleet, "home", "host_key.pub"),
            listen=RELAY_PORT,
        )
        self._tunnel = open_tunnel(place, to=to, on_event=self._tell)

    def _tell(self, event: str, reason: str) -> None:
        self._note(f"the tunnel is {event}" + (f": {reason}" if reason else ""))

    def check(self) -> None:
        if self._tunnel is not None and self._tunnel.error is not None:
            raise self._tunnel.error
        try:
            for line in self._keeper.check():
                self._note(line)
        except TROUBLE as trouble:
            logger.warning("the Docker engine does not answer: %s", trouble)

    def scale(self, workers: int) -> None:
        with self._tolerate("the fleet could not be scaled"):
            self._fleet.scale(workers)

    def replace(self, worker: str) -> None:
        """Start the container of a lost worker anew, if it seems to run."""
        host = worker.rpartition("-")[0]
        with self._tolerate(f"worker {worker} could not be replaced"):
            for container in self._fleet.containers("worker"):
                if host and container.id.startswith(host) and container.state == "running":
                    self._fleet.client.api.restart(container.id, timeout=0)

    @contextmanager
    def _tolerate(self, what: str) -> Iterator[None]:
        """A Docker engine that fails for once is told, and ends no session."""
        try:
            yield
        except (*TROUBLE, TargetError) as trouble:
            logger.warning("%s: %s", what, trouble)
            self._note(what)

    def logs(self, worker: str) -> Path | None:
        return None

    def teardown(self) -> None:
        if self._tunnel is not None:
            self._tunnel.stop()
        try:
            self._keep_logs()
            workers = self._fleet.containers("worker")
            self._fleet.stop(workers)
            self._fleet.remove(workers)
        except TROUBLE as trouble:
            logger.warning("the workers could not be removed: %s", trouble)

    def _keep_logs(self) -> None:
        logs = self._wanted.folder / "logs"
        for worker in self._fleet.containers("worker"):
            logs.mkdir(parents=True, exist_ok=True)
            text = self._fleet.read_log(worker)
            (logs / f"{worker.name}.log").write_text(text, encoding="utf-8")


def read_secret(fleet: ComposeFleet, part: str, name: str) -> str:
    """A secret that the session's credentials service has made, as text."""
    content = fleet.read_file("credentials", f"/secrets/{part}/{name}")
    if content is None:
        raise TargetError(
            f"the session's credentials have no {part}/{name}",
            remedy="Was the master's image made by another version? Then remove it: "
            "pestfleet images --all",
        )
    return content.decode().strip()
