"""The broker's own packing and unpacking gives the bytes that pamqp gives."""

from __future__ import annotations

import random
import struct

import pytest
from pamqp import body, commands, frame, header

from pestfleet.broker import fastframes, frames
from pestfleet.broker.errors import AmqpError

HEADERS = {"task": "run", "id": "7", "retries": 0, "eta": None, "limits": [None, 3, {"deep": True}]}


def properties_bytes(**properties: object) -> bytes:
    content = header.ContentHeader(0, 0, commands.Basic.Properties(**properties))  # type: ignore[arg-type]
    return content.marshal()[12:]


def payload_of(data: bytes) -> bytes:
    return data[7:-1]


@pytest.mark.parametrize("exchange, key", [("", "q"), ("pestfleet.runs", ""), ("ü", "x" * 255)])
@pytest.mark.parametrize("mandatory", [False, True])
def test_publish_is_read_as_pamqp_writes_it(exchange: str, key: str, mandatory: bool) -> None:
    method = commands.Basic.Publish(0, "", key, mandatory)
    method.exchange = exchange
    method.validate = lambda: None  # type: ignore[method-assign]  # pamqp wants ASCII names
    address, bits = fastframes.decode_publish(payload_of(frame.marshal(method, 3)))
    assert fastframes.split_address(address) == (exchange, key)
    assert address == fastframes.make_address(exchange, key)
    assert bits == int(mandatory)


@pytest.mark.parametrize("cut", range(4, 20))
def test_publish_that_is_cut_off_is_a_syntax_error(cut: int) -> None:
    payload = payload_of(frame.marshal(commands.Basic.Publish(0, "exchange", "key"), 3))
    assert len(payload) == 20
    with pytest.raises(AmqpError) as caught:
        fastframes.decode_publish(payload[:cut])
    assert caught.value.code == 502


@pytest.mark.parametrize("tag, multiple", [(1, False), (2**63 - 1, True)])
def test_ack_equals_pamqp(tag: int, multiple: bool) -> None:
    expected = frame.marshal(commands.Basic.Ack(tag, multiple), 17)
    assert fastframes.encode_ack(17, tag, multiple) == expected
    assert fastframes.decode_ack(payload_of(expected)) == (tag, multiple)


@pytest.mark.parametrize("size", [0, 1, 92, 93, 500])
@pytest.mark.parametrize("redelivered", [False, True])
def test_delivery_equals_pamqp(size: int, redelivered: bool) -> None:
    content = random.Random(size).randbytes(size)
    properties = commands.Basic.Properties(content_type="text/plain", headers=dict(HEADERS))
    raw = properties_bytes(content_type="text/plain", headers=dict(HEADERS))
    frame_max = 100
    expected = frame.marshal(commands.Basic.Deliver("ctag", 9, redelivered, "runs", "key"), 5)
    expected += frame.marshal(header.ContentHeader(0, size, properties), 5)
    for first in range(0, size, frame_max - 8):
        expected += frame.marshal(body.ContentBody(content[first : first + frame_max - 8]), 5)
    pieces = fastframes.encode_delivery(
        5,
        fastframes.encode_deliver_start("ctag"),
        9,
        redelivered,
        fastframes.make_address("runs", "key"),
        raw,
        content,
        frame_max,
    )
    assert b"".join(pieces) == expected


def test_content_header_is_read_as_pamqp_writes_it() -> None:
    properties = commands.Basic.Properties(expiration="1500", headers=dict(HEADERS), priority=3)
    data = frame.marshal(header.ContentHeader(0, 12345, properties), 5)
    size, raw = fastframes.decode_content_header(payload_of(data))
    assert size == 12345
    assert frames.read_expiration(raw) == 1500


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"content_type": "a", "content_encoding": "b", "delivery_mode": 2, "app_id": "z"},
        {"content_type": "a", "headers": dict(HEADERS), "correlation_id": "c"},
        {"headers": {**HEADERS, "x-delivery-count": 77}, "message_id": "m"},
        {"headers": {"other": "x-delivery-count"}},
    ],
)
def test_delivery_count_is_the_only_thing_that_changes(properties: dict[str, object]) -> None:
    counted = frames.set_delivery_count(properties_bytes(**properties), 5)
    content = header.ContentHeader()
    content.unmarshal(struct.pack(">HHQ", 60, 0, 0) + counted)
    headers = properties.get("headers") or {}
    assert isinstance(headers, dict)
    expected = {**properties, "headers": {**headers, "x-delivery-count": 5}}
    found = {name: value for name, value in content.properties if value not in (None, "")}
    assert found == expected
    assert frames.read_expiration(counted) is None
    assert counted.count(b"x-delivery-count") == str(expected).count("x-delivery-count")


def test_every_client_method_passes_through() -> None:
    methods = [
        commands.Connection.StartOk({"capabilities": {"x": True}}, "PLAIN", "\0a\0b", "en_US"),
        commands.Queue.Declare(0, "q", False, True, False, True, False, {"x-queue-type": "quorum"}),
        commands.Basic.Consume(0, "q", "tag", False, True, False, False, {"x-priority": 4}),
        commands.Basic.Nack(4, True, False),
        commands.Exchange.Bind(0, "a", "b", "key", True, {"k": [1, 2]}),
    ]
    for method in methods:
        data = frames.encode_method(4, method)
        assert dict(frames.decode_method(payload_of(data))) == dict(method)


def nested(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x01kF" + struct.pack(">I", len(table)) + table
    return struct.pack(">I", len(table)) + table


@pytest.mark.parametrize(
    "table",
    [
        b"\xff\xff\xff\xff",
        struct.pack(">I", 2) + b"\xffk",
        struct.pack(">I", 7) + b"\x01kS\xff\xff\xff\xff",
        struct.pack(">I", 7) + b"\x01kA\xff\xff\xff\xfc",
        struct.pack(">I", 3) + b"\x01k\x00",
        struct.pack(">I", 11) + b"\x01kT" + b"\xff" * 8,
        nested(5000),
    ],
    ids=["too long", "key", "string", "array", "type", "time", "nested"],
)
def test_tables_that_lie_are_syntax_errors(table: bytes) -> None:
    payload = struct.pack(">I", commands.Connection.StartOk.index) + table
    with pytest.raises(AmqpError) as caught:
        frames.decode_method(payload + b"\x05PLAIN\0\0\0\0\x00")
    assert caught.value.code == 502


def test_random_method_payloads_give_methods_or_amqp_errors() -> None:
    rng = random.Random(3)
    indexes = list(commands.INDEX_MAPPING)
    codes: set[int] = set()
    for _ in range(3000):
        payload = struct.pack(">I", rng.choice(indexes)) + rng.randbytes(rng.randrange(60))
        try:
            frames.decode_method(payload)
        except AmqpError as error:
            codes.add(error.code)
        try:
            frames.read_expiration(payload)
        except AmqpError as error:
            codes.add(error.code)
    assert codes == {502, 540}
