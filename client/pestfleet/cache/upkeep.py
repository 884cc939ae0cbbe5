"""What people ask of a run cache: what is in it, less of it, and whether it is sound.

Everything here goes through all entries one by one and keeps none of them in memory. Errors of
the place are told, as `CacheError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pestfleet.cache.entries import (
    HEADER_BYTES,
    DamagedEntry,
    Entry,
    RunRecord,
    decode_entry,
    read_expiry,
)
from pestfleet.cache.keys import RunKey
from pestfleet.cache.runcache import RunCache
from pestfleet.cache.shelf import CacheError, Leftovers, Stored

WRITER_SECONDS = 3600.0  # an unfinished file that old has no writer any more
_NAMED = 100  # damaged entries that a report names
_AGE_STEP = 600  # seconds: entries used within the same step count as equally old


@dataclass(slots=True)
class CaseUse:
    """A case's share of a cache. `oldest`, `newest`: last uses, seconds since 1970."""

    case: str
    name: str = ""
    entries: int = 0
    size: int = 0
    oldest: float = 0.0
    newest: float = 0.0


@dataclass(slots=True)
class Pruned:
    """What prune removed, or would remove, and what stays, in entries and bytes."""

    removed: int = 0
    removed_size: int = 0
    kept: int = 0
    kept_size: int = 0
    leftovers: Leftovers = field(default_factory=Leftovers)


@dataclass(slots=True)
class Verified:
    """What verify found. `damaged` names at most the first 100, with what is wrong."""

    entries: int = 0
    size: int = 0
    expired: int = 0
    damaged_entries: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


def summarize_cases(cache: RunCache, case: str | None = None) -> list[CaseUse]:
    """Each case's share, the last used first; or that of one case."""
    found: dict[str, CaseUse] = {}
    with _told(cache, "listed"):
        for item in cache.shelf.list_entries(case):
            use = found.get(item.key.case)
            if use is None:
                use = found[item.key.case] = CaseUse(
                    item.key.case, oldest=item.used, newest=item.used
                )
            if not use.name:
                entry = peek_entry(cache, item)
                if entry is not None and isinstance(entry.value, RunRecord):
                    use.name = str(entry.value.about.get("name", ""))
            use.entries += 1
            use.size += item.size
            use.oldest = min(use.oldest, item.used)
            use.newest = max(use.newest, item.used)
    return sorted(found.values(), key=lambda use: use.newest, reverse=True)


def find_cases(cache: RunCache, prefix: str) -> list[str]:
    """The digests of cases that begin so."""
    with _told(cache, "listed"):
        return sorted(case for case in cache.shelf.list_cases() if case.startswith(prefix))


def find_entries(cache: RunCache, prefix: str, *, limit: int = 20) -> list[Stored]:
    """Entries whose hash begins so, `limit` at most."""
    found: list[Stored] = []
    with _told(cache, "listed"):
        for item in cache.shelf.list_entries():
            if item.key.hash.startswith(prefix):
                found.append(item)
                if len(found) == limit:
                    break
    return found


def peek_entry(cache: RunCache, item: Stored) -> Entry | None:
    """The entry without making it count as used; None if it is gone or damaged."""
    with _told(cache, "read"):
        data = cache.shelf.read_head(item.key, item.size + 1)
    try:
        return decode_entry(item.key, data) if data is not None else None
    except DamagedEntry:
        return None


