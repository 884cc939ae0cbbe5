"""The master's end of the relay: a small TCP relay before the port of an engine's master.

Engines of the PEST family have no authentication and trust every byte. So a connection must first
show the session's token (`pestfleet_worker.forwarder` has the line); only then does the relay
connect to the engine, and not one byte that came before the token's owner goes there.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import unquote

from pestfleet.relay.certificate import Certificate
from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.forwarder import (
    CHUNK,
    DEAD_AFTER,
    FULL,
    MAGIC,
    OK,
    LoopThread,
    Stream,
    harden,
    is_loopback,
    join_streams,
    reset,
)

logger = logging.getLogger(__name__)

HELLO_TIMEOUT = 5.0  # seconds for TLS and the first line
HELLO_BYTES = 8192
STRANGERS = 256  # connections that have not shown the token yet, at most; others wait
PATIENCE = 30.0  # seconds in which the engine may still be about to listen
_POLL = 0.1
_OTHER_FILES = 512  # open files of the rest of the master
_WORDS = {b"agent": 3, b"probe": 3, b"report": 4}  # of a hello, by its verb
_BAD_HELLO = (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


class Relay:
    """Takes agents of announced workers to the engine's master.

    `start` listens (raises `OSError`), `close` ends all. The rest may be asked from any thread.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        *,
        token: str,
        host: str = "127.0.0.1",
        port: int = 0,
        certificate: Certificate | None = None,
        most: int = 1000,
        dead_after: float = DEAD_AFTER,
        patience: float = PATIENCE,
        on_report: Callable[[str, str], None] | None = None,
    ) -> None:
        """`connect`: a new connection to the engine's master, from wherever that is; called in
        threads. `port` 0: any. `most`: agents at a time. `dead_after`, `patience`: seconds.
        `on_report` gets a worker's name and how an agent of it ended, in the relay's thread.

        Raises `ConfigurationError` when others could read the token.
        """
        if certificate is None and not is_loopback(host):
            raise ConfigurationError(
                f"the relay would listen on {host} without TLS",
                remedy="Give it a certificate, or let it listen on 127.0.0.1.",
            )
        if len(token) < 16:
            raise ConfigurationError("the relay's token is shorter than 16 characters")
        self._connect = connect
        self._token = token.encode()
        self._host = host
        self.port = port
        self._context = certificate.make_context() if certificate is not None else None
        self._most = most
        self._dead_after = dead_after
        self._patience = patience
        self._on_report = on_report
        self._thread: LoopThread | None = None
        self._strangers = asyncio.Semaphore(STRANGERS)
        self._links: dict[asyncio.Task[None], str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.refused = 0

    def start(self) -> None:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        _allow_files(2 * self._most + STRANGERS + _OTHER_FILES)
        listener = socket.create_server((self._host, self.port), family=family, backlog=1024)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._thread = LoopThread("relay")
        self._thread.loop.call_soon_threadsafe(self._begin, listener)

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()

    @property
    def agents(self) -> int:
        """Agents that are connected to the engine's master."""
        return len(self._links)

    @property
    def workers(self) -> dict[str, int]:
        """Worker -> its connected agents."""
        return dict(Counter(list(self._links.values())))

    def drop(self, worker: str) -> None:
        """Reset the agents of a worker that is lost: the engine gives their runs to others."""
        thread = self._thread
        if thread is not None:
            thread.loop.call_soon_threadsafe(self._drop, worker)

    # -- in the loop's thread ------------------------------------------------------------------

    def _begin(self, listener: socket.socket) -> None:
        self._keep(asyncio.get_running_loop().create_task(self._accept(listener)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    def _drop(self, worker: str) -> None:
        for task, name in list(self._links.items()):
            if name == worker:
                task.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                # A whole fleet may come at once: who is too early waits in the system's queue.
                await self._strangers.acquire()
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError as error:  # too many open files, or the peer has gone already
                    logger.warning("a connection could not be accepted: %s", error)
                    self._strangers.release()
                    await asyncio.sleep(_POLL)
                    continue
                self._keep(loop.create_task(self._serve(sock)))

    async def _serve(self, sock: socket.socket) -> None:
        stream: Stream | None = None
        try:
            try:
                async with asyncio.timeout(HELLO_TIMEOUT):
                    stream = await self._open(sock)
                    verb, worker, text = self._read_hello(await stream[0].readuntil(b"\n"))
            except (*_BAD_HELLO, ValueError) as error:
                self._count_refusal(str(error) or type(error).__name__)
                return
            finally:
                self._strangers.release()
            if verb == "report" and self._on_report is not None:
                self._on_report(worker, text)
            await self._admit(stream, verb, worker)
        except asyncio.CancelledError:
            return  # the relay closes, or the worker is lost
        finally:
            if stream is None:
                sock.close()
            else:
                reset(stream[1])  # nothing happens where it is closed already

    async def _open(self, sock: socket.socket) -> Stream:
        loop = asyncio.get_running_loop()
        harden(sock, self._dead_after)
        reader = asyncio.StreamReader(limit=CHUNK, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=self._context,
            ssl_handshake_timeout=HELLO_TIMEOUT if self._context else None,
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def _read_hello(self, line: bytes) -> tuple[str, str, str]:
        """Verb, worker, and text of a report. Raises `ValueError` for all but our own workers'."""
        if len(line) > HELLO_BYTES or not line.startswith(MAGIC + b" "):
            raise ValueError("not a worker of pestfleet")
        words = line[len(MAGIC) + 1 : -1].split(b" ")
        token = words[-1]
        if not hmac.compare_digest(token, self._token):
            raise ValueError("a wrong token")
        if _WORDS.get(words[0]) != len(words):
            raise ValueError("a hello of another version")
        verb, worker, *texts = (unquote(word.decode("ascii")) for word in words[:-1])
        return verb, worker, "".join(texts)

    async def _admit(self, stream: Stream, verb: str, worker: str) -> None:
        _, writer = stream
        task = asyncio.current_task()
        assert task is not None
        full = verb != "report" and len(self._links) >= self._most
        if full or verb != "agent":
            writer.write(FULL if full else OK)
            await self._close(writer)
            return
        self._links[task] = worker
        try:
            engine = await self._reach_engine(stream)
            if engine is None:
                return
            try:
                harden(engine[1].get_extra_info("socket"), self._dead_after)
                writer.write(OK)
                await join_streams(stream, engine)
                await self._close(writer)
                await self._close(engine[1])
            finally:
                reset(engine[1])
        finally:
            del self._links[task]

    async def _reach_engine(self, stream: Stream) -> Stream | None:
        """A connection to the engine's master; None when the agent or our patience is gone."""
        reader, _ = stream
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while True:
            try:
                sock = await self._connect_engine()
            except OSError as error:
                if loop.time() > deadline or reader.at_eof():
                    logger.warning("the engine's master cannot be reached: %s", error)
                    return None
                await asyncio.sleep(_POLL)  # a refused port does not tell when it opens
                continue
            sock.setblocking(False)
            try:
                return await asyncio.open_connection(sock=sock, limit=CHUNK)
            except BaseException:
                sock.close()
                raise

    async def _connect_engine(self) -> socket.socket:
        attempt = asyncio.ensure_future(asyncio.to_thread(self._connect))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            attempt.add_done_callback(_close_result)  # a thread cannot be cancelled
            raise

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        """Close, with all that is still to be sent."""
        writer.close()
        with suppress(OSError, TimeoutError):  # the peer has gone: nothing more to do
            async with asyncio.timeout(self._dead_after):
                await writer.wait_closed()

    def _count_refusal(self, reason: str) -> None:
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # 1, 2, 4, 8, …: a flood must not fill the log
            logger.warning("a stranger was refused (%s); %d so far", reason, self.refused)


def _allow_files(count: int) -> None:
    """Let this process have so many open files, if the system does: an agent needs two."""
    if os.name == "posix":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if soft != resource.RLIM_INFINITY and soft < allowed:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            except (ValueError, OSError):  # macOS has a limit of its own besides
                allowed = soft
        if allowed < count:
            logger.warning("this system allows %d open files; %d may be needed", allowed, count)


def _close_result(attempt: asyncio.Future[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
