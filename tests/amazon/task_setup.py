"""What a task of ECS gets before its containers run: roles, secrets, logs, images, an address."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import docker
from docker.errors import DockerException, ImageNotFound
from docker.models.containers import Container

from ecs_state import Task
from iam_policies import is_allowed, trusts

if TYPE_CHECKING:
    from moto_server import Amazon

PULLING = ("ecr:GetAuthorizationToken", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
_ASM = "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed: unable to retrieve secret from asm"  # noqa: E501


class TaskFailure(Exception):
    """A task does not come to RUNNING: `stopCode` and `stoppedReason`."""

    def __init__(self, reason: str, code: str = "TaskFailedToStart") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class LogStream:
    """Where in CloudWatch Logs a container's lines go."""

    region: str
    group: str
    name: str


def check_roles(amazon: Amazon, task: Task) -> None:
    """ECS must be able to take on the roles of a task; hold the account's lock."""
    for arn in (_get_role(task, "execution"), _get_role(task, "task")):
        if arn and not trusts(amazon, arn, "ecs-tasks.amazonaws.com"):
            raise TaskFailure(
                f"ECS was unable to assume the role '{arn}' that was provided for this task. "
                "Please verify that the role being passed has the proper trust relationship and "
                "permissions and that your IAM user has permissions to pass this role."
            )


def _get_role(task: Task, kind: str) -> str:
    return getattr(task.definition, f"{kind}_role_arn", None) or ""


def find_names(amazon: Amazon, task: Task) -> list[str]:
    """Names in Cloud Map that a task's service has."""
    service = amazon.state.ecs.services.get((task.region, task.cluster, task.service))
    if service is None:
        return []
    backend = amazon.backend("servicediscovery", region=task.region)
    wanted = {one["registryArn"] for one in service.answer["serviceRegistries"]}
    return [
        f"{one.name}.{backend.namespaces[one.namespace_id].name}"
        for one in backend.services.values()
        if one.arn in wanted
    ]


def write_address(amazon: Amazon, task: Task, address: str) -> None:
    """The network interface has the address that the task's containers have.

    One with a public address has the same: nothing here is further away.
    """
    eni = amazon.backend("ec2", region=task.region).enis.get(task.interface)
    if eni is not None:
        eni.private_ip_address = address
        eni.private_ip_addresses[0]["PrivateIpAddress"] = address
        if eni.public_ip:
            eni.public_ip = address
    for attachment in task.answer["attachments"]:
        for detail in attachment["details"]:
            if detail["name"] == "privateIPv4Address":
                detail["value"] = address


def read_secrets(amazon: Amazon, task: Task, one: Mapping[str, Any]) -> dict[str, str]:
    """The secrets of a container, of Secrets Manager, if the execution role may read them."""
    role = _get_role(task, "execution")
    store = amazon.backend("secretsmanager", region=task.region).secrets
    found = {}
    for secret in one.get("secrets") or ():
        arn = ":".join(secret["valueFrom"].split(":")[:7])
        if not is_allowed(amazon, role, "secretsmanager:GetSecretValue", arn):
            said = f"AccessDeniedException: {role} is not authorized to read {arn}"
            raise TaskFailure(f"{_ASM}: {said}")
        if arn not in store or store[arn].is_deleted():
            said = "ResourceNotFoundException: Secrets Manager can't find the specified secret."
            raise TaskFailure(f"{_ASM}: {said}")
        version = next(
            each for each in store[arn].versions.values() if "AWSCURRENT" in each["version_stages"]
        )
        found[secret["name"]] = str(version["secret_string"])
    return found


def open_log(amazon: Amazon, task: Task, one: Mapping[str, Any]) -> LogStream | None:
    """The log stream of a container; None: its lines go nowhere."""
    logs = one.get("logConfiguration") or {}
    if logs.get("logDriver") != "awslogs":
        return None
    options = logs["options"]
    region, group = options["awslogs-region"], options["awslogs-group"]
    name = f"{options.get('awslogs-stream-prefix', 'ecs')}/{one['name']}/{task.id}"
    backend = amazon.backend("logs", region=region)
    arn = f"arn:aws:logs:{region}:{amazon.account}:log-group:{group}:log-stream:{name}"
    role = _get_role(task, "execution")
    failed = "ResourceInitializationError: failed to validate logger args: create stream has been retried 1 times: failed to create Cloudwatch log stream"  # noqa: E501
    for action in ("logs:CreateLogStream", "logs:PutLogEvents"):
        if not is_allowed(amazon, role, action, arn):
            raise TaskFailure(f"{failed}: AccessDeniedException: {role} may not {action} on {arn}")
    if group not in backend.groups:
        said = "ResourceNotFoundException: The specified log group does not exist."
        raise TaskFailure(f"{failed}: {said}")
    if name not in backend.groups[group].streams:
        backend.create_log_stream(group, name)
    return LogStream(region, group, name)


