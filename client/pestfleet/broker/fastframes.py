"""The four methods of every message, packed and unpacked by hand.

pamqp's generic code takes several times the broker's whole budget for a message, so
Basic.Publish, Basic.Deliver, Basic.Ack and content frames have their own. An `address` is the
exchange and the routing key as two short strings, the bytes that stand in Publish and Deliver.
"""

from __future__ import annotations

import struct

from pestfleet.broker.errors import syntax_error
from pestfleet.broker.frames import FRAME_OVERHEAD

PUBLISH = 0x003C0028
ACK = 0x003C0050
_BASIC = 60
_DELIVER = b"\x00\x3c\x00\x3c"
_END = b"\xce"

_frame_head = struct.Struct(">BHI").pack
_ack_frame = struct.Struct(">BHIIQBB").pack
_ack_arguments = struct.Struct(">QB").unpack
_tag_and_flag = struct.Struct(">QB").pack
_content_head = struct.Struct(">HHQ").unpack_from
_header_frame = struct.Struct(">BBHIHHQ").pack
_body_frame = struct.Struct(">BBHI").pack


def make_address(exchange: str, routing_key: str) -> bytes:
    """Both names as short strings."""
    parts = (exchange.encode(), routing_key.encode())
    return b"".join(len(part).to_bytes(1, "big") + part for part in parts)


def split_address(address: bytes) -> tuple[str, str]:
    """The reverse of `make_address`; AmqpError 502 when it is not one."""
    middle = 1 + address[0]
    try:
        return address[1:middle].decode(), address[middle + 1 :].decode()
    except UnicodeDecodeError as error:
        raise syntax_error("exchange or routing key is not UTF-8") from error


def decode_publish(payload: bytes) -> tuple[bytes, int]:
    """Address, and the bits (1 mandatory, 2 immediate), of a Basic.Publish."""
    size = len(payload)
    if size < 9:
        raise syntax_error("Basic.Publish is cut off")
    middle = 7 + payload[6]
    if middle >= size or middle + payload[middle] + 2 != size:
        raise syntax_error("Basic.Publish has wrong lengths")
    return payload[6:-1], payload[-1]


def decode_ack(payload: bytes) -> tuple[int, bool]:
    """Delivery tag and `multiple` of a Basic.Ack."""
    if len(payload) != 13:
        raise syntax_error("Basic.Ack has a wrong length")
    tag, bits = _ack_arguments(payload[4:])
    return tag, bool(bits & 1)


def encode_ack(channel: int, tag: int, multiple: bool) -> bytes:
    """A Basic.Ack frame."""
    return _ack_frame(1, channel, 13, ACK, tag, multiple, 0xCE)


def decode_content_header(payload: bytes) -> tuple[int, bytes]:
    """Body size in bytes, and the properties as they came, of a content header frame."""
    if len(payload) < 14:
        raise syntax_error("content header is cut off")
    class_id, _, size = _content_head(payload)
    if class_id != _BASIC:
        raise syntax_error(f"content of class {class_id}")
    return size, payload[12:]


def encode_deliver_start(consumer_tag: str) -> bytes:
    """What every Basic.Deliver to one consumer starts with."""
    tag = consumer_tag.encode()
    return _DELIVER + len(tag).to_bytes(1, "big") + tag


def encode_delivery(
    channel: int,
    start: bytes,
    tag: int,
    redelivered: bool,
    address: bytes,
    properties: bytes,
    body: bytes,
    frame_max: int,
) -> tuple[bytes, ...]:
    """The frames of one delivery, in pieces to be joined. `start`: `encode_deliver_start`."""
    return (
        _frame_head(1, channel, len(start) + 9 + len(address)),
        start,
        _tag_and_flag(tag, redelivered),
        address,
        *encode_content(channel, properties, body, frame_max),
    )


def encode_content(
    channel: int, properties: bytes, body: bytes, frame_max: int
) -> tuple[bytes, ...]:
    """End mark of the method frame before, content header, and body frames, in pieces."""
    size = len(body)
    header = _header_frame(0xCE, 2, channel, 12 + len(properties), _BASIC, 0, size)
    room = frame_max - FRAME_OVERHEAD
    if size == 0:
        return header, properties, _END
    if size <= room:
        return header, properties, _body_frame(0xCE, 3, channel, size), body, _END
    pieces = [header, properties]
    with memoryview(body) as view:
        for first in range(0, size, room):
            part = bytes(view[first : first + room])
            pieces += (_body_frame(0xCE, 3, channel, len(part)), part)
    pieces.append(_END)
    return tuple(pieces)
