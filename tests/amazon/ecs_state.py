"""Services and tasks of ECS, as the API answers them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

EVENTS = 100  # the real one keeps as many


@dataclass(slots=True)
class Service:
    """A service. `answer`: what DescribeServices has of it, without counts and tags."""

    region: str
    cluster: str
    answer: dict[str, Any]
    tags: list[dict[str, str]]
    restarted: float = 0.0  # when failed tasks are replaced again (time.monotonic)
    failed: int = 0  # tasks in a row that did not come to RUNNING
    steady: bool = False

    @property
    def name(self) -> str:
        return str(self.answer["serviceName"])

    @property
    def arn(self) -> str:
        return str(self.answer["serviceArn"])

    @property
    def status(self) -> str:
        return str(self.answer["status"])

    @property
    def desired(self) -> int:
        return int(self.answer["desiredCount"])

    @property
    def deployment(self) -> dict[str, Any]:
        """The one that is wanted."""
        made: dict[str, Any] = self.answer["deployments"][0]
        return made

    def say(self, message: str) -> None:
        """Add an event, the newest first. One that says the same as the last is left out."""
        events: list[dict[str, Any]] = self.answer["events"]
        text = f"(service {self.name}) {message}"
        if not (events and events[0]["message"] == text):
            made = {"id": str(uuid.uuid4()), "createdAt": time.time(), "message": text}
            events.insert(0, made)
            del events[EVENTS:]


@dataclass(slots=True)
class Task:
    """A task. `answer`: what DescribeTasks has of it, without tags; `service`: "" for none."""

    region: str
    cluster: str
    service: str
    deployment: str
    answer: dict[str, Any]
    tags: list[dict[str, str]]
    definition: Any  # moto's, of the revision that it runs
    protected_until: float = 0.0  # time.time()
    interface: str = ""  # of EC2
    machine: Any = None  # its containers
    registered: bool = False  # in Cloud Map
    since: float = field(default_factory=time.monotonic)  # in this status

    @property
    def arn(self) -> str:
        return str(self.answer["taskArn"])

    @property
    def id(self) -> str:
        return self.arn.rsplit("/", 1)[-1]

    @property
    def last_status(self) -> str:
        return str(self.answer["lastStatus"])

    @property
    def wanted(self) -> bool:
        """Shall it run?"""
        return bool(self.answer["desiredStatus"] == "RUNNING")

    @property
    def protected(self) -> bool:
        return self.protected_until > time.time()

    @property
    def provider(self) -> str:
        return str(self.answer.get("capacityProviderName", ""))

    def enter(self, status: str, **more: Any) -> None:
        """Go on to the next status, with what else is known then."""
        self.answer["lastStatus"] = status
        self.answer["version"] += 1
        self.answer.update(more)
        self.since = time.monotonic()
        for container in self.answer["containers"]:
            if status == "STOPPED" or (
                status == "RUNNING" and container["lastStatus"] == "PENDING"
            ):
                container["lastStatus"] = status

    def want_stop(self, code: str, reason: str) -> None:
        """Let the scheduler stop it, and say why; the first cause stays."""
        if self.wanted:
            self.answer.update(
                desiredStatus="STOPPED", stopCode=code, stoppedReason=reason, stoppingAt=time.time()
            )


class EcsState:
    """All services and tasks of the account, in all regions."""

    def __init__(self) -> None:
        self.services: dict[tuple[str, str, str], Service] = {}
        self.tasks: dict[tuple[str, str], dict[str, Task]] = {}  # region, cluster -> id

    def list_services(self, region: str, cluster: str) -> list[Service]:
        return [one for key, one in list(self.services.items()) if key[:2] == (region, cluster)]

    def list_tasks(self, region: str, cluster: str) -> list[Task]:
        return list(self.tasks.get((region, cluster), {}).values())

    def list_tasks_of(self, service: Service) -> list[Task]:
        return [
            task
            for task in self.list_tasks(service.region, service.cluster)
            if task.service == service.name
        ]

    def add(self, task: Task) -> None:
        self.tasks.setdefault((task.region, task.cluster), {})[task.id] = task

    def find(self, arn: str) -> Service | Task | None:
        """What has an ARN of ECS."""
        words = arn.split(":", 5)
        kind, _, rest = words[5].partition("/")
        cluster, _, name = rest.partition("/")
        if kind == "service":
            return self.services.get((words[3], cluster, name))
        return self.tasks.get((words[3], cluster), {}).get(name) if kind == "task" else None

    def list_names(self) -> Iterator[str]:
        """What is there and not gone, for `Amazon.snapshot`."""
        for (region, cluster, name), service in self.services.items():
            if service.status != "INACTIVE":
                yield f"{region}:service/{cluster}/{name} {service.status}"
        for (region, cluster), tasks in self.tasks.items():
            for task in tasks.values():
                if task.last_status != "STOPPED":
                    yield f"{region}:task/{cluster}/{task.id}"

    def list_tagged(self, region: str) -> Iterator[tuple[str, Mapping[str, str]]]:
        """ARN and tags of what a region has."""
        for service in self.services.values():
            if service.region == region and service.status != "INACTIVE":
                yield service.arn, _read(service.tags)
        for (home, _), tasks in self.tasks.items():
            if home == region:
                yield from (
                    (task.arn, _read(task.tags))
                    for task in tasks.values()
                    if task.last_status != "STOPPED"
                )


def _read(tags: list[dict[str, str]]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in tags}


def make_task(
    *,
    service: Service | None,
    region: str,
    cluster: str,
    cluster_arn: str,
    definition: Any,
    provider: str,
    launch_type: str,
    zone: str,
    tags: list[dict[str, str]],
) -> Task:
    """A task that is being provisioned."""
    number = uuid.uuid4().hex
    stem = cluster_arn.replace(":cluster/", ":task/")
    arn = f"{stem}/{number}"
    containers = [
        {
            "containerArn": f"{stem.replace(':task/', ':container/')}/{number}/{uuid.uuid4()}",
            "taskArn": arn,
            "name": one["name"],
            "image": one["image"],
            "lastStatus": "PENDING",
            "networkInterfaces": [],
            "healthStatus": "UNKNOWN",
            "cpu": str(one.get("cpu", 0)),
        }
        for one in definition.container_definitions
    ]
    answer = {
        "taskArn": arn,
        "clusterArn": cluster_arn,
        "taskDefinitionArn": definition.arn,
        "group": f"service:{service.name}" if service else f"family:{definition.family}",
        "startedBy": service.deployment["id"] if service else "",
        "lastStatus": "PROVISIONING",
        "desiredStatus": "RUNNING",
        "launchType": launch_type,
        "containers": containers,
        "attachments": [],
        "attributes": [{"name": "ecs.cpu-architecture", "value": "x86_64"}],
        "availabilityZone": zone,
        "cpu": str(definition.cpu or ""),
        "memory": str(definition.memory or ""),
        "createdAt": time.time(),
        "connectivity": "CONNECTED",
        "enableExecuteCommand": False,
        "healthStatus": "UNKNOWN",
        "overrides": {"containerOverrides": [], "inferenceAcceleratorOverrides": []},
        "version": 1,
    }
    if provider:
        answer["capacityProviderName"] = provider
    if launch_type == "FARGATE":
        storage = (definition.ephemeral_storage or {}).get("sizeInGiB", 20)
        answer |= {
            "platformVersion": "1.4.0",
            "platformFamily": "Linux",
            "ephemeralStorage": {"sizeInGiB": storage},
        }
    return Task(
        region=region,
        cluster=cluster,
        service=service.name if service else "",
        deployment=service.deployment["id"] if service else "",
        answer=answer,
        tags=tags,
        definition=definition,
    )
