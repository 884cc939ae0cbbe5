"""Where a run cache is: an address becomes a `RunCache`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pestfleet.cache.runcache import RunCache
from pestfleet.cache.shelf import CacheError, Shelf

DEFAULT_MAX_BYTES = 10_000_000_000


def open_cache(
    place: str = "",
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    keep_seconds: float = 0.0,
    on_warning: Callable[[str], None] | None = None,
) -> RunCache:
    """The run cache at a folder or `s3://bucket/prefix[?endpoint=URL&region=NAME]`.

    "": the user's own folder (`find_default_place`). `max_bytes`: a folder that grows beyond it
    loses its oldest-used entries, 0: no limit; a bucket is only pruned by command.
    `keep_seconds`: how long what is put is valid, 0: for ever. `on_warning` gets each warning,
    from any thread; without one it goes to the log. Nothing is touched before the first use.
    Raises `CacheError` when `place` is no address, or boto3 is missing.
    """
    return RunCache(
        _make_shelf(place), max_bytes=max_bytes, keep_seconds=keep_seconds, on_warning=on_warning
    )


def find_default_place(
    platform: str = sys.platform, environment: Mapping[str, str] = os.environ
) -> Path:
    """The user's own folder for cached runs.

    `LOCALAPPDATA` on Windows, `~/Library/Caches` on macOS, else `XDG_CACHE_HOME` (an absolute
    path, by the XDG Base Directory Specification) or `~/.cache`.
    """
    home = Path.home()
    if platform == "win32":
        given = environment.get("LOCALAPPDATA")
        base = Path(given) if given else home / "AppData" / "Local"
        return base / "pestfleet" / "Cache" / "runs"
    if platform == "darwin":
        return home / "Library" / "Caches" / "pestfleet" / "runs"
    base = Path(environment.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else home / ".cache") / "pestfleet" / "runs"


def _make_shelf(place: str) -> Shelf:
    if place.startswith("s3://"):
        from pestfleet.cache.bucket import BucketShelf

        return BucketShelf(place)
    # One letter before the colon is a drive of Windows.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place):
        raise CacheError(
            f"a run cache cannot be at {place.partition('://')[0]}://…",
            remedy="Name a folder, or s3://bucket/prefix.",
        )
    from pestfleet.cache.directory import DirectoryShelf

    return DirectoryShelf(Path(place).expanduser() if place else find_default_place())
