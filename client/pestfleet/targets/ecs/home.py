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

from pestfleet.settings import ImageSettings
from pestfleet.targets.base import FleetPlan, Site
from pestfleet.targets.distant import DistantHome, DistantTarget, Watch, Ways
from pestfleet.targets.ecs.access import Refused, Unreachable
from pestfleet.targets.ecs.diagnosis import gather
from pestfleet.targets.ecs.fleet import EcsFleet
from pestfleet.targets.ecs.forward import Forward
from pestfleet.targets.ecs.launch import Launch, make_all, prepare
from pestfleet.targets.ecs.lease import PAUSE, Lease
from pestfleet.targets.ecs.plan import AmazonPlan
from pestfleet.targets.ecs.reach import check_public, choose_block, find_address, works
from pestfleet.targets.ecs.results import fetch_logs
from pestfleet.targets.ecs.secret_files import make_parts, make_secrets
from pestfleet.targets.ecs.tasks import BROKER_PORT, TUNNEL_PORT
from pestfleet.targets.home import Say
from pestfleet.tunnel.keys import make_tunnel_keys
from pestfleet_worker.ecs_agent import name_worker
from pestfleet_worker.errors import ConfigurationError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import Host, OnEvent
    from pestfleet.session import Session

logger = logging.getLogger(__name__)

PORTS = {"broker": BROKER_PORT, "tunnel": TUNNEL_PORT}
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


class EcsHome(DistantHome[EcsFleet]):
    """See `HomeMaster`."""

    trouble = (Unreachable,)
    parts = "resources in Amazon's cloud"

    def __init__(self, launch: Launch, *, on_event: OnEvent) -> None:
        super().__init__(
            launch.session, launch.fleet, broker_url=launch.broker_url, on_event=on_event
        )
        self._launch = launch

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
        watch = Watch(lambda: gather(fleet, spec.place, since=began), spec, self._warn)

        def make_target(wanted: FleetPlan, ways: Ways) -> EcsTarget:
            return EcsTarget(wanted, ways, watch, plan=plan, fleet=fleet, note=self._warn)

        return self._connect(
            spec,
            watch,
            say,
            make_target=make_target,
            written=parts["master"] if parts is not None else None,
            keys=keys,
            tunnel_host=name_tunnel(plan),
            image=find_image(plan),
            began=began,
        )

    def _works(self, role: str) -> bool:
        return works(self._fleet, role)

    def _forward_to(self, role: str) -> Forward:
        return Forward(lambda: find_address(self._fleet, role), PORTS[role])

    def _tell_where(self, role: str) -> str:
        return f"See pestfleet logs {self._fleet.session} {role} --on ecs"

    def _explain(self, trouble: Exception) -> TargetError:
        return explain(trouble)


class EcsTarget(DistantTarget):
    """See `DistantTarget`."""

    trouble = (Unreachable, Refused, ConfigurationError)  # the last: credentials that expire
    platform = "Amazon"
    pause = 10.0
    protects_runs = True

    def __init__(
        self,
        wanted: FleetPlan,
        ways: Ways,
        watch: Watch,
        *,
        plan: AmazonPlan,
        fleet: EcsFleet,
        note: Say,
    ) -> None:
        super().__init__(wanted, ways, watch, note=note)
        self._plan = plan
        self._fleet = fleet

    def describe(self) -> list[str]:
        return json.dumps(self._plan.to_json(), indent=2).splitlines()

    def _start_workers(self) -> None:
        self._fleet.set_desired("worker", self._number)

    def _hand_out(self, files: dict[str, bytes]) -> None:
        text = json.dumps({name: content.decode() for name, content in files.items()})
        self._fleet.cloud.call(
            "secretsmanager",
            "put_secret_value",
            SecretId=self._fleet.names.secret("worker"),
            SecretString=text,
        )

    def _look_at_workers(self, unseen: float) -> None:
        if unseen > PAUSE:
            self._wake(unseen)
        worker = self._fleet.services(("worker",)).get("worker")
        if worker is None or (self._number and not worker["desiredCount"]):
            raise TargetError(
                "the session's workers were stopped or removed: by somebody, or because this "
                "machine was not heard of for a while",
                remedy="Finished runs are kept: pestfleet resume starts it again.",
            )
        if worker["runningCount"] < worker["desiredCount"]:
            self._watch.look(self._number)

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
