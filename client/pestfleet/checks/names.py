"""Names of files as a control file writes them, and as the disk has them."""

from __future__ import annotations

import re
from pathlib import Path

_DRIVE = re.compile(r"[A-Za-z]:")


def to_posix(name: str) -> str:
    """A relative name with `/`, without `.` and doubled separators; `..` is kept."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts)


def is_outside(name: str) -> bool:
    """Whether a name, relative to the case folder, leaves that folder."""
    text = name.replace("\\", "/")
    if text.startswith("/") or _DRIVE.match(text):
        return True
    depth = 0
    for part in to_posix(text).split("/"):
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def is_file(path: Path) -> bool:
    """`Path.is_file`, and False for what cannot be looked at: too long, or in a closed folder."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """`Path.is_dir`, and False for what cannot be looked at."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


class Folder:
    """A folder whose file names are compared exactly, on every operating system.

    Windows and macOS find `Model.tpl` when `model.tpl` is asked for; a worker on Linux does not.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Path, frozenset[str]] = {}

    def _names(self, folder: Path) -> frozenset[str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(p.name for p in folder.iterdir())
            except (OSError, ValueError):
                self._listed[folder] = frozenset()
        return self._listed[folder]

    def has(self, name: str) -> bool:
        """Whether a relative POSIX name is there, letter by letter."""
        folder = self.root
        for part in to_posix(name).split("/"):
            if part == "..":
                folder = folder.parent
                continue
            if part not in self._names(folder):
                return False
            folder = folder / part
        return True

    def find_similar(self, name: str) -> str | None:
        """The name on disk that differs from `name` in upper and lower case only."""
        folder, found = self.root, []
        for part in to_posix(name).split("/"):
            names = self._names(folder)
            match = part if part in names else next(
                (n for n in sorted(names) if n.casefold() == part.casefold()), None)  # fmt: skip
            if match is None:
                return None
            found.append(match)
            folder = folder / match
        return "/".join(found)
