"""Where an engine's process runs so that nobody but us reaches its port.

PEST++, beoPEST and PEST_HP listen on every address of the machine and ask nobody who he is. So
they run behind a small helper process (`helper.py`), in the tightest enclosure that the machine
allows, and the helper hands out connected sockets (SCM_RIGHTS):

* `namespace`: a network namespace of its own. Nobody else reaches the port, from no address.
  Root, and plain users where the kernel lets them make user namespaces.
* `loopback`: the engine's bind() is moved to 127.0.0.1. Other machines do not reach the port,
  other users of this machine do. Linux, no privilege; in containers too.
* `open`: as the engine does it. Only when the user has said so.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pestfleet_worker.errors import ConfigurationError, PestfleetError

Kind = Literal["namespace", "loopback", "open"]
KINDS: tuple[Kind, ...] = ("namespace", "loopback")

_HELPER = Path(__file__).with_name("helper.py")
_PORT = 4004  # inside a namespace every port is free
_PATIENCE = 10.0  # seconds for the helper to end after the engine
_LONGEST_NAP = 0.05  # a listening port has no event to wait for


class EnclosureRefused(ConfigurationError):
    """The machine allows no enclosure, and the user has not allowed an open port."""


class EnclosedEngine:
    """An engine's process in its enclosure. Methods may be called from any thread."""

    def __init__(
        self,
        kind: Kind,
        port: int,
        helper: subprocess.Popen[bytes],
        requests: socket.socket,
        reports: int,
    ) -> None:
        self.kind = kind
        self.port = port
        self._helper = helper
        self._requests = requests
        self._reports = reports
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._code: int | None = None

    @property
    def helper_pid(self) -> int:
        return self._helper.pid

    def connect(self) -> socket.socket:
        """A connection to the engine's port.

        Raises `ConnectionRefusedError` while nothing listens there, other `OSError`s, and
        `ConnectionAbortedError` once the engine has ended.
        """
        with self._lock:
            answer, descriptors = self._ask(b"c")
        if descriptors:
            connection = socket.socket(fileno=descriptors[0])
            connection.settimeout(None)
            return connection
        if answer.startswith(b"-"):
            number = int(answer[1:])
            raise OSError(number, os.strerror(number))
        raise ConnectionAbortedError("the engine has ended")

    def wait_until_listening(self, check_stop: Callable[[], None]) -> bool:
        """Wait until the engine takes connections; False when it ended before.

        `check_stop` is called now and then; what it raises passes up.
        """
        nap = 0.002
        while True:
            with self._lock:
                answer, _ = self._ask(b"l")
            if answer != b"0":
                return answer == b"1"
            check_stop()
            time.sleep(nap)
            nap = min(nap * 1.5, _LONGEST_NAP)

    def poll(self) -> int | None:
        """The engine's exit code (negative: a signal), or None while it runs."""
        return None if self._helper.poll() is None else self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the engine's end. Raises `subprocess.TimeoutExpired`."""
        helper_code = self._helper.wait(timeout)
        with self._ending:
            if self._code is None:
                words = _read_all(self._reports).split()
                os.close(self._reports)
                self._requests.close()
                # Without a report the helper was killed, and the engine with it.
                self._code = int(words[-1]) if words else helper_code or -9
            return self._code

    def stop(self) -> None:
        """End the engine: SIGTERM, and SIGKILL if that is not enough. Nothing is left of it."""
        if self._helper.poll() is None:
            with self._lock:
                self._ask(b"t")
            try:
                self._helper.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._helper.kill()
        self.wait()

    def _ask(self, request: bytes) -> tuple[bytes, list[int]]:
        """(b"", []) when the engine has ended."""
        try:
            self._requests.send(request)
            answer, descriptors, _, _ = socket.recv_fds(self._requests, 64, 1)
        except OSError:
            return b"", []
        return answer, descriptors


def start_enclosed(
    make_command: Callable[[int], Sequence[str]],
    *,
    directory: Path,
    log: int,
    environment: Mapping[str, str] | None = None,
    allow_open: bool = False,
    kinds: Sequence[Kind] = KINDS,
) -> EnclosedEngine:
    """Start an engine in the first of `kinds` that this machine allows.

    `make_command` gets the port and returns the words of the command line; `log` is the
    descriptor for its output. The engine's working directory is `directory`; it dies with this
    process. `allow_open`: the user has agreed to a port that anybody reaches, where nothing else
    works. Raises `EnclosureRefused`, or `ConfigurationError` when it cannot be started at all.
    """
    if os.name == "nt":
        raise ConfigurationError(
            "external engines need Linux or macOS on the machine with the master",
            remedy="Run pestfleet inside WSL, or use an embedded engine: sweep, glm, ies.",
        )
    refusals = []
    for kind in (*kinds, *(("open",) if allow_open else ())):
        port = _PORT if kind == "namespace" else _find_free_port()
        started = _start(kind, port, make_command(port), directory, log, environment)
        if isinstance(started, EnclosedEngine):
            return started
        refusals.append(f"{kind}: {started}")
    raise EnclosureRefused(
        "the engine's port would be open to everybody who reaches this machine: the engine "
        "takes commands from whoever connects, and this machine allows no enclosure "
        f"({'; '.join(refusals)})",
        remedy="On Linux, allow user namespaces, or run as root or in a container. Where no "
        "stranger can reach this machine, say so with --i-know-the-port-is-open.",
    )


def _start(
    kind: Kind,
    port: int,
    command: Sequence[str],
    directory: Path,
    log: int,
    environment: Mapping[str, str] | None,
) -> EnclosedEngine | str:
    """The engine in its enclosure, or why the machine does not allow that kind."""
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    words = [sys.executable, "-I", "-S", str(_HELPER), kind, str(port)]
    words += [str(theirs.fileno()), str(writer), "--", *command]
    try:
        helper = subprocess.Popen(
            words,
            cwd=directory,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(theirs.fileno(), writer),
        )
    except OSError as error:
        ours.close()
        os.close(reader)
        raise ConfigurationError(f"the engine cannot be started: {error}") from error
    finally:
        theirs.close()
        os.close(writer)
    line = _read_line(reader)
    cause, _, reason = line.partition(" ")
    if cause == "started":
        return EnclosedEngine(kind, port, helper, ours, reader)
    ours.close()
    os.close(reader)
    helper.wait()
    if cause == "refused":
        return reason
    reason = reason or f"its helper ended with exit code {helper.returncode}"
    raise PestfleetError(f"the engine {command[0]} cannot be started: {reason}")


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _read_line(descriptor: int) -> str:
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(descriptor, 1)):
        line += piece
    return line.decode(errors="replace").strip()


def _read_all(descriptor: int) -> str:
    text = b""
    while piece := os.read(descriptor, 4096):
        text += piece
    return text.decode(errors="replace")
