"""The run cache: finished runs, kept beyond the session that made them (docs/cache.md)."""

from __future__ import annotations

from pestfleet.cache.entries import RunRecord
from pestfleet.cache.keys import RunKey
from pestfleet.cache.places import DEFAULT_MAX_BYTES, find_default_place, open_cache
from pestfleet.cache.recall import CachedRuns
from pestfleet.cache.runcache import CacheCounts, RunCache
from pestfleet.cache.shelf import CacheError

__all__ = [
    "DEFAULT_MAX_BYTES",
    "CacheCounts",
    "CacheError",
    "CachedRuns",
    "RunCache",
    "RunKey",
    "RunRecord",
    "find_default_place",
    "open_cache",
]
