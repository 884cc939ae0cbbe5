"""Reading and writing of AMQP 0-9-1 methods and of what the broker must know of properties.

pamqp encodes and decodes. It trusts the lengths inside a frame, so every argument is
measured here first: a table that lies about its size, or nests without end, is a
SYNTAX_ERROR before anything is built from it. Formats: AMQP 0-9-1 specification, section 4.2,
with RabbitMQ's field types (its AMQP 0-9-1 errata, section 3).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pamqp import base, commands, decode, exceptions, frame

from pestfleet.broker.errors import AmqpError, command_invalid, not_implemented, syntax_error

FRAME_METHOD = 1
FRAME_HEADER = 2
FRAME_BODY = 3
FRAME_HEARTBEAT = 8
FRAME_END = 0xCE
FRAME_OVERHEAD = 8  # type, channel and size before the payload, the end mark after it
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"

_MAX_DEPTH = 16
_FIXED = {  # field type: bytes of its value
    ord("t"): 1, ord("b"): 1, ord("B"): 1, ord("s"): 2, ord("u"): 2, ord("I"): 4, ord("i"): 4,
    ord("l"): 8, ord("L"): 8, ord("f"): 4, ord("d"): 8, ord("D"): 5, ord("T"): 8, ord("V"): 0,
}  # fmt: skip
_STRINGS = (ord("S"), ord("x"))
_ARRAY = ord("A")
_TABLE = ord("F")
_ARGUMENT_BYTES = {"octet": 1, "short": 2, "long": 4, "longlong": 8}
_long = struct.Struct(">I").unpack_from

# The properties of class Basic in the order of their flag bits (15 downwards).
_PROPERTIES = (
    "shortstr", "shortstr", "table", "octet", "octet", "shortstr", "shortstr", "shortstr",
    "shortstr", "longlong", "shortstr", "shortstr", "shortstr", "shortstr",
)  # fmt: skip
_HEADERS_FLAG = 1 << 13
_EXPIRATION_BIT = 8
DELIVERY_COUNT = b"x-delivery-count"


def decode_method(payload: bytes) -> base.Frame:
    """The method in the payload of a method frame; AmqpError (502, 503) when it is not one."""
    if len(payload) < 4:
        raise syntax_error("method frame without a method")
    index = _long(payload)[0]
    kind: type[base.Frame] | None = commands.INDEX_MAPPING.get(index)
    if kind is None:
        raise command_invalid(f"unknown method {index >> 16}.{index & 0xFFFF}")
    if kind is commands.Basic.RecoverAsync:
        raise not_implemented("basic.recover-async, which the specification deprecates")
    try:
        _measure_arguments(kind, payload)
        method: base.Frame = kind()
        method.unmarshal(payload[4:])
    except (ValueError, OverflowError, OSError, exceptions.PAMQPException) as error:
        raise syntax_error(f"{kind.name}: {error}") from error
    return method


def encode_method(channel: int, method: base.Frame) -> bytes:
    """One method frame."""
    return frame.marshal(method, channel)


def decode_plain_table(data: bytes) -> dict[str, object]:
    """A table whose length was not sent with it, as AMQPLAIN's response."""
    table = struct.pack(">I", len(data)) + data
    try:
        _measure_table(table, 0, _MAX_DEPTH)
        return dict(decode.field_table(table)[1])
    except (ValueError, OverflowError, OSError) as error:
        raise syntax_error(f"table: {error}") from error


def read_expiration(properties: bytes) -> int | None:
    """Check the properties of a message and give its `expiration` in ms (None: never).

    `properties`: what follows body-size in a content header frame: flags and values.
    Raises AmqpError 502 when they do not fit the format, 406 on a wrong expiration.
    """
    try:
        flags = int.from_bytes(properties[:2], "big")
        if len(properties) < 2 or flags & 0b11:
            raise ValueError("wrong property flags")
        offset = 2
        expiration = None
        for bit, kind in zip(range(15, 1, -1), _PROPERTIES, strict=True):
            if flags >> bit & 1:
                end = _measure(properties, offset, kind)
                if bit == _EXPIRATION_BIT:
                    expiration = properties[offset + 1 : end]
                offset = end
        if offset != len(properties):
            raise ValueError("bytes left over after the properties")
    except ValueError as error:
        raise syntax_error(f"content header: {error}") from error
    if expiration is None:
        return None
    if not expiration.isdigit():
        text = expiration.decode(errors="replace")
        raise AmqpError(406, f"invalid expiration '{text}': not an integer")
    return int(expiration)


