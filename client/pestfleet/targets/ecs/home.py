"""A master on the user's machine, with its broker, tunnel and workers in ECS.

The master reaches broker and tunnel at the public addresses of their tasks, which let in one block
of addresses only: that of this machine. Their life is a lease that this process renews.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pestfleet.folder import SessionSpec
from pestfleet.settings import ImageSettings
from pestfleet.targets.addresses import find_free_port, unpack_url
from pestfleet.targets.base import FleetPlan, Site
from pestfleet.targets.ecs.access import Refused, Unreachable
from pestfleet.targets.ecs.diagnosis import gather
from pestfleet.targets.ecs.fleet import EcsFleet
from pestfleet.targets.ecs.forward import Forward
from pestfleet.targets.ecs.launch import Launch, make_all, prepare
from pestfleet.targets.ecs.lease import PAUSE, Lease
from pestfleet.targets.ecs.plan import AmazonPlan
from pestfleet.targets.ecs.reach import await_task, check_public, choose_block, find_address
from pestfleet.targets.ecs.results import fetch_logs
from pestfleet.targets.ecs.secret_files import make_parts, make_secrets
from pestfleet.targets.ecs.tasks import BROKER_PORT, TUNNEL_PORT
from pestfleet.targets.home import BROKER_PATIENCE, HomeMaster, HomeTarget, Say, place_tunnel
from pestfleet.targets.troubles import News, refuse_dead_end
from pestfleet.tunnel.keys import LISTEN_PORT, make_tunnel_keys
from pestfleet_worker.ecs_agent import name_worker
from pestfleet_worker.errors import ConfigurationError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import Host, OnEvent
    from pestfleet.session import Session
    from pestfleet.tunnel.connection import TunnelPlace
    from pestfleet.tunnel.keys import TunnelKeys

logger = logging.getLogger(__name__)

LOOK = 10.0  # seconds between two looks at the fleet
GRACE = 900.0  # seconds that the lease lasts beyond the session's limit


def make_home_host(
    session: Session,
    fleet: EcsFleet,
    *,
    image: ImageSettings,
    broker_url: str,
    on_event: OnEvent,
) -> Host:
    """Who hosts a session whose master is here. `broker_url`: see `HomeMaster`."""
    spec = choose_block(session.spec, broker_url)
    check_public(spec, broker_url)
    launch = Launch(session, spec, image, broker_url, fleet)
    return EcsHome(launch, on_event=on_event)


class EcsHome(HomeMaster):
    """See `HomeMaster`."""

    trouble = (Unreachable,)
    parts = "resources in Amazon's cloud"

    def __init__(self, launch: Launch, *, on_event: OnEvent) -> None:
        super().__init__(launch.session, broker_url=launch.broker_url, on_event=on_event)
        self._launch = launch
        self._fleet = launch.fleet
        self._lease: Lease | None = None
        self._forwards: list[Forward] = []

    def _launch_all(self, say: Say) -> tuple[str, Site]:
        spec, fleet = self._launch.spec, self._fleet
        began = time.time()
        plan, made = prepare(self._launch, say)
        relayed = spec.place.tunnel and spec.mode == "agent"
        # Workers that come through the tunnel to a broker here: where that is, is not known yet.
        late = spec.place.tunnel and not relayed
        keys = make_tunnel_keys() if spec.place.tunnel else None
        parts = make_parts(plan.names) if self._launch.broker else None
        secrets = make_secrets(plan, self._broker_url, keys=keys, parts=parts)
        begin = set_workers(plan, 0) if late else plan
        plan = make_all(self._launch, begin, made, secrets, say)
        self._lease = make_lease(plan, fleet, began=began)
        self._lease.start()
        watch = Watch(fleet, spec, self._warn, since=began)
        url = self._broker_url
        if parts is not None:
            url = self._reach_broker(parts["master"], watch, say)
        tunnel: Forward | None = None
        if keys is not None:
            await_task(fleet, "tunnel", watch.look, say)
            tunnel = self._open_forward("tunnel", TUNNEL_PORT)
        relay_port = find_free_port() if relayed else 0

        def make_target(wanted: FleetPlan) -> EcsTarget:
            return EcsTarget(
                wanted, plan, fleet, watch,
                keys=keys, tunnel=tunnel, relay_port=relay_port, note=self._warn,
            )  # fmt: skip

        site = Site(
            make_target,
            case_in_image=True,
            relay_port=relay_port,
            advertised=name_tunnel(plan) if relayed else "",
            advertised_port=LISTEN_PORT if relayed else 0,
            platform=f"image {find_image(plan)}",
            broker_patience=BROKER_PATIENCE,
            began=began,
        )
        return url, site

    def _reach_broker(self, written: dict[str, str], watch: Watch, say: Say) -> str:
        """The broker's URL for us: through a forward, with a copy of the session's CA."""
        await_task(self._fleet, "broker", watch.look, say)
        forward = self._open_forward("broker", BROKER_PORT)
        return unpack_url(written, self._session.path, place=forward.address)

    def _open_forward(self, role: str, port: int) -> Forward:
        forward = Forward(lambda: find_address(self._fleet, role), port)
        self._forwards.append(forward)
        return forward

    def _remove_all(self) -> None:
        for forward in self._forwards:
            forward.close()
        if self._lease is not None:
            self._lease.stop()
        self._fleet.down(discard_results=True)  # its results are here

    def _explain(self, trouble: Exception) -> TargetError:
        return explain(trouble)


class EcsTarget(HomeTarget):
    """The workers of a session in ECS, with the tunnel that they reach us through."""

    trouble = (Unreachable, Refused, ConfigurationError)  # the last: credentials that expire
    protects_runs = True

    def __init__(
        self,
        wanted: FleetPlan,
        plan: AmazonPlan,
        fleet: EcsFleet,
        watch: Watch,
        *,
        keys: TunnelKeys | None,
        tunnel: Forward | None,
        relay_port: int,
        note: Say,
    ) -> None:
        super().__init__(wanted, tunnel=tunnel is not None, relay_port=relay_port, note=note)
        self.tunnel_host = name_tunnel(plan)
        self._plan = plan
        self._fleet = fleet
        self._watch = watch
        self._keys = keys
        self._forward = tunnel
        self._number = wanted.workers
        self._looked = time.time()
        self._away = False

    def describe(self) -> list[str]:
        return json.dumps(self._plan.to_json(), indent=2).splitlines()

    def _start_workers(self) -> None:
        self._fleet.set_desired("worker", self._number)

    def _find_tunnel(self) -> TunnelPlace:
        assert self._forward is not None and self._keys is not None
        return place_tunnel(self._forward.address, self._keys)

    def _hand_out(self, files: dict[str, bytes]) -> None:
        text = json.dumps({name: content.decode() for name, content in files.items()})
        self._fleet.cloud.call(
            "secretsmanager",
            "put_secret_value",
            SecretId=self._fleet.names.secret("worker"),
            SecretString=text,
        )

    def _look(self) -> None:
        # Not the monotonic clock, which stands still while a laptop sleeps.
        away = time.time() - self._looked
        if away < LOOK:
            return
        self._looked = time.time()
        try:
            if away > PAUSE:
                self._wake(away)
            worker = self._fleet.services(("worker",)).get("worker")
            if worker is None or (self._number and not worker["desiredCount"]):
                raise TargetError(
                    "the session's workers were stopped or removed: by somebody, or because this "
                    "machine was not heard of for a while",
                    remedy="Finished runs are kept: pestfleet resume starts it again.",
                )
            if worker["runningCount"] < worker["desiredCount"]:
                self._watch.look(self._number)
        except self.trouble as trouble:
            logger.warning("%s", trouble)
            if not self._away:
                self._note(f"{trouble.message}; trying again")
            self._away = True
            return
        if self._away:
            self._note("Amazon answers again")
        self._away = False

    def _wake(self, away: float) -> None:
        """This machine has slept: start again what the lease has ended meanwhile."""
        services = self._fleet.services()
        ended = [role for role, service in services.items() if not service["desiredCount"]]
        for role in ended:
            self._fleet.set_desired(role, self._number if role == "worker" else 1)
        if ended:
            self._note(
                f"this machine was away for {away / 60:.0f} minutes, in which Amazon ended the "
                "session's tasks, as it is to; they are started again"
            )

    def _set_number(self, workers: int, surplus: Collection[str]) -> None:
        """See `HomeTarget`. ECS ends tasks that are not protected: those that have no run."""
        self._number = workers
        self._fleet.set_desired("worker", workers)

    def replace(self, worker: str) -> None:
        """See `HomeTarget`. A worker is called as its task."""
        with self._tolerate(f"worker {worker} could not be replaced"):
            self._renew(worker)

    def _renew(self, host: str) -> None:
        for task in self._fleet.tasks("worker"):
            if name_worker(task.id) == host:
                self._fleet.end_task(task.id, f"pestfleet: worker {host} is lost")

    def _end_workers(self) -> None:
        fetch_logs(self._fleet, self._wanted.folder / "logs")

    def _explain(self, trouble: Exception) -> TargetError:
        return explain(trouble)


class Watch:
    """Says once what keeps tasks from running."""

    def __init__(self, fleet: EcsFleet, spec: SessionSpec, say: Say, *, since: float) -> None:
        self._fleet = fleet
        self._spec = spec
        self._since = since
        self._news = News(say)

    def look(self, wanted: int = 0) -> None:
        """Raises `TargetError` when too few of the workers will ever run, or no broker.

        `wanted`: how many workers; 0: as many as the session asks for.
        """
        troubles = gather(self._fleet, self._spec.place, since=self._since)
        wanted = wanted or self._spec.workers
        refuse_dead_end(troubles, wanted=wanted, least=self._spec.place.least)
        self._news.tell(troubles)


def make_lease(plan: AmazonPlan, fleet: EcsFleet, *, began: float) -> Lease:
    """Of all of the session's schedules; it never goes beyond the session's limit of time."""
    limit = plan.spec.max_hours
    latest = began + 3600.0 * limit + GRACE if limit else float("inf")
    names = [one.name for one in plan.find("schedule")]
    return Lease(fleet.cloud, plan.names.schedules, names, latest=lambda: latest)


def set_workers(plan: AmazonPlan, number: int) -> AmazonPlan:
    """The plan with another number of workers at the beginning."""
    resources = [
        replace(one, body={**one.body, "desiredCount": number})
        if (one.kind, one.role) == ("service", "worker")
        else one
        for one in plan.resources
    ]
    return replace(plan, resources=resources)


def find_image(plan: AmazonPlan) -> str:
    """What the workers' image is known by."""
    task: dict[str, Any] = next(
        one.body for one in plan.find("task-definition") if one.role == "worker"
    )
    containers = {one["name"]: one["image"] for one in task["containerDefinitions"]}
    # The same image has the same digest, wherever it is.
    return str(containers["worker"]).rpartition("@")[2]


def name_tunnel(plan: AmazonPlan) -> str:
    """The name by which workers find the tunnel."""
    return f"tunnel.{plan.names.domain}"


def explain(trouble: Exception) -> TargetError:
    """A failure of Amazon in the middle of a session."""
    return TargetError(
        f"Amazon failed: {trouble}",
        remedy="What may be left stops by itself within half an hour, and is removed with: "
        "pestfleet down",
    )