def prune_cache(
    cache: RunCache,
    *,
    older_than: float | None = None,
    max_bytes: int | None = None,
    case: str | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Remove what has expired, and what else is asked for.

    `older_than`: entries that were not used for so many seconds; `max_bytes`: the oldest-used
    ones, until that is left (to ten minutes of age); `case`: only entries of that case, and all
    of them where neither of the others is given. Without `case`, what dead writers left and what
    was set aside goes too. Raises `CacheError`.
    """
    now = cache.clock()
    whole = case is not None and older_than is None and max_bytes is None

    def is_unwanted(item: Stored) -> bool:
        if whole or (older_than is not None and now - item.used > older_than):
            return True
        expires = read_expiry(cache.shelf.read_head(item.key, HEADER_BYTES) or b"")
        return 0 < expires <= now

    pruned = Pruned()
    sizes: dict[int, int] = {}
    with _told(cache, "pruned"):
        for item in cache.shelf.list_entries(case):
            if is_unwanted(item):
                _drop(cache, item, pruned, dry_run)
            else:
                pruned.kept += 1
                pruned.kept_size += item.size
                step = int(item.used // _AGE_STEP)
                sizes[step] = sizes.get(step, 0) + item.size
        if max_bytes is not None and pruned.kept_size > max_bytes:
            kept = (
                item
                for item in cache.shelf.list_entries(case)
                if not dry_run or not is_unwanted(item)
            )
            for item in _choose_oldest(kept, sizes, pruned.kept_size - max_bytes):
                _drop(cache, item, pruned, dry_run)
                pruned.kept -= 1
                pruned.kept_size -= item.size
        if case is None:
            pruned.leftovers = cache.shelf.clean(before=now - WRITER_SECONDS, dry_run=dry_run)
    return pruned


def sweep(cache: RunCache, *, limit: int, target: int) -> None:
    """Bring a cache of more than `limit` bytes down to `target`. Raises OSError."""
    sizes: dict[int, int] = {}
    for item in cache.shelf.list_entries():
        step = int(item.used // _AGE_STEP)
        sizes[step] = sizes.get(step, 0) + item.size
    total = sum(sizes.values())
    if total > limit:
        for item in _choose_oldest(cache.shelf.list_entries(), sizes, total - target):
            cache.shelf.remove(item.key)
    cache.shelf.clean(before=cache.clock() - WRITER_SECONDS, dry_run=False)


def verify_cache(cache: RunCache, case: str | None = None) -> Verified:
    """Read every entry and compare checksums; damaged ones are set aside. Raises `CacheError`."""
    found = Verified()
    with _told(cache, "verified"):
        for item in cache.shelf.list_entries(case):
            data = cache.shelf.read_head(item.key, item.size + 1)
            if data is None:
                continue
            found.entries += 1
            found.size += item.size
            try:
                entry = decode_entry(item.key, data)
            except DamagedEntry as error:
                found.damaged_entries += 1
                if len(found.damaged) < _NAMED:
                    found.damaged[item.key.hash] = str(error)
                cache.shelf.set_aside(item.key)
                continue
            found.expired += entry.is_expired(cache.clock())
    return found


def list_records(cache: RunCache, case: str) -> Iterator[tuple[RunKey, RunRecord]]:
    """The sound runs of a case. Raises `CacheError`."""
    with _told(cache, "listed"):
        for item in cache.shelf.list_entries(case):
            entry = peek_entry(cache, item)
            if entry is not None and isinstance(entry.value, RunRecord):
                yield item.key, entry.value


def _choose_oldest(
    items: Iterator[Stored], sizes: dict[int, int], surplus: int
) -> Iterator[Stored]:
    """Of the items, the oldest-used that together have `surplus` bytes. `sizes`: by age step."""
    last, left = 0, surplus
    for last in sorted(sizes):
        if sizes[last] >= left:
            break
        left -= sizes[last]
    for item in items:
        step = int(item.used // _AGE_STEP)
        if step < last:
            yield item
        elif step == last and left > 0:
            left -= item.size
            yield item


def _drop(cache: RunCache, item: Stored, pruned: Pruned, dry_run: bool) -> None:
    if not dry_run:
        cache.shelf.remove(item.key)
    pruned.removed += 1
    pruned.removed_size += item.size


@contextmanager
def _told(cache: RunCache, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"the run cache {cache.place} cannot be {done}: {error}",
            remedy="Check the place, and that you may read and write there.",
        ) from error
