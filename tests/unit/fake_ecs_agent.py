"""A fake of the agent of ECS beside a task, which answers what a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from json_server import serve_json

TASK = "arn:aws:ecs:eu-central-1:123456789012:task/pestfleet-s1/0123456789abcdef0123456789abcdef"


class FakeEcsAgent:
    """`asked`: bodies of the requests for protection. `answers`: what the next ones get."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: list[tuple[int, Any]] = []
        self.gate = threading.Event()  # answers wait for it
        self.gate.set()
        self.url = ""

    @property
    def states(self) -> list[bool]:
        """What was asked for: protected or not."""
        return [body["ProtectionEnabled"] for body in self.asked]

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any]:
        if request.command == "GET":
            assert request.path == "/v4/task-1/task"
            return 200, {"Cluster": "pestfleet-s1", "TaskARN": TASK}
        assert (request.command, request.path) == ("PUT", "/api/1/task-protection/v1/state")
        assert request.headers["Content-Type"] == "application/json"
        asked = json.loads(body)
        self.asked.append(asked)
        self.gate.wait(10)
        if self.answers:
            return self.answers.pop(0)
        return 200, {
            "protection": {
                "ExpirationDate": "2026-01-01T00:00:00Z" if asked["ProtectionEnabled"] else None,
                "ProtectionEnabled": asked["ProtectionEnabled"],
                "TaskArn": TASK,
            }
        }


@contextmanager
def serve_agent() -> Iterator[FakeEcsAgent]:
    """The agent; `url` is for ECS_AGENT_URI (with /api/1) and the metadata (with /v4/task-1)."""
    agent = FakeEcsAgent()
    with serve_json(agent.answer) as url:
        agent.url = url
        try:
            yield agent
        finally:
            agent.gate.set()
