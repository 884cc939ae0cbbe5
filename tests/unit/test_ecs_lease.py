"""The schedules that end a fleet whose master is gone; moto plays EventBridge Scheduler."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hosting import wait_for
from pestfleet.targets.base import Where
from pestfleet.targets.ecs import lease as module
from pestfleet.targets.ecs.access import Cloud, Refused, connect
from pestfleet.targets.ecs.lease import TERM, Lease, read_time, write_time

GROUP = "pestfleet-s1"
NAMES = ("pestfleet-s1-master", "pestfleet-s1-worker")
TARGET = {
    "Arn": "arn:aws:scheduler:::aws-sdk:ecs:updateService",
    "RoleArn": "arn:aws:iam::123456789012:role/pestfleet/pestfleet-s1-schedule",
    "Input": json.dumps({"Cluster": "c", "Service": "s", "DesiredCount": 0}),
    "RetryPolicy": {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": 86400},
}


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        yield connect(Where(region="eu-central-1"))


@pytest.fixture
def scheduler(cloud: Cloud) -> Any:
    client = cloud.client("scheduler")
    client.create_schedule_group(Name=GROUP)
    for name in NAMES:
        client.create_schedule(
            Name=name,
            GroupName=GROUP,
            ScheduleExpression=write_time(time.time() + 60),
            ScheduleExpressionTimezone="UTC",
            FlexibleTimeWindow={"Mode": "OFF"},
            ActionAfterCompletion="NONE",
            State="ENABLED",
            Description="the lease",
            Target=TARGET,
        )
    return client


def read(scheduler: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = scheduler.get_schedule(GroupName=GROUP, Name=name)
    return found


def test_a_renewal_moves_the_end_of_each_service_and_nothing_else(
    cloud: Cloud, scheduler: Any
) -> None:
    before = {name: read(scheduler, name) for name in NAMES}
    began = time.time()
    Lease(cloud, GROUP, NAMES).renew()
    for name in NAMES:
        after = read(scheduler, name)
        assert began + TERM - 1 <= read_time(after["ScheduleExpression"]) <= time.time() + TERM
        assert after["ScheduleExpressionTimezone"] == "UTC"
        changed = {"ScheduleExpression", "LastModificationDate", "ResponseMetadata"}
        for key in before[name].keys() - changed:
            assert after[key] == before[name][key], key
    assert set(cloud.calls) == {"scheduler:GetSchedule", "scheduler:UpdateSchedule"}


def test_no_renewal_goes_beyond_the_end_of_the_session(cloud: Cloud, scheduler: Any) -> None:
    end = float(int(time.time()) + 100)
    Lease(cloud, GROUP, NAMES, latest=lambda: end).renew()
    assert {read_time(read(scheduler, name)["ScheduleExpression"]) for name in NAMES} == {end}
    kept = read(scheduler, NAMES[0])["ScheduleExpression"]
    Lease(cloud, GROUP, NAMES, latest=lambda: time.time() - 1).renew()
    assert read(scheduler, NAMES[0])["ScheduleExpression"] == kept


def test_services_that_the_session_does_not_have_are_passed_over(
    cloud: Cloud, scheduler: Any
) -> None:
    Lease(cloud, GROUP, ("pestfleet-s1-tunnel", *NAMES)).renew()
    assert read_time(read(scheduler, NAMES[1])["ScheduleExpression"]) > time.time() + 1000


def test_a_lease_that_had_run_out_is_told(cloud: Cloud, scheduler: Any) -> None:
    lapses: list[bool] = []
    lease = Lease(cloud, GROUP, NAMES, on_lapse=lambda: lapses.append(True))
    lease.renew()
    assert lapses == []
    settings = {key: read(scheduler, NAMES[1])[key] for key in ("FlexibleTimeWindow", "Target")}
    scheduler.update_schedule(
        Name=NAMES[1], GroupName=GROUP, ScheduleExpression="at(2020-01-01T00:00:00)", **settings
    )
    lease.renew()
    assert lapses == [True]
    assert read_time(read(scheduler, NAMES[1])["ScheduleExpression"]) > time.time() + 1000


def deny(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """The first requests to move the first schedule are refused."""
    call: Callable[..., Any] = cloud.call
    refused: list[str] = []

    def answer(service: str, operation: str, /, **parameters: Any) -> Any:
        name = parameters.get("Name", "")
        if operation == "update_schedule" and name == NAMES[0] and len(refused) < times:
            refused.append(name)
            raise Refused("scheduler:UpdateSchedule", "ThrottlingException", "Rate exceeded")
        return call(service, operation, **parameters)

    monkeypatch.setattr(cloud, "call", answer)
    return refused


def test_trouble_with_one_keeps_no_other_from_its_renewal(
    cloud: Cloud, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(cloud, monkeypatch, times=1)
    with pytest.raises(Refused, match="Rate exceeded"):
        Lease(cloud, GROUP, NAMES).renew()
    assert read_time(read(scheduler, NAMES[1])["ScheduleExpression"]) > time.time() + 1000


def test_it_is_renewed_while_it_runs_and_trouble_is_told(
    cloud: Cloud, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.01)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    refused = deny(cloud, monkeypatch, times=2)
    told: list[str] = []
    lease = Lease(cloud, GROUP, NAMES, on_trouble=told.append)
    lease.start()
    wait_for(lambda: cloud.calls["scheduler:UpdateSchedule"] > 20, what="renewals")
    lease.stop()
    assert len(refused) == len(told) == 2
    assert told[0].startswith("the fleet's lease could not be renewed: Amazon refuses")
    count = cloud.calls["scheduler:UpdateSchedule"]
    time.sleep(0.05)
    assert cloud.calls["scheduler:UpdateSchedule"] == count


def test_a_session_that_does_not_move_is_not_renewed(
    cloud: Cloud, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    told: list[str] = []
    lease = Lease(cloud, GROUP, NAMES, alive=lambda: False, on_trouble=told.append)
    lease.start()
    wait_for(lambda: told, what="the trouble")
    lease.stop()
    assert not cloud.calls


def test_times_are_those_of_the_scheduler() -> None:
    assert write_time(1767225599.7) == "at(2025-12-31T23:59:59)"
    assert read_time("at(2025-12-31T23:59:59)") == 1767225599.0
    assert read_time("rate(5 minutes)") == float("inf")
