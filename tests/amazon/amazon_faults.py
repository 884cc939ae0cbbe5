"""Faults of Amazon's APIs, and deaths of those who call them, at a request of choice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

from amazon_requests import ApiCall, write_cbor_texts

# error: refused, not done. silence: not done, no answer. lost: done, no answer. kill: done, and the
# client is killed before it has the answer. killed after: it is killed when it has it.
Kind = Literal["error", "throttle", "silence", "lost", "kill", "kill after"]

_THROTTLES = {"ec2": "RequestLimitExceeded", "s3": "SlowDown", "iam": "Throttling",
              "autoscaling": "Throttling", "sts": "Throttling"}  # fmt: skip


@dataclass(slots=True)
class Fault:
    """What happens at a request: the `nth` (from 1) of those that `match`, and `times - 1` more."""

    kind: Kind
    match: Callable[[ApiCall], bool]
    nth: int = 1
    times: float = 1
    code: str = "ServerException"
    message: str = "made to fail by the test"
    status: int = 500
    seen: int = field(default=0, init=False)
    met: int = field(default=0, init=False)  # how often it happened

    def meets(self, call: ApiCall) -> bool:
        """Does it happen at this request? Counts the request."""
        if not self.match(call):
            return False
        self.seen += 1
        happens = self.nth <= self.seen < self.nth + self.times
        self.met += happens
        return happens


class Faults:
    """The faults that are due. Not safe for threads: the server asks one request at a time."""

    def __init__(self) -> None:
        self.due: list[Fault] = []

    def clear(self) -> None:
        self.due.clear()

    def at(self, which: int | str | Callable[[ApiCall], bool], kind: Kind, **more: Any) -> Fault:
        """Let a fault happen.

        `which`: the Nth request of all from now on; an action (`ecs:CreateService`), service
        (`ecs:*`) or a function of the request. `more`: see `Fault`.
        """
        if isinstance(which, int):
            fault = Fault(kind, lambda call: True, nth=which, **more)
        elif isinstance(which, str):
            fault = Fault(kind, _match_name(which), **more)
        else:
            fault = Fault(kind, which, **more)
        self.due.append(fault)
        return fault

    def find(self, call: ApiCall) -> Fault | None:
        """The fault of a request, if there is one. All faults count it."""
        met = [fault for fault in self.due if fault.meets(call)]
        return met[0] if met else None


def _match_name(name: str) -> Callable[[ApiCall], bool]:
    if name.endswith("*"):
        return lambda call: call.action.startswith(name[:-1])
    return lambda call: call.action == name


def make_error(
    call: ApiCall, code: str, message: str, status: int
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body of an error, in the protocol that the request was in."""
    said = escape(message)
    plain = json.dumps({"__type": code, "message": message, "Message": message}).encode()
    if call.protocol == "json":
        return status, [("Content-Type", "application/x-amz-json-1.1")], plain
    if call.protocol == "rest-json":
        headers = [("Content-Type", "application/json"), ("x-amzn-ErrorType", code)]
        return status, headers, plain
    if call.protocol == "smithy-rpc-v2-cbor":
        headers = [("Content-Type", "application/cbor"), ("smithy-protocol", "rpc-v2-cbor")]
        return status, headers, write_cbor_texts({"__type": code, "message": message})
    fault = f"<Code>{code}</Code><Message>{said}</Message>"
    if call.protocol == "ec2":
        text = (
            f"<Response><Errors><Error>{fault}</Error></Errors><RequestID>r</RequestID></Response>"
        )
    elif call.protocol == "query":
        text = (
            f"<ErrorResponse><Error><Type>Sender</Type>{fault}</Error>"
            "<RequestId>r</RequestId></ErrorResponse>"
        )
    else:
        text = f"<Error>{fault}<RequestId>r</RequestId></Error>"
    body = b"" if call.operation.startswith("Head") else text.encode()
    return status, [("Content-Type", "text/xml")], body


def make_throttling(call: ApiCall) -> tuple[int, list[tuple[str, str]], bytes]:
    """An answer as Amazon gives it to who asks too often."""
    code = _THROTTLES.get(call.service, "ThrottlingException")
    status = 503 if call.service in ("ec2", "s3") else 400
    return make_error(call, code, "Rate exceeded", status)


def hang_up(environ: dict[str, Any]) -> None:
    """Close the connection of a request without an answer. It does not return."""
    connection = environ["werkzeug.socket"]
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError("made to fail by the test")


def find_client(environ: dict[str, Any]) -> int:
    """The process on this machine that a request came from."""
    process = _find_process(environ["REMOTE_ADDR"], int(environ["REMOTE_PORT"]))
    assert process != os.getpid(), "the client is this process: start the command in another"
    return process


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _find_process(host: str, port: int) -> int:
    """Who has the socket with this local address (/proc/net/tcp, proc(5))."""
    address = bytes(reversed(socket.inet_aton(host))).hex().upper()
    local = f"{address}:{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    nodes = {words[9] for line in lines if (words := line.split())[1] == local}
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            link = str(entry.readlink())
            if link.startswith("socket:[") and link[8:-1] in nodes - {"0"}:
                return int(entry.parts[2])
    raise AssertionError(f"no process has {host}:{port}")
