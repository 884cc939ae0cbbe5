"""Bytes to frames and back: one TCP connection without what its frames mean.

AMQP 0-9-1 specification, section 4.2 (wire format). Nothing here grows without end: what is
read is at most one frame, and a client that does not read is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from typing import Protocol

from pestfleet.broker import frames
from pestfleet.broker.errors import AmqpError, frame_error, internal_error

UNKNOWN_FRAME_MAX = 16 * 1024  # before the client has said who it is
_FLUSH_BYTES = 256 * 1024
_HIGH_WATER = 1024 * 1024  # bytes not yet taken by the client that stop deliveries to it
_MAX_WAITING = 256 * 1024 * 1024  # bytes not yet taken that end the connection

_frame_head = struct.Struct(">BHI").unpack_from
_log = logging.getLogger(__name__)


class Host(Protocol):
    """What a stream needs of its server."""

    paused: bool

    def now(self) -> float: ...
    def mark(self, stream: Stream) -> None: ...
    def flush(self) -> None: ...


class Stream(asyncio.Protocol):
    """Reads frames for `handle_frame` and writes pieces; runs in the event loop's thread."""

    def __init__(self, host: Host) -> None:
        self.frame_max = UNKNOWN_FRAME_MAX
        self.writable = True
        self.peer = ""
        self._stream_host = host
        self._header_seen = False
        self._lost = False
        self._buffer = bytearray()
        self._need = 0  # bytes in the buffer before it is worth a look
        self._pieces: list[bytes] = []
        self._size = 0
        self._last_in = self._last_out = host.now()

    # What a connection does with it

    def start(self) -> None:
        """The client wants to speak AMQP 0-9-1."""
        raise NotImplementedError

    def handle_frame(self, kind: int, number: int, payload: bytes) -> None:
        """A whole frame, on channel `number`; AmqpError to close the connection."""
        raise NotImplementedError

    def finish_read(self) -> None:
        """All frames that came together are handled."""
        raise NotImplementedError

    def fail(self, error: AmqpError) -> None:
        """The client broke the protocol."""
        raise NotImplementedError

    def set_writable(self, writable: bool) -> None:
        """The client takes bytes again, or has too many waiting."""
        self.writable = writable

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # asyncio sets TCP_NODELAY on it
        self._transport = transport
        self.peer = "{}:{}".format(*transport.get_extra_info("peername", ("?", 0))[:2])
        transport.set_write_buffer_limits(high=_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        self._last_in = self._stream_host.now()
        if self._lost:
            return
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        try:
            used = self._read(data)
        except AmqpError as error:
            # Where the next frame starts is not known any more.
            self.fail(error)
            self.hang_up()
        if not self._lost:
            self._buffer += memoryview(data)[used:]
            self.finish_read()
        self._stream_host.flush()

    def pause_writing(self) -> None:
        self.set_writable(False)

    def resume_writing(self) -> None:
        self.set_writable(True)
        self._stream_host.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._buffer.clear()
        self._pieces.clear()

    # Writing

    def send(self, *pieces: bytes) -> None:
        """Bytes for the client; they leave with the next `flush`."""
        if self._lost:
            return
        if not self._pieces:
            self._stream_host.mark(self)
        self._pieces += pieces
        self._size += sum(map(len, pieces))
        if self._size > _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what is waiting to the transport, in one write."""
        if not self._pieces or self._lost or self._stream_host.paused:
            return
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if data:
            self._last_out = self._stream_host.now()
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > _MAX_WAITING:
                _log.warning("%s does not read what it asked for: connection closed", self.peer)
                self.abort()

    def hang_up(self) -> None:
        """Close the socket when what is waiting is written."""
        self.flush()
        self._lost = True
        self._transport.close()

    def abort(self) -> None:
        """Cut the connection; `connection_lost` follows."""
        self._lost = True
        self._transport.abort()

    # Reading

    def _read(self, data: bytes) -> int:
        """Handle all frames in data that are whole; returns how many bytes those were."""
        position, size = 0, len(data)
        if not self._header_seen:
            if size < len(frames.PROTOCOL_HEADER) and frames.PROTOCOL_HEADER.startswith(data):
                return 0
            if not data.startswith(frames.PROTOCOL_HEADER):
                self.send(frames.PROTOCOL_HEADER)
                self.hang_up()
                return size
            position = len(frames.PROTOCOL_HEADER)
            self._header_seen = True
            self.start()
        while size - position >= frames.FRAME_OVERHEAD and not self._lost:
            kind, number, length = _frame_head(data, position)
            if length > self.frame_max - frames.FRAME_OVERHEAD:
                raise frame_error(f"frame of {length} bytes, at most {self.frame_max} allowed")
            end = position + 7 + length
            if end >= size:
                self._need = length + frames.FRAME_OVERHEAD
                return position
            if data[end] != frames.FRAME_END:
                raise frame_error("frame without end mark")
            payload = data[position + 7 : end]
            position = end + 1
            try:
                self.handle_frame(kind, number, payload)
            except AmqpError as error:
                self.fail(error)
            except Exception:
                # A defect of the broker must not take the other connections with it.
                _log.exception("connection of %s", self.peer)
                self.fail(internal_error("the embedded broker failed, see the master's log"))
        self._need = frames.FRAME_OVERHEAD
        return position
