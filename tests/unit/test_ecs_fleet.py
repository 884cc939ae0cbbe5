"""A session's services, tasks and logs, as moto's ECS has them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from pestfleet.targets.ecs import fleet as module
from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.fleet import EcsFleet, Task, read_task
from pestfleet_worker.errors import SessionError, TargetError

REGION = "eu-central-1"
NOW = int(time.time()) * 1000  # CloudWatch takes no events that are old


class FakeStore:
    """What a fleet asks of a session's store. `ends_after`: looks until the master has ended."""

    def __init__(self, ends_after: int = 0) -> None:
        self.asked: list[Any] = []
        self.looks = ends_after

    def request_workers(self, workers: int) -> None:
        self.asked.append(workers)

    def request_stop(self) -> None:
        self.asked.append("stop")

    def read_ended(self) -> str:
        self.looks -= 1
        return "1 0" if self.looks < 0 else ""


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[EcsFleet]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        yield EcsFleet(Cloud(boto3.Session(region_name=REGION), REGION), "s1")


def launch(fleet: EcsFleet, **desired: int) -> None:
    call = fleet.cloud.call
    call("ecs", "create_cluster", clusterName=fleet.cluster)
    for role, number in desired.items():
        call(
            "ecs",
            "register_task_definition",
            family=fleet.names.family(role),
            requiresCompatibilities=["FARGATE"],
            networkMode="awsvpc",
            cpu="256",
            memory="512",
            containerDefinitions=[{"name": role, "image": "x"}],
        )
        call(
            "ecs",
            "create_service",
            cluster=fleet.cluster,
            serviceName=fleet.names.service(role),
            taskDefinition=fleet.names.family(role),
            desiredCount=number,
        )


def write_log(fleet: EcsFleet, stream: str, *lines: str, at: int = 0) -> None:
    call = fleet.cloud.call
    at = at or NOW
    if not call("logs", "describe_log_groups")["logGroups"]:
        call("logs", "create_log_group", logGroupName=fleet.names.logs)
    call("logs", "create_log_stream", logGroupName=fleet.names.logs, logStreamName=stream)
    events = [{"timestamp": at + number, "message": line} for number, line in enumerate(lines)]
    call("logs", "put_log_events", logGroupName=fleet.names.logs, logStreamName=stream,
         logEvents=events)  # fmt: skip


def test_where_there_is_nothing_nothing_is_found(fleet: EcsFleet) -> None:
    assert fleet.services() == {}
    assert fleet.tasks("worker") == []
    assert fleet.find("master") is None
    assert list(fleet.read_log("master/master/1")) == []
    assert fleet.read_tail("master/master/1", lines=5) == ([], "")
    fleet.stop_master()
    with pytest.raises(SessionError, match="has no workers in region eu-central-1"):
        fleet.scale(3)


def test_services_come_by_role_in_one_request(fleet: EcsFleet) -> None:
    launch(fleet, master=1, worker=3)
    fleet.cloud.calls.clear()
    assert {role: one["desiredCount"] for role, one in fleet.services().items()} == {
        "master": 1,
        "worker": 3,
    }
    assert fleet.cloud.calls.total() == 1


def test_scale_says_what_it_does(fleet: EcsFleet) -> None:
    launch(fleet, master=1, worker=2)
    assert fleet.scale(2) == ["there are 2 workers already"]
    assert fleet.scale(5) == ["3 more workers are asked for: 2 -> 5"]
    assert fleet.services()["worker"]["desiredCount"] == 5
    assert fleet.scale(1) == ["4 workers go when they have no run in hand: 5 -> 1"]
    assert fleet.services()["worker"]["desiredCount"] == 1


