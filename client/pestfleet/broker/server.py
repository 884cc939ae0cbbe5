"""The embedded broker's thread: an event loop on a loopback address."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hmac
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

from pestfleet.broker.connection import Connection
from pestfleet.broker.errors import AmqpError
from pestfleet.broker.exchanges import Router
from pestfleet.broker.logins import make_password
from pestfleet.broker.streams import Stream
from pestfleet_worker.errors import ChannelError, ConfigurationError

_TICK = 0.25  # seconds between looks at heartbeats and times to live
_STALL = 1.0  # seconds without a tick after which silence is the broker's own
_STOP_SECONDS = 0.5
_CALL_SECONDS = 30.0
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Messages that wait, messages that clients hold, and subscriptions."""

    ready: int
    unacked: int
    consumers: int


@dataclass(frozen=True, slots=True)
class BrokerStats:
    """What is in the broker now. `connections`: peer addresses of its clients."""

    queues: dict[str, QueueStats]
    connections: tuple[str, ...]


class EmbeddedBroker:
    """An AMQP 0-9-1 broker in a thread of this process, for clients on this machine.

    Queues live in memory, from `start` over any `stop` and new `start` of the same object
    to the end of the process. `port` 0: a free one, which stays the same after a new start.
    All methods may be called from any thread.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        user: str = "pestfleet",
        password: str | None = None,
    ) -> None:
        if not _is_loopback(host):
            raise ConfigurationError(
                f"The embedded broker does not listen on {host}, which other machines can reach.",
                remedy="Use 127.0.0.1, or a RabbitMQ server for workers on other machines.",
            )
        self.host = host
        self.port = port
        self.user = user
        self.password = password or make_password()
        self.router = Router(time.monotonic)
        self.paused = False
        self._connections: set[Connection] = set()
        self._unflushed: list[Stream] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None
        self._last_tick = 0.0

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """What clients connect to: amqp://user:password@host:port//"""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user, password = quote(self.user, safe=""), quote(self.password, safe="")
        return f"amqp://{user}:{password}@{host}:{self.port}//"

    # Life

    def start(self) -> None:
        """Listen. Clients can connect when this returns; ChannelError when the port is taken."""
        if self._thread is not None:
            return
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            listener = socket.create_server((self.host, self.port), family=family, backlog=1024)
        except OSError as error:
            raise ChannelError(
                f"The embedded broker cannot listen on {self.host}:{self.port}: {error}",
                remedy="Choose another port, or 0 for a free one.",
            ) from error
        self.port = listener.getsockname()[1]
        self.paused = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(self._loop, listener), name="embedded-broker", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close all connections and the port."""
        if self._loop is None or self._thread is None:
            return
        self.resume()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_CALL_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_SECONDS)
        self._loop = self._thread = None

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        asyncio.set_event_loop(loop)
        self._server = loop.run_until_complete(
            loop.create_server(lambda: Connection(self), sock=listener)
        )
        self._last_tick = self.now()
        loop.call_later(_TICK, self._tick)
        try:
            loop.run_forever()
        finally:
            loop.close()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close(AmqpError(320, "the master stops its broker"))
        self.flush()
        deadline = self.now() + _STOP_SECONDS
        while self._connections and self.now() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)
        for queue in [queue for queue in self.router.queues.values() if not queue.durable]:
            self.router.delete_queue(queue)

    # For tests of faults

    def pause(self) -> None:
        """Fall silent, as a broker that hangs: connections stay, nothing is read or written."""
        self._call(lambda: self._set_paused(True))

    def resume(self) -> None:
        """The reverse of `pause`."""
        self._call(lambda: self._set_paused(False))

    def drop_connections(self) -> int:
        """Cut every connection without a word; returns how many there were."""
        return self._call(self._drop)

    def stats(self) -> BrokerStats:
        """Queues and connections at this moment."""
        return self._call(self._count)

    def _set_paused(self, paused: bool) -> None:
        if paused == self.paused:
            return
        self.paused = paused
        now = self.now()
        for connection in list(self._connections):
            connection.forgive_silence(now)
            connection.set_paused(paused)

    def _drop(self) -> int:
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        return len(connections)

    def _count(self) -> BrokerStats:
        queues = {
            queue.name: QueueStats(len(queue), queue.unacked, len(queue.consumers))
            for queue in self.router.queues.values()
        }
        return BrokerStats(queues, tuple(sorted(each.peer for each in self._connections)))

    def _call(self, action: Callable[[], _T]) -> _T:
        """Run in the loop's thread and wait for the answer."""
        loop = self._loop
        if loop is None:
            return action()
        answer: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def run() -> None:
            try:
                answer.set_result(action())
            except Exception as error:
                answer.set_exception(error)

        loop.call_soon_threadsafe(run)
        return answer.result(_CALL_SECONDS)

    # For connections

    def now(self) -> float:
        """Seconds of the clock that heartbeats and times to live are measured with."""
        return time.monotonic()

    def check_login(self, user: str, password: str) -> bool:
        """Whether these are the broker's user and password."""
        right_user = hmac.compare_digest(user.encode(), self.user.encode())
        return hmac.compare_digest(password.encode(), self.password.encode()) and right_user

    def add(self, connection: Connection) -> None:
        """A connection was made."""
        self._connections.add(connection)
        if self.paused:
            connection.set_paused(True)

    def remove(self, connection: Connection) -> None:
        """A connection is lost."""
        self._connections.discard(connection)

    def mark(self, stream: Stream) -> None:
        """A connection has something to write."""
        self._unflushed.append(stream)

    def flush(self) -> None:
        """Write what is waiting on all connections."""
        if self.paused:
            return
        while self._unflushed:
            self._unflushed.pop().flush()

    def _tick(self) -> None:
        assert self._loop is not None
        now = self.now()
        stalled = now - self._last_tick > _STALL
        self._last_tick = now
        if not self.paused:
            self.router.expire()
            for connection in list(self._connections):
                if stalled:
                    connection.forgive_silence(now)
                connection.check_heartbeat(now)
            self.flush()
        self._loop.call_later(_TICK, self._tick)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
