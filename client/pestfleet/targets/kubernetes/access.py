"""The API of one cluster, as one namespace of it is used: plain JSON, as the API server sends it.

The official client finds and renews credentials (kubeconfig, or a pod's service account); its
model classes are left out, since a list of a thousand pods takes them seconds to build.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import kubernetes.client
import kubernetes.config
import urllib3
import websocket
from kubernetes.stream.ws_client import create_websocket

from pestfleet_worker.errors import ConfigurationError, TargetError

logger = logging.getLogger(__name__)

Body = dict[str, Any]

JSON, MERGE = "application/json", "application/merge-patch+json"
BRIEF = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
CONNECT, READ = 10.0, 60.0  # seconds
PAGE = 500  # objects of a list in one answer
_CHANNELS = {1: "stdout", 2: "stderr", 3: "status"}  # of an exec's frames, by their first byte
_CONNECTING = threading.Lock()  # the timeout of connecting is the library's own
_PROTOCOL = "v4.channel.k8s.io"


class Unreachable(TargetError):
    """The API server does not answer."""


class Refused(TargetError):
    """The API server says no. `status`: of HTTP; `reason`: such as NotFound, Forbidden."""

    def __init__(self, status: int, reason: str, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.reason = reason


class Access:
    """A cluster's API with the credentials of a context. Safe to use from several threads.

    All methods raise `Refused` and `Unreachable`. `calls` counts the requests that were made.
    """

    def __init__(
        self, configuration: kubernetes.client.Configuration, *, namespace: str, context: str = ""
    ) -> None:
        self.namespace = namespace
        self.context = context
        self.calls = 0
        self._configuration = configuration
        self._client = kubernetes.client.ApiClient(configuration)
        self._lock = threading.Lock()

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self._configuration.host)

    def find_path(self, version: str, plural: str, name: str = "") -> str:
        """The path of objects in our namespace; `version` such as v1 or batch/v1."""
        group = f"apis/{version}" if "/" in version else f"api/{version}"
        path = f"/{group}/namespaces/{self.namespace}/{plural}"
        return f"{path}/{quote(name)}" if name else path

    def get(self, path: str, **query: object) -> Body:
        return self._ask("GET", path, query)

    def find_all(self, path: str, *, brief: bool = False, **query: object) -> list[Body]:
        """All items of a list, in pages; `brief`: their metadata only."""
        items: list[Body] = []
        token = ""
        accept = BRIEF if brief else JSON
        while True:
            paging = {"continue": token} if token else {}
            page = self._ask("GET", path, {"limit": PAGE, **query, **paging}, accept=accept)
            items += page.get("items") or []
            token = page.get("metadata", {}).get("continue", "")
            if not token:
                return items

    def post(self, path: str, body: Body, **query: object) -> Body:
        return self._ask("POST", path, query, body)

    def patch(self, path: str, body: Body, *, kind: str = MERGE, **query: object) -> Body:
        return self._ask("PATCH", path, query, body, kind)

    def delete(self, path: str, *, body: Body | None = None, **query: object) -> Body:
        return self._ask("DELETE", path, query, body)

    def read_text(self, path: str, **query: object) -> str:
        """An answer that is no JSON, such as a log."""
        with self._open("GET", path, query) as answer:
            return answer.read().decode("utf-8", "replace")

    def stream(self, path: str, **query: object) -> Iterator[str]:
        """The lines of an answer that goes on, such as a log that is followed."""
        with self._open("GET", path, query, read=None) as answer:
            rest = b""
            try:
                for chunk in answer.stream(16384, decode_content=True):
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from (line.decode("utf-8", "replace") for line in lines)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise self._make_unreachable(error) from error
            if rest:
                yield rest.decode("utf-8", "replace")

    def execute(self, pod: str, container: str, command: list[str]) -> Iterator[bytes]:
        """What a command in a container writes to stdout, piece by piece.

        Raises `TargetError` with what it wrote to stderr when it fails.
        """
        query = [("container", container), ("stdout", "true"), ("stderr", "true")]
        query += [("command", word) for word in command]
        socket = self.open_socket(f"{self.find_path('v1', 'pods', pod)}/exec", query)
        complaint, status = b"", b""
        try:
            while True:
                kind, frame = socket.recv_data_frame(True)
                if kind == websocket.ABNF.OPCODE_CLOSE:
                    break
                if kind != websocket.ABNF.OPCODE_BINARY or not frame.data:
                    continue
                channel, data = _CHANNELS.get(frame.data[0]), frame.data[1:]
                if channel == "stdout" and data:
                    yield data
                elif channel == "stderr":
                    complaint += data
                elif channel == "status":
                    status += data
        except (websocket.WebSocketException, OSError) as error:
            raise self._make_unreachable(error) from error
        finally:
            socket.close()
        ended = json.loads(status) if status else {}
        if ended.get("status") != "Success":
            what = complaint.decode("utf-8", "replace").strip() or ended.get("message", "cut off")
            raise TargetError(f"{command[0]} in pod {pod} failed: {what}")

    def execute_all(self, pod: str, container: str, command: list[str]) -> bytes:
        """All that a command in a container writes to stdout. Raises as `execute` does."""
        return b"".join(self.execute(pod, container, command))

    def open_socket(self, path: str, query: list[tuple[str, str]]) -> websocket.WebSocket:
        """A WebSocket to a subresource, such as exec or portforward, of channels in frames."""
        self._count()
        url = f"{self.server}{path}?{urlencode(query)}".replace("http", "ws", 1)
        headers = {"sec-websocket-protocol": _PROTOCOL, **self._authorize()}
        try:
            # Its connecting would wait for ever for a server that swallows packets.
            with _connect_in_time():
                made: websocket.WebSocket = create_websocket(self._configuration, url, headers)
            made.settimeout(None)
            return made
        except websocket.WebSocketBadStatusException as error:
            raise _read_refusal(error.status_code, error.resp_body or b"", path) from error
        except (websocket.WebSocketException, OSError) as error:
            raise self._make_unreachable(error) from error

    # -- asking --------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, Any],
        body: Body | None = None,
        kind: str = JSON,
        accept: str = JSON,
    ) -> Body:
        with self._open(method, path, query, body, kind, accept=accept) as answer:
            try:
                found: Body = json.loads(answer.read())
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise self._make_unreachable(error) from error
            return found

    def _open(
        self,
        method: str,
        path: str,
        query: dict[str, Any],
        body: Body | None = None,
        kind: str = JSON,
        *,
        read: float | None = READ,
        accept: str = JSON,
    ) -> urllib3.BaseHTTPResponse:
        self._count()
        words = {name: _write(value) for name, value in query.items() if value is not None}
        url = f"{self.server}{path}" + (f"?{urlencode(words)}" if words else "")
        headers = {"accept": accept, "content-type": kind, **self._authorize()}
        pool: urllib3.PoolManager = self._client.rest_client.pool_manager
        try:
            answer = pool.request(
                method,
                url,
                body=json.dumps(body).encode() if body is not None else None,
                headers=headers,
                preload_content=False,
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT, read=read),
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._make_unreachable(error) from error
        if answer.status >= 300:
            with answer:
                raise _read_refusal(answer.status, answer.read(), path)
        return answer

    def _authorize(self) -> dict[str, str]:
        settings: Any = self._configuration.auth_settings().values()  # renews a token that is old
        return {way["key"]: way["value"] for way in settings if way["value"]}

    def _count(self) -> None:
        with self._lock:
            self.calls += 1

    def _make_unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"the cluster's API server at {self.server} does not answer: {error}",
            remedy="Is the cluster up, and the right one? See kubectl cluster-info, and choose "
            "another with --context.",
        )


@contextmanager
def _connect_in_time() -> Iterator[None]:
    with _CONNECTING:
        websocket.setdefaulttimeout(CONNECT)
        try:
            yield
        finally:
            websocket.setdefaulttimeout(None)


def connect(context: str = "", namespace: str = "") -> Access:
    """The cluster of a context of the kubeconfig (the current one without a name).

    Without a kubeconfig, in a pod, that of the pod. `namespace`: "" for the context's own.
    Raises `ConfigurationError` where there is neither, and for a context that there is not.
    """
    try:
        place = os.environ.get("KUBECONFIG") or None
        contexts, current = kubernetes.config.list_kube_config_contexts(place)
    except (kubernetes.config.ConfigException, OSError) as error:
        return _connect_from_pod(namespace, error)
    chosen = next((one for one in contexts if one["name"] == context), None) if context else current
    if chosen is None:
        names = ", ".join(sorted(one["name"] for one in contexts)) or "none"
        raise ConfigurationError(
            f"the kubeconfig has no context {context}", remedy=f"There are: {names}."
        )
    configuration = kubernetes.client.Configuration()
    try:
        kubernetes.config.load_kube_config(
            place, context=chosen["name"], client_configuration=configuration
        )
    except (kubernetes.config.ConfigException, OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the context {chosen['name']} of the kubeconfig cannot be used: {error}",
            remedy="Does kubectl work with it? See kubectl config view.",
        ) from error
    own = chosen["context"].get("namespace") or "default"
    return Access(configuration, namespace=namespace or own, context=chosen["name"])


def _connect_from_pod(namespace: str, error: Exception) -> Access:
    configuration = kubernetes.client.Configuration()
    try:
        kubernetes.config.load_incluster_config(client_configuration=configuration)
    except kubernetes.config.ConfigException:
        raise ConfigurationError(
            f"there is no usable kubeconfig: {error}",
            remedy="Set KUBECONFIG, or put your cluster's into ~/.kube/config; kubectl get nodes "
            "shows whether it works.",
        ) from error
    own = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return Access(configuration, namespace=namespace or own.read_text(encoding="ascii").strip())


def _read_refusal(status: int, body: bytes, path: str) -> Refused:
    try:
        said = json.loads(body)
        reason, message = str(said.get("reason", "")), str(said.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", body.decode("utf-8", "replace").strip()[:300]
    remedy = ""
    if status in (401, 403):
        remedy = "pestfleet run --dry-run lists the permissions that are needed."
    return Refused(status, reason, message or f"{path}: status {status}", remedy=remedy)


def _write(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
