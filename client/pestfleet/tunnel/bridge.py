"""ssh's connection to the tunnel's server leads through this process, and so ends with it.

ssh connects to a port on loopback, and we to the server. However this process ends, kill -9
included and on every operating system, the kernel closes that connection, and ssh ends. It also
lets us say in plain words why a server cannot be reached, before any ssh is started.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from pestfleet_worker.forwarder import (
    CHUNK,
    LoopThread,
    Stream,
    harden,
    is_own_peer,
    join_streams,
    reset,
)

logger = logging.getLogger(__name__)

_MARGIN = 5.0  # seconds for the loop's thread to answer at all


class Bridge:
    """One connection at a time. `connect` and `shut` may be repeated; `close` ends it for good."""

    def __init__(self, host: str, port: int, *, connect_timeout: float, dead_after: float) -> None:
        """`connect_timeout`: seconds to reach the server; `dead_after`: seconds without a sign of
        its machine after which the connection is given up.
        """
        self._host, self._port = host, port
        self._connect_timeout = connect_timeout
        self._dead_after = dead_after
        self._thread: LoopThread | None = LoopThread("tunnel-bridge")
        self._server: asyncio.Server | None = None
        self._remote: Stream | None = None

    def connect(self) -> int:
        """Connect to the server; the port on loopback at which ssh finds it. Raises `OSError`."""
        thread = self._thread
        if thread is None:
            raise ConnectionAbortedError("closed")
        return thread.call(self._connect(), timeout=self._connect_timeout + _MARGIN)

    def shut(self) -> None:
        """End the connection, if there is one."""
        thread = self._thread
        if thread is not None:
            with suppress(ConnectionAbortedError):  # it is being closed
                thread.call(self._shut(), timeout=_MARGIN)

    def close(self) -> None:
        """End the connection and the thread, and a `connect` that waits; from any thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with suppress(TimeoutError):
                thread.call(self._shut(), timeout=_MARGIN)
            thread.close()

    # -- in the loop's thread ------------------------------------------------------------------

    async def _connect(self) -> int:
        await self._shut()
        async with asyncio.timeout(self._connect_timeout):
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=CHUNK)
        self._remote = reader, writer
        harden(writer.get_extra_info("socket"), self._dead_after)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=CHUNK)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ours = is_own_peer(writer.get_extra_info("peername"), writer.get_extra_info("sockname"))
        remote = self._remote
        if not ours or remote is None:
            logger.warning("another process wanted to use the tunnel's connection; refused")
            reset(writer)
            return
        self._remote = None
        self._stop_listening()
        try:
            await join_streams((reader, writer), remote)
        except asyncio.CancelledError:
            reset(writer)
        finally:
            reset(remote[1])

    async def _shut(self) -> None:
        self._stop_listening()
        remote, self._remote = self._remote, None
        if remote is not None:
            reset(remote[1])

    def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
