"""The worker's end of the relay: agents connect to it on loopback, and it to the master's end.

On the wire, before any byte of the engine's own protocol, a worker's end sends one line:

    pestfleet-relay 1 <verb> <worker> <token>\\n

`verb` is `agent` (forward what follows to the engine's master), `probe` (only say whether you
would), or `report`, which has one word more before the token: how an agent ended. Names and texts
are percent-encoded. The master's end answers `ok\\n`, or `full\\n` when it has as many agents as it
takes. Whoever does not know the token gets no answer at all.

Without a certificate the master's end must be on loopback, for the token would be readable.
With one the connection is TLS, and that certificate alone is trusted.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.messages import AgentSpec

logger = logging.getLogger(__name__)

MAGIC = b"pestfleet-relay 1"
OK, FULL = b"ok\n", b"full\n"
RELAY_NAME = "pestfleet-relay"  # what the relay's certificate is made out to
CHUNK = 32768  # bytes read at a time; a direction holds a few of them, never more
DEAD_AFTER = 20.0  # seconds without a sign of the peer's machine after which a connection is reset
REPORT_LENGTH = 400  # characters
REACH_TIMEOUT = 20.0  # seconds for name, TCP and TLS
ANSWER_TIMEOUT = 60.0  # seconds for the answer: the master's end waits for an engine that starts
_NOT_REACHED = (
    OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError,
)  # fmt: skip

T = TypeVar("T")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class RelayRefused(OSError):
    """The master's end of the relay does not let us in."""


def make_hello(verb: str, worker: str, token: str, *texts: str) -> bytes:
    """The line with which a worker's end begins."""
    words = [verb, quote(worker, safe=""), *(quote(text, safe="") for text in texts), token]
    return MAGIC + b" " + " ".join(words).encode() + b"\n"


