"""Cloud Map: a session's private domain, and the names in it.

Making and removing a domain are operations that take a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.naming import as_dict
from pestfleet.targets.ecs.resources.kinds import Body, Found, Kind, Search, ask, take
from pestfleet.targets.ecs.resources.waiting import has_code, insist, wait_until
from pestfleet_worker.errors import TargetError

_SERVICE = "servicediscovery"
_MISSING = ("NotFound",)
_RUNNING = ("SUBMITTED", "PENDING")
_SECONDS = 300.0


def _finish(cloud: Cloud, operation: str, what: str) -> Body:
    """Wait for an operation's end. Raises `TargetError` where it failed."""
    state: Body = {}

    def is_over() -> bool:
        answer = cloud.call(_SERVICE, "get_operation", OperationId=operation)
        state.update(answer["Operation"])
        return state.get("Status") not in _RUNNING

    wait_until(is_over, what, seconds=_SECONDS)
    if state.get("Status") == "FAIL":
        raise TargetError(
            f"{what} failed: {state.get('ErrorMessage', '')} ({state.get('ErrorCode', '')})",
            remedy="Look at Cloud Map and Route 53 in the account, and launch again.",
        )
    return state


def _identify(cloud: Cloud, body: Body, answer: Body) -> str:
    what = f"making the domain {body['Name']}"
    return str(_finish(cloud, answer["OperationId"], what)["Targets"]["NAMESPACE"])


def _find_space(search: Search) -> Iterator[Found]:
    cloud, name = search.cloud, search.names.domain
    wanted = [{"Name": "NAME", "Values": [name], "Condition": "EQ"}]
    for one in cloud.find_all(_SERVICE, "list_namespaces", "Namespaces", Filters=wanted):
        if one["Name"] == name:
            tags = cloud.call(_SERVICE, "list_tags_for_resource", ResourceARN=one["Arn"])
            found = as_dict(tags.get("Tags"))
            yield Found("dns-namespace", name, one["Arn"], found, True, one["Id"])


def _settle(search: Search) -> None:
    """A domain that a killed launch began to make is listed only when it is made."""
    wanted = [
        {"Name": "TYPE", "Values": ["CREATE_NAMESPACE"], "Condition": "EQ"},
        {"Name": "STATUS", "Values": list(_RUNNING), "Condition": "IN"},
    ]
    operations = search.cloud.find_all(_SERVICE, "list_operations", "Operations", Filters=wanted)
    for one in list(operations):
        if one.get("Status") in _RUNNING:
            wait_until(
                partial(_is_over, search.cloud, one["Id"]), "making a domain", seconds=_SECONDS
            )


def _is_over(cloud: Cloud, operation: str) -> bool:
    answer = cloud.call(_SERVICE, "get_operation", OperationId=operation)
    return answer["Operation"].get("Status") not in _RUNNING


def _remove_space(search: Search, found: Found) -> None:
    cloud = search.cloud
    answer = insist(
        lambda: ask(cloud, _SERVICE, "delete_namespace", _MISSING, Id=found.ident),
        when=has_code("ResourceInUse"),
    )
    if answer is not None:
        _finish(cloud, answer["OperationId"], f"removing the domain {found.name}")


def _find_names(search: Search) -> Iterator[Found]:
    cloud = search.cloud
    for space in _find_space(search):
        wanted = [{"Name": "NAMESPACE_ID", "Values": [space.ident], "Condition": "EQ"}]
        for one in cloud.find_all(_SERVICE, "list_services", "Services", Filters=wanted):
            tags = cloud.call(_SERVICE, "list_tags_for_resource", ResourceARN=one["Arn"])
            found = as_dict(tags.get("Tags"))
            name = f"{one['Name']}.{space.name}"
            yield Found("dns-service", name, one["Arn"], found, ident=one["Arn"])


def _remove_name(search: Search, found: Found) -> None:
    """ECS takes the addresses of tasks out when they end; what is left of them goes here."""
    cloud, ident = search.cloud, found.ident.rpartition("/")[2]

    def clear() -> None:
        for one in cloud.find_all(_SERVICE, "list_instances", "Instances", ServiceId=ident):
            ask(
                cloud,
                _SERVICE,
                "deregister_instance",
                ("NotFound", "DuplicateRequest", "ResourceInUse"),
                ServiceId=ident,
                InstanceId=one["Id"],
            )
        ask(cloud, _SERVICE, "delete_service", _MISSING, Id=ident)

    insist(clear, when=has_code("ResourceInUse"))


KINDS = (
    Kind(
        "dns-namespace",
        _SERVICE,
        "create_private_dns_namespace",
        _identify,
        _find_space,
        _remove_space,
        exists=("NamespaceAlreadyExists",),
        settle=_settle,
    ),
    Kind(
        "dns-service",
        _SERVICE,
        "create_service",
        take("Service", "Arn"),
        _find_names,
        _remove_name,
        exists=("ServiceAlreadyExists",),
    ),
)
