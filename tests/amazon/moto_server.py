"""Amazon's APIs on this machine: moto, with what the real ones do and moto does not.

In front of moto is a layer of our own. It records each request, makes requests fail when a test
wants it, holds limits and page sizes of the real services (amazon_rules.py), and answers what moto
cannot: services and tasks of ECS (ecs_services.py), prices, tags of all services.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlparse

import boto3
from botocore.config import Config
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_api._internal import moto_api_backend
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import BaseWSGIServer, make_server

import amazon_rules
import iam_policies
from amazon_faults import Faults, find_client, hang_up, kill, make_error, make_throttling
from amazon_inventory import list_resources
from amazon_requests import ApiCall, read_call, to_cbor, to_json
from amazon_rules import Refusal

REGION = "eu-central-1"
_KEY = "AKIAIOSFODNN7EXAMPLE"
_UNSET = ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN",
          "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
          "AWS_CONTAINER_CREDENTIALS_FULL_URI")  # fmt: skip

Answer = tuple[int, list[tuple[str, str]], bytes]


class Amazon:
    """One account. `lock`: hold it to look at what moto has; requests are answered one by one."""

    account = DEFAULT_ACCOUNT_ID
    region = REGION

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.calls: list[ApiCall] = []
        self.faults = Faults()
        self.defects: list[str] = []  # what the bench itself cannot answer
        self.linger = 0.2  # seconds that network interfaces stay when their owners are gone
        self.role_delay = 0  # so often a new role is not known yet to who shall take it on
        self.policy: dict[str, Any] | None = None  # of who launches; None: all is allowed
        self.keys: dict[str, str] = {}  # of tasks: key -> ARN of the role
        self.registry = ""  # HOST:PORT in the place of ECR's, where images can be pushed to
        self.state = amazon_rules.State()
        self.url = ""
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._servers: dict[str, tuple[BaseWSGIServer, threading.Thread]] = {}
        self._patches = ExitStack()

    def start(self) -> None:
        """Answer at `url`, on loopback."""
        self._patches.enter_context(amazon_rules.complete_moto(self))
        self.url = self.listen("127.0.0.1")

    def stop(self) -> None:
        for url in list(self._servers):
            self.hush(url)
        self._patches.close()

    def listen(self, host: str) -> str:
        """Answer at another address of this machine, too, such as a network's gateway. Its URL."""
        server = make_server(host, 0, self._serve, threaded=True, request_handler=_Handler)
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        thread.start()
        url = f"http://{host}:{server.server_port}"
        self._servers[url] = server, thread
        return url

    def hush(self, url: str) -> None:
        """Answer at this address no more."""
        server, thread = self._servers.pop(url)
        server.shutdown()
        thread.join()
        server.server_close()

    def reset(self) -> None:
        """An empty account."""
        with self.lock:
            moto_api_backend.reset()
            self.calls.clear()
            self.faults.clear()
            self.defects.clear()
            self.linger, self.role_delay, self.registry, self.policy = 0.2, 0, "", None
            self.keys.clear()
            self.state = amazon_rules.State()

    @property
    def environment(self) -> dict[str, str]:
        """What programs need to find it; "" is for variables that must not be there."""
        return dict.fromkeys(_UNSET, "") | self.make_environment(self.url)

    def make_environment(self, url: str) -> dict[str, str]:
        """The same for an address of choice."""
        return {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": ",".join(
                filter(None, [os.environ.get("NO_PROXY"), urlparse(url).hostname])
            ),
        }

    def do_later(self, what: Callable[[], None]) -> None:
        """Do it when `linger` is over; hold `lock`."""
        self.state.later.append((time.monotonic() + self.linger, what))

    def do_due(self) -> None:
        """Do what was for later, and is due; hold `lock`."""
        due = [what for moment, what in self.state.later if moment <= time.monotonic()]
        if due:
            self.state.later = [one for one in self.state.later if one[1] not in due]
        for what in due:
            what()

    def make_key(self, role: str) -> str:
        """An access key that stands for a role (its ARN); hold `lock`."""
        key = f"ASIA{uuid.uuid4().hex[:16].upper()}"
        self.keys[key] = role
        return key

    def client(self, service: str, *, region: str = REGION) -> Any:
        """boto3's client, that asks once."""
        config = Config(retries={"total_max_attempts": 1}, proxies={})
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=region,
            aws_access_key_id=_KEY,
            aws_secret_access_key="secret",
            config=config,
        )

    def backend(self, service: str, *, region: str = REGION) -> Any:
        """What moto has of a service; hold `lock`."""
        return get_backend(service)[self.account][region]  # type: ignore[call-overload]

    def count_calls(self) -> Counter[str]:
        """Actions that were asked for, with how often."""
        with self.lock:
            return Counter(call.action for call in self.calls)

    def list_actions(self, caller: str = "") -> set[str]:
        """Actions of IAM that requests needed: those of a role (its ARN); "": of no task's."""
        with self.lock:
            return {
                action for call in self.calls if call.caller == caller for action in call.actions
            }

    def snapshot(self) -> set[str]:
        """All resources of the account in all regions, such as ecs:eu-central-1:cluster/NAME.

        What each account has from the start (the default VPC) is left out.
        """
        with self.lock:
            self.do_due()
            return set(list_resources(self))

    # ---- requests

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Any:
        call = read_call(environ)
        if call is None:
            return self._moto(environ, start_response)
        with self.lock:
            call = dataclasses.replace(call, caller=self.keys.get(call.caller, ""))
            self.calls.append(call)
            fault = self.faults.find(call)
        kind = fault.kind if fault else ""
        if fault and kind == "error":
            return _send(make_error(call, fault.code, fault.message, fault.status), start_response)
        if kind == "throttle":
            return _send(make_throttling(call), start_response)
        if kind == "silence":
            hang_up(environ)
        with self.lock:
            self.do_due()
            answer = self._answer(call, environ)
        client = find_client(environ) if kind.startswith("kill") else 0
        if kind == "kill":
            kill(client)
        if kind in ("lost", "kill"):
            hang_up(environ)
        after = (lambda: kill(client)) if client else None
        return _send(answer, start_response, after)

    def _answer(self, call: ApiCall, environ: dict[str, Any]) -> Answer:
        try:
            iam_policies.check(self, call)
            amazon_rules.refuse(self, call)
            handler = amazon_rules.HANDLERS.get(call.action)
            if handler is not None:
                return _write(call, handler(self, call))
            answer = self._ask_moto(call, environ)
            completion = amazon_rules.COMPLETIONS.get(call.action)
            if completion is not None and answer[0] < 300:
                return _write(call, completion(self, call, json.loads(answer[2] or b"{}")))
        except Refusal as refusal:
            return make_error(call, refusal.code, refusal.message, refusal.status)
        except Exception as error:
            self.defects.append(f"{call.action}: {error!r}")
            return make_error(call, "DefectOfTheBench", f"{call.action}: {error!r}", 400)
        if call.protocol == "smithy-rpc-v2-cbor":
            return _write_cbor(call, answer[0], answer[2])
        return answer

    def _ask_moto(self, call: ApiCall, environ: dict[str, Any]) -> Answer:
        if call.protocol == "smithy-rpc-v2-cbor":
            to_json(environ, call)
        got: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[..., None]:
            got[:] = [int(status.split()[0]), headers]
            return lambda data: None

        body = b"".join(self._moto(environ, start))
        return got[0], got[1], body


