"""Where entries lie: the small interface behind a run cache, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pestfleet.cache.keys import RunKey
from pestfleet_worker.errors import ConfigurationError


class CacheError(ConfigurationError):
    """The run cache's place cannot be read or written, or is none. No run raises this."""


class ShelfError(OSError):
    """The place did not do what it was asked: not reached, not allowed, full."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry as its place lists it. `used`: last use (S3: last write), seconds since 1970."""

    key: RunKey
    size: int
    used: float


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Files that are no entries: of writers that died, and damaged entries set aside."""

    files: int = 0
    size: int = 0


class Shelf(Protocol):
    """Keeps bytes under keys. Every verb may raise OSError, and is safe to call from threads.

    `place`: as the user named it. `slow`: an answer takes a network's time, not a disk's.
    """

    place: str
    slow: bool

    def read(self, key: RunKey) -> bytes | None:
        """The whole entry, or None."""
        ...

    def read_head(self, key: RunKey, size: int) -> bytes | None:
        """The first `size` bytes of an entry, or None."""
        ...

    def write(self, key: RunKey, data: bytes, *, replace: bool, expires: float) -> bool:
        """Write an entry so that a reader sees none, the old one or the new one, never half.

        False, and nothing written, where there is one already and `replace` is false.
        """
        ...

    def remove(self, key: RunKey) -> bool:
        """False: there was none."""
        ...

    def set_aside(self, key: RunKey) -> None:
        """Take a damaged entry out of the way."""
        ...

    def list_entries(self, case: str | None = None) -> Iterator[Stored]:
        """All entries, or those of one case, in no order, without all of them in memory."""
        ...

    def list_cases(self) -> Iterator[str]:
        """The digests of cases that may have entries."""
        ...

    def clean(self, *, before: float, dry_run: bool) -> Leftovers:
        """Remove leftovers: damaged entries, and what writers left before that time."""
        ...

    def claim_sweep(self, seconds: float) -> bool:
        """Has nobody claimed a sweep for so long? If so, this caller has now. Never raises."""
        ...

    def close(self) -> None: ...
