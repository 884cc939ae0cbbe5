"""The run cache: values under keys, that are right or missing, and never in the way.

`get`, `put`, `update` and `delete` never raise for what the place does: an operation that cannot
be done counts as a miss, or as nothing written, and the user is warned once. After several
failures in a row the place is left alone for a while, so that a server that does not answer costs
seconds, not the session. What people ask for (`pestfleet.cache.upkeep`) tells its errors.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pestfleet.cache.entries import DamagedEntry, Entry, decode_entry, encode_entry
from pestfleet.cache.keys import RunKey
from pestfleet.cache.shelf import Shelf

logger = logging.getLogger(__name__)

PATIENCE = 3  # failures in a row after which the place is left alone
REST_SECONDS = 60.0
SWEEP_SHARE = 0.05  # of the size limit that is written between two sweeps
SWEEP_SECONDS = 86_400.0  # after which a session's first write starts one
SWEEP_TARGET = 0.9  # of the size limit that a sweep leaves

Clock = Callable[[], float]


@dataclass(slots=True)
class CacheCounts:
    """What a cache did since it was opened. `errors`: operations that it gave up."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    damaged: int = 0
    expired: int = 0
    errors: int = 0
    skipped: int = 0  # not tried, while the place was left alone


class _Breaker:
    """Says whether to try: not for a while after `PATIENCE` failures in a row."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    @property
    def closed(self) -> bool:
        return time.monotonic() >= self._until

    def note(self, *, failed: bool) -> None:
        self._failures = self._failures + 1 if failed else 0
        if self._failures >= PATIENCE:
            self._until = time.monotonic() + REST_SECONDS


class RunCache:
    """A run cache. Safe to use from several threads, and by several processes at a time."""

    def __init__(
        self,
        shelf: Shelf,
        *,
        max_bytes: int = 0,
        keep_seconds: float = 0.0,
        on_warning: Callable[[str], None] | None = None,
        clock: Clock = time.time,
    ) -> None:
        """See `pestfleet.cache.open_cache`. `clock`: seconds since 1970."""
        self.shelf = shelf
        self.max_bytes = max_bytes
        self.keep_seconds = keep_seconds
        self.clock = clock
        self.counts = CacheCounts()
        self._on_warning = on_warning
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self._breakers = {"read": _Breaker(), "written": _Breaker()}
        self._written = 0  # bytes since the last sweep
        self._first = True
        self._sweeper: threading.Thread | None = None

    @property
    def place(self) -> str:
        return self.shelf.place

    # -- values --------------------------------------------------------------------------------

    def get(self, key: RunKey) -> Any | None:
        """The value, or None: there is none, it has expired, or it is damaged."""
        entry = self._try("read", lambda: self.read_entry(key))
        with self._lock:
            if entry is None:
                self.counts.misses += 1
                return None
            self.counts.hits += 1
        return entry.value

    def put(self, key: RunKey, value: Any, *, keep_seconds: float | None = None) -> bool:
        """Keep a value, unless there is a valid one; True when it was written.

        The first writer's value stays: whoever has read it can rely on it. Raises TypeError
        for a value that is no `RunRecord`, bytes, JSON or vector of float64.
        """
        return self._write(key, value, keep_seconds, replace=False)

    def update(self, key: RunKey, value: Any, *, keep_seconds: float | None = None) -> bool:
        """Keep a value in place of whatever there is; True when it was written."""
        return self._write(key, value, keep_seconds, replace=True)

    def delete(self, key: RunKey) -> bool:
        """Forget a value; False when there was none, or it could not be removed."""
        return bool(self._try("written", lambda: self.shelf.remove(key)))

    def close(self, *, timeout: float = 10.0) -> None:
        """Wait for a sweep under way, for so many seconds at most."""
        if self._sweeper is not None:
            self._sweeper.join(timeout)
        self.shelf.close()

    def read_entry(self, key: RunKey) -> Entry | None:
        """The entry, if it is valid; a damaged one is set aside. Raises OSError."""
        data = self.shelf.read(key)
        if data is None:
            return None
        try:
            entry = decode_entry(key, data)
        except DamagedEntry as error:
            with self._lock:
                self.counts.damaged += 1
            self.warn(
                "damaged",
                f"an entry of the run cache is damaged and was set aside; its run is made again: "
                f"{key.hash}: {error}",
            )
            self._put_away(key, self.shelf.set_aside)
            return None
        if entry.is_expired(self.clock()):
            with self._lock:
                self.counts.expired += 1
            self._put_away(key, self.shelf.remove)
            return None
        return entry

    def warn(self, kind: str, text: str) -> None:
        """Tell the user, once for each kind; more of a kind go to the log's details."""
        with self._lock:
            first = kind not in self._warned
            self._warned.add(kind)
        if not first:
            logger.debug("%s", text)
        elif self._on_warning is None:
            logger.warning("%s", text)
        else:
            self._on_warning(text)

    # -- giving up quietly ---------------------------------------------------------------------

    def _try(self, done: str, operation: Callable[[], Any]) -> Any:
        breaker = self._breakers[done]
        if not breaker.closed:
            with self._lock:
                self.counts.skipped += 1
            return None
        try:
            answer = operation()
        except (OSError, MemoryError) as error:
            with self._lock:
                self.counts.errors += 1
                breaker.note(failed=True)
            self.warn(
                done,
                f"the run cache {self.place} cannot be {done}, the session goes on without: "
                f"{error}",
            )
            return None
        breaker.note(failed=False)
        return answer

    def _put_away(self, key: RunKey, how: Callable[[RunKey], object]) -> None:
        try:
            how(key)
        except OSError as error:  # a folder that we may only read
            logger.debug("%s stays where it is: %s", key.hash, error)

    def _write(self, key: RunKey, value: Any, keep: float | None, *, replace: bool) -> bool:
        now = self.clock()
        seconds = self.keep_seconds if keep is None else keep
        expires = now + seconds if seconds > 0 else 0.0
        data = encode_entry(key, value, created=now, expires=expires)

        def write() -> bool:
            if self.shelf.write(key, data, replace=replace, expires=expires):
                return True
            # There is one: it stays if it is valid.
            if self.read_entry(key) is not None:
                return False
            return self.shelf.write(key, data, replace=True, expires=expires)

        stored = bool(self._try("written", write))
        if stored:
            with self._lock:
                self.counts.stored += 1
            self._note_written(len(data))
        return stored

    # -- the size limit ------------------------------------------------------------------------

    def _note_written(self, size: int) -> None:
        """Start a sweep each time a share of the limit is written, and if none was for a day."""
        if not self.max_bytes or self.shelf.slow:
            return
        with self._lock:
            self._written += size
            first, self._first = self._first, False
            due = self._written > SWEEP_SHARE * self.max_bytes
            if not due and not (first and self.shelf.claim_sweep(SWEEP_SECONDS)):
                return
            if self._sweeper is not None and self._sweeper.is_alive():
                return
            self._written = 0
            self._sweeper = threading.Thread(target=self._sweep, name="cache-sweep", daemon=True)
            self._sweeper.start()

    def _sweep(self) -> None:
        from pestfleet.cache.upkeep import sweep

        try:
            sweep(self, limit=self.max_bytes, target=int(SWEEP_TARGET * self.max_bytes))
        except OSError as error:
            self.warn("swept", f"the run cache {self.place} cannot be kept small: {error}")
