"""The private directory of a slot: a copy of the case folder that shares what it can.

Small files are copied. Big ones are cloned where the file system can (FICLONE: a copy that
shares its blocks until one side writes). Where it cannot, all slots of a worker hard-link one
copy of the worker's own, so that the case folder itself is never at risk. A model that writes
into such a file in place is noticed after the run (`SlotFiles.repair`): the file becomes a true
copy, and the run is repeated.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pestfleet_worker.errors import ConfigurationError

LARGE = 1 << 20  # bytes
MARKER = ".pestfleet-slot"  # in each directory that this module made
_SESSION_FOLDERS = (".pestfleet", "pestfleet-sessions")
_SESSION_SUFFIX = ".pestfleet"
_FICLONE = 0x40049409  # linux/fs.h


class SlotError(ConfigurationError):
    """A slot's directory cannot be made."""


@dataclass(slots=True)
class SlotFiles:
    """What is in a slot. `bytes`: disk that this slot alone uses; `shared`: what it shares.

    `notes`: what a user should know: links that lead nowhere, files that the model writes to.
    """

    source: Path
    directory: Path
    bytes: int = 0
    shared: int = 0
    files: int = 0
    notes: list[str] = field(default_factory=list)
    _linked: dict[str, tuple[int, int]] = field(default_factory=dict)

    def repair(self) -> list[str]:
        """Replace linked files that have changed by true copies of the case's.

        Returns their names: a run that ended just now may have read another slot's writing and
        must be repeated. Raises `OSError`.
        """
        changed: list[str] = []
        for name, mark in list(self._linked.items()):
            target = self.directory / name
            try:
                seen = target.stat()
            except FileNotFoundError:
                continue  # the model removed its own link only
            if (seen.st_mtime_ns, seen.st_size) == mark:
                continue
            del self._linked[name]
            target.unlink()
            shutil.copy2(self.source / name, target)
            self.shared -= mark[1]
            self.bytes += mark[1]
            changed.append(name)
            self.notes.append(
                f"the model writes to {name}: this slot has a copy of its own now ({mark[1]} bytes)"
            )
        return changed


def prepare_slot(
    source: Path,
    directory: Path,
    *,
    large: int = LARGE,
    written: Collection[str] = (),
    shared: Path | None = None,
) -> SlotFiles:
    """Make a private copy of the case folder `source` in `directory`.

    `written`: files (POSIX, relative) that each run writes: model inputs and outputs; they are
    left out, their folders are made. `large`: size in bytes from which files are shared.
    `shared`: folder for the worker's own copy of big files (default: `shared` beside
    `directory`). A directory that an earlier slot left behind is replaced; any other that is not
    empty is refused. Raises `SlotError`.
    """
    try:
        return _copy_case(source.resolve(), directory.absolute(), large, set(written), shared)
    except OSError as error:
        raise SlotError(
            f"cannot copy the case to the slot's directory {directory}: {error}",
            remedy="Check the space and the permissions there.",
        ) from error


def _copy_case(
    source: Path, directory: Path, large: int, outputs: set[str], shared: Path | None
) -> SlotFiles:
    if not source.is_dir():
        raise SlotError(f"the case folder {source} is not there")
    shared = directory.parent / "shared" if shared is None else shared
    _clear(directory)
    result = SlotFiles(source, directory)
    skipped = {directory.resolve(), shared.resolve()}
    for name, path in _walk(source, "", skipped, (source,), result.notes):
        target = directory / name
        if path.is_dir():
            target.mkdir(exist_ok=True)
            continue
        if name in outputs:
            continue
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            continue  # a pipe or socket is of no use in another folder
        result.files += 1
        if status.st_size < large:
            shutil.copy2(path, target)
            result.bytes += status.st_size
        elif _clone(path, target):
            result.shared += status.st_size
        elif _link(path, target, shared / name, status):
            result.shared += status.st_size
            linked = target.stat()
            result._linked[name] = (linked.st_mtime_ns, linked.st_size)
        else:
            shutil.copy2(path, target)
            result.bytes += status.st_size
    for name in outputs:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
    return result


def remove_slot(directory: Path) -> None:
    """Remove a slot's directory, if it is one."""
    if (directory / MARKER).is_file():
        shutil.rmtree(directory)


def _clear(directory: Path) -> None:
    """An empty directory with our marker in it."""
    if directory.is_dir() and any(directory.iterdir()):
        if not (directory / MARKER).is_file():
            raise SlotError(
                f"the directory {directory} for a slot is not empty",
                remedy="Choose an empty or new directory for the worker's slots.",
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).touch()


def _walk(
    folder: Path, prefix: str, skipped: set[Path], above: tuple[Path, ...], notes: list[str]
) -> Iterator[tuple[str, Path]]:
    """(POSIX name, path) of all below a folder, folders before what they hold; links followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = prefix + entry.name
        if entry.is_dir():
            if entry.name in _SESSION_FOLDERS or entry.name.endswith(_SESSION_SUFFIX):
                continue
            real = Path(entry.path).resolve()
            if real in skipped:
                continue
            if real in above:
                notes.append(f"{name} is a link to a folder that it is in; left out")
                continue
            yield name, real
            yield from _walk(real, name + "/", skipped, (*above, real), notes)
        elif entry.is_file():
            if entry.name != MARKER:
                yield name, Path(entry.path)
        elif entry.is_symlink():
            notes.append(f"{name} is a link to {Path(entry.path).readlink()}, which is not there")


def _clone(path: Path, target: Path) -> bool:
    """Copy by sharing blocks; False where the file system cannot."""
    try:
        from fcntl import ioctl
    except ImportError:
        return False  # Windows
    try:
        with path.open("rb") as old, target.open("wb") as new:
            ioctl(new.fileno(), _FICLONE, old.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    shutil.copystat(path, target)
    return True


def _link(path: Path, target: Path, shared: Path, status: os.stat_result) -> bool:
    """Link to the worker's own copy of a file, made by the first slot that needs it."""
    try:
        if not _is_copy(shared, status):
            shared.parent.mkdir(parents=True, exist_ok=True)
            draft = shared.with_name(f"{shared.name}.{target.parent.name}.{os.getpid()}.draft")
            shutil.copy2(path, draft)
            draft.replace(shared)
        os.link(shared, target)
    except OSError:
        shared.unlink(missing_ok=True)
        return False
    return True


def _is_copy(shared: Path, status: os.stat_result) -> bool:
    try:
        seen = shared.stat()
    except FileNotFoundError:
        return False
    return (seen.st_mtime_ns, seen.st_size) == (status.st_mtime_ns, status.st_size)
