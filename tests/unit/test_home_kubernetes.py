"""A master here with its fleet in a cluster: secrets, lease, and what it makes of the Job."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pestfleet.folder import SessionSpec
from pestfleet.placement import Placement
from pestfleet.targets import distant
from pestfleet.targets.base import FleetPlan
from pestfleet.targets.distant import Watch, Ways, await_server
from pestfleet.targets.kubernetes import home as module
from pestfleet.targets.kubernetes import lease as lease_module
from pestfleet.targets.kubernetes.access import Refused, Unreachable
from pestfleet.targets.kubernetes.home import KubernetesTarget, make_secrets, works
from pestfleet.targets.kubernetes.launch import KubernetesPlan
from pestfleet.targets.kubernetes.lease import Lease
from pestfleet.targets.kubernetes.naming import Object
from pestfleet.targets.kubernetes.pods import Pod
from pestfleet.targets.kubernetes.values import Images
from pestfleet.targets.troubles import Trouble
from pestfleet.tunnel.keys import make_tunnel_keys
from pestfleet_worker.errors import Interrupted, TargetError

PATIENCE = 60.0


def make_plan(*, tunnel: bool = False, mode: str = "queue", least: int = 1) -> KubernetesPlan:
    place = Placement(master="here", tunnel=tunnel, least=least)
    spec = SessionSpec(
        "s1", "/case/case.pst", "d" * 64, "glm", "kubernetes", 4, 1, mode=mode, place=place
    )
    return KubernetesPlan(spec, Images("worker:1", "broker:1", tunnel="tunnel:1"), {}, [])


def make_pod(name: str, role: str = "worker", *, phase: str = "Running", ready: bool = True) -> Pod:
    return Pod(name, role, phase, ready, None, {"metadata": {"name": name}})


class FakeFleet:
    """A fleet whose API answers as it is told."""

    session = "s1"
    selector = "pestfleet.session=s1"
    access = None

    def __init__(self) -> None:
        self.job: Object | None = make_job()
        self.found: list[Pod] = []
        self.done: list[Any] = []
        self.error: Exception | None = None

    def find_job(self, role: str) -> Object | None:
        if self.error is not None:
            raise self.error
        return self.job

    def find(self, role: str) -> Pod | None:
        return next((pod for pod in self.found if pod.role == role), None)

    def pods(self, role: str = "") -> list[Pod]:
        return self.found

    def scale(self, workers: int) -> list[str]:
        self.done.append(workers)
        return []

    def dismiss(self, pod: str, *, grace: int | None = None) -> None:
        self.done.append((pod, grace))


def make_job(*, ready: int = 4, ended: str = "") -> Object:
    failed = {"type": "Failed", "status": "True", "reason": ended}
    return {
        "metadata": {"name": "workers"},
        "spec": {"parallelism": 4, "activeDeadlineSeconds": 7200},
        "status": {"ready": ready, "conditions": [failed] if ended else []},
    }


def make_trouble(*, hopeless: bool = False, count: int = 1, message: str = "no node") -> Trouble:
    return Trouble("node", count, message, "ask", hopeless, (), role="worker", why=message)


class Site:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fleet = FakeFleet()
        self.told: list[str] = []
        self.troubles: list[Trouble] = []
        self.gathered = 0
        monkeypatch.setattr(KubernetesTarget, "pause", 0.0)
        monkeypatch.setattr(distant, "LOOK", 0.0)
        monkeypatch.setattr(distant, "GLANCE", 0.0)
        plan = make_plan(least=2)
        self.watch = Watch(self.gather, plan.spec, self.told.append)
        self.target = KubernetesTarget(
            FleetPlan("s1", folder, folder, "amqp://x", 4, 1, folder),
            Ways(),
            self.watch,
            plan=plan,
            fleet=self.fleet,  # type: ignore[arg-type]
            note=self.told.append,
        )

    def gather(self) -> list[Trouble]:
        self.gathered += 1
        return self.troubles

    def await_broker(self, say: Callable[[str], None]) -> None:
        fleet: Any = self.fleet
        await_server("broker", lambda: works(fleet, "broker"), self.watch, say, remedy="look")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_a_fleet_that_is_whole_takes_one_request(site: Site) -> None:
    site.target.check()
    assert site.gathered == 0 and site.told == []


def test_what_does_not_run_is_told_once(site: Site) -> None:
    site.fleet.job = make_job(ready=3)
    site.troubles = [make_trouble()]
    for _ in range(3):
        site.target.check()
    assert site.told == ["no node\n    ask"]
    site.troubles = []
    site.target.check()
    site.troubles = [make_trouble()]
    site.target.check()
    assert len(site.told) == 2, "it is news again"


def test_too_few_workers_for_ever_end_the_session(site: Site) -> None:
    site.fleet.job = make_job(ready=0)
    site.troubles = [make_trouble(hopeless=True, count=2)]
    site.target.check()  # two will do
    site.troubles = [make_trouble(hopeless=True, count=3)]
    with pytest.raises(TargetError, match="no node"):
        site.target.check()


def test_the_api_server_is_away(site: Site) -> None:
    site.fleet.error = Unreachable("the API server does not answer")
    for _ in range(3):
        site.target.check()
    site.fleet.error = None
    site.target.check()
    site.target.check()
    assert site.told == [
        "the API server does not answer; trying again",
        "the cluster's API server answers again",
    ]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (None, "were removed"),
        (make_job(ended="DeadlineExceeded"), "DeadlineExceeded"),
        (make_job(ended="PodFailurePolicy"), "PodFailurePolicy"),
    ],
)
def test_a_fleet_that_is_over(site: Site, job: Object | None, words: str) -> None:
    site.fleet.job = job
    with pytest.raises(TargetError, match=words):
        site.target.check()
    site.troubles = [make_trouble(hopeless=True, count=4, message="each was refused")]
    with pytest.raises(TargetError, match="each was refused"):
        site.target.check()


def test_drained_workers_go_before_others(site: Site) -> None:
    site.fleet.found = [make_pod(f"pf-workers-{letter}") for letter in "abcd"]
    site.target.scale(2, surplus=("pf-workers-b-1", "pf-workers-d-1", "pf-workers-gone-1"))
    *ended, number = site.fleet.done
    assert set(ended) == {("pf-workers-b", None), ("pf-workers-d", None)} and number == 2


def test_a_lost_worker_is_ended_at_once(site: Site) -> None:
    site.target.replace("pf-workers-b-7")
    assert site.fleet.done == [("pf-workers-b", module.END_GRACE)]


def test_waiting_for_a_pod(site: Site) -> None:
    looks: list[str] = []

    def say(text: str) -> None:
        looks.append(text)
        if len(looks) == 3:
            site.fleet.found = [make_pod("broker-0", "broker", ready=False)]
        if len(looks) == 6:
            site.fleet.found = [make_pod("broker-0", "broker")]

    site.troubles = [make_trouble(message="a quota", hopeless=True, count=2)]  # two will do
    site.await_broker(say)
    assert len(looks) == 6 and site.told == ["a quota\n    ask"]


def test_waiting_in_vain(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(text: str) -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        site.await_broker(stop)
    broker = Trouble("image", 1, "no image", "", True, (), role="broker", why="no image")
    site.troubles = [broker]
    with pytest.raises(TargetError, match="no image"):
        site.await_broker(str)
    site.troubles = []
    monkeypatch.setattr(distant, "START", 0.05)
    with pytest.raises(TargetError, match="did not work"):
        site.await_broker(str)


# -- secrets -------------------------------------------------------------------------------------


def read_data(secret: Object) -> dict[str, str]:
    return {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}


def test_nothing_that_proves_the_master_is_in_the_cluster() -> None:
    keys = make_tunnel_keys()
    made, ours = make_secrets(make_plan(tunnel=True, mode="agent"), "", keys)
    assert [one["metadata"]["name"].rpartition("-")[2] for one in made] == ["credentials", "tunnel"]
    password = ours["broker-url"].split(":")[2].split("@")[0]
    there = "\n".join(text for one in made for text in read_data(one).values())
    assert password not in there
    assert keys.user_key.strip().splitlines()[2] not in there
    credentials, tunnel = map(read_data, made)
    assert set(tunnel) == {"host_key", "authorized_keys"}
    assert {name.partition(".")[0] for name in credentials} == {"broker", "worker"}
    assert credentials["worker.ca.pem"] == ours["ca.pem"]
    url = credentials["worker.broker-url"]
    assert url.startswith("amqps://worker:") and "@pf-s1-" in url and "-broker:5671/s1?" in url


def test_secrets_for_another_broker() -> None:
    url = "amqp://guest:word@rabbit.example:5672/%2F"
    (made,), ours = make_secrets(make_plan(), url, None)
    assert made["metadata"]["name"].endswith("-broker") and ours == {}
    assert read_data(made) == {"broker-url": url}
    # In agent mode the tunnel leads to the relay only.
    made_for_agents, _ = make_secrets(make_plan(tunnel=True, mode="agent"), url, make_tunnel_keys())
    assert len(made_for_agents) == 2
    # One that workers reach through the tunnel has its address later.
    (tunnel,), _ = make_secrets(make_plan(tunnel=True), "", make_tunnel_keys())
    assert tunnel["metadata"]["name"].endswith("-tunnel")


# -- the lease -----------------------------------------------------------------------------------


class FakeAccess:
    def __init__(self) -> None:
        self.deadlines: list[int] = []
        self.error: Exception | None = None

    def find_path(self, version: str, plural: str, name: str = "") -> str:
        return f"{version}/{plural}/{name}"

    def patch(self, path: str, body: Object) -> Object:
        assert path == "batch/v1/jobs/workers"
        self.deadlines.append(body["spec"]["activeDeadlineSeconds"])
        if self.error is not None:
            raise self.error
        return {}


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def access(monkeypatch: pytest.MonkeyPatch) -> FakeAccess:
    monkeypatch.setattr(lease_module, "GRACE", 0.05)
    monkeypatch.setattr(lease_module, "RETRY", 0.01)
    return FakeAccess()


def list_leases() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lease"]


def test_a_lease_is_renewed_until_it_is_stopped(access: FakeAccess) -> None:
    lease = Lease(access, make_job())  # type: ignore[arg-type]
    lease.start()
    wait_for(lambda: len(access.deadlines) > 2)
    access.error = Unreachable("away")
    count = len(access.deadlines)
    wait_for(lambda: len(access.deadlines) > count + 2)
    lease.stop()
    assert list_leases() == []


def test_a_lease_ends_with_its_job(access: FakeAccess) -> None:
    access.error = Refused(404, "NotFound", "gone")
    lease = Lease(access, make_job())  # type: ignore[arg-type]
    lease.start()
    wait_for(lambda: not list_leases())
    assert len(access.deadlines) == 1
    lease.stop()


def test_a_lease_moves_on_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(lease_module.time, "time", lambda: now[0])
    lease = Lease(FakeAccess(), make_job())  # type: ignore[arg-type]

    def sign() -> int:
        deadline: int = lease.sign(make_job())["spec"]["activeDeadlineSeconds"]
        return deadline

    assert sign() == lease_module.GRACE
    now[0] += 1000
    assert sign() == 1000 + lease_module.GRACE
    now[0] += 9000
    assert sign() == 7200, "never longer than the session's hours"
    assert lease.sign(make_job())["spec"]["parallelism"] == 4
