"""Frames of the PANTHER protocol: bytes as PEST++ has them, and no trust in lengths."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pestfleet.engines.gateway.frames import (
    HEADER,
    MAGIC,
    Frame,
    FrameError,
    FrameReader,
    MessageType,
    clean_text,
    encode_frame,
    pack_names,
    unpack_names,
)

frames = st.builds(
    Frame,
    st.sampled_from(MessageType),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=1000),
    st.binary(max_size=200),
)


def make_reader(most: int = 1000) -> FrameReader:
    return FrameReader(lambda kind: most)


def break_frame(*, length: int | None = None, kind: int | None = None, **change: bytes) -> bytes:
    """A PING with one thing wrong."""
    frame = bytearray(encode_frame(Frame(MessageType.PING)))
    if length is not None:
        frame[5:13] = struct.pack("<q", length)
    if kind is not None:
        frame[13:17] = struct.pack("<I", kind)
    frame[: len(change.get("start", b""))] = change.get("start", b"")
    description = change.get("description", b"")
    frame[33 : 33 + len(description)] = description
    return bytes(frame)


def test_layout_of_a_frame() -> None:
    data = encode_frame(Frame(MessageType.START_RUN, 3, 258, "realization:base", b"\xff\x01"))
    assert data == (
        bytes([1, 3, 5, 7, 9])
        + (1029 + 2).to_bytes(8, "little")
        + b"\x0a\0\0\0"
        + b"\x03\0\0\0\0\0\0\0"
        + b"\x02\x01\0\0\0\0\0\0"
        + b"realization:base".ljust(1001, b"\0")
        + b"\xff\x01"
    )


def test_numbers_of_types_are_those_of_pestpp() -> None:
    assert " ".join(kind.name for kind in sorted(MessageType)) == (
        "UNKN OK CONFIRM_OK READY REQ_RUNDIR RUNDIR REQ_LINPACK LINPACK PAR_NAMES OBS_NAMES "
        "START_RUN RUN_FINISHED RUN_FAILED RUN_KILLED TERMINATE PING REQ_KILL IO_ERROR "
        "CORRUPT_MESG DEBUG_LOOP DEBUG_FAIL_FREEZE START_FILE_WRKR2MSTR CONT_FILE_WRKR2MSTR "
        "FINISH_FILE_WRKR2MSTR"
    )
    assert sorted(MessageType) == list(range(24))


@given(st.lists(frames, max_size=5), st.data())
def test_frames_survive_any_cutting(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, got = make_reader(), []
    for first, last in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[first:last])
    assert got == sent
    assert reader.pending == 0


@pytest.mark.parametrize("text", ["é ü 中", "two\nlines\tand\0more", "x" * 3000, "\x7f\x80\xff"])
def test_descriptions_are_made_fit(text: str) -> None:
    clean = clean_text(text)
    assert len(clean) <= 1000
    assert all(32 <= c <= 126 for c in clean)
    (frame,) = make_reader().feed(encode_frame(Frame(MessageType.RUN_FAILED, description=text)))
    assert frame.description == clean.decode("ascii")


def test_group_and_run_must_fit() -> None:
    with pytest.raises(FrameError, match="64 bits"):
        encode_frame(Frame(MessageType.PING, run=2**63))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (break_frame(start=b"HTTP/"), "begins with 48 54 54 50 2f"),
        (break_frame(start=b"\0\0\0\0\0"), "begins with 00 00 00 00 00"),
        (break_frame(length=10**12), "announces 1000000000000 bytes"),
        (break_frame(length=-1), "announces -1 bytes"),
        (break_frame(length=HEADER - 1), "announces 1028 bytes; it can have 1029 to 2029"),
        (break_frame(length=HEADER + 1001), "announces 2030 bytes"),
        (break_frame(kind=24), "unknown type 24"),
        (break_frame(kind=2**32 - 1), "unknown type 4294967295"),
        (break_frame(description=b"caf\xe9"), "PING frame has a description that is not plain"),
    ],
)
def test_malformed_frames_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        list(make_reader().feed(data))


@pytest.mark.parametrize("wrong", [b"\x01\x03\x06", break_frame(kind=99)[:17]])
def test_wrong_starts_are_seen_before_the_frame_is_complete(wrong: bytes) -> None:
    with pytest.raises(FrameError):
        list(make_reader().feed(wrong))


def test_frames_before_a_malformed_one_are_given() -> None:
    ping = Frame(MessageType.PING)
    got = []
    with pytest.raises(FrameError):
        for frame in make_reader().feed(encode_frame(ping) * 2 + b"\0"):
            got.append(frame)
    assert got == [ping, ping]


def test_a_reader_holds_no_more_than_one_frame() -> None:
    reader = make_reader(most=5000)
    stream = encode_frame(Frame(MessageType.START_RUN, data=bytes(5000))) * 20
    most = 0
    for first in range(0, len(stream), 700):
        list(reader.feed(stream[first : first + 700]))
        most = max(most, reader.pending)
    assert most < len(MAGIC) + HEADER + 5000


@given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)))
def test_names_survive(names: list[str]) -> None:
    assert unpack_names(pack_names(names)) == tuple(names)


def test_names_end_with_nul() -> None:
    assert pack_names(["k1", "s"]) == b"k1\0s\0"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"k1\0s", "cut off"),
        (b"k1\0\0s\0", "empty name"),
        (b"\0", "empty name"),
        (b"k1\0h\xe9\0", "the byte 233"),
        (b"k 1\0", "the byte 32"),
    ],
)
def test_lists_that_are_no_names(data: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        unpack_names(data)


@given(st.binary(max_size=3000))
def test_random_bytes_never_give_anything_but_frames_or_an_error(data: bytes) -> None:
    reader = make_reader()
    try:
        frames = list(reader.feed(data))
    except FrameError:
        return
    assert b"".join(map(encode_frame, frames)) + data[len(data) - reader.pending :] == data


def test_frames_with_random_bytes_changed() -> None:
    """Each byte that is changed gives another frame or an error, and never a longer buffer."""
    chance = random.Random(4)
    good = encode_frame(Frame(MessageType.START_RUN, 1, 2, "info", bytes(range(256))))
    refused = 0
    for _ in range(2000):
        wrong = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            wrong[chance.randrange(len(wrong))] = chance.randrange(256)
        reader = make_reader()
        try:
            list(reader.feed(bytes(wrong)))
        except FrameError:
            refused += 1
        assert reader.pending <= len(good)
    assert refused > 0