def write_log(amazon: Amazon, stream: LogStream, lines: list[bytes]) -> None:
    """Lines of a container, if the group is there still."""
    backend = amazon.backend("logs", region=stream.region)
    texts = [line.decode(errors="replace").rstrip("\r") for line in lines]
    group = backend.groups.get(stream.group)
    if group is None or stream.name not in group.streams:
        return
    events = [{"timestamp": int(time.time() * 1000), "message": text} for text in texts if text]
    if events:
        backend.put_log_events(stream.group, stream.name, events)


def make_keys(amazon: Amazon, task: Task, url: str) -> dict[str, str]:
    """Amazon's stand-in, and credentials of the task's role, if it has one."""
    found = amazon.make_environment(url)
    role = _get_role(task, "task")
    found |= {"AWS_EXECUTION_ENV": "AWS_ECS_FARGATE"}
    if role:
        found["AWS_ACCESS_KEY_ID"] = amazon.make_key(role)
    else:
        del found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"]
    return found


def pull(engine: docker.DockerClient, amazon: Amazon, task: Task, image: str) -> Any:
    """The image, from the registry that stands for ECR's; others must be here."""
    failed = f"CannotPullContainerError: failed to resolve ref {image}"
    if amazon.registry and image.startswith(f"{amazon.registry}/"):
        name = image.removeprefix(f"{amazon.registry}/").partition("@")[0].partition(":")[0]
        role = _get_role(task, "execution")
        arn = f"arn:aws:ecr:{task.region}:{amazon.account}:repository/{name}"
        with amazon.lock:
            for action in PULLING:
                place = "" if action.endswith("Token") else arn
                if not is_allowed(amazon, role, action, place):
                    raise TaskFailure(f"{failed}: AccessDeniedException: {role} may not {action}")
            if name not in amazon.backend("ecr", region=task.region).repositories:
                raise TaskFailure(f"{failed}: RepositoryNotFoundException: {name}")
        try:
            return engine.images.pull(image)
        except DockerException as error:
            raise TaskFailure(f"{failed}: {error}") from error
    try:
        return engine.images.get(image)
    except ImageNotFound as error:
        raise TaskFailure(f"{failed}: not found") from error


def find_size(task: Task, one: Mapping[str, Any]) -> tuple[float, int]:
    """Most cores and MiB that a container may have; 0: as many as there are."""
    units = int(task.definition.cpu or one.get("cpu") or 0)
    memory = int(one.get("memory") or task.definition.memory or 0)
    return units / 1024, memory


def write_health_check(check: Mapping[str, Any]) -> dict[str, Any]:
    """As Docker wants it; ECS's defaults."""
    second = 10**9
    return {
        "test": check["command"],
        "interval": check.get("interval", 30) * second,
        "timeout": check.get("timeout", 5) * second,
        "retries": check.get("retries", 3),
        "start_period": check.get("startPeriod", 0) * second,
    }


def write_state(known: dict[str, Any], container: Container, state: Mapping[str, Any]) -> bool:
    """What DescribeTasks says of a container. True: it has just ended."""
    known["runtimeId"] = container.id
    health = state.get("Health", {}).get("Status", "")
    known["healthStatus"] = {"healthy": "HEALTHY", "unhealthy": "UNHEALTHY"}.get(health, "UNKNOWN")
    if state["Status"] in ("created", "running"):
        known["lastStatus"] = "RUNNING" if state["Status"] == "running" else "PENDING"
        return False
    known.update(lastStatus="STOPPED", exitCode=state["ExitCode"])
    if state.get("OOMKilled"):
        known["reason"] = "OutOfMemoryError: Container killed due to memory usage"
    return True


def find_health(task: Task) -> str:
    """Of a task: that of its essential containers that have a health check."""
    checked = {
        one["name"]
        for one in task.definition.container_definitions
        if one.get("essential", True) and one.get("healthCheck")
    }
    told = {one["healthStatus"] for one in task.answer["containers"] if one["name"] in checked}
    return next((one for one in ("UNHEALTHY", "UNKNOWN", "HEALTHY") if one in told), "UNKNOWN")


def read_depth(definitions: Mapping[str, Mapping[str, Any]], name: str) -> int:
    """How many containers must be there before this one."""
    waits = definitions[name].get("dependsOn") or ()
    return max((read_depth(definitions, wait["containerName"]) + 1 for wait in waits), default=0)
