"""CloudWatch Logs: a session's log group."""

from __future__ import annotations

from collections.abc import Iterator

from pestfleet.targets.ecs.resources.kinds import Found, Kind, Search, ask, use


def _find(search: Search) -> Iterator[Found]:
    cloud, name = search.cloud, search.names.logs
    groups = cloud.find_all("logs", "describe_log_groups", "logGroups", logGroupNamePrefix=name)
    for group in groups:
        if group["logGroupName"] == name:
            arn = search.name_arn("logs", f"log-group:{name}")
            tags = cloud.call("logs", "list_tags_for_resource", resourceArn=arn)
            yield Found("log-group", name, arn, dict(tags.get("tags") or {}), True, name)


def _remove(search: Search, found: Found) -> None:
    missing = ("ResourceNotFound",)
    ask(search.cloud, "logs", "delete_log_group", missing, logGroupName=found.ident)


KINDS = (
    Kind(
        "log-group",
        "logs",
        "create_log_group",
        use("logGroupName"),
        _find,
        _remove,
        exists=("ResourceAlreadyExists",),
    ),
)
