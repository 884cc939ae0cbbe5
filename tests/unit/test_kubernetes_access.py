"""How a cluster's API is asked; over a small HTTP server in place of the API server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pestfleet.targets.kubernetes.access import BRIEF, Access, Refused, Unreachable, connect
from pestfleet_worker.errors import ConfigurationError

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: first
clusters:
- {name: one, cluster: {server: "http://127.0.0.1:PORT"}}
users:
- {name: me, user: {token: open-sesame}}
contexts:
- {name: first, context: {cluster: one, user: me}}
- {name: second, context: {cluster: one, user: me, namespace: mine}}
"""


class FakeApiServer(ThreadingHTTPServer):
    """Answers lists in pages of two, logs, and refusals; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []


class _Handler(BaseHTTPRequestHandler):
    server: FakeApiServer

    def do_GET(self) -> None:
        path, query = self._note()
        if path.endswith("/log"):
            self._send(200, b"one\ntwo\nthr\xc3\xa9e")
        elif path.endswith("/nodes"):
            self._refuse(403, "Forbidden", "nodes is forbidden")
        else:
            first = int(query.get("continue", "0"))
            items = [{"metadata": {"name": f"pod-{n}"}} for n in range(first, min(first + 2, 5))]
            more = str(first + 2) if first + 2 < 5 else ""
            self._send(200, json.dumps({"items": items, "metadata": {"continue": more}}).encode())

    def do_POST(self) -> None:
        self._note()
        self._refuse(409, "AlreadyExists", "it is there")

    def do_PATCH(self) -> None:
        self._note()
        self._send(200, b"{}")

    def _note(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.asked.append((self.command, parts.path, dict(self.headers), body))
        return parts.path, query

    def _refuse(self, status: int, reason: str, message: str) -> None:
        self._send(status, json.dumps({"reason": reason, "message": message}).encode())

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """The tests say what was asked."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApiServer]:
    made = FakeApiServer()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG.replace("PORT", str(made.server_port)))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def access(server: FakeApiServer) -> Access:
    return connect()


def test_a_context_names_cluster_user_and_namespace(server: FakeApiServer) -> None:
    assert connect().namespace == "default"
    assert connect("second").namespace == "mine"
    assert connect("second", "other").namespace == "other"
    with pytest.raises(ConfigurationError, match="no context third") as caught:
        connect("third")
    assert "first, second" in caught.value.remedy


def test_no_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="no usable kubeconfig") as caught:
        connect()
    assert "KUBECONFIG" in caught.value.remedy


def test_lists_come_in_pages(access: Access, server: FakeApiServer) -> None:
    path = access.find_path("v1", "pods")
    found = access.find_all(path, brief=True, labelSelector="a=b")
    assert [item["metadata"]["name"] for item in found] == [f"pod-{n}" for n in range(5)]
    assert access.calls == len(server.asked) == 3
    assert {path for _, path, _, _ in server.asked} == {"/api/v1/namespaces/default/pods"}
    headers = server.asked[0][2]
    assert headers["accept"] == BRIEF and headers["authorization"] == "Bearer open-sesame"


def test_bodies_are_json(access: Access, server: FakeApiServer) -> None:
    access.patch(access.find_path("batch/v1", "jobs", "one"), {"spec": {"parallelism": 3}})
    method, path, headers, body = server.asked[-1]
    assert (method, path) == ("PATCH", "/apis/batch/v1/namespaces/default/jobs/one")
    assert headers["content-type"] == "application/merge-patch+json"
    assert body == {"spec": {"parallelism": 3}}


def test_what_the_server_refuses(access: Access) -> None:
    with pytest.raises(Refused, match="it is there") as caught:
        access.post(access.find_path("v1", "pods"), {})
    assert (caught.value.status, caught.value.reason) == (409, "AlreadyExists")
    with pytest.raises(Refused, match="nodes is forbidden") as caught:
        access.get("/api/v1/nodes")
    assert "--dry-run" in caught.value.remedy


def test_logs_are_text(access: Access) -> None:
    path = f"{access.find_path('v1', 'pods', 'one')}/log"
    assert access.read_text(path).splitlines() == ["one", "two", "thrée"]
    assert list(access.stream(path)) == ["one", "two", "thrée"]


def test_a_server_that_is_away(access: Access, server: FakeApiServer) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(Unreachable, match="does not answer") as caught:
        access.get("/version")
    assert "--context" in caught.value.remedy
    with pytest.raises(Unreachable):
        access.execute_all("pod", "master", ["true"])
