"""ECS's requests about services and tasks. moto keeps clusters, providers and definitions."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amazon_refusal import Refusal, paginate
from amazon_requests import ApiCall
from ecs_service_rules import (
    FARGATE,
    check_capacity,
    check_network,
    check_new_roles,
    check_registry,
    find_cluster,
    find_definition,
    is_fargate,
)
from ecs_state import EcsState, Service, Task

if TYPE_CHECKING:
    from moto_server import Amazon

__all__ = ["FARGATE", "HANDLERS", "EcsState", "complete_clusters", "complete_providers"]

_PAGES = {"token": "nextToken", "size": "maxResults", "most": 100}
LONGEST_PROTECTION, USUAL_PROTECTION = 2880, 120  # minutes


# ---- services


def _create(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    given = call.parameters
    cluster = find_cluster(amazon, call)
    name = str(given.get("serviceName", ""))
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", name):
        raise Refusal("InvalidParameterException", f"Invalid service name {name!r}.")
    state = amazon.state.ecs
    old = state.services.get((call.region, cluster.name, name))
    if old is not None and old.status == "ACTIVE":
        raise Refusal("InvalidParameterException", "Creation of service was not idempotent.")
    if old is not None and old.status == "DRAINING":
        said = "Unable to Start a service that is still Draining."
        raise Refusal("InvalidParameterException", said)
    definition = find_definition(amazon, call.region, str(given.get("taskDefinition", "")))
    check_capacity(amazon, call, cluster, given)
    check_network(amazon, call, given, definition)
    check_new_roles(amazon, definition)
    for registry in given.get("serviceRegistries") or ():
        check_registry(amazon, call, registry)
    if given.get("desiredCount") is None:
        raise Refusal("InvalidParameterException", "desiredCount is required")
    answer = {
        "serviceArn": f"{cluster.arn.replace(':cluster/', ':service/')}/{name}",
        "serviceName": name,
        "clusterArn": cluster.arn,
        "loadBalancers": [],
        "serviceRegistries": given.get("serviceRegistries") or [],
        "status": "ACTIVE",
        "desiredCount": int(given["desiredCount"]),
        "taskDefinition": definition.arn,
        "deploymentConfiguration": {
            "minimumHealthyPercent": 100,
            "maximumPercent": 200,
            **(given.get("deploymentConfiguration") or {}),
        },
        "deployments": [],
        "events": [],
        "createdAt": time.time(),
        "placementConstraints": given.get("placementConstraints") or [],
        "placementStrategy": given.get("placementStrategy") or [],
        "schedulingStrategy": given.get("schedulingStrategy") or "REPLICA",
        "deploymentController": given.get("deploymentController") or {"type": "ECS"},
        "enableECSManagedTags": bool(given.get("enableECSManagedTags")),
        "propagateTags": given.get("propagateTags") or "NONE",
        "enableExecuteCommand": bool(given.get("enableExecuteCommand")),
        "availabilityZoneRebalancing": given.get("availabilityZoneRebalancing") or "DISABLED",
    }
    for key in ("networkConfiguration", "capacityProviderStrategy", "launchType"):
        if given.get(key):
            answer[key] = given[key]
    if not given.get("capacityProviderStrategy") and not given.get("launchType"):
        if cluster.default_capacity_provider_strategy:
            answer["capacityProviderStrategy"] = cluster.default_capacity_provider_strategy
        else:
            answer["launchType"] = "EC2"
    if is_fargate(answer):
        answer |= {"platformVersion": given.get("platformVersion") or "LATEST",
                   "platformFamily": "Linux"}  # fmt: skip
    service = Service(call.region, cluster.name, answer, list(given.get("tags") or []))
    state.services[call.region, cluster.name, name] = service
    deploy(service)
    return {"service": describe(amazon, service, tags=True)}


def deploy(service: Service) -> None:
    """A new deployment of what the service says now; the older ones end."""
    answer = service.answer
    for old in answer["deployments"]:
        old["status"] = "ACTIVE"
    made = {
        "id": f"ecs-svc/{uuid.uuid4().int % 10**19:019d}",
        "status": "PRIMARY",
        "taskDefinition": answer["taskDefinition"],
        "desiredCount": answer["desiredCount"],
        "failedTasks": 0,
        "createdAt": time.time(),
        "updatedAt": time.time(),
        "rolloutState": "IN_PROGRESS",
        "rolloutStateReason": "",
    }
    for key in ("capacityProviderStrategy", "launchType", "networkConfiguration"):
        if answer.get(key):
            made[key] = answer[key]
    made["rolloutStateReason"] = f"ECS deployment {made['id']} in progress."
    answer["deployments"].insert(0, made)
    service.failed, service.restarted, service.steady = 0, 0.0, False


def _update(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    given = call.parameters
    cluster = find_cluster(amazon, call)
    service = _find(amazon, call, cluster.name, str(given.get("service", "")))
    if service.status != "ACTIVE":
        raise Refusal("ServiceNotActiveException", "Service was not ACTIVE.")
    check_capacity(amazon, call, cluster, given)
    answer = service.answer
    renewed = bool(given.get("forceNewDeployment"))
    if given.get("taskDefinition"):
        definition = find_definition(amazon, call.region, str(given["taskDefinition"]))
        renewed |= definition.arn != answer["taskDefinition"]
        answer["taskDefinition"] = definition.arn
    for key in ("capacityProviderStrategy", "networkConfiguration", "deploymentConfiguration",
                "platformVersion", "serviceRegistries"):  # fmt: skip
        if given.get(key) is not None:
            if key in ("capacityProviderStrategy", "networkConfiguration"):
                renewed |= given[key] != answer.get(key)
            answer[key] = given[key]
    if given.get("capacityProviderStrategy"):
        answer.pop("launchType", None)
    if given.get("desiredCount") is not None:
        answer["desiredCount"] = int(given["desiredCount"])
        service.deployment["desiredCount"] = int(given["desiredCount"])
        service.steady = False
    if renewed:
        deploy(service)
    return {"service": describe(amazon, service, tags=True)}


def _delete(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    cluster = find_cluster(amazon, call)
    service = _find(amazon, call, cluster.name, str(call.parameters.get("service", "")))
    if service.status == "ACTIVE":
        if service.desired > 0 and not call.parameters.get("force"):
            said = "The service cannot be stopped while it is scaled above 0."
            raise Refusal("InvalidParameterException", said)
        service.answer.update(status="DRAINING", desiredCount=0)
        drain(amazon, service)
    return {"service": describe(amazon, service)}


def drain(amazon: Amazon, service: Service) -> None:
    """A service that is being deleted is INACTIVE when its tasks are."""
    tasks = amazon.state.ecs.list_tasks_of(service)
    if all(task.last_status == "STOPPED" for task in tasks):
        service.answer.update(status="INACTIVE", deployments=[])


def _describe_services(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    cluster = find_cluster(amazon, call)
    names = call.parameters.get("services") or []
    if not 1 <= len(names) <= 10:
        raise Refusal("InvalidParameterException", "Services must be between 1 and 10.")
    tags = "TAGS" in (call.parameters.get("include") or ())
    found, failures = [], []
    for name in names:
        key = (call.region, cluster.name, str(name).rsplit("/", 1)[-1])
        service = amazon.state.ecs.services.get(key)
        if service is None:
            arn = f"{cluster.arn.replace(':cluster/', ':service/')}/{key[2]}"
            failures.append({"arn": arn, "reason": "MISSING"})
        else:
            found.append(describe(amazon, service, tags=tags))
    return {"services": found, "failures": failures}


def describe(amazon: Amazon, service: Service, *, tags: bool = False) -> dict[str, Any]:
    """A service as DescribeServices answers it."""
    tasks = [one for one in amazon.state.ecs.list_tasks_of(service) if one.last_status != "STOPPED"]
    answer = {**service.answer, **_count(tasks), "deployments": []}
    for deployment in service.answer["deployments"]:
        own = [task for task in tasks if task.deployment == deployment["id"]]
        answer["deployments"].append({**deployment, **_count(own)})
    return {**answer, "tags": service.tags} if tags else answer


def _count(tasks: list[Task]) -> dict[str, int]:
    running = sum(task.last_status == "RUNNING" for task in tasks)
    pending = sum(task.last_status in ("PROVISIONING", "PENDING", "ACTIVATING") for task in tasks)
    return {"runningCount": running, "pendingCount": pending}


def _list_services(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    cluster = find_cluster(amazon, call)
    services = amazon.state.ecs.list_services(call.region, cluster.name)
    arns = [one.arn for one in services if one.status != "INACTIVE"]
    return paginate(call.parameters, {"serviceArns": arns}, "serviceArns", usual=10, **_PAGES)


def _find(amazon: Amazon, call: ApiCall, cluster: str, name: str) -> Service:
    key = (call.region, cluster, name.rsplit("/", 1)[-1])
    service = amazon.state.ecs.services.get(key)
    if service is None or (service.status == "INACTIVE" and call.operation == "DeleteService"):
        raise Refusal("ServiceNotFoundException", "Service not found.")
    return service


# ---- tasks


def _list_tasks(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    cluster = find_cluster(amazon, call)
    given = call.parameters
    tasks = amazon.state.ecs.list_tasks(call.region, cluster.name)
    status = given.get("desiredStatus") or "RUNNING"
    if name := given.get("serviceName"):
        _find(amazon, call, cluster.name, str(name))
        tasks = [task for task in tasks if task.service == str(name).rsplit("/", 1)[-1]]
    if family := given.get("family"):
        tasks = [task for task in tasks if task.definition.family == family]
    if by := given.get("startedBy"):
        tasks = [task for task in tasks if task.answer["startedBy"] == by]
    arns = [task.arn for task in tasks if task.answer["desiredStatus"] == status]
    return paginate(given, {"taskArns": arns}, "taskArns", **_PAGES)


def _describe_tasks(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    cluster = find_cluster(amazon, call)
    names = call.parameters.get("tasks") or []
    if not 1 <= len(names) <= 100:
        raise Refusal("InvalidParameterException", "Tasks must be between 1 and 100.")
    tags = "TAGS" in (call.parameters.get("include") or ())
    known = amazon.state.ecs.tasks.get((call.region, cluster.name), {})
    found, failures = [], []
    for name in names:
        task = known.get(str(name).rsplit("/", 1)[-1])
        if task is None:
            failures.append({"arn": str(name), "reason": "MISSING"})
        else:
            found.append({**task.answer, "tags": task.tags} if tags else task.answer)
    return {"tasks": found, "failures": failures}


def _stop_task(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    cluster = find_cluster(amazon, call)
    known = amazon.state.ecs.tasks.get((call.region, cluster.name), {})
    task = known.get(str(call.parameters.get("task", "")).rsplit("/", 1)[-1])
    if task is None:
        raise Refusal("InvalidParameterException", "The referenced task was not found.")
    task.want_stop("UserInitiated", call.parameters.get("reason") or "Task stopped by user")
    return {"task": task.answer}


def protect(task: Task, *, enabled: bool, minutes: int | None) -> dict[str, Any]:
    """Set a task's protection; what UpdateTaskProtection answers of it."""
    if minutes is not None and not 1 <= minutes <= LONGEST_PROTECTION:
        raise Refusal("InvalidParameterException", "expiresInMinutes must be 1 to 2880")
    span = (minutes or USUAL_PROTECTION) * 60
    task.protected_until = time.time() + span if enabled else 0.0
    return describe_protection(task)


