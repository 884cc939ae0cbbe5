"""A stand-in of EventBridge Scheduler's clock: it does what schedules say when their time is over.

Known are schedules `at(...)` with universal targets: ECS's UpdateService, and
UpdateAutoScalingGroup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from moto.backends import get_backend

from amazon_refusal import Refusal
from amazon_requests import ApiCall
from amazon_rules import HANDLERS
from iam_policies import is_allowed, trusts
from moto_server import Amazon

TARGET = "arn:aws:scheduler:::aws-sdk:"
_ONCE = re.compile(r"at\((.+)\)")


def run_schedules(amazon: Amazon, now: datetime | None = None) -> list[str]:
    """Do what is due at a time (now), and say the names of those schedules.

    Each is done once for each time that it is set to. It fails the test when the target cannot be
    called as it is written, or its role may not call it; a service that is gone is no failure.
    """
    moment = now or datetime.now(UTC)
    done = []
    with amazon.lock:
        for region, group, schedule in list(_list_schedules(amazon)):
            key = f"{schedule.arn} {schedule.schedule_expression}"
            if schedule.state != "ENABLED" or key in amazon.state.done:
                continue
            if _read_time(schedule) > moment:
                continue
            amazon.state.done.add(key)
            _call(amazon, region, schedule)
            done.append(schedule.name)
            if schedule.action_after_completion == "DELETE":
                group.schedules.pop(schedule.name)
    return done


def _list_schedules(amazon: Amazon) -> Iterator[tuple[str, Any, Any]]:
    backends = get_backend("scheduler")
    if amazon.account in backends:
        for region, backend in list(backends[amazon.account].items()):
            for group in backend.schedule_groups.values():
                yield from ((region, group, one) for one in list(group.schedules.values()))


def _read_time(schedule: Any) -> datetime:
    once = _ONCE.fullmatch(schedule.schedule_expression)
    assert once, f"only at(...) is known here, not {schedule.schedule_expression}"
    zone = ZoneInfo(schedule.schedule_expression_timezone or "UTC")
    return datetime.fromisoformat(once[1]).replace(tzinfo=zone)


def _call(amazon: Amazon, region: str, schedule: Any) -> None:
    target = schedule.target
    role, given = target["RoleArn"], json.loads(target["Input"])
    # As AWS's SDKs for Java name them: Cluster, Service, DesiredCount.
    assert all(name[0].isupper() for name in given), given
    assert trusts(amazon, role, "scheduler.amazonaws.com"), role
    assert target["Arn"].startswith(TARGET), target["Arn"]
    _TARGETS[target["Arn"].removeprefix(TARGET)](amazon, region, role, given)


def _update_service(amazon: Amazon, region: str, role: str, given: dict[str, Any]) -> None:
    parameters = {name[0].lower() + name[1:]: value for name, value in given.items()}
    cluster = str(parameters.get("cluster", "default")).rsplit("/", 1)[-1]
    service = str(parameters["service"]).rsplit("/", 1)[-1]
    arn = f"arn:aws:ecs:{region}:{amazon.account}:service/{cluster}/{service}"
    context = {"ecs:cluster": f"arn:aws:ecs:{region}:{amazon.account}:cluster/{cluster}"}
    action = "ecs:UpdateService"
    assert is_allowed(amazon, role, action, arn, context), f"{role} may not {action} on {arn}"
    call = ApiCall("ecs", "UpdateService", action, region, "json", parameters, (), role)
    amazon.calls.append(call)
    try:
        HANDLERS[action](amazon, call)
    except Refusal as refusal:
        gone = ("ServiceNotFoundException", "ServiceNotActiveException", "ClusterNotFoundException")
        if refusal.code not in gone:
            raise


def _update_group(amazon: Amazon, region: str, role: str, given: dict[str, Any]) -> None:
    name, action = given["AutoScalingGroupName"], "autoscaling:UpdateAutoScalingGroup"
    backend = amazon.backend("autoscaling", region=region)
    group = backend.autoscaling_groups.get(name)
    if group is None:
        return
    assert is_allowed(amazon, role, action, group.arn), f"{role} may not {action} on {group.arn}"
    operation = action.partition(":")[2]
    amazon.calls.append(ApiCall("autoscaling", operation, action, region, "query", given, (), role))
    backend.set_desired_capacity(name, given["DesiredCapacity"])


_TARGETS = {
    "ecs:updateService": _update_service,
    "autoscaling:updateAutoScalingGroup": _update_group,
}
