"""A master here with its fleet in ECS: who may come in, where the broker is, and the workers."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pestfleet.folder import SessionSpec
from pestfleet.placement import AmazonPlace, Placement
from pestfleet.targets.base import FleetPlan
from pestfleet.targets.distant import Ways
from pestfleet.targets.ecs import forward as forward_module
from pestfleet.targets.ecs import home as module
from pestfleet.targets.ecs import reach
from pestfleet.targets.ecs.access import Refused, Unreachable
from pestfleet.targets.ecs.fleet import Task, read_task
from pestfleet.targets.ecs.forward import Forward
from pestfleet.targets.ecs.home import EcsTarget, make_lease, set_workers
from pestfleet.targets.ecs.naming import Names
from pestfleet.targets.ecs.plan import Facts, Network, make_plan
from pestfleet.targets.ecs.planned import AmazonPlan
from pestfleet.targets.ecs.reach import check_public, choose_block, find_address
from pestfleet.targets.ecs.secret_files import make_parts, make_secrets
from pestfleet.targets.ecs.tasks import Images
from pestfleet.tunnel.keys import make_tunnel_keys
from pestfleet_worker.errors import ConfigurationError, TargetError

PATIENCE = 60.0


def make_spec(*, tunnel: bool = False, mode: str = "queue", **amazon: Any) -> SessionSpec:
    place = Placement(master="here", tunnel=tunnel, amazon=AmazonPlace(**amazon))
    return SessionSpec(
        "s1", "/case/case.pst", "d" * 64, "glm", "ecs", 4, 1, mode=mode, place=place, max_hours=2.0
    )


def plan_home(*, tunnel: bool = False, mode: str = "queue") -> AmazonPlan:
    spec = make_spec(tunnel=tunnel, mode=mode, public=True, allow_from="203.0.113.7/32")
    facts = Facts("1" * 12, "eu-central-1", "aws", Network("vpc-1", ("subnet-1",), public=True))
    broker = "" if tunnel and mode == "queue" else "r.example/broker:1"
    images = Images("r.example/worker:1", broker, tunnel="r.example/tunnel:1" if tunnel else "")
    return make_plan(spec, images, facts)


# -- who may come in ---------------------------------------------------------------------------


def answer(text: str) -> Callable[..., Any]:
    return lambda url, timeout: closing(io.BytesIO(text.encode()))  # type: ignore[return-value]


def test_this_machine_alone_may_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach.urllib.request, "urlopen", answer("203.0.113.7\n"))
    assert choose_block(make_spec(), "").place.amazon.allow_from == "203.0.113.7/32"
    given = make_spec(allow_from="198.51.100.0/24")
    assert choose_block(given, "") is given


def test_nobody_is_asked_where_nobody_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach.urllib.request, "urlopen", pytest.fail)
    spec = make_spec()
    assert choose_block(spec, "amqps://broker.example") is spec
    check_public(spec, "amqps://broker.example")


@pytest.mark.parametrize("text", ["2001:db8::1", "<html>a login page</html>"])
def test_an_address_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach.urllib.request, "urlopen", answer(text))
    with pytest.raises(ConfigurationError) as caught:
        choose_block(make_spec(), "")
    assert "amazon.allow_from" in caught.value.remedy


def test_an_internet_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, timeout: float) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(reach.urllib.request, "urlopen", fail)
    with pytest.raises(ConfigurationError, match=r"not to be found: .*no route"):
        choose_block(make_spec(), "")


@pytest.mark.parametrize(("tunnel", "what"), [(False, "its broker"), (True, "its tunnel")])
def test_without_public_addresses_a_master_here_is_refused(tunnel: bool, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what) as caught:
        check_public(make_spec(tunnel=tunnel), "")
    assert "amazon.public = true" in caught.value.remedy


# -- secrets -----------------------------------------------------------------------------------


def test_what_proves_the_master_stays_here() -> None:
    plan = plan_home()
    parts = make_parts(plan.names)
    secrets = make_secrets(plan, "", parts=parts)
    assert secrets.keys() == {"broker", "worker"}
    password = parts["master"]["broker-url"].split(":")[2].split("@")[0]
    assert password not in secrets["worker"] and password not in secrets["broker"]
    url = json.loads(secrets["worker"])["broker-url"]
    assert "@broker.s1.pestfleet.internal:5671/" in url


def test_the_tunnel_has_its_own_end_only() -> None:
    plan, keys = plan_home(tunnel=True), make_tunnel_keys()
    secrets = make_secrets(plan, "", keys=keys)
    assert secrets.keys() == {"tunnel", "worker"}
    assert json.loads(secrets["tunnel"]).keys() == {"host_key", "authorized_keys"}
    assert keys.user_key not in secrets["tunnel"]
    assert json.loads(secrets["worker"]) == {}  # handed out when it is known


def test_a_broker_of_the_users_is_packed_for_workers() -> None:
    spec = make_spec(public=True, allow_from="203.0.113.7/32")
    network = Network("vpc-1", ("subnet-1",), public=True)
    facts = Facts("1" * 12, "eu-central-1", "aws", network, broker_port=5672)
    plan = make_plan(spec, Images("r.example/worker:1"), facts)
    secrets = make_secrets(plan, "amqp://u:p@broker.example/v")
    assert json.loads(secrets["worker"])["broker-url"] == "amqp://u:p@broker.example:5672/v"


# -- where it is -------------------------------------------------------------------------------


def make_task(name: str, role: str = "worker", interface: str = "") -> Task:
    details = [{"name": "networkInterfaceId", "value": interface}] if interface else []
    return read_task(
        {
            "taskArn": f"arn:x/{name}",
            "lastStatus": "RUNNING",
            "desiredStatus": "RUNNING",
            "attachments": [{"type": "ElasticNetworkInterface", "details": details}],
        },
        role,
    )


class FakeCloud:
    """Public addresses by interface, and what was asked."""

    region = "eu-central-1"

    def __init__(self, **addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        self.asked.append((operation, parameters))
        if operation != "describe_network_interfaces":
            return {}
        address = self.addresses.get(parameters["NetworkInterfaceIds"][0])
        return {"NetworkInterfaces": [{"Association": {"PublicIp": address}} if address else {}]}


class FakeFleet:
    """What a target asks of a fleet."""

    session = "s1"
    names = Names("s1")

    def __init__(self, **addresses: str) -> None:
        self.cloud = FakeCloud(**addresses)
        self.found: list[Task] = []
        self.worker: dict[str, Any] | None = {"desiredCount": 4, "runningCount": 4}
        self.done: list[Any] = []
        self.error: Exception | None = None

    def tasks(self, role: str, *, stopped: bool = False, most: int = 0) -> list[Task]:
        return [task for task in self.found if task.role == role]

    def services(self, roles: Any = ()) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {} if self.worker is None else {"worker": self.worker}

    def set_desired(self, role: str, number: int) -> None:
        self.done.append((role, number))

    def end_task(self, task: str, reason: str) -> None:
        self.done.append(task)


def test_the_address_is_that_of_the_newest_task() -> None:
    fleet = FakeFleet(eni1="198.51.100.1", eni2="198.51.100.2")
    fleet.found = [make_task("1", "broker", "eni1"), make_task("2", "broker", "eni2")]
    assert find_address(fleet, "broker") == "198.51.100.2"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [([], "has no task that runs"), ([make_task("1", "broker", "eni9")], "has no public address")],
)
def test_a_broker_without_an_address(tasks: list[Task], words: str) -> None:
    fleet = FakeFleet()
    fleet.found = tasks
    with pytest.raises(TargetError, match=words):
        find_address(fleet, "broker")  # type: ignore[arg-type]


@pytest.fixture
def echo() -> Iterator[int]:
    """A server on each of two loopback addresses that says which it is, and repeats."""
    servers = [socket.create_server(("127.0.0.2", 0))]
    port = servers[0].getsockname()[1]
    servers.append(socket.create_server(("127.0.0.3", port)))

    def serve(server: socket.socket) -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                return
            with near:
                near.sendall(server.getsockname()[0].encode() + b"\n")
                while data := near.recv(100):
                    near.sendall(data)

    for server in servers:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    yield port
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def read_through(forward: Forward) -> str:
    with socket.create_connection(forward.address, timeout=PATIENCE) as end:
        file = end.makefile("rwb")
        name = file.readline().decode().strip()
        file.write(b"ping\n")
        file.flush()
        assert file.readline() == b"ping\n"
        return name


def test_a_forward_leads_to_the_task_that_is_there_now(
    echo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "PAUSE", 0.01)
    hosts = iter(["127.0.0.4", "127.0.0.2", "127.0.0.3"])  # nobody listens at the first

    def find() -> str:
        return next(hosts)

    with closing(Forward(find, echo)) as forward:
        assert read_through(forward) == "127.0.0.2"
        assert read_through(forward) == "127.0.0.2"  # it is known
        forward._host = "127.0.0.5"  # the task is gone
        assert read_through(forward) == "127.0.0.3"


def test_a_forward_that_is_closed_ends_its_connections(echo: int) -> None:
    forward = Forward(lambda: "127.0.0.2", echo)
    with socket.create_connection(forward.address, timeout=PATIENCE) as end:
        assert end.makefile("rb").readline() == b"127.0.0.2\n"
        forward.close()
        assert end.recv(1) == b""


# -- the workers -------------------------------------------------------------------------------


class FakeWatch:
    """Counts looks."""

    def __init__(self) -> None:
        self.looks: list[int] = []

    def look(self, wanted: int = 0) -> None:
        self.looks.append(wanted)


def make_target(tmp_path: Path, fleet: FakeFleet, said: list[str]) -> EcsTarget:
    wanted = FleetPlan("s1", tmp_path, tmp_path, "amqps://m:p@127.0.0.1:1/s1", 4, 1, tmp_path)
    target = EcsTarget(
        wanted,
        Ways(),
        FakeWatch(),  # type: ignore[arg-type]
        plan=plan_home(),
        fleet=fleet,  # type: ignore[arg-type]
        note=said.append,
    )
    return target


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> FakeFleet:
    monkeypatch.setattr(EcsTarget, "pause", -1.0)
    return FakeFleet()


def test_workers_are_as_many_as_the_master_wants(tmp_path: Path, fleet: FakeFleet) -> None:
    target = make_target(tmp_path, fleet, [])
    target.launch()
    target.scale(2, {"task-abc"})
    assert fleet.done == [("worker", 4), ("worker", 2)]


def test_a_lost_worker_is_replaced_by_its_task(tmp_path: Path, fleet: FakeFleet) -> None:
    fleet.found = [make_task("aaaabbbbcccc1111"), make_task("ddddeeeeffff2222")]
    make_target(tmp_path, fleet, []).replace("task-ddddeeeeffff")
    assert fleet.done == ["ddddeeeeffff2222"]


@pytest.mark.parametrize("worker", [None, {"desiredCount": 0, "runningCount": 0}])
def test_workers_that_were_stopped_are_told(
    tmp_path: Path, fleet: FakeFleet, worker: dict[str, Any] | None
) -> None:
    fleet.worker = worker
    with pytest.raises(TargetError, match="stopped or removed"):
        make_target(tmp_path, fleet, []).check()


def test_a_machine_that_has_slept_starts_its_fleet_again(
    tmp_path: Path, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    target = make_target(tmp_path, fleet, said)
    fleet.worker = {"desiredCount": 0, "runningCount": 0}

    def start(role: str, number: int) -> None:
        fleet.worker = {"desiredCount": number, "runningCount": number}
        fleet.done.append((role, number))

    monkeypatch.setattr(fleet, "set_desired", start)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    target.check()
    assert fleet.done == [("worker", 4)]
    assert "away for 60 minutes" in said[0] and "started again" in said[0]


def test_what_does_not_run_is_looked_into(tmp_path: Path, fleet: FakeFleet) -> None:
    target = make_target(tmp_path, fleet, [])
    watch: Any = target._watch
    target.check()
    assert watch.looks == []
    fleet.worker = {"desiredCount": 4, "runningCount": 3}
    target.check()
    assert watch.looks == [4]


@pytest.mark.parametrize(
    "error", [Unreachable("no answer"), Refused("ecs:DescribeServices", "Throttling", "slow")]
)
def test_an_account_that_is_away_for_a_while_is_told_once(
    tmp_path: Path, fleet: FakeFleet, error: Exception
) -> None:
    said: list[str] = []
    target = make_target(tmp_path, fleet, said)
    fleet.error = error
    target.check()
    target.check()
    fleet.error = None
    target.check()
    assert len(said) == 2
    assert said[0].endswith("; trying again") and said[1] == "Amazon answers again"


def test_workers_get_the_way_to_a_broker_here(tmp_path: Path, fleet: FakeFleet) -> None:
    target = make_target(tmp_path, fleet, [])
    target._hand_out({"broker-url": b"amqps://x", "ca.pem": b"pem"})
    ((operation, asked),) = fleet.cloud.asked
    assert (operation, asked["SecretId"]) == ("put_secret_value", "pestfleet/s1/worker")
    assert json.loads(asked["SecretString"]) == {"broker-url": "amqps://x", "ca.pem": "pem"}


def test_late_workers_and_the_lease_of_all() -> None:
    plan = plan_home(tunnel=True)
    late = set_workers(plan, 0)
    counts = {one.role: one.body["desiredCount"] for one in late.find("service")}
    assert counts == {"tunnel": 1, "worker": 0}
    lease = make_lease(plan, FakeFleet(), began=1000.0)  # type: ignore[arg-type]
    assert lease._schedules == ("pestfleet-s1-tunnel", "pestfleet-s1-worker")
    assert lease._latest() == 1000.0 + 7200.0 + module.GRACE
