"""FAKE: a place for the run cache in memory, that a test can make slow, or fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from pestfleet.cache.keys import RunKey
from pestfleet.cache.shelf import Leftovers, ShelfError, Stored


class FakeShelf:
    """Counts calls by verb. Verbs in `failing` raise; writes wait for `gate`."""

    place = "fake"

    def __init__(self, *, slow: bool = True) -> None:
        self.slow = slow
        self.entries: dict[RunKey, bytes] = {}
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def read(self, key: RunKey) -> bytes | None:
        self._note("read")
        return self.entries.get(key)

    def read_head(self, key: RunKey, size: int) -> bytes | None:
        data = self.read(key)
        return None if data is None else data[:size]

    def write(self, key: RunKey, data: bytes, *, replace: bool, expires: float) -> bool:
        self.gate.wait(20)
        self._note("write")
        if key in self.entries and not replace:
            return False
        self.entries[key] = data
        return True

    def remove(self, key: RunKey) -> bool:
        self._note("remove")
        return self.entries.pop(key, None) is not None

    def set_aside(self, key: RunKey) -> None:
        self.remove(key)

    def list_entries(self, case: str | None = None) -> Iterator[Stored]:
        self._note("list")
        for key, data in list(self.entries.items()):
            if case in (None, key.case):
                yield Stored(key, len(data), 0.0)

    def list_cases(self) -> Iterator[str]:
        yield from {key.case for key in self.entries}

    def clean(self, *, before: float, dry_run: bool) -> Leftovers:
        return Leftovers()

    def claim_sweep(self, seconds: float) -> bool:
        return False

    def close(self) -> None:
        self._note("close")

    def _note(self, verb: str) -> None:
        self.calls.append(verb)
        if verb in self.failing:
            raise ShelfError(f"{verb} failed")
