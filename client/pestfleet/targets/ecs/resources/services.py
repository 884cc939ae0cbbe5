"""ECS: services, their tasks, and task definitions."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.naming import ROLES, as_dict, make_tags
from pestfleet.targets.ecs.resources.kinds import Body, Found, Kind, Search, ask, take

_NO_CLUSTER = ("ClusterNotFound",)
_THREADS = 8


def _find(search: Search) -> Iterator[Found]:
    names = [search.names.service(role) for role in ROLES]
    answer = ask(
        search.cloud,
        "ecs",
        "describe_services",
        _NO_CLUSTER,
        cluster=search.cluster,
        services=names,
        include=["TAGS"],
    )
    for one in (answer or {}).get("services", ()):
        if one.get("status") != "INACTIVE":
            name, arn = one["serviceName"], one["serviceArn"]
            yield Found("service", name, arn, as_dict(one.get("tags")), True, arn)


def _remove(search: Search, found: Found) -> None:
    """With its tasks, also those that are protected: nobody waits for their runs any more."""
    cloud, cluster = search.cloud, search.cluster
    missing = (*_NO_CLUSTER, "ServiceNotFound", "ServiceNotActive")
    ask(cloud, "ecs", "delete_service", missing, cluster=cluster, service=found.name, force=True)
    # A service is called as the family of its tasks.
    tasks = cloud.find_all("ecs", "list_tasks", "taskArns", cluster=cluster, family=found.name)

    def stop(task: str) -> None:
        reason = f"pestfleet: session {search.session} is removed"
        gone = (*_NO_CLUSTER, "InvalidParameter")
        ask(cloud, "ecs", "stop_task", gone, cluster=cluster, task=task, reason=reason)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(stop, list(tasks)))


def _renew(cloud: Cloud, body: Body) -> None:
    cloud.call(
        "ecs",
        "update_service",
        cluster=body["cluster"],
        service=body["serviceName"],
        taskDefinition=body["taskDefinition"],
        desiredCount=body["desiredCount"],
    )


def _find_definitions(search: Search) -> Iterator[Found]:
    """Of all revisions. Tags could be had only of one at a time; the name says whose it is."""
    for role in ROLES:
        family = search.names.family(role)
        for status in ("ACTIVE", "INACTIVE"):
            for arn in search.cloud.find_all(
                "ecs",
                "list_task_definitions",
                "taskDefinitionArns",
                familyPrefix=family,
                status=status,
            ):
                name = arn.rpartition("/")[2]
                if name.rpartition(":")[0] == family:
                    tags = make_tags(search.session, role)
                    yield Found("task-definition", name, arn, tags, ident=arn)


def _remove_definition(search: Search, found: Found) -> None:
    cloud = search.cloud
    gone = ("ClientException", "InvalidParameter")  # it is deregistered
    ask(cloud, "ecs", "deregister_task_definition", gone, taskDefinition=found.ident)
    answer = cloud.call("ecs", "delete_task_definitions", taskDefinitions=[found.ident])
    for failure in answer.get("failures", ()):
        if "does not exist" in f"{failure.get('reason', '')} {failure.get('detail', '')}":
            continue  # it went before, and the answer was lost
        said = f"{found}: {failure.get('detail', '')}"
        raise Refused("ecs:DeleteTaskDefinitions", str(failure.get("reason", "")), said)


KINDS = (
    Kind(
        "service",
        "ecs",
        "create_service",
        take("service", "serviceArn"),
        _find,
        _remove,
        exists=("not idempotent",),
        renew=_renew,
    ),
    Kind(
        "task-definition",
        "ecs",
        "register_task_definition",
        take("taskDefinition", "taskDefinitionArn"),
        _find_definitions,
        _remove_definition,
        fresh=True,
    ),
)
