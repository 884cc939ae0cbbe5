"""A master that scales the service with its workers; moto plays ECS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hosting import wait_for
from pestfleet.targets import scaling
from pestfleet.targets.base import FleetPlan, Where
from pestfleet.targets.ecs.access import Cloud, Refused, Unreachable, connect
from pestfleet.targets.service_workers import ServiceWorkers, dismiss

CLUSTER, WORKERS, MASTER = "pestfleet-s1", "pestfleet-s1-worker", "pestfleet-s1-master"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        cloud = connect(Where(region="eu-central-1"))
        ecs = cloud.client("ecs")
        ecs.create_cluster(clusterName=CLUSTER)
        ecs.register_task_definition(
            family="f", containerDefinitions=[{"name": "a", "image": "b", "memory": 64}]
        )
        for service in (WORKERS, MASTER):
            ecs.create_service(
                cluster=CLUSTER, serviceName=service, taskDefinition="f", desiredCount=3
            )
        yield cloud


@pytest.fixture
def target(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServiceWorkers]:
    monkeypatch.setattr(scaling, "INTERVAL", 0.02)
    plan = FleetPlan("s1", tmp_path, tmp_path, "amqp://h//", 3, 1, tmp_path)
    target = ServiceWorkers(plan, cloud, cluster=CLUSTER, service=WORKERS)
    target.launch()
    yield target
    target.teardown()


def count(cloud: Cloud, service: str = WORKERS) -> int:
    (found,) = cloud.client("ecs").describe_services(cluster=CLUSTER, services=[service])[
        "services"
    ]
    return int(found["desiredCount"])


def test_nothing_is_changed_before_there_is_a_reason(cloud: Cloud, target: ServiceWorkers) -> None:
    assert target.describe() == [f"3 workers of service {WORKERS} join by themselves"]
    target.check()
    target.teardown()
    assert count(cloud) == 3 and not cloud.calls


def test_the_service_has_as_many_tasks_as_are_wanted(cloud: Cloud, target: ServiceWorkers) -> None:
    target.scale(40)
    wait_for(lambda: count(cloud) == 40, what="more workers")
    target.scale(2, ["task-1", "task-2"])
    wait_for(lambda: count(cloud) == 2, what="fewer workers")
    assert cloud.calls == {"ecs:UpdateService": 2}
    target.scale(2, ["task-3"])
    target.teardown()
    assert cloud.calls == {"ecs:UpdateService": 2}


def test_trouble_is_met_with_patience(
    cloud: Cloud,
    target: ServiceWorkers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    call: Callable[..., Any] = cloud.call
    errors: list[Exception] = [
        Unreachable("no answer"),
        Refused("ecs:UpdateService", "AccessDeniedException", "no"),
    ]

    def answer(service: str, operation: str, /, **parameters: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return call(service, operation, **parameters)

    monkeypatch.setattr(cloud, "call", answer)
    target.scale(5)
    wait_for(lambda: count(cloud) == 5, what="the workers")
    assert f"service {WORKERS} cannot be scaled, trying again: no answer" in caplog.text


def test_at_the_end_all_services_go_and_trouble_stops_none(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    call: Callable[..., Any] = cloud.call

    def answer(service: str, operation: str, /, **parameters: Any) -> Any:
        if parameters["service"] == "denied":
            raise Refused("ecs:UpdateService", "AccessDeniedException", "no")
        return call(service, operation, **parameters)

    monkeypatch.setattr(cloud, "call", answer)
    problems = dismiss(cloud, CLUSTER, [WORKERS, "denied", "never-there", MASTER])
    assert (count(cloud), count(cloud, MASTER)) == (0, 0)
    assert len(problems) == 1 and problems[0].startswith("service denied goes on: Amazon refuses")
    assert dismiss(cloud, "no-such-cluster", [WORKERS]) == []
