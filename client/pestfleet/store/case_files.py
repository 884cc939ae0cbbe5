"""Case folders in a store: content by its SHA-256, so that only what is new is sent.

A manifest (case.json) lists names, hashes, sizes, modes and times of the files, and the folders,
since a model may write into one that is empty.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pestfleet.store.errors import Damaged, FileChanged, NotStored, StoreError
from pestfleet.store.files import CHUNK, OnProgress, Store
from pestfleet.store.names import is_safe, make_blob_key
from pestfleet.store.objects import SHA256, Head, in_threads

logger = logging.getLogger(__name__)

FORMAT = 1
RENEWED = 7 * 86400.0  # seconds; older content is renewed when it is used, so that it lives on


@dataclass(frozen=True, slots=True)
class CaseFile:
    """A file of a case. `sha256`: hex; `mode`: permissions; `mtime`: nanoseconds since 1970."""

    sha256: str
    size: int
    mode: int
    mtime: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a case by POSIX name, and its folders."""

    files: dict[str, CaseFile]
    folders: tuple[str, ...]

    @property
    def contents(self) -> dict[str, int]:
        """SHA-256 -> bytes, each content once."""
        return {file.sha256: file.size for file in self.files.values()}

    def to_json(self) -> bytes:
        files = {name: asdict(file) for name, file in self.files.items()}
        values = {"format": FORMAT, "files": files, "folders": self.folders}
        return json.dumps(values, indent=1, sort_keys=True).encode()


def read_manifest(store: Store, key: str) -> Manifest | None:
    """None where there is none. Raises `Damaged`, and as `Store.read` does."""
    content = store.read(key)
    if content is None:
        return None
    try:
        values: dict[str, Any] = json.loads(content.data)
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}")
        files = {name: CaseFile(**file) for name, file in values["files"].items()}
        folders = tuple(values["folders"])
        unsafe = [name for name in (*files, *folders) if not is_safe(name)]
        if unsafe:
            raise ValueError(f"the name {unsafe[0]!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        place = store.name(key)
        raise Damaged(
            f"{place} is no list of a case's files that we can read: {error}",
            place=place,
            remedy="Was it written by another version of pestfleet? Launch the session anew.",
        ) from error
    return Manifest(files, folders)


def measure_case(folder: Path) -> Manifest:
    """All files below a folder. Raises `OSError` where one cannot be read."""
    names, folders = [], []
    for path, inner, files in os.walk(folder, onerror=_raise):
        inner.sort()
        here = Path(path)
        folders += [(here / name).relative_to(folder).as_posix() for name in inner]
        names += [(here / name).relative_to(folder).as_posix() for name in sorted(files)]
    measured = in_threads(lambda name: _measure(folder / name), names, threads=4)
    return Manifest(dict(zip(names, measured, strict=True)), tuple(folders))


def send_case(
    store: Store, folder: Path, key: str, *, on_progress: OnProgress | None = None
) -> Manifest:
    """Send what the store does not have of a case's files, and their list, as `key`.

    `on_progress` gets bytes, of those of all files. Raises `FileChanged` where somebody writes to
    the case meanwhile.
    """
    manifest = measure_case(folder)
    # First, so that who clears away content knows that it is wanted here.
    store.write(key, manifest.to_json())
    paths = {file.sha256: folder / name for name, file in manifest.files.items()}
    progress = _Progress(sum(manifest.contents.values()), on_progress)
    sent_now: set[str] = set()
    # Again after the sending, for another session's end may just have removed some of it.
    while missing := _find_missing(store, manifest.contents, sure=sent_now):
        progress.begin(sum(missing.values()))
        small = [sha256 for sha256, size in missing.items() if size <= store.part_bytes]
        in_threads(
            lambda sha256: store.upload(paths[sha256], make_blob_key(sha256), sha256=sha256),
            small,
            on_done=lambda _, sent: progress.add(sent.size),
        )
        for sha256 in missing.keys() - set(small):
            store.upload(
                paths[sha256],
                make_blob_key(sha256),
                sha256=sha256,
                on_progress=lambda done, _: progress.show(done),
            )
            progress.add(missing[sha256])
        sent_now |= missing.keys()
    progress.finish()
    return manifest


def fetch_case(
    store: Store, manifest: Manifest, folder: Path, *, on_progress: OnProgress | None = None
) -> None:
    """Make the case's files below a folder; what is there already, and right, is kept.

    Raises `NotStored` where content is missing, and `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in manifest.folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    progress = _Progress(sum(file.size for file in manifest.files.values()), on_progress)

    def fetch(name: str) -> int:
        file, path = manifest.files[name], folder / name
        if not _has(path, file):
            head = Head(file.size, "", 0.0, 0.0, {SHA256: file.sha256})
            store.download(make_blob_key(file.sha256), path, head=head)
        path.chmod(file.mode)
        os.utime(path, ns=(file.mtime, file.mtime))
        return file.size

    try:
        in_threads(fetch, list(manifest.files), on_done=lambda _, size: progress.add(size))
    except NotStored as error:
        raise NotStored(
            f"a file of the case is not in the store any more: {error.message}",
            place=error.place,
            code=error.code,
            remedy="Send it again, from the machine that has the session: pestfleet resume.",
        ) from error
    progress.finish()


def remove_contents(store: Store, own: Manifest, others: Iterable[Manifest]) -> int:
    """Remove the content that no other case has; the answer is how many objects."""
    wanted = {sha256 for manifest in others for sha256 in manifest.contents}
    return store.delete_all([make_blob_key(sha256) for sha256 in own.contents.keys() - wanted])


def _find_missing(store: Store, contents: dict[str, int], *, sure: set[str]) -> dict[str, int]:
    def is_there(sha256: str) -> bool:
        key = make_blob_key(sha256)
        head = store.head(key)
        if head is None or head.size != contents[sha256] or head.sha256 != sha256:
            return False
        if head.age > RENEWED:
            try:
                store.touch(key, head)
            except StoreError as error:
                logger.info("sent again: %s", error.message)
                return False
        return True

    asked = [sha256 for sha256 in contents if sha256 not in sure]
    there = in_threads(is_there, asked)
    return {
        sha256: contents[sha256] for sha256, found in zip(asked, there, strict=True) if not found
    }


def _measure(path: Path) -> CaseFile:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
        status = os.fstat(file.fileno())
    if status.st_size != size:
        raise FileChanged(
            f"{path} was changed while it was read",
            place=str(path),
            remedy="Try again when nothing writes to the case.",
        )
    return CaseFile(digest.hexdigest(), size, status.st_mode & 0o777, status.st_mtime_ns)


def _has(path: Path, file: CaseFile) -> bool:
    try:
        return path.stat().st_size == file.size and _measure(path).sha256 == file.sha256
    except FileNotFoundError:
        return False


def _raise(error: OSError) -> None:
    raise error


class _Progress:
    """Bytes that are over, of all."""

    def __init__(self, total: int, tell: OnProgress | None) -> None:
        self._total = total
        self._done = 0
        self._tell = tell

    def begin(self, left: int) -> None:
        self._done = self._total - left
        self.show()

    def add(self, size: int) -> None:
        self._done += size
        self.show()

    def show(self, more: int = 0) -> None:
        if self._tell is not None:
            self._tell(min(self._total, self._done + more), self._total)

    def finish(self) -> None:
        self._done = self._total
        self.show()