class _Handler(MotoRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None: ...


class _Body:
    """The body of an answer, with what comes when it has been sent."""

    def __init__(self, data: bytes, after: Callable[[], None]) -> None:
        self._data = data
        self._after = after

    def __iter__(self) -> Iterator[bytes]:
        yield self._data

    def close(self) -> None:
        self._after()


def _send(answer: Answer, start_response: Any, after: Callable[[], None] | None = None) -> Any:
    status, headers, body = answer
    names = {name.lower() for name, _ in headers}
    if "content-length" not in names:
        headers = [*headers, ("Content-Length", str(len(body)))]
    start_response(f"{status} -", headers)
    return _Body(body, after) if after else [body]


def _write(call: ApiCall, answer: dict[str, Any]) -> Answer:
    body = json.dumps(answer).encode()
    if call.protocol == "smithy-rpc-v2-cbor":
        return _write_cbor(call, 200, body)
    kind = "application/json" if call.protocol == "rest-json" else "application/x-amz-json-1.1"
    return 200, [("Content-Type", kind)], body


def _write_cbor(call: ApiCall, status: int, body: bytes) -> Answer:
    headers = [("Content-Type", "application/cbor"), ("smithy-protocol", "rpc-v2-cbor")]
    return status, headers, to_cbor(call, status, body)


@contextmanager
def run_amazon() -> Iterator[Amazon]:
    """An account while the block runs."""
    made = Amazon()
    made.start()
    try:
        made.reset()
        yield made
    finally:
        made.stop()
