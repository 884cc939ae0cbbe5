"""Messages survive the wire, and what is not a message is refused with a reason."""

from __future__ import annotations

import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pestfleet_worker import messages
from pestfleet_worker.messages import (
    CaseSpec,
    Failure,
    FilePair,
    Limits,
    MessageError,
    Result,
    Run,
    RunConfig,
    decode,
    encode,
    pack_vector,
    unpack_vector,
)

CASE = CaseSpec(
    name="theis",
    digest="ab" * 32,
    parameters=("t", "s"),
    observations=("d1",),
    templates=(FilePair("in.tpl", "in.dat"),),
    instructions=(FilePair("out.ins", "out.dat"),),
    commands=("python3 model.py",),
)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True)))
def test_vectors_are_bit_equal(values: list[float]) -> None:
    back = unpack_vector(pack_vector(values))
    assert [v.hex() for v in back] == [v.hex() for v in values]


@pytest.mark.parametrize(
    "message",
    [
        Run(id=7, parameters=pack_vector([1.0, math.pi])),
        Result(id=7, worker="w", slot=0, seconds=0.5, observations=b"12345678"),
        Result(
            id=7, worker="w", slot=0, seconds=1,
            failure=Failure("model-failed", "exit code 3", exit_code=3, log="…\n"),
        ),
        RunConfig(
            session="s", mode="queue", case=CASE, limits=Limits(), source="/case",
            heartbeat=2.0, master_timeout=30.0,
        ),
    ],
)  # fmt: skip
def test_round_trip(message: object) -> None:
    assert decode(encode(message)) == message


def test_a_later_version_is_refused() -> None:
    data = msgpack.packb(
        {"version": messages.VERSION + 1, "kind": "run", "id": 1, "parameters": b""}
    )
    with pytest.raises(MessageError, match="version 2, this program speaks 1"):
        decode(data)


def test_unknown_fields_are_ignored() -> None:
    data = msgpack.packb({"version": 1, "kind": "run", "id": 1, "parameters": b"", "later": 5})
    assert decode(data) == Run(id=1, parameters=b"")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kind": "run", "id": 1}, "a run message is incomplete"),
        ({"kind": "run", "id": "1", "parameters": b""}, "wrong value in field 'id'"),
        ({"kind": "no-such"}, "unknown kind of message 'no-such'"),
        ({"id": 1}, "not a message"),
    ],
)
def test_malformed_messages_say_why(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(MessageError, match=expected):
        decode(msgpack.packb({"version": 1, **fields}))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)
