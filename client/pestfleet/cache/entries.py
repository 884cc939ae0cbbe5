"""An entry of the run cache in bytes: 64 bytes of header, then the value.

    6  magic            89 50 46 43 0D 0A
    1  version          1
    1  type             1 bytes, 2 JSON, 3 vector, 4 run
    8  created          float64, seconds since 1970
    8  expires          float64, seconds since 1970; 0: never
    8  length           uint64, bytes of the value
    32 checksum         BLAKE2b over the entry's name, the 32 bytes before, and the value

All little-endian. The name is under the checksum, so that an entry that was copied or renamed
to another key is no valid entry there. A vector is float64s; JSON is UTF-8. A run is seconds
(float64), bytes of parameters and of observations (uint64 each), both vectors, then JSON about it.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pestfleet.cache.keys import RunKey

MAGIC = b"\x89PFC\r\n"
VERSION = 1
HEADER_BYTES = 64

_BYTES, _JSON, _VECTOR, _RUN = 1, 2, 3, 4
_HEADER = struct.Struct("<6sBBddQ")
_RUN_HEAD = struct.Struct("<dQQ")
_PERSON = b"pestfleet-entry"


class DamagedEntry(Exception):
    """These bytes are not the entry that was written under this key."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A finished run. Vectors are packed little-endian float64.

    It has its parameters too: a lookup compares them, so that a wrong key cannot give a wrong
    result, and `verify --rerun` can make the run again. `about` (JSON): `name` of the case,
    `commands`, `platform` of the worker.
    """

    parameters: bytes
    observations: bytes
    seconds: float
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A value with its times, in seconds since 1970. `expires` 0: never."""

    value: Any
    created: float
    expires: float

    def is_expired(self, now: float) -> bool:
        return 0 < self.expires <= now


def encode_entry(key: RunKey, value: Any, *, created: float, expires: float = 0.0) -> bytes:
    """A value as an entry. Raises TypeError for a type that the cache cannot keep."""
    kind, payload = _encode_value(value)
    head = _HEADER.pack(MAGIC, VERSION, kind, created, expires, len(payload))
    return b"".join((head, _compute_checksum(key, head, payload), payload))


def decode_entry(key: RunKey, data: bytes) -> Entry:
    """The reverse of `encode_entry`. Raises `DamagedEntry` for every other bytes."""
    if len(data) < HEADER_BYTES:
        raise DamagedEntry("it is cut off")
    magic, version, kind, created, expires, length = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise DamagedEntry("it does not begin like an entry")
    view = memoryview(data)
    payload = view[HEADER_BYTES:]
    if len(payload) != length:
        raise DamagedEntry("it is cut off" if len(payload) < length else "it is too long")
    if view[_HEADER.size : HEADER_BYTES] != _compute_checksum(key, view[: _HEADER.size], payload):
        raise DamagedEntry("its checksum is wrong")
    try:
        value = _decode_value(kind, payload)
    except (ValueError, struct.error, TypeError) as error:
        raise DamagedEntry(f"its value cannot be read: {error}") from error
    return Entry(value, created, expires)


def read_expiry(head: bytes) -> float:
    """When an entry expires, by its first `HEADER_BYTES` alone, unverified; 0: never or unknown.

    Enough to drop an entry, never enough to believe one.
    """
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        return 0.0
    expires: float = _HEADER.unpack_from(head)[4]
    return expires if math.isfinite(expires) else 0.0


def _compute_checksum(key: RunKey, head: bytes | memoryview, payload: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(key.name.encode(), digest_size=32, person=_PERSON)
    digest.update(head)
    digest.update(payload)
    return digest.digest()


def _encode_value(value: Any) -> tuple[int, bytes]:
    if isinstance(value, RunRecord):
        head = _RUN_HEAD.pack(value.seconds, len(value.parameters), len(value.observations))
        about = json.dumps(dict(value.about), ensure_ascii=False).encode()
        return _RUN, b"".join((head, value.parameters, value.observations, about))
    if isinstance(value, bytes):
        return _BYTES, value
    if isinstance(value, dict | list | str | int | float):
        return _JSON, json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    import numpy as np

    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == np.float64:
        return _VECTOR, np.ascontiguousarray(value, dtype="<f8").tobytes()
    raise TypeError(
        f"the run cache keeps runs, bytes, JSON values and vectors of float64, not {type(value)}"
    )


def _decode_value(kind: int, payload: memoryview) -> Any:
    match kind:
        case 4:
            seconds, parameters, observations = _RUN_HEAD.unpack_from(payload)
            middle = _RUN_HEAD.size + parameters
            end = middle + observations
            return RunRecord(
                bytes(payload[_RUN_HEAD.size : middle]),
                bytes(payload[middle:end]),
                seconds,
                cast("dict[str, Any]", json.loads(bytes(payload[end:]))),
            )
        case 1:
            return bytes(payload)
        case 2:
            return json.loads(bytes(payload).decode("utf-8", "surrogatepass"))
        case 3:
            import numpy as np

            return np.frombuffer(payload, dtype="<f8").astype(np.float64)
    raise ValueError(f"unknown type {kind}")
