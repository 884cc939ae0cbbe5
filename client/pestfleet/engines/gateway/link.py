"""A connection to the master: the socket under an `Agent`."""

from __future__ import annotations

import asyncio
import logging
from asyncio.trsock import TransportSocket
from collections.abc import Callable

from pestfleet.engines.gateway.agent import Agent
from pestfleet.engines.gateway.frames import FrameError, FrameReader, MessageType
from pestfleet.engines.gateway.names import NamesError
from pestfleet.engines.gateway.sockets import acknowledge_quickly, send_at_once

_WRITE_BUFFER = 1 << 20  # bytes beside one result, before reading pauses

Send = Callable[[bytes], None]
Post = Callable[[Callable[[], None]], None]

logger = logging.getLogger(__name__)


class Link(asyncio.Protocol):
    """Carries frames between the master and one agent until either goes.

    `on_lost(link)` is called once, when the connection is closed. `on_error(link, error)` is
    called at most once, before that: a `FrameError` ends this connection only; `NamesError` and
    what the run service raises concern all of them.
    """

    def __init__(
        self,
        name: str,
        make_agent: Callable[[Send, Post], Agent],
        *,
        result_bytes: int,
        on_lost: Callable[[Link], None],
        on_error: Callable[[Link, Exception], None],
    ) -> None:
        self.name = name
        self._loop = asyncio.get_running_loop()
        self.agent = make_agent(self._send, self._post)
        self._reader = FrameReader(self.agent.most_data)
        self._result_bytes = result_bytes
        self._on_lost = on_lost
        self._on_error = on_error
        self._transport: asyncio.Transport | None = None
        self._socket: TransportSocket

    # -- what asyncio calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BUFFER + 2 * self._result_bytes)
        self._socket = transport.get_extra_info("socket")
        send_at_once(self._socket)
        acknowledge_quickly(self._socket)

    def data_received(self, data: bytes) -> None:
        acknowledge_quickly(self._socket)
        if self.agent.ended:
            return  # the farewell is on its way; what the master sent before it saw it is void
        try:
            for frame in self._reader.feed(data):
                self.agent.receive(frame)
                if self.agent.ended:
                    self._end_stream()
                    return
        except Exception as error:
            self.fail(error)

    def eof_received(self) -> bool:
        if self._reader.pending and not self.agent.ended:
            self._on_error(
                self,
                FrameError(
                    f"the master closed the connection {self._reader.pending} bytes into a frame"
                ),
            )
        return False  # close

    def connection_lost(self, error: Exception | None) -> None:
        self.agent.close()
        self._transport = None
        self._on_lost(self)

    def pause_writing(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    # -- what the gateway calls ----------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """End this connection because of an error, and tell the master."""
        named = isinstance(error, NamesError)
        kind = MessageType.IO_ERROR if named else MessageType.CORRUPT_MESG
        self.agent.say_farewell(kind, str(error))
        self._end_stream()
        self._on_error(self, error)

    def leave(self) -> None:
        """End the connection as soon as no run is in hand."""
        self.agent.leave()
        if self.agent.ended:
            self._end_stream()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- the socket ----------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _post(self, function: Callable[[], None]) -> None:
        """Have a function called in the loop's thread, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._call, function)
        except RuntimeError:  # the loop is closed: results that nobody waits for
            logger.debug("%s: a result came after the end", self.name)

    def _call(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:
            self.fail(error)
        if self.agent.ended:
            self._end_stream()

    def _end_stream(self) -> None:
        """Nothing more comes from here. The master reads the farewell, then closes its side.

        Closing at once could make the kernel reset the connection, and the farewell be lost.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not transport.can_write_eof():
            transport.close()
            return
        try:
            transport.write_eof()
        except OSError as error:  # the master has reset the connection
            logger.debug("%s: %s", self.name, error)
            transport.abort()
