"""EventBridge Scheduler: the lease, a group with a schedule a service."""

from __future__ import annotations

from collections.abc import Iterator

from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.naming import as_dict
from pestfleet.targets.ecs.resources.kinds import Body, Found, Kind, Search, ask, take, use

_MISSING = ("NotFound",)


def _find(search: Search) -> Iterator[Found]:
    cloud, name = search.cloud, search.names.schedules
    group = ask(cloud, "scheduler", "get_schedule_group", _MISSING, Name=name)
    if group is None or group.get("State") == "DELETING":
        return
    tags = cloud.call("scheduler", "list_tags_for_resource", ResourceArn=group["Arn"])
    yield Found("schedule-group", name, group["Arn"], as_dict(tags.get("Tags")), ident=name)


def _remove(search: Search, found: Found) -> None:
    """Amazon removes its schedules with it."""
    ask(search.cloud, "scheduler", "delete_schedule_group", _MISSING, Name=found.ident)


def _renew(cloud: Cloud, body: Body) -> None:
    cloud.call("scheduler", "update_schedule", **body)


KINDS = (
    Kind(
        "schedule-group",
        "scheduler",
        "create_schedule_group",
        use("Name"),
        _find,
        _remove,
        exists=("ConflictException",),
    ),
    Kind(
        "schedule",
        "scheduler",
        "create_schedule",
        take("ScheduleArn"),
        exists=("ConflictException",),
        renew=_renew,
    ),
)
