"""A stand-in of the ECS agent's endpoints for containers: task protection, and metadata (v4).

Formats: ECS developer guide, "Amazon ECS task scale-in protection endpoint" and "task metadata
endpoint version 4".
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from amazon_refusal import Refusal
from amazon_requests import ApiCall
from ecs_services import describe_protection, protect
from ecs_state import Task
from iam_policies import is_allowed
from moto_server import Amazon


class EcsAgent:
    """It knows the tasks that are added. `url`: of the server; paths begin with a task's id."""

    def __init__(self, amazon: Amazon, url: str) -> None:
        self.amazon = amazon
        self.url = url
        self._tasks: dict[str, Task] = {}

    def add(self, task: Task) -> None:
        self._tasks[task.id] = task

    def make_environment(self, task: Task, container: str) -> dict[str, str]:
        """The variables that containers of a task find it by."""
        return {
            "ECS_AGENT_URI": f"{self.url}/api/{task.id}/{container}",
            "ECS_CONTAINER_METADATA_URI_V4": f"{self.url}/v4/{task.id}/{container}",
        }

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of a request."""
        words = path.strip("/").split("/")
        task = self._tasks.get(words[1]) if len(words) > 2 else None
        if task is None:
            return 404, {"error": "V4 metadata handler: unable to find the container"}
        with self.amazon.lock:
            if words[0] == "v4" and method == "GET":
                return 200, _describe_task(task) if words[3:] == ["task"] else _describe_container(
                    task, words[2]
                )
            if words[3:] == ["task-protection", "v1", "state"]:
                return self._answer_protection(task, method, body)
        return 404, {}

    def _answer_protection(self, task: Task, method: str, body: bytes) -> tuple[int, Any]:
        operation = "GetTaskProtection" if method == "GET" else "UpdateTaskProtection"
        action = f"ecs:{operation}"
        role = getattr(task.definition, "task_role_arn", "") or ""
        self.amazon.calls.append(
            ApiCall("ecs", operation, action, task.region, "json", {"tasks": [task.arn]}, (), role)
        )
        if not (role and is_allowed(self.amazon, role, action, task.arn)):
            said = f"User: {role} is not authorized to perform: {action} on resource: {task.arn}"
            return _fail(task, "AccessDeniedException", said)
        if not task.service:
            return _fail(task, "InvalidParameterException", "The task is no service's.")
        if method == "GET":
            return 200, {"protection": _write(describe_protection(task))}
        try:
            given = json.loads(body)
            enabled, minutes = given["ProtectionEnabled"], given.get("ExpiresInMinutes")
        except (ValueError, KeyError, TypeError):
            return _fail(task, "InvalidParameterException", "ProtectionEnabled must be given")
        if not isinstance(enabled, bool) or set(given) - {"ProtectionEnabled", "ExpiresInMinutes"}:
            return _fail(task, "InvalidParameterException", "unknown or wrong field")
        try:
            return 200, {"protection": _write(protect(task, enabled=enabled, minutes=minutes))}
        except Refusal as refusal:
            return _fail(task, refusal.code, refusal.message)


def _fail(task: Task, code: str, said: str) -> tuple[int, Any]:
    return 400, {"error": {"Arn": task.arn, "Code": code, "Message": said}}


def _write(protection: dict[str, Any]) -> dict[str, Any]:
    made = {
        "ProtectionEnabled": protection["protectionEnabled"],
        "TaskArn": protection["taskArn"],
    }
    if "expirationDate" in protection:
        until = datetime.fromtimestamp(protection["expirationDate"], UTC)
        made["ExpirationDate"] = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    return made


def _describe_task(task: Task) -> dict[str, Any]:
    return {
        "Cluster": task.answer["clusterArn"],
        "TaskARN": task.arn,
        "Family": task.definition.family,
        "Revision": str(task.definition.revision),
        "ServiceName": task.service,
        "DesiredStatus": task.answer["desiredStatus"],
        "KnownStatus": task.last_status,
        "LaunchType": task.answer["launchType"],
        "AvailabilityZone": task.answer["availabilityZone"],
        "Containers": [
            _describe_container(task, container["name"]) for container in task.answer["containers"]
        ],
    }


def _describe_container(task: Task, name: str) -> dict[str, Any]:
    address = str(task.machine.address) if task.machine is not None else ""
    return {
        "Name": name,
        "DesiredStatus": task.answer["desiredStatus"],
        "Labels": {
            "com.amazonaws.ecs.cluster": task.answer["clusterArn"],
            "com.amazonaws.ecs.container-name": name,
            "com.amazonaws.ecs.task-arn": task.arn,
            "com.amazonaws.ecs.task-definition-family": task.definition.family,
            "com.amazonaws.ecs.task-definition-version": str(task.definition.revision),
        },
        "Networks": [{"NetworkMode": "awsvpc", "IPv4Addresses": [address]}],
    }


@contextmanager
def run_agent(amazon: Amazon, host: str) -> Iterator[EcsAgent]:
    """The endpoints at an address of this machine while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = agent.answer(self.command, self.path, body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = handle_any

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer((host, 0), Handler)
    agent = EcsAgent(amazon, f"http://{host}:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield agent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