def test_a_master_that_works_drains_those_that_are_too_many(
    fleet: EcsFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(fleet, master=1, worker=2)
    store = FakeStore()
    fleet.store = store  # type: ignore[assignment]
    services = fleet.services()
    services["master"]["runningCount"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(fleet, "services", lambda roles: services)
        fleet.scale(1)
    assert fleet.services()["worker"]["desiredCount"] == 1 and store.asked == [1]


def test_of_an_elastic_fleet_the_master_is_asked(
    fleet: EcsFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(fleet, master=1, worker=2)
    store = FakeStore()
    fleet.store = store  # type: ignore[assignment]
    with pytest.raises(SessionError, match="does not run just now"):
        fleet.scale(7, elastic=True)
    services = {**fleet.services(), "master": {"runningCount": 1}}
    monkeypatch.setattr(fleet, "services", lambda roles: services)
    assert "the master is asked for 7 workers" in fleet.scale(7, elastic=True)[0]
    assert store.asked == [7]


def test_tasks_are_described_a_hundred_at_a_time() -> None:
    arns = [f"arn:aws:ecs:{REGION}:1:task/c/{number:03}" for number in range(250)]

    class FakeCloud:
        """Lists tasks, and describes no more than ECS does."""

        region = REGION
        asked: list[int] = []  # noqa: RUF012

        def find_all(self, *_: Any, **parameters: Any) -> Iterator[str]:
            assert parameters["desiredStatus"] == "RUNNING"
            yield from arns

        def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
            self.asked.append(len(parameters["tasks"]))
            return {"tasks": [{"taskArn": arn} for arn in parameters["tasks"]]}

    cloud = FakeCloud()
    fleet = EcsFleet(cloud, "s1")  # type: ignore[arg-type]
    assert [task.id for task in fleet.tasks("worker")] == [f"{n:03}" for n in range(250)]
    assert cloud.asked == [100, 100, 50]
    cloud.asked.clear()
    assert len(fleet.tasks("worker", most=120)) == 120
    assert cloud.asked == [100, 20]


def test_logs_are_read_from_their_end_and_from_a_time(fleet: EcsFleet) -> None:
    stream = "worker/worker/1"
    write_log(fleet, stream, *(f"line {number}" for number in range(30)))
    lines, token = fleet.read_tail(stream, lines=3)
    assert lines == ["line 27", "line 28", "line 29"]
    assert list(fleet.read_log(stream, token=token)) == []
    assert fleet.read_tail(stream, lines=0)[0] == []
    assert len(list(fleet.read_log(stream))) == 30
    assert list(fleet.read_log(stream, since=NOW / 1000 + 0.028)) == ["line 28", "line 29"]


def test_a_log_is_followed_until_its_task_has_ended(
    fleet: EcsFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = "worker/worker/1"
    write_log(fleet, stream, "first")
    monkeypatch.setattr(module, "LOG_GLANCE", 0.0)
    monkeypatch.setattr(module, "TASK_GLANCE", -1.0)
    looks = iter(["RUNNING", "STOPPED"])

    def describe(arns: list[str], role: str) -> Iterator[Task]:
        state = next(looks)
        if state == "RUNNING":
            fleet.cloud.call(
                "logs", "put_log_events", logGroupName=fleet.names.logs, logStreamName=stream,
                logEvents=[{"timestamp": NOW + 100, "message": "second"}],
            )  # fmt: skip
        yield make_task("1", state)

    monkeypatch.setattr(fleet, "_describe", describe)
    assert list(fleet.follow_log(make_task("1", "RUNNING"))) == ["first", "second"]


def make_task(name: str, state: str, role: str = "worker") -> Task:
    return read_task(
        {
            "taskArn": f"arn:aws:ecs:{REGION}:1:task/c/{name}",
            "group": f"service:pestfleet-s1-{role}",
            "lastStatus": state,
            "desiredStatus": "RUNNING",
        }
    )


def test_a_task_tells_its_role_by_its_service() -> None:
    task = make_task("abc", "RUNNING")
    assert (task.id, task.role, task.stream, task.running) == (
        "abc", "worker", "worker/worker/abc", True,
    )  # fmt: skip


def test_a_task_that_is_gone_can_be_ended_again(fleet: EcsFleet) -> None:
    fleet.end_task("0" * 32, "it is lost")  # there is no cluster, either


def test_a_master_is_asked_to_stop_and_waited_for(
    fleet: EcsFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(fleet, master=1, worker=1)
    monkeypatch.setattr(module, "GLANCE", 0.0)
    store = FakeStore(ends_after=2)
    fleet.store = store  # type: ignore[assignment]
    fleet.stop_master()
    assert (store.asked, store.looks) == (["stop"], -1)
    fleet.store = FakeStore(ends_after=10**9)  # type: ignore[assignment]
    with pytest.raises(TargetError, match="has not stopped after 0 s") as caught:
        fleet.stop_master(patience=0.05)
    assert "pestfleet down s1 --on ecs --region eu-central-1" in caught.value.remedy
