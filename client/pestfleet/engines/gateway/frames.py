"""Frames of the PANTHER protocol, and a reader that trusts no length.

Layout (PEST++ 5.2.23, `NetPackage`): five bytes `01 03 05 07 09`; then, little-endian, int64
length of what follows, uint32 type, int64 group, int64 run id, a description of 1001 bytes
padded with NUL, and the data. The length counts itself and the rest, but not the five bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from pestfleet_worker.errors import PestfleetError

MAGIC = bytes((1, 3, 5, 7, 9))
DESCRIPTION = 1001  # bytes, the last one is always NUL
_HEADER = struct.Struct(f"<{len(MAGIC)}sqIqq{DESCRIPTION}s")
HEADER = _HEADER.size - len(MAGIC)  # 1029 bytes: the least length of a frame
_LENGTH_AND_TYPE = struct.Struct("<qI")
_INT64 = range(-(2**63), 2**63)
_PRINTABLE = bytes(range(32, 127))


class MessageType(IntEnum):
    """What a frame is; the numbers are those of `NetPackage::PackType`."""

    UNKN = 0
    OK = 1
    CONFIRM_OK = 2
    READY = 3
    REQ_RUNDIR = 4
    RUNDIR = 5
    REQ_LINPACK = 6
    LINPACK = 7
    PAR_NAMES = 8
    OBS_NAMES = 9
    START_RUN = 10
    RUN_FINISHED = 11
    RUN_FAILED = 12
    RUN_KILLED = 13
    TERMINATE = 14
    PING = 15
    REQ_KILL = 16
    IO_ERROR = 17
    CORRUPT_MESG = 18
    DEBUG_LOOP = 19
    DEBUG_FAIL_FREEZE = 20
    START_FILE_WRKR2MSTR = 21
    CONT_FILE_WRKR2MSTR = 22
    FINISH_FILE_WRKR2MSTR = 23


_TYPES = frozenset(MessageType)


class FrameError(PestfleetError):
    """Bytes that are not the PANTHER protocol."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. `description` is ASCII, at most 1000 characters."""

    type: MessageType
    group: int = 0
    run: int = 0
    description: str = ""
    data: bytes = b""


def encode_frame(frame: Frame) -> bytes:
    """The frame's bytes. A description is made fit: see `clean_text`."""
    if frame.group not in _INT64 or frame.run not in _INT64:
        raise FrameError(f"group {frame.group} or run {frame.run} does not fit 64 bits")
    text = clean_text(frame.description)
    length = HEADER + len(frame.data)
    return _HEADER.pack(MAGIC, length, frame.type, frame.group, frame.run, text) + frame.data


def clean_text(text: str) -> bytes:
    """Text as PEST++ takes it: printable ASCII, at most 1000 bytes.

    A master closes the connection of an agent that sends any other byte in a description.
    White space becomes one blank, what cannot be shown becomes `?`.
    """
    words = " ".join(text.split())
    return bytes(c if 32 <= c <= 126 else 63 for c in words.encode("ascii", "replace"))[
        : DESCRIPTION - 1
    ]


def pack_names(names: Iterable[str]) -> bytes:
    """Names as PAR_NAMES and OBS_NAMES carry them: ASCII, each ended by NUL."""
    return b"".join(name.encode("ascii") + b"\0" for name in names)


def unpack_names(data: bytes) -> tuple[str, ...]:
    """The reverse of `pack_names`. Raises `FrameError` for anything else."""
    if not data:
        return ()
    if data[-1] != 0:
        raise FrameError("a list of names does not end with a NUL byte: it is cut off")
    names = data[:-1].split(b"\0")
    for name in names:
        if not name:
            raise FrameError("a list of names has an empty name")
    if strange := data.translate(None, _PRINTABLE[1:] + b"\0"):
        raise FrameError(f"a list of names has the byte {strange[0]}, which no name can have")
    return tuple(name.decode("ascii") for name in names)


class FrameReader:
    """Cuts a stream of bytes into frames.

    `most_data(type)` says how many bytes of data a frame of that type may have, so that the
    memory used is bounded by it, whatever length a frame announces.
    """

    def __init__(self, most_data: Callable[[MessageType], int]) -> None:
        self._most_data = most_data
        self._buffer = bytearray()
        self._wanted = _HEADER.size  # bytes of the frame in hand, as far as is known
        self._checked = False

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes; give the frames that they complete.

        Raises `FrameError` at the first byte that cannot be right, after the frames before it.
        Nothing may be fed after that.
        """
        self._buffer += data
        while True:
            if not self._checked:
                self._check_start()
            if not self._checked or len(self._buffer) < self._wanted:
                return
            frame = _decode(self._buffer, self._wanted)
            del self._buffer[: self._wanted]
            self._wanted = _HEADER.size
            self._checked = False
            yield frame

    def _check_start(self) -> None:
        """Check magic, length and type as soon as they are there."""
        start = bytes(self._buffer[: len(MAGIC)])
        if start != MAGIC[: len(start)]:
            raise FrameError(
                f"a frame begins with {start.hex(' ')}, not with {MAGIC.hex(' ')}: "
                "this is not a PANTHER master, or the stream is out of step"
            )
        if len(self._buffer) < len(MAGIC) + _LENGTH_AND_TYPE.size:
            return
        length, number = _LENGTH_AND_TYPE.unpack_from(self._buffer, len(MAGIC))
        if number not in _TYPES:
            raise FrameError(f"a frame has the unknown type {number}")
        kind = MessageType(number)
        most = HEADER + self._most_data(kind)
        if not HEADER <= length <= most:
            raise FrameError(
                f"a {kind.name} frame announces {length} bytes; it can have {HEADER} to {most}"
            )
        self._wanted = len(MAGIC) + length
        self._checked = True


def _decode(buffer: bytearray, end: int) -> Frame:
    _, _, number, group, run, text = _HEADER.unpack_from(buffer)
    description = text.partition(b"\0")[0]
    if description.translate(None, _PRINTABLE):
        raise FrameError(
            f"a {MessageType(number).name} frame has a description that is not plain ASCII"
        )
    return Frame(
        MessageType(number),
        group,
        run,
        description.decode("ascii"),
        bytes(buffer[_HEADER.size : end]),
    )
