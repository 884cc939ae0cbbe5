"""A master on the user's machine, with its broker, tunnel and workers in a cluster.

The master reaches the broker through a port-forward of the API server, so it needs nothing but
the kubeconfig: no load balancer, and no port that is open to the world. With a tunnel, its ssh goes
the same way. The owner of all objects is the workers' Job, whose life is a lease of this process.

A broker that others can reach is another way: one of the user's (`--broker amqps://…`), such as one
that was installed with the chart and `broker.service.type=LoadBalancer`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NoReturn

from pestfleet.credentials.parts import Choices, make_credentials
from pestfleet.targets.addresses import pack_url
from pestfleet.targets.base import FleetPlan, Site
from pestfleet.targets.choices import needs_broker
from pestfleet.targets.distant import DistantHome, DistantTarget, Watch, Ways
from pestfleet.targets.home import Say
from pestfleet.targets.kubernetes.access import Unreachable
from pestfleet.targets.kubernetes.diagnosis import gather
from pestfleet.targets.kubernetes.fleet import KubernetesFleet
from pestfleet.targets.kubernetes.forward import Forward
from pestfleet.targets.kubernetes.launch import KubernetesPlan, make_secret
from pestfleet.targets.kubernetes.lease import Lease
from pestfleet.targets.kubernetes.naming import Object, read_role
from pestfleet.targets.kubernetes.pods import find_end
from pestfleet.targets.kubernetes.results import fetch_logs
from pestfleet.tunnel.keys import make_tunnel_keys
from pestfleet_worker.errors import TargetError

if TYPE_CHECKING:
    from pestfleet.host import Host, OnEvent
    from pestfleet.session import Session
    from pestfleet.tunnel.keys import TunnelKeys

logger = logging.getLogger(__name__)

PORTS = {"broker": 5671, "tunnel": 2222}
END_GRACE = 1  # seconds for a worker that is lost


def make_home_host(
    session: Session,
    fleet: KubernetesFleet,
    *,
    make_plan: Callable[[Say], KubernetesPlan],
    broker_url: str,
    on_event: OnEvent,
) -> Host:
    """Who hosts a session whose master is here. `broker_url`: see `HomeMaster`."""
    return KubernetesHome(
        session, fleet, make_plan=make_plan, broker_url=broker_url, on_event=on_event
    )


class KubernetesHome(DistantHome[KubernetesFleet]):
    """See `HomeMaster`."""

    trouble = (Unreachable,)
    parts = "objects in the cluster"

    def __init__(
        self,
        session: Session,
        fleet: KubernetesFleet,
        *,
        make_plan: Callable[[Say], KubernetesPlan],
        broker_url: str,
        on_event: OnEvent,
    ) -> None:
        super().__init__(session, fleet, broker_url=broker_url, on_event=on_event)
        self._make_plan = make_plan

    def _launch_all(self, say: Say) -> tuple[str, Site]:
        plan = self._make_plan(say)
        began = time.time()
        fleet, spec = self._fleet, self._session.spec
        say(f"starting the pods in namespace {fleet.access.namespace}")
        keys = make_tunnel_keys() if spec.place.tunnel else None
        relayed = spec.place.tunnel and spec.mode == "agent"
        secrets, written = make_secrets(plan, self._broker_url, keys)
        # Workers that come through the tunnel to a broker here: where that is, is not known yet.
        late = spec.place.tunnel and not relayed
        self._create(plan.objects, secrets, workers=0 if late else spec.workers)
        watch = Watch(lambda: gather(fleet.access, fleet.session), spec, self._warn)

        def make_target(wanted: FleetPlan, ways: Ways) -> KubernetesTarget:
            return KubernetesTarget(wanted, ways, watch, plan=plan, fleet=fleet, note=self._warn)

        return self._connect(
            spec,
            watch,
            say,
            make_target=make_target,
            written=written or None,
            keys=keys,
            tunnel_host=name_tunnel(plan),
            image=plan.images.worker,
            began=began,
        )

    def _create(self, objects: list[Object], secrets: list[Object], *, workers: int) -> None:
        job = next(o for o in objects if o["kind"] == "Job" and read_role(o) == "worker")
        lease = Lease(self._fleet.access, job)
        signed = lease.sign({**job, "spec": {**job["spec"], "parallelism": workers}})
        others = [one for one in objects if one is not job]
        self._fleet.apply([signed, *others, *secrets], owner="worker")
        self._lease = lease
        lease.start()

    def _works(self, role: str) -> bool:
        return works(self._fleet, role)

    def _forward_to(self, role: str) -> Forward:
        return Forward(lambda: find_running(self._fleet, role), self._fleet.access, PORTS[role])

    def _tell_where(self, role: str) -> str:
        return f"See kubectl describe pod -l {self._fleet.selector}"

    def _explain(self, trouble: Exception) -> TargetError:
        return explain(trouble)


class KubernetesTarget(DistantTarget):
    """See `DistantTarget`."""

    trouble = (Unreachable,)
    platform = "the cluster's API server"
    pause = 5.0

    def __init__(
        self,
        wanted: FleetPlan,
        ways: Ways,
        watch: Watch,
        *,
        plan: KubernetesPlan,
        fleet: KubernetesFleet,
        note: Say,
    ) -> None:
        super().__init__(wanted, ways, watch, note=note)
        self._plan = plan
        self._fleet = fleet

    def describe(self) -> list[str]:
        from pestfleet.targets.kubernetes.chart import dump

        return dump(self._plan.objects).splitlines()

    def _start_workers(self) -> None:
        self._fleet.scale(self._number)

    def _hand_out(self, files: dict[str, bytes]) -> None:
        secret = make_secret(self._plan, name_broker_secret(self._plan), files)
        self._fleet.add(secret, owner="worker")

    def _look_at_workers(self, unseen: float) -> None:
        job = self._fleet.find_job("worker")
        ended = find_end(job) if job else ""
        if job is None or ended:
            self._tell_end(ended)
        if job.get("status", {}).get("ready", 0) < int(job["spec"]["parallelism"]):
            self._watch.look(self._number)

    def _tell_end(self, reason: str) -> NoReturn:
        """Raise for a Job that is over, or gone, while we need it."""
        self._watch.look(self._number)  # which may know better
        if not reason:
            raise TargetError(
                "the session's objects in the cluster were removed: by somebody, or because "
                "this machine was not heard of for a while",
                remedy="Finished runs are kept: pestfleet resume starts it again.",
            )
        raise TargetError(
            f"the workers' Job has ended: {reason}",
            remedy="Finished runs are kept: pestfleet resume starts it again.",
        )

    def _set_number(self, workers: int, surplus: Collection[str]) -> None:
        """See `HomeTarget`. The Job makes no pod in place of one that is still on its way out,
        so that those of the surplus are what is missing when it learns the new number.
        """
        self._number = workers
        if surplus:
            hosts = {worker.rpartition("-")[0] for worker in surplus}
            pods = [pod.name for pod in self._fleet.pods("worker") if not pod.leaving]
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(self._fleet.dismiss, [name for name in pods if name in hosts]))
        self._fleet.scale(workers)

    def _renew(self, host: str) -> None:
        """See `HomeTarget`: the host name of a pod is its name; the Job makes another."""
        self._fleet.dismiss(host, grace=END_GRACE)

    def _end_workers(self) -> None:
        fetch_logs(self._fleet, self._wanted.folder / "logs")

    def _explain(self, trouble: Exception) -> TargetError:
        return explain(trouble)


def make_secrets(
    plan: KubernetesPlan, broker_url: str, keys: TunnelKeys | None
) -> tuple[list[Object], dict[str, str]]:
    """The Secrets that are in the cluster from the beginning, and the master's own files.

    Nothing that proves the master, or home's end of the tunnel, is in the cluster.
    """
    made: list[Object] = []
    ours: dict[str, str] = {}
    if needs_broker(plan.spec, broker_url):
        choices = Choices(plan.spec.session, broker_host=f"{plan.release}-broker")
        parts = make_credentials(choices, parts=("broker", "master", "worker"))
        ours = parts.pop("master")
        files = {f"{part}.{name}": text for part in parts for name, text in parts[part].items()}
        made.append(make_secret(plan, f"{plan.release}-credentials", _encode(files)))
    elif plan.spec.mode == "agent" or not plan.spec.place.tunnel:
        made.append(make_secret(plan, name_broker_secret(plan), pack_url(broker_url)))
    if keys is not None:
        made.append(make_secret(plan, name_tunnel(plan), _encode(keys.server_files())))
    return made, ours


def _encode(files: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in files.items()}


def name_broker_secret(plan: KubernetesPlan) -> str:
    """The Secret with the URL of a broker that is not in the cluster."""
    return f"{plan.release}-broker"


def name_tunnel(plan: KubernetesPlan) -> str:
    """The tunnel's Service for workers, and its Secret."""
    return f"{plan.release}-tunnel"


def find_running(fleet: KubernetesFleet, role: str) -> str:
    """The name of the pod of a role. Raises `TargetError` when none runs."""
    pod = fleet.find(role)
    if pod is None or pod.phase != "Running" or pod.leaving:
        raise TargetError(f"the {role} of session {fleet.session} has no pod that runs")
    return pod.name


def works(fleet: KubernetesFleet, role: str) -> bool:
    """Is the pod of a role ready?"""
    pod = fleet.find(role)
    return pod is not None and pod.ready and not pod.leaving


def explain(trouble: Exception) -> TargetError:
    """A failure of the cluster in the middle of a session."""
    return TargetError(
        f"the cluster failed: {trouble}",
        remedy="What may be left of it goes by itself within a quarter of an hour; or now, with: "
        "pestfleet down",
    )
