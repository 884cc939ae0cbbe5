"""A case's runs in the run cache, as the master's ledger wants them: two verbs, none raises."""

from __future__ import annotations

import functools
import logging
import threading
from dataclasses import dataclass

from pestfleet.cache.entries import RunRecord
from pestfleet.cache.keys import KeyMaker, RunKey
from pestfleet.cache.runcache import RunCache
from pestfleet.cache.writer import BackgroundWriter
from pestfleet_worker.messages import CaseSpec

logger = logging.getLogger(__name__)

# A slow place is asked once which runs it has, so that a new run does not wait for an answer.
_MAX_LISTED = 200_000


@dataclass(slots=True)
class RecallCounts:
    """Runs `found` and `missed` by lookup; `stored`: given to the cache; `dropped`: given up."""

    found: int = 0
    missed: int = 0
    stored: int = 0
    dropped: int = 0


class CachedRuns:
    """The `RunStore` of one case on one kind of worker, in a run cache that others share.

    `platform`: of the workers, as they announce it (`linux/x86_64`). Safe to use from several
    threads. In a folder, `lookup` and `store` do their work at once; a bucket is written to
    behind the caller's back, and asked once which of the case's runs it has: runs that others
    add later are not seen.
    """

    def __init__(self, cache: RunCache, spec: CaseSpec, *, platform: str) -> None:
        self._cache = cache
        self._keys = KeyMaker.for_spec(spec, platform)
        self._case = spec.digest
        self._sizes = (8 * len(spec.parameters), 8 * len(spec.observations))
        self._about = {
            "name": spec.name,
            "commands": list(spec.commands),
            "platform": platform,
        }
        self._lock = threading.Lock()
        self._listing = threading.Lock()
        self._listed = not cache.shelf.slow
        self._known: set[bytes] | None = None  # None: any run may be there
        self._writer: BackgroundWriter | None = None
        self._closed = False
        self.counts = RecallCounts()

    def lookup(self, parameters: bytes) -> bytes | None:
        """The observations of that parameter vector, if they are known and sound."""
        observations = None
        try:
            observations = self._look_up(parameters)
        except Exception as error:
            self._tell_defect(error)
        with self._lock:
            if observations is None:
                self.counts.missed += 1
            else:
                self.counts.found += 1
        return observations

    def store(self, parameters: bytes, observations: bytes, seconds: float) -> None:
        """Keep a successful run; `seconds` is how long it took."""
        try:
            if (len(parameters), len(observations)) != self._sizes or self._closed:
                return
            key = self._keys.make(parameters)
            record = RunRecord(parameters, observations, seconds, self._about)
            if not self._cache.shelf.slow:
                self._put(key, record)
            elif not self._get_writer().submit(
                len(parameters) + len(observations), functools.partial(self._put, key, record)
            ):
                self._drop(1)
        except Exception as error:
            self._tell_defect(error)

    def close(self, *, timeout: float = 10.0) -> None:
        """Write what is waiting, for so many seconds at most. Does not close the cache."""
        self._closed = True
        if self._writer is not None:
            self._drop(self._writer.close(timeout=timeout))

    def _look_up(self, parameters: bytes) -> bytes | None:
        key = self._keys.make(parameters)
        if not self._listed:
            self._list_known()
        if self._known is not None and bytes.fromhex(key.hash) not in self._known:
            return None
        record = self._cache.get(key)
        if (
            not isinstance(record, RunRecord)
            or record.parameters != parameters
            or len(record.observations) != self._sizes[1]
        ):
            return None
        return record.observations

    def _put(self, key: RunKey, record: RunRecord) -> None:
        self._cache.put(key, record)
        with self._lock:
            self.counts.stored += 1
            if self._known is not None:
                self._known.add(bytes.fromhex(key.hash))

    def _list_known(self) -> None:
        with self._listing:
            if self._listed:
                return
            known: set[bytes] | None = set()
            try:
                for item in self._cache.shelf.list_entries(self._case):
                    assert known is not None
                    known.add(bytes.fromhex(item.key.hash))
                    if len(known) > _MAX_LISTED:
                        known = None
                        break
            except OSError as error:
                known = None
                self._cache.warn("read", f"the run cache cannot be listed: {error}")
            with self._lock:
                self._known = known
                self._listed = True

    def _get_writer(self) -> BackgroundWriter:
        with self._lock:
            if self._writer is None:
                self._writer = BackgroundWriter()
            return self._writer

    def _drop(self, runs: int) -> None:
        if not runs:
            return
        with self._lock:
            self.counts.dropped += runs
        self._cache.warn(
            "dropped",
            f"the run cache {self._cache.place} is too slow: some finished runs are not kept "
            "there; the session has them",
        )

    def _tell_defect(self, error: Exception) -> None:
        # A cache must not end a session that takes days, not even by a defect of its own.
        logger.debug("the run cache", exc_info=error)
        self._cache.warn("defect", f"the run cache failed, the session goes on without: {error!r}")