def set_delivery_count(properties: bytes, count: int) -> bytes:
    """Properties (as `read_expiration` checked them) with the header x-delivery-count.

    All other bytes stay as they were. RabbitMQ's quorum queues send the same header, a signed
    64-bit integer, with every message that came back to its queue.
    """
    flags = int.from_bytes(properties[:2], "big")
    start = 2
    for bit in (15, 14):
        if flags >> bit & 1:
            start = _measure(properties, start, "shortstr")
    end = _measure(properties, start, "table") if flags & _HEADERS_FLAG else start
    entries = properties[start + 4 : end]
    if DELIVERY_COUNT in entries:
        entries = b"".join(
            properties[first:last]
            for key, first, last in _table_entries(properties, start, _MAX_DEPTH)
            if key != DELIVERY_COUNT
        )
    entries += b"\x10" + DELIVERY_COUNT + b"l" + count.to_bytes(8, "big", signed=True)
    return b"".join(
        (
            (flags | _HEADERS_FLAG).to_bytes(2, "big"),
            properties[2:start],
            len(entries).to_bytes(4, "big"),
            entries,
            properties[end:],
        )
    )


def _measure_arguments(kind: type[base.Frame], payload: bytes) -> None:
    offset, bits = 4, 0
    for name in kind.attributes():
        argument = kind.amqp_type(name)
        if argument == "bit":
            offset += bits % 8 == 0
            bits += 1
        else:
            bits = 0
            offset = _measure(payload, offset, argument)
    if offset > len(payload):
        raise ValueError("arguments are cut off")


def _measure(data: bytes, offset: int, kind: str) -> int:
    """Where the argument of type `kind` at `offset` ends; ValueError when data is too short."""
    if kind == "shortstr":
        if offset >= len(data):
            raise ValueError("short string is cut off")
        end = offset + 1 + data[offset]
    elif kind == "table":
        return _measure_table(data, offset, _MAX_DEPTH)
    elif kind == "longstr":
        end = _long_end(data, offset)
    else:
        end = offset + _ARGUMENT_BYTES[kind]
    if end > len(data):
        raise ValueError(f"{kind} is cut off")
    return end


def _long_end(data: bytes, offset: int) -> int:
    if offset + 4 > len(data):
        raise ValueError("length is cut off")
    end: int = offset + 4 + _long(data, offset)[0]
    if end > len(data):
        raise ValueError("length goes beyond the frame")
    return end


def _measure_table(data: bytes, offset: int, depth: int) -> int:
    end = _long_end(data, offset)
    for _ in _table_entries(data, offset, depth):
        pass
    return end


def _table_entries(data: bytes, offset: int, depth: int) -> Iterator[tuple[bytes, int, int]]:
    """Key, start and end of each entry of the table at `offset`."""
    end = _long_end(data, offset)
    offset += 4
    while offset < end:
        start = offset
        name_end = offset + 1 + data[offset]
        if name_end >= end:
            raise ValueError("table key is cut off")
        offset = _measure_value(data, name_end, end, depth)
        yield data[start + 1 : name_end], start, offset


def _measure_value(data: bytes, offset: int, limit: int, depth: int) -> int:
    kind = data[offset]
    offset += 1
    size = _FIXED.get(kind)
    if size is not None:
        end = offset + size
    elif kind in _STRINGS:
        end = _long_end(data, offset)
    elif depth <= 0:
        raise ValueError("tables are nested too deep")
    elif kind == _TABLE:
        end = _measure_table(data, offset, depth - 1)
    elif kind == _ARRAY:
        end = _long_end(data, offset)
        offset += 4
        while offset < min(end, limit):
            offset = _measure_value(data, offset, end, depth - 1)
    else:
        raise ValueError(f"unknown field type {bytes((kind,))!r}")
    if end > limit:
        raise ValueError("field goes beyond its table")
    return end
