"""The files of a session's folder, as objects of a store: sent and fetched where they differ."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pestfleet.folder import SessionFolder
from pestfleet.store.errors import FileChanged, NotStored
from pestfleet.store.files import CHUNK, OnProgress, Store
from pestfleet.store.names import ENDED, FOLDERS, STATE, is_kept, is_partial, list_kept
from pestfleet.store.objects import Found, Head, in_threads

logger = logging.getLogger(__name__)

MTIME, MODE = "pestfleet-mtime", "pestfleet-mode"  # names of metadata: nanoseconds; octal


@dataclass(frozen=True, slots=True)
class _Known:
    """A file that is the same here and in the store: its size, mtime (ns) and SHA-256 here."""

    size: int
    mtime: int
    sha256: str


class FolderFiles:
    """Files below one prefix. Remembers what it has sent and fetched."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._known: dict[str, _Known] = {}
        self._remote: dict[str, Found] | None = None  # as the store was when we first looked

    def forget(self) -> None:
        """The objects are gone."""
        self._known.clear()
        self._remote = None

    def push(
        self,
        folder: SessionFolder,
        names: Collection[str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[str]:
        """Send what has changed; the answer names it. `names`: files, or folders; else all.

        State and end are sent last, so that who reads them finds the rest. Of results, kits and
        logs those are removed there that this object has sent or fetched, and that are gone here.
        `on_progress` gets bytes, in this thread. Where something writes over a file meanwhile
        (`FileChanged`), or it cannot be read (`OSError`), that is raised when all else was sent.
        """
        sent: list[str] = []
        disturbed: list[FileChanged | OSError] = []

        def send(name: str, on_part: OnProgress | None = None) -> None:
            try:
                if self._send(folder.path / name, name, on_part):
                    sent.append(name)
            except FileNotFoundError:
                logger.info("%s is gone before it was sent", name)
            except (FileChanged, OSError) as error:
                disturbed.append(error)

        # A file that appears while we work is for the next time.
        present = [name for name in list_kept(folder.path) if _is_among(name, names)]
        changed = {
            name: _size(folder.path / name) for name in present if self.has_changed(folder, name)
        }
        if changed:
            self._look()
        total, done = sum(changed.values()), 0

        def tell(name: str, _: None) -> None:
            nonlocal done
            done += changed[name]
            if on_progress is not None:
                on_progress(done, total)

        def tell_part(part: int, _: int) -> None:
            if on_progress is not None:
                on_progress(min(total, done + part), total)

        small = [n for n, size in changed.items() if size <= self._store.part_bytes]
        last = [name for name in (STATE, ENDED) if name in changed]
        in_threads(send, [name for name in small if name not in last], on_done=tell)
        for name in changed.keys() - {*small, *last}:
            send(name, tell_part)
            tell(name, None)
        for name in last:
            send(name)
            tell(name, None)
        gone = [
            name
            for name in self._known.keys() - set(present)
            if name.split("/")[0] in FOLDERS
            and _is_among(name, names)
            and not (folder.path / name).exists()
        ]
        self._store.delete_all([self._prefix + name for name in gone])
        for name in gone:
            self._known.pop(name)
        if disturbed:
            raise disturbed[0]
        return sent

    def pull(
        self,
        folder: SessionFolder,
        names: Collection[str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[str]:
        """Fetch the session's files that are not the same here; the answer names those.

        `names`: files, or folders; else all. What was cut is gone on with. Local files that the
        store does not have stay. `on_progress` gets bytes of files that are over.
        """
        found = [
            (name, item)
            for item in self._store.find(self._prefix)
            for name in [item.key.removeprefix(self._prefix)]
            if is_kept(name) and not is_partial(name) and _is_among(name, names)
        ]
        total, done = sum(item.size for _, item in found), 0
        fetched: list[str] = []

        def fetch(entry: tuple[str, Found]) -> bool:
            name, item = entry
            try:
                return self._fetch(folder.path / name, name, item)
            except NotStored as error:
                logger.info("gone before it was fetched: %s", error.message)
                return False

        def tell(entry: tuple[str, Found], new: bool) -> None:
            nonlocal done
            done += entry[1].size
            if new:
                fetched.append(entry[0])
            if on_progress is not None:
                on_progress(done, total)

        in_threads(fetch, found, threads=8, on_done=tell)
        return fetched

    def has_changed(self, folder: SessionFolder, name: str) -> bool:
        """Is a file another than when it was sent or fetched last, by its size and time?"""
        known = self._known.get(name)
        try:
            status = (folder.path / name).stat()
        except FileNotFoundError:
            return False
        return known is None or (status.st_size, status.st_mtime_ns) != (known.size, known.mtime)

    def _look(self) -> None:
        """See once what an earlier process has sent."""
        if self._remote is None:
            self._remote = {
                found.key.removeprefix(self._prefix): found
                for found in self._store.find(self._prefix)
            }

    def _send(self, path: Path, name: str, on_progress: OnProgress | None) -> bool:
        key = self._prefix + name
        status = path.stat()
        known, remote = self._known.get(name), (self._remote or {}).pop(name, None)
        size, mtime = status.st_size, status.st_mtime_ns
        small = size <= self._store.part_bytes
        if (known and known.size == size and small) or (remote and remote.size == size):
            sha256 = known.sha256 if known else self._read_hash(key)
            if sha256 and sha256 == _hash(path):
                self._known[name] = _Known(size, mtime, sha256)
                return False
        sent = self._store.upload(
            path,
            key,
            metadata={MTIME: str(mtime), MODE: f"{status.st_mode & 0o777:o}"},
            on_progress=on_progress,
        )
        # Where it was changed after `stat`, its mtime is another, and it is sent again.
        self._known[name] = _Known(sent.size, mtime, sent.sha256)
        return True

    def _read_hash(self, key: str) -> str:
        head = self._store.head(key)
        return head.sha256 if head else ""

    def _fetch(self, path: Path, name: str, item: Found) -> bool:
        head = self._store.head(item.key)
        if head is None:
            return False
        if _is_same(path, head):
            new = False
        else:
            head = self._store.download(item.key, path, head=head)
            _restore(path, head)
            new = True
        status = path.stat()
        if head.sha256:
            self._known[name] = _Known(status.st_size, status.st_mtime_ns, head.sha256)
        return new


def _is_among(name: str, names: Collection[str] | None) -> bool:
    return names is None or name in names or name.split("/")[0] in names


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _is_same(path: Path, head: Head) -> bool:
    try:
        return path.stat().st_size == head.size and _hash(path) == head.sha256
    except FileNotFoundError:
        return False


def _restore(path: Path, head: Head) -> None:
    """The mode and time that the file had where it came from."""
    with suppress(ValueError, KeyError):  # of somebody else's writing: it has none
        path.chmod(int(head.metadata[MODE], 8) & 0o777)
        mtime = int(head.metadata[MTIME])
        os.utime(path, ns=(mtime, mtime))
