"""Frames of a WebSocket (RFC 6455, section 5), for a socket that must not block.

The WebSocket client of the official Kubernetes client waits for whole frames; who forwards bytes
both ways at the same time must not.
"""

from __future__ import annotations

import os
import struct

from pestfleet_worker.errors import TargetError

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
LARGEST = 1 << 20  # bytes of a message that we take
_FINAL, _MASKED, _RESERVED = 0x80, 0x80, 0x70
_CONTROL = 0x8  # the bit of opcodes of control frames
_SMALLEST_16, _SMALLEST_64 = 126, 127  # lengths with a field of their own


class FrameError(TargetError):
    """What came is no WebSocket frame that a Kubernetes API server sends."""


def make_frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame: final and masked."""
    length = len(payload)
    first = _FINAL | opcode
    if length < _SMALLEST_16:
        head = struct.pack("!BB", first, _MASKED | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", first, _MASKED | _SMALLEST_16, length)
    else:
        head = struct.pack("!BBQ", first, _MASKED | _SMALLEST_64, length)
    key = os.urandom(4)
    return head + key + mask(payload, key)


def mask(payload: bytes, key: bytes) -> bytes:
    """The payload with the key's bytes added; once more gives the payload again."""
    length = len(payload)
    keys = (key * (length // 4 + 1))[:length]
    number = int.from_bytes(payload, "little") ^ int.from_bytes(keys, "little")
    return number.to_bytes(length, "little")


class FrameReader:
    """Puts a server's messages together from whatever pieces arrive."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._kind = 0  # opcode of the message that has begun
        self._parts = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Opcode and payload of each message that is whole now. Raises `FrameError`."""
        self._rest += data
        found = []
        position = 0
        while (frame := self._find_frame(position)) is not None:
            first, begin, end = frame
            position = end
            message = self._take(first, bytes(self._rest[begin:end]))
            if message is not None:
                found.append(message)
        del self._rest[:position]
        return found

    def _find_frame(self, position: int) -> tuple[int, int, int] | None:
        """First byte, begin and end of the payload of the frame there; None if it is not whole."""
        rest = self._rest
        here = len(rest) - position
        if here < 2:
            return None
        first, length = rest[position], rest[position + 1]
        if length & _MASKED or first & _RESERVED:
            raise FrameError("the API server sent what is no frame of a WebSocket")
        begin = position + 2
        if length >= _SMALLEST_16:
            size = 2 if length == _SMALLEST_16 else 8
            if here < 2 + size:
                return None
            length = int.from_bytes(rest[begin : begin + size], "big")
            begin += size
        if length > LARGEST:
            raise FrameError(f"the API server sent a frame of {length} bytes")
        end = begin + length
        return (first, begin, end) if len(rest) >= end else None

    def _take(self, first: int, payload: bytes) -> tuple[int, bytes] | None:
        opcode = first & 0xF
        if opcode & _CONTROL:  # between the parts of a message, too
            return opcode, payload
        if first & _FINAL and opcode and not self._kind:
            return opcode, payload
        if bool(opcode) == bool(self._kind):
            raise FrameError("the API server sent the parts of a message in disorder")
        self._kind = self._kind or opcode
        self._parts += payload
        if len(self._parts) > LARGEST:
            raise FrameError("the API server sent a message without an end")
        if not first & _FINAL:
            return None
        message = self._kind, bytes(self._parts)
        self._kind, self._parts = 0, bytearray()
        return message
