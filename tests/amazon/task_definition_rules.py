"""What ECS asks of a task definition by its developer guide."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from amazon_refusal import Refusal

# vCPU units -> MiB.
_SIZES = {
    256: (512, 1024, 2048),
    512: tuple(range(1024, 4097, 1024)),
    1024: tuple(range(2048, 8193, 1024)),
    2048: tuple(range(4096, 16385, 1024)),
    4096: tuple(range(8192, 30721, 1024)),
    8192: tuple(range(16384, 61441, 4096)),
    16384: tuple(range(32768, 122881, 8192)),
}
_NOT_ON_FARGATE = ("privileged", "dockerSecurityOptions", "links", "disableNetworking",
                   "dnsServers", "dnsSearchDomains", "extraHosts", "hostname")  # fmt: skip
_NOT_OF_LINUX = ("devices", "maxSwap", "sharedMemorySize", "swappiness", "tmpfs")


def check_task_definition(given: Mapping[str, Any]) -> None:
    """Raises `Refusal` where RegisterTaskDefinition does."""
    containers = given.get("containerDefinitions") or ()
    if not containers:
        _refuse("Container list cannot be empty.")
    fargate = "FARGATE" in (given.get("requiresCompatibilities") or ())
    if fargate:
        _check_size(given)
        if given.get("networkMode") != "awsvpc":
            _refuse("Fargate only supports network mode 'awsvpc'.")
    names = [one.get("name", "") for one in containers]
    if len(set(names)) < len(names):
        _refuse("Container.name contains duplicate values.")
    if not any(one.get("essential", True) for one in containers):
        _refuse("At least one container must be essential.")
    volumes = {one.get("name") for one in given.get("volumes") or ()}
    for one in given.get("volumes") or ():
        host = (one.get("host") or {}).get("sourcePath")
        if fargate and (host or one.get("dockerVolumeConfiguration")):
            _refuse("Fargate compatible task definitions do not support sourcePath.")
    for container in containers:
        _check_container(given, container, names, volumes, fargate=fargate)


def _check_size(given: Mapping[str, Any]) -> None:
    try:
        cores, memory = int(given.get("cpu", 0)), int(given.get("memory", 0))
    except ValueError:
        cores, memory = 0, 0
    if memory not in _SIZES.get(cores, ()):
        _refuse("No Fargate configuration exists for given values: "
                f"{given.get('cpu')} CPU, {given.get('memory')} memory.")  # fmt: skip
    storage = (given.get("ephemeralStorage") or {}).get("sizeInGiB", 21)
    if not 21 <= int(storage) <= 200:
        _refuse("ephemeralStorage must be between 21 and 200 GiB.")


def _check_container(
    given: Mapping[str, Any],
    one: Mapping[str, Any],
    names: list[str],
    volumes: set[Any],
    *,
    fargate: bool,
) -> None:
    name = one.get("name", "")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", name):
        _refuse(f"Invalid container name {name!r}.")
    if not re.fullmatch(r"[A-Za-z0-9_\-:./@]{1,255}", one.get("image", "")):
        _refuse(f"Invalid image {one.get('image')!r}.")
    for mount in one.get("mountPoints") or ():
        if mount.get("sourceVolume") not in volumes:
            _refuse(f"Unknown volume {mount.get('sourceVolume')!r}.")
    for wait in one.get("dependsOn") or ():
        _check_order(given, one, wait, names)
    needs = one.get("secrets") or (one.get("logConfiguration") or {}).get("logDriver") == "awslogs"
    if fargate and needs and not given.get("executionRoleArn"):
        _refuse("Fargate requires task definition to have execution role ARN to support "
                "secrets and log driver awslogs.")  # fmt: skip
    logs = one.get("logConfiguration") or {}
    if logs.get("logDriver") == "awslogs":
        wanted = {"awslogs-group", "awslogs-region"} | (
            {"awslogs-stream-prefix"} if fargate else set()
        )
        if missing := wanted - set(logs.get("options") or ()):
            _refuse(f"Log driver awslogs requires options: {', '.join(sorted(missing))}")
    if not fargate:
        return
    if wrong := [key for key in _NOT_ON_FARGATE if one.get(key)]:
        _refuse(f"Fargate compatible task definitions do not support {wrong[0]}.")
    linux = one.get("linuxParameters") or {}
    if wrong := [key for key in _NOT_OF_LINUX if linux.get(key)]:
        _refuse(f"Fargate compatible task definitions do not support linuxParameters.{wrong[0]}.")
    added = (linux.get("capabilities") or {}).get("add") or ()
    if set(added) - {"SYS_PTRACE"}:
        _refuse("The only Linux capability that can be added on Fargate is SYS_PTRACE.")
    if any(limit.get("name") != "nofile" for limit in one.get("ulimits") or ()):
        _refuse("Fargate only supports the ulimit nofile.")
    if int(one.get("stopTimeout", 30)) > 120:
        _refuse("stopTimeout must be at most 120 seconds on Fargate.")
    for port in one.get("portMappings") or ():
        if port.get("hostPort") not in (None, 0, port.get("containerPort")):
            _refuse("When networkMode=awsvpc, the host ports and container ports must match.")


def _check_order(
    given: Mapping[str, Any], one: Mapping[str, Any], wait: Mapping[str, Any], names: list[str]
) -> None:
    other = wait.get("containerName")
    if other not in names or other == one.get("name"):
        _refuse(f"Container {one.get('name')!r} depends on unknown container {other!r}.")
    first = next(each for each in given["containerDefinitions"] if each.get("name") == other)
    condition = wait.get("condition")
    if condition not in ("START", "COMPLETE", "SUCCESS", "HEALTHY"):
        _refuse(f"Invalid condition {condition!r} in dependsOn.")
    if condition in ("COMPLETE", "SUCCESS") and first.get("essential", True):
        _refuse(f"A container with the condition {condition} cannot be essential: {other!r}.")
    if condition == "HEALTHY" and not first.get("healthCheck"):
        _refuse(f"Container {other!r} has no health check.")


def _refuse(said: str) -> None:
    raise Refusal("ClientException", said)
