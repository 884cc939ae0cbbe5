"""The messages between master and workers: typed, versioned, MessagePack on the wire.

Vectors are little-endian float64, packed as bytes, in the order of the `CaseSpec`'s names, so
that a value is bit-equal on every path. Every message is a map with `kind` and `version`; a
reader ignores fields that it does not know and refuses a higher version (`MessageError`).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import msgpack

from pestfleet_worker.errors import ChannelError

VERSION = 1


class MessageError(ChannelError):
    """A message that this version cannot read."""


def pack_vector(values: Iterable[float]) -> bytes:
    """Values as little-endian float64 bytes."""
    packed = array("d", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_vector(data: bytes) -> array[float]:
    """The reverse of `pack_vector`."""
    values = array("d")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


@dataclass(frozen=True, slots=True)
class FilePair:
    """A template and the model input that it makes, or an instruction file and its output.

    Paths are POSIX, relative to the case folder.
    """

    kind: ClassVar[str] = "files"
    pest: str
    model: str


@dataclass(frozen=True, slots=True)
class CaseSpec:
    """All that a worker must know of a case to make a run in a copy of its folder."""

    kind: ClassVar[str] = "case"
    name: str
    digest: str
    parameters: tuple[str, ...]
    observations: tuple[str, ...]
    templates: tuple[FilePair, ...]
    instructions: tuple[FilePair, ...]
    commands: tuple[str, ...]
    precision: str = "double"  # PRECIS: single | double
    decimal_point: str = "point"  # DPOINT: point | nopoint


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may use. `seconds` 0: no time limit. `threads` sets OMP_NUM_THREADS and kin.

    `kit_bytes`: the most that the kit of a failed run may have (`Result.kit`); 0: none.
    """

    kind: ClassVar[str] = "limits"
    seconds: float = 0.0
    threads: int = 1
    deliveries: int = (
        3  # a run that was handed out this often and killed its worker each time fails
    )
    kit_bytes: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Run:
    """One run that an engine asks for. `parameters`: vector as the model gets them."""

    kind: ClassVar[str] = "run"
    id: int
    parameters: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run failed.

    `reason`: bad-input | model-failed | time-limit | output-missing | instruction-failed |
    non-finite | disk-full | killed-worker | cancelled | worker-error.
    `file` and `line` where one is to blame; `exit_code` or `signal` of the model command;
    `log`: the tail of what the model wrote to stdout and stderr.
    """

    kind: ClassVar[str] = "failure"
    reason: str
    message: str
    file: str = ""
    line: int = 0
    exit_code: int | None = None
    signal: int | None = None
    log: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return place + self.message

    @classmethod
    def of_killed_workers(cls, run: int, deliveries: int) -> Failure:
        """Of a run that ends whoever makes it."""
        return cls(
            "killed-worker",
            f"run {run} was handed out {deliveries} times and each time its worker died or "
            "vanished; perhaps the model needs more memory than a worker has",
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The one answer to a `Run`: observations, or a failure.

    `kit`: a .tar.gz with what there is to see of a run that failed (pestfleet_worker.kits).
    `parameters`: those of the run, so that a master that did not ask for it can use it too.
    """

    kind: ClassVar[str] = "result"
    id: int
    worker: str
    slot: int
    seconds: float
    observations: bytes = b""
    failure: Failure | None = None
    kit: bytes = b""
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A worker that leaves in good order has not made this run; another shall."""

    kind: ClassVar[str] = "given-back"
    id: int
    worker: str


@dataclass(frozen=True, slots=True)
class SlotState:
    """What a slot does: idle, or a run since `seconds` ago."""

    kind: ClassVar[str] = "slot"
    run: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Announce:
    """A worker that started (or came back) says who it is. `digest`: case built into its image."""

    kind: ClassVar[str] = "announce"
    worker: str
    host: str
    process: int
    slots: int
    platform: str
    versions: dict[str, str]
    digest: str = ""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """Which agent a worker starts in each slot, and how it reaches the engine.

    `command`: words; `{host}` and `{port}` stand for the worker's own end of the relay.
    `relay_host`, `relay_port`: the master's end. `token` lets a worker in. `certificate`: PEM
    of the relay's certificate; "" on loopback, where there is no TLS.
    """

    kind: ClassVar[str] = "agent"
    command: tuple[str, ...]
    relay_host: str
    relay_port: int
    token: str
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The desk's answer: what this worker does in this session.

    `mode`: queue (runs come over the channel) or agent (`agent` says what to start).
    `source`: folder of the case as the worker sees it ("" : the one in its image).
    `master_timeout`: seconds without any sign of the master after which a worker ends itself.
    `master`: id of the master's process, as in its beats.
    """

    kind: ClassVar[str] = "run-config"
    session: str
    mode: str
    case: CaseSpec
    limits: Limits
    source: str
    heartbeat: float
    master_timeout: float
    agent: AgentSpec | None = None
    master: str = ""

    def asks_the_same(self, other: RunConfig) -> bool:
        """Can a worker of the one config go on with the other?"""
        return (self.session, self.mode, self.case, self.limits, self.source) == (
            other.session, other.mode, other.case, other.limits, other.source
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Refusal:
    """The desk's answer to a worker that does not fit this session."""

    kind: ClassVar[str] = "refusal"
    reason: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker lives; `finished` counts its runs since it started.

    `draining`: it takes no new run; `drained`: it has none in hand any more, either.
    """

    kind: ClassVar[str] = "heartbeat"
    worker: str
    slots: tuple[SlotState, ...]
    finished: int
    draining: bool = False
    drained: bool = False


@dataclass(frozen=True, slots=True)
class Farewell:
    """A worker leaves by its own will."""

    kind: ClassVar[str] = "farewell"
    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class MasterBeat:
    """The master lives. `master`: another one than before is to be told who is there."""

    kind: ClassVar[str] = "master-beat"
    master: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """These workers take no new run, and finish what they have. Whom else it reaches works on."""

    kind: ClassVar[str] = "drain"
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """These runs are not wanted any more."""

    kind: ClassVar[str] = "cancel"
    runs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """The session is over. `worker` "": all of them."""

    kind: ClassVar[str] = "stop"
    reason: str
    worker: str = ""


_KINDS: dict[str, type[Any]] = {
    cls.kind: cls
    for cls in (
        FilePair, CaseSpec, Limits, Run, Failure, Result, GivenBack, SlotState, Announce, AgentSpec,
        RunConfig, Refusal, Heartbeat, Farewell, MasterBeat, Drain, Cancel,
        Stop,
    )
}  # fmt: skip


@functools.cache
def _field_types(kind: str) -> dict[str, tuple[type, ...]]:
    """The plain types that each field of that kind of message may have."""
    hints = get_type_hints(_KINDS[kind])
    return {f.name: _plain_types(hints[f.name]) for f in dataclasses.fields(_KINDS[kind])}


def _plain_types(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, types.UnionType):
        return tuple(t for part in get_args(hint) for t in _plain_types(part))
    plain: type = get_origin(hint) or hint
    return (float, int) if plain is float else (plain,)


def _pack(message: Any) -> dict[str, Any]:
    # Only dataclasses of this module reach this hook: MessagePack packs the rest by itself.
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    return {"kind": message.kind, **fields}


def _unpack(fields: dict[str, Any]) -> Any:
    kind = fields.pop("kind", None)
    if kind is None:
        return fields
    cls = _KINDS.get(kind)
    if cls is None:
        raise MessageError(f"unknown kind of message {kind!r}", remedy=_UPGRADE)
    known = _field_types(kind)
    try:
        message = cls(**{name: value for name, value in fields.items() if name in known})
    except TypeError as error:
        raise MessageError(f"a {kind} message is incomplete: {error}") from error
    for name, plain in known.items():
        if not isinstance(getattr(message, name), plain):
            raise MessageError(f"a {kind} message has a wrong value in field {name!r}")
    return message


_UPGRADE = "Give master and workers the same version of pestfleet."


def encode(message: Any) -> bytes:
    """A message as bytes."""
    packed: bytes = msgpack.packb({"version": VERSION, **_pack(message)}, default=_pack)
    return packed


def decode(data: bytes) -> Any:
    """A message from bytes. Raises `MessageError` for anything that is not one."""
    try:
        message = msgpack.unpackb(data, object_hook=_unpack_versioned, use_list=False)
    except MessageError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MessageError(f"not a message: {error}") from error
    if not dataclasses.is_dataclass(message):
        raise MessageError("not a message")
    return message


def _unpack_versioned(fields: dict[str, Any]) -> Any:
    version = fields.pop("version", VERSION)
    if version != VERSION:
        raise MessageError(
            f"a message of version {version}, this program speaks {VERSION}", remedy=_UPGRADE
        )
    return _unpack(fields)