def describe_protection(task: Task) -> dict[str, Any]:
    until = {"expirationDate": task.protected_until} if task.protected else {}
    return {"taskArn": task.arn, "protectionEnabled": task.protected, **until}


def _change_protection(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    cluster = find_cluster(amazon, call)
    names = call.parameters.get("tasks") or []
    if len(names) > (10 if call.operation == "UpdateTaskProtection" else 100):
        raise Refusal("InvalidParameterException", "too many tasks")
    known = amazon.state.ecs.tasks.get((call.region, cluster.name), {})
    found, failures = [], []
    for name in names or list(known):
        task = known.get(str(name).rsplit("/", 1)[-1])
        if task is None or task.last_status == "STOPPED":
            failures.append({"arn": str(name), "reason": "TASK_NOT_VALID"})
        elif call.operation == "GetTaskProtection":
            found.append(describe_protection(task))
        else:
            minutes = call.parameters.get("expiresInMinutes")
            enabled = bool(call.parameters["protectionEnabled"])
            found.append(protect(task, enabled=enabled, minutes=minutes))
    return {"protectedTasks": found, "failures": failures}


# ---- tags, and what moto answers of clusters


def _tag(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    arn = str(call.parameters["resourceArn"])
    owner = amazon.state.ecs.find(arn)
    backend = amazon.backend("ecs", region=call.region)
    if call.operation == "ListTagsForResource":
        return {"tags": owner.tags if owner else backend.list_tags_for_resource(arn) or []}
    if owner is None and call.operation == "TagResource":
        backend.tag_resource(arn, {tag["key"]: tag["value"] for tag in call.parameters["tags"]})
    elif owner is None:
        backend.untag_resource(arn, call.parameters["tagKeys"])
    else:
        tags = {tag["key"]: tag for tag in owner.tags}
        for tag in call.parameters.get("tags") or ():
            tags[tag["key"]] = dict(tag)
        gone = call.parameters.get("tagKeys") or ()
        owner.tags[:] = [tag for key, tag in tags.items() if key not in gone]
    return {}


def complete_clusters(amazon: Amazon, call: ApiCall, answer: dict[str, Any]) -> dict[str, Any]:
    """Counts of the services and tasks that we keep."""
    for cluster in answer.get("clusters", ()):
        name = cluster["clusterName"]
        tasks = amazon.state.ecs.list_tasks(call.region, name)
        services = amazon.state.ecs.list_services(call.region, name)
        counts = _count([task for task in tasks if task.last_status != "STOPPED"])
        cluster["runningTasksCount"] = counts["runningCount"]
        cluster["pendingTasksCount"] = counts["pendingCount"]
        cluster["activeServicesCount"] = sum(one.status == "ACTIVE" for one in services)
    return answer


def complete_providers(amazon: Amazon, call: ApiCall, answer: dict[str, Any]) -> dict[str, Any]:
    """The two of Fargate are in every account."""
    wanted = call.parameters.get("capacityProviders") or []
    for name in FARGATE:
        arn = f"arn:aws:ecs:{call.region}:{amazon.account}:capacity-provider/{name}"
        if not wanted or name in wanted:
            answer["capacityProviders"].append(
                {"capacityProviderArn": arn, "name": name, "status": "ACTIVE"}
            )
    lost = [one for one in answer["failures"] if one["arn"].rsplit("/", 1)[-1] not in FARGATE]
    return {**answer, "failures": lost}


HANDLERS: dict[str, Callable[[Amazon, ApiCall], dict[str, Any]]] = {
    "ecs:CreateService": _create,
    "ecs:UpdateService": _update,
    "ecs:DeleteService": _delete,
    "ecs:DescribeServices": _describe_services,
    "ecs:ListServices": _list_services,
    "ecs:ListTasks": _list_tasks,
    "ecs:DescribeTasks": _describe_tasks,
    "ecs:StopTask": _stop_task,
    "ecs:GetTaskProtection": _change_protection,
    "ecs:UpdateTaskProtection": _change_protection,
    "ecs:TagResource": _tag,
    "ecs:UntagResource": _tag,
    "ecs:ListTagsForResource": _tag,
}
