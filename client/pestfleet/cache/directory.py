"""Entries of the run cache as files in a folder.

    <folder>/v1/<case digest>/<first two digits>/<hash>      an entry
    <folder>/v1/<case digest>/<first two digits>/<hash>.*.tmp  one that is being written
    <folder>/damaged/<hash>                                   one that was set aside
    <folder>/swept                                            its time: of the last sweep

A file is written beside its place and then moved there, so that a reader, which takes no lock,
sees a whole file or none. Neither locks nor mapped memory are used: network disks do. Nothing is
synced to the disk: after a power failure the checksum tells what was not written.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from pestfleet.cache.keys import RunKey, parse_name
from pestfleet.cache.shelf import Leftovers, ShelfError, Stored

logger = logging.getLogger(__name__)

LAYOUT = "v1"
ASIDE = "damaged"
SUFFIX = ".tmp"
STAMP = "swept"
MAX_BYTES = 1 << 30  # of an entry that is read; a larger file is not ours
TOUCH_SECONDS = 3600.0  # how exactly the last use is known

_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_CREATE = (
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
)


class DirectoryShelf:
    """A folder; made at the first write."""

    slow = False

    def __init__(self, folder: Path) -> None:
        self.place = str(folder)
        self._top = folder
        self._root = os.fspath(folder.absolute() / LAYOUT)
        # A file name is never used twice, also by another machine on the same network disk.
        self._names = (f"{secrets.token_hex(6)}-{number}" for number in itertools.count())

    def read(self, key: RunKey) -> bytes | None:
        """See `Shelf.read`. Renews the entry's last use, to the hour."""
        path = self._locate(key)
        try:
            file = os.open(path, _READ)
        except FileNotFoundError:
            return None
        try:
            state = os.fstat(file)
            if state.st_size > MAX_BYTES:
                raise ShelfError(f"{path} has {state.st_size:,} bytes, which is no entry")
            data = _read_all(file, state.st_size)
        finally:
            os.close(file)
        now = time.time()
        if now - state.st_mtime > TOUCH_SECONDS:
            try:
                os.utime(path, (now, now))
            except OSError as error:
                logger.debug("last use of %s not renewed: %s", path, error)
        return data

    def read_head(self, key: RunKey, size: int) -> bytes | None:
        """See `Shelf.read_head`."""
        try:
            file = os.open(self._locate(key), _READ)
        except FileNotFoundError:
            return None
        try:
            return os.read(file, size)
        finally:
            os.close(file)

    def write(self, key: RunKey, data: bytes, *, replace: bool, expires: float) -> bool:
        """See `Shelf.write`."""
        path = self._locate(key)
        partial = f"{path}.{next(self._names)}{SUFFIX}"
        file = _create(partial)
        try:
            try:
                _write_all(file, data)
            finally:
                os.close(file)  # a network disk tells of a full disk here
            placed = True if replace else _link(partial, path)
            if placed is None:
                if Path(path).exists():
                    return False
                replace = True
            if replace:
                _replace(partial, path)
                partial = ""
            return bool(placed) or replace
        finally:
            if partial:
                _unlink(partial)

    def remove(self, key: RunKey) -> bool:
        """See `Shelf.remove`."""
        try:
            Path(self._locate(key)).unlink()
        except FileNotFoundError:
            return False
        return True

    def set_aside(self, key: RunKey) -> None:
        """See `Shelf.set_aside`: into the folder `damaged`, until the next `clean`."""
        path = Path(self._locate(key))
        aside = self._top / ASIDE
        try:
            aside.mkdir(exist_ok=True)
            path.replace(aside / key.hash)
        except FileNotFoundError:
            return  # another reader was faster
        except OSError:
            path.unlink(missing_ok=True)

    def list_entries(self, case: str | None = None) -> Iterator[Stored]:
        """See `Shelf.list_entries`."""
        for entry, name in self._walk([case] if case else self.list_cases()):
            key = parse_name(name)
            if key is None:
                continue
            try:
                state = entry.stat()
            except FileNotFoundError:
                continue
            yield Stored(key, state.st_size, state.st_mtime)

    def list_cases(self) -> Iterator[str]:
        """See `Shelf.list_cases`."""
        yield from (entry.name for entry in _scan(self._root) if entry.is_dir())

    def clean(self, *, before: float, dry_run: bool) -> Leftovers:
        """See `Shelf.clean`. Folders that have become empty go too."""
        files = size = 0
        aside = ((entry, True) for entry in _scan(os.fspath(self._top / ASIDE)))
        partial = (
            (entry, False) for entry, name in self._walk(self.list_cases()) if name.endswith(SUFFIX)
        )
        for entry, damaged in itertools.chain(aside, partial):
            try:
                state = entry.stat()
                if not damaged and state.st_mtime >= before:
                    continue  # its writer may live
                if not dry_run:
                    Path(entry.path).unlink()
            except FileNotFoundError:
                continue
            files += 1
            size += state.st_size
        if not dry_run:
            self._remove_empty_folders()
        return Leftovers(files, size)

    def claim_sweep(self, seconds: float) -> bool:
        """See `Shelf.claim_sweep`: by the time of a file, roughly."""
        stamp = self._top / STAMP
        try:
            if stamp.exists() and time.time() - stamp.stat().st_mtime < seconds:
                return False
            stamp.touch()
        except OSError as error:
            logger.debug("no sweep: %s", error)
            return False
        return True

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _locate(self, key: RunKey) -> str:
        return os.path.join(self._root, key.case, key.hash[:2], key.hash)  # noqa: PTH118 (fast)

    def _walk(self, cases: Iterator[str] | list[str]) -> Iterator[tuple[os.DirEntry[str], str]]:
        for case in cases:
            for shard in _scan(os.path.join(self._root, case)):  # noqa: PTH118
                if shard.is_dir():
                    for entry in _scan(shard.path):
                        yield entry, f"{case}/{shard.name}/{entry.name}"

    def _remove_empty_folders(self) -> None:
        for case in list(self.list_cases()):
            folder = os.path.join(self._root, case)  # noqa: PTH118
            for path in (*[entry.path for entry in _scan(folder)], folder):
                try:
                    Path(path).rmdir()
                except OSError as error:
                    logger.debug("%s is kept: %s", path, error)


def _scan(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _read_all(file: int, size: int) -> bytes:
    data = os.read(file, size + 1)
    if len(data) >= size:
        return data
    parts = [data]
    while data := os.read(file, 1 << 20):
        parts.append(data)
    return b"".join(parts)


def _create(path: str) -> int:
    for attempt in range(3):
        try:
            return os.open(path, _CREATE, 0o666)
        except FileNotFoundError:  # the first entry there, or the folder was just cleaned away
            if attempt == 2:
                raise
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    raise AssertionError


def _write_all(file: int, data: bytes) -> None:
    written = os.write(file, data)
    while written < len(data):
        written += os.write(file, memoryview(data)[written:])


def _link(partial: str, path: str) -> bool | None:
    """Move without replacing: True moved, False there is one; None: cannot be done here."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except (OSError, AttributeError, NotImplementedError):  # FAT and some network disks
        return None
    return True


def _replace(partial: str, path: str) -> None:
    for attempt in range(5):
        try:
            os.replace(partial, path)  # noqa: PTH105 (fast)
            return
        except PermissionError:  # Windows, while another process has the file open
            if os.name == "posix" or attempt == 4:
                raise
            time.sleep(0.01 * 2**attempt)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 (fast)
    except OSError as error:
        logger.debug("%s is left for prune: %s", path, error)
