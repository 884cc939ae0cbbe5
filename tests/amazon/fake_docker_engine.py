"""A fake of a Docker engine: it has each image that it is asked for, and pushes nothing.

For launches that are about Amazon's APIs, where building and pushing images is not the point.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_IMAGE = re.compile(r"/images/(.+?)/(json|tag|push)$")
_VERSION = {"Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12", "Os": "linux",
            "Arch": "amd64"}  # fmt: skip


class FakeEngine:
    """`address`: for DOCKER_HOST. `pushed`: names of images, in the order of being pushed."""

    def __init__(self) -> None:
        self.address = ""
        self.pushed: list[str] = []

    def answer(self, method: str, url: str) -> tuple[int, Any]:
        """Status and content, by Docker Engine API v1.41."""
        path = re.sub(r"^/v[\d.]+", "", urlsplit(url).path)
        given = parse_qs(urlsplit(url).query)
        if path == "/_ping":
            return 200, "OK"
        if path == "/version":
            return 200, _VERSION
        if path == "/images/json":
            return 200, _find(given)
        if method == "DELETE":
            return 200, []
        if found := _IMAGE.fullmatch(path):
            name, what = unquote(found[1]), found[2]
            if what == "json":
                return 200, _describe(name)
            if what == "tag":
                return 201, None
            self.pushed.append(f"{name}:{given.get('tag', ['latest'])[0]}")
            return 200, {"aux": {"Digest": f"sha256:{_hash(name)}"}}
        return 404, {"message": f"the fake engine does not know {method} {path}"}


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _find(given: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The image that has just these labels; none where no label is asked for."""
    filters = json.loads(given.get("filters", ["{}"])[0])
    if not filters.get("label") or filters.get("dangling"):
        return []
    labels = dict(one.split("=", 1) for one in sorted(filters["label"]))
    name = _hash(json.dumps(labels))
    return [{"Id": f"sha256:{name}", "RepoTags": [], "Labels": labels, "Size": 1, "Created": 1}]


def _describe(name: str) -> dict[str, Any]:
    ident = name if name.startswith("sha256:") else f"sha256:{_hash(name)}"
    return {
        "Id": ident,
        "RepoTags": [],
        "RepoDigests": [],
        "Architecture": "amd64",
        "Os": "linux",
        "Config": {"Env": [], "Labels": {}},
    }


@contextmanager
def run_fake_engine() -> Iterator[FakeEngine]:
    """It answers at its address while the block runs."""
    engine = FakeEngine()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = engine.answer(self.command, self.path)
            text = b"" if content is None else json.dumps(content).encode()
            if content == "OK":
                text = b"OK"
            self.send_response(status)
            self.send_header("Api-Version", _VERSION["ApiVersion"])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = do_HEAD = handle_any

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    engine.address = f"tcp://127.0.0.1:{server.server_port}"
    try:
        yield engine
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
