"""A master on the user's machine, with its broker, tunnel and workers on a Docker engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from pestfleet.images.engine import find_engine_host
from pestfleet.targets.addresses import BROKER_URL, CA, find_free_port, pack_url, unpack_url
from pestfleet.targets.base import FleetPlan, Site
from pestfleet.targets.compose.document import (
    BROKER_PORT,
    RELAY_PORT,
    TUNNEL_PORT,
    ComposePlan,
    Document,
    dump_document,
    make_document,
)
from pestfleet.targets.compose.fleet import TROUBLE, ComposeFleet
from pestfleet.targets.compose.follower import explain
from pestfleet.targets.compose.keeper import Keeper
from pestfleet.targets.compose.program import find_compose
from pestfleet.targets.home import BROKER_PATIENCE, HomeMaster, HomeTarget, Say, place_tunnel
from pestfleet_worker.errors import TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent
    from pestfleet.session import Session
    from pestfleet.tunnel.connection import TunnelPlace

logger = logging.getLogger(__name__)


class ComposeHome(HomeMaster):
    """See `HomeMaster`."""

    trouble = TROUBLE
    parts = "containers"

    def __init__(
        self,
        session: Session,
        fleet: ComposeFleet,
        *,
        make_plan: Callable[[Say], ComposePlan],
        broker_url: str,
        on_event: OnEvent,
    ) -> None:
        super().__init__(session, broker_url=broker_url, on_event=on_event)
        self._fleet = fleet
        self._make_plan = make_plan

    def _launch_all(self, say: Say) -> tuple[str, Site]:
        plan = self._make_plan(say)
        say("starting the containers")
        fleet, document = self._fleet, make_document(plan)
        first = [
            name for name in ("credentials", "broker", "tunnel") if name in document["services"]
        ]
        find_compose().up(plan.project, document, first)
        fleet.wait("credentials")
        agents = self._session.spec.mode == "agent"
        relayed = plan.place.tunnel and agents
        if self._broker_url and (agents or not plan.place.tunnel):
            hand_out(fleet, plan, pack_url(self._broker_url))
        relay_port = find_free_port() if relayed else 0

        def make_target(wanted: FleetPlan) -> ComposeTarget:
            return ComposeTarget(
                wanted, plan, document, fleet, relay_port=relay_port, note=self._warn
            )

        site = Site(
            make_target,
            case_in_image=True,
            relay_port=relay_port,
            advertised=ComposeTarget.tunnel_host if relayed else "",
            advertised_port=RELAY_PORT if relayed else 0,
            platform=f"image {fleet.client.images.get(plan.images.worker).id}",
            broker_patience=BROKER_PATIENCE,
        )
        return (self._find_url() if plan.broker else self._broker_url), site

    def _find_url(self) -> str:
        """The broker's URL for us: its published port, and a copy of the session's CA."""
        files = {name: read_secret(self._fleet, "master", name) for name in (BROKER_URL, CA)}
        place = find_engine_host(), self._fleet.find_port("broker", BROKER_PORT)
        return unpack_url(files, self._session.path, place=place)

    def _remove_all(self) -> None:
        self._fleet.down(discard_results=True)  # its results are here

    def _explain(self, trouble: Exception) -> TargetError:
        return explain(trouble)


class ComposeTarget(HomeTarget):
    """The workers of a session on a Docker engine, with the tunnel that they reach us through."""

    trouble = TROUBLE

    def __init__(
        self,
        wanted: FleetPlan,
        plan: ComposePlan,
        document: Document,
        fleet: ComposeFleet,
        *,
        relay_port: int,
        note: Say,
    ) -> None:
        super().__init__(wanted, tunnel=plan.place.tunnel, relay_port=relay_port, note=note)
        self._plan = plan
        self._document = document
        self._fleet = fleet
        self._keeper = Keeper(fleet)

    def describe(self) -> list[str]:
        return dump_document(self._document, whole=False).splitlines()

    def _start_workers(self) -> None:
        project, words = self._plan.project, ["--no-deps", "worker"]
        find_compose().up(project, self._document, words, workers=self._wanted.workers)

    def _find_tunnel(self) -> TunnelPlace:
        names = ("tunnel_key", "host_key.pub")
        files = {name: read_secret(self._fleet, "home", name) for name in names}
        return place_tunnel(
            (find_engine_host(), self._fleet.find_port("tunnel", TUNNEL_PORT)), files
        )

    def _hand_out(self, files: dict[str, bytes]) -> None:
        hand_out(self._fleet, self._plan, files)

    def _look(self) -> None:
        try:
            for line in self._keeper.check():
                self._note(line)
        except TROUBLE as trouble:
            logger.warning("the Docker engine does not answer: %s", trouble)

    def _set_number(self, workers: int, surplus: Collection[str]) -> None:
        hosts = tuple(filter(None, (worker.rpartition("-")[0] for worker in surplus)))
        for container in self._fleet.containers("worker"):
            if container.id.startswith(hosts):
                self._fleet.dismiss(container)
        self._fleet.scale(workers)

    def _renew(self, host: str) -> None:
        """See `HomeTarget`: the host name of a container is the begin of its id."""
        for container in self._fleet.containers("worker"):
            if container.id.startswith(host) and container.state == "running":
                self._fleet.client.api.restart(container.id, timeout=0)

    def _end_workers(self) -> None:
        logs = self._wanted.folder / "logs"
        workers = self._fleet.containers("worker")
        for worker in workers:
            logs.mkdir(parents=True, exist_ok=True)
            text = self._fleet.read_log(worker)
            (logs / f"{worker.name}.log").write_text(text, encoding="utf-8")
        self._fleet.stop(workers)
        self._fleet.remove(workers)

    def _explain(self, trouble: Exception) -> TargetError:
        return explain(trouble)


def hand_out(fleet: ComposeFleet, plan: ComposePlan, files: dict[str, bytes]) -> None:
    """Give the workers a broker that is not the session's own."""
    fleet.put_files("credentials", "/secrets/worker", files, user=plan.user)


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