def is_loopback(host: str) -> bool:
    """Does the host's name or address mean this machine, whatever any name server says?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def harden(sock: Any, dead_after: float) -> None:
    """Send small frames at once, and reset the connection when the peer's machine is gone.

    `dead_after` in seconds, at least 4: keepalive for an idle connection, and where the system
    has it (Linux) TCP_USER_TIMEOUT for one with data under way.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    step = max(1, int(dead_after / 4))
    for option, value in (
        ("TCP_KEEPIDLE", step),
        ("TCP_KEEPINTVL", step),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", int(1000 * dead_after)),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


async def join_streams(left: Stream, right: Stream) -> None:
    """Forward bytes both ways until one side ends; then the other ends in the same way.

    Each direction reads only as fast as its receiver takes. A side that closes has all that it
    sent delivered; one that breaks off resets the other, so that it notices at once.
    """
    copies = [
        asyncio.ensure_future(_copy(left[0], right[1])),
        asyncio.ensure_future(_copy(right[0], left[1])),
    ]
    try:
        done, _ = await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        broken = any(copy.exception() is not None for copy in done)
    except asyncio.CancelledError:
        broken = True
        raise
    finally:
        for copy in copies:
            copy.cancel()
        # Before the next await, at which we may be cancelled.
        for _, writer in (left, right):
            reset(writer) if broken else writer.close()
        await asyncio.gather(*copies, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the peer gets a reset, and nothing that it could take for data."""
    # A connection that is closed already has no socket; with TLS asyncio cannot even say so.
    with suppress(OSError, AttributeError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class LoopThread:
    """An asyncio event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Coroutine[Any, Any, T], *, timeout: float) -> T:
        """Run a coroutine in the loop and return its result. Raises `TimeoutError`."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout)
        except FutureTimeout:
            future.cancel()
            raise TimeoutError(f"no answer within {timeout:g} s") from None
        except FutureCancelled:
            raise ConnectionAbortedError("closed") from None

    def close(self) -> None:
        """Cancel what runs, and end the thread. May be called once."""
        with suppress(TimeoutError):
            self.call(self._finish(), timeout=5.0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self.loop.close()

    async def _finish(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A thread that is about to connect must find someone to close what it made.
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.sleep(0)  # transports say goodbye in the loop's next round


class Forwarder:
    """Listens on loopback for this worker's agents and takes each to the master's end.

    `start` before all else; `probe` from any thread; `close` ends every connection.
    """

    def __init__(self, spec: AgentSpec, *, worker: str, dead_after: float = DEAD_AFTER) -> None:
        """Raises `ConfigurationError` when the spec cannot be right."""
        if not spec.certificate and not is_loopback(spec.relay_host):
            raise ConfigurationError(
                f"the relay at {spec.relay_host} is on another machine and has no certificate",
                remedy="The token would be readable on the way: give the relay a certificate.",
            )
        self._spec = spec
        self._worker = worker
        self._dead_after = dead_after
        self._context = _make_context(spec.certificate)
        self._thread: LoopThread | None = None
        self._server: asyncio.Server | None = None
        self.host = "127.0.0.1"
        self.port = 0
        self.connections = 0

    def start(self) -> None:
        """Listen. Raises `OSError`."""
        self._thread = LoopThread("forwarder")
        self._thread.call(self._listen(), timeout=REACH_TIMEOUT)

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            if self._server is not None:
                thread.loop.call_soon_threadsafe(self._server.close)
            thread.close()

    def probe(self) -> str:
        """Would the master's end take an agent now? "" for yes, else the reason in words."""
        if self._thread is None:
            return "the forwarder is closed"
        try:
            self._thread.call(self._probe(), timeout=2 * REACH_TIMEOUT)
        except socket.gaierror as error:
            return f"the name {self._spec.relay_host} is not known (yet): {error.strerror}"
        except ssl.SSLCertVerificationError as error:
            return f"{self._address} is not the relay of this session: {error.verify_message}"
        except _NOT_REACHED as error:
            return f"the relay at {self._address} cannot be reached: {_describe(error)}"
        return ""

    def report(self, text: str) -> None:
        """Tell the master's end how an agent ended. No harm is done where that cannot be."""
        if self._thread is None:
            return
        try:
            self._thread.call(self._report(text[:REPORT_LENGTH]), timeout=2 * REACH_TIMEOUT)
        except _NOT_REACHED as error:
            logger.info("the master could not be told: %s", _describe(error))

    @property
    def _address(self) -> str:
        return f"{self._spec.relay_host}:{self._spec.relay_port}"

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, 0, limit=CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _probe(self) -> None:
        _, writer = await self._reach("probe", answer_timeout=REACH_TIMEOUT)
        writer.close()

    async def _report(self, text: str) -> None:
        _, writer = await self._reach("report", text, answer_timeout=REACH_TIMEOUT)
        writer.close()

    async def _reach(self, verb: str, *texts: str, answer_timeout: float) -> Stream:
        async with asyncio.timeout(REACH_TIMEOUT):
            reader, writer = await asyncio.open_connection(
                self._spec.relay_host,
                self._spec.relay_port,
                limit=CHUNK,
                ssl=self._context,
                server_hostname=RELAY_NAME if self._context else None,
            )
        try:
            harden(writer.get_extra_info("socket"), self._dead_after)
            writer.write(make_hello(verb, self._worker, self._spec.token, *texts))
            async with asyncio.timeout(answer_timeout):
                answer = await reader.readuntil(b"\n")
            if answer != OK:
                full = answer == FULL
                raise RelayRefused("it has all agents that it takes" if full else "no relay")
        except BaseException:
            reset(writer)
            raise
        return reader, writer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ours = is_own_peer(writer.get_extra_info("peername"), writer.get_extra_info("sockname"))
            if not ours:
                logger.warning("another user's process wanted to be an agent; refused")
                reset(writer)
                return
            harden(writer.get_extra_info("socket"), self._dead_after)
            try:
                relay = await self._reach("agent", answer_timeout=ANSWER_TIMEOUT)
            except _NOT_REACHED as error:
                logger.warning("no way to the master for an agent: %s", _describe(error))
                reset(writer)
                return
            self.connections += 1
            try:
                await join_streams((reader, writer), relay)
            finally:
                self.connections -= 1
        except asyncio.CancelledError:
            reset(writer)  # the forwarder closes


def _make_context(certificate: str) -> ssl.SSLContext | None:
    if not certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=certificate)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(f"the relay's certificate cannot be read: {error}") from error
    return context


def is_own_peer(
    peer: tuple[str, int], own: tuple[str, int], *, table: Path = Path("/proc/net/tcp")
) -> bool:
    """Does the process at the other end of a loopback connection belong to this user?

    Linux tells the owner of every socket in /proc/net/tcp (proc_pid_net(5)); where there is no
    such table, everybody on this machine counts as ours.
    """
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return True
    wanted = [_write_address(peer), _write_address(own)]
    for line in lines:
        words = line.split()
        if words[1:3] == wanted:
            return int(words[7]) in (os.getuid(), 0)
    return False  # it has gone already


def _write_address(address: tuple[str, int]) -> str:
    """An IPv4 address as /proc/net/tcp has it: the machine's own byte order, hexadecimal."""
    packed = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{packed:08X}:{address[1]:04X}"


def _describe(error: BaseException) -> str:
    if isinstance(error, asyncio.IncompleteReadError):
        return "it closed the connection without an answer"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    text = getattr(error, "strerror", None) or str(error)
    return text or type(error).__name__


class ReadyGate:
    """Asks for slots whether agents can connect, so that they do not ask each for itself."""

    def __init__(self, forwarder: Forwarder, *, fresh: float = 1.0) -> None:
        """`fresh`: seconds for which an answer counts for the next slot too."""
        self._forwarder = forwarder
        self._fresh = fresh
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._answer = ""

    def ask(self) -> str:
        """As `Forwarder.probe`."""
        with self._lock:
            if time.monotonic() - self._asked > self._fresh:
                answer = self._forwarder.probe()
                if answer and answer != self._answer:
                    logger.warning("agents wait: %s", answer)
                self._answer, self._asked = answer, time.monotonic()
            return self._answer
