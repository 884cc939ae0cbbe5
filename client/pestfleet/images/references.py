"""Checks of what a case's files point to: paths on the user's machine, links out of the folder."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from pestfleet.bundle import RunFile
from pestfleet.checks.names import is_file, is_folder
from pestfleet.checks.problem import Problems
from pestfleet.control.model import ControlFile, Place
from pestfleet.images.contents import ImageContents
from pestfleet_worker.errors import CaseError

_SCANNED_BYTES = 1 << 20
_HEAD = 8192
# A word that is a path: with a drive, from the root, or up and out; not part of a longer word,
# of a URL or of a number such as 3/4.
_DRIVE = re.compile(r"(?<![\w/\\.])[A-Za-z]:[\\/](?![\\/])[^\s\"'<>|,;*?:]*")
_ROOTED = re.compile(
    r"(?<![\w.:/\\<*~}])/(?:[\w.+@ -]*[\w.+@-]/)+[\w.+@-]+|\\\\\w[\w.-]+\\[^\s\"',;]+"
)
_UPWARD = re.compile(r"(?<![\w.\\/])\.\.[\\/][^\s\"'<>|,;*?]*")
# Where people have their files; what lies elsewhere is the system's, unless it is here and not
# in the image.
_PERSONAL = ("/home/", "/Users/", "/root/", "/mnt/", "/media/", "/Volumes/", "/scratch/")
_SYSTEM = ("/usr/", "/bin/", "/dev/", "/etc/", "/proc/", "/sys/", "/tmp/", "/var/", "/run/")
_REMEDY = "Put the file into the case folder, and write its name relative to that."


def check_references(
    control: ControlFile,
    files: Iterable[RunFile],
    problems: Problems,
    contents: ImageContents | None,
) -> None:
    """Warn of paths in the case's texts that mean nothing in a container.

    A model command with one is an error. Raises `CaseError` if a file cannot be read.
    """
    for command in control.commands:
        for word in find_outside(command.line, "", contents):
            # The program itself has been looked for in the image.
            if contents is not None and command.line.lstrip(" \"'").startswith(word):
                continue
            problems.error(
                command.place or Place(control.path),
                f"the model command names '{word}', which is on this machine only",
                _REMEDY,
            )
    told = {(command.place or Place(control.path)).line for command in control.commands}
    with problems.limited("paths on this machine"):
        for file in files:
            if file.size > _SCANNED_BYTES:
                continue
            own = file.path == control.path
            for number, line in enumerate(_read_lines(file.path), start=1):
                if own and number in told:
                    continue
                for word in find_outside(line, file.name, contents):
                    message = f"'{word}' is a path on this machine, which a container does not have"
                    remedy = _REMEDY + " In a comment it does no harm."
                    problems.warning(Place(file.path, number), message, remedy)


def check_links(root: Path, files: Iterable[RunFile], problems: Problems) -> None:
    """Say which files are links to outside of the case folder: the image gets what they show."""
    top = os.path.realpath(root)
    with problems.limited("links to outside of the case folder"):
        for file in files:
            real = os.path.realpath(file.path)
            if not Path(real).is_relative_to(top):
                problems.warning(
                    Place(file.path),
                    f"'{file.name}' is a link to outside of the case folder: {real}",
                    "The image gets a copy of what is there now; nothing to do if you want that.",
                )


def find_outside(line: str, name: str, contents: ImageContents | None) -> list[str]:
    """Words of a line in the file `name` that are paths outside of the case folder.

    System folders count where the path is here and the image does not have it.
    """
    if "/" not in line and "\\" not in line:
        return []
    words = _DRIVE.findall(line)
    if not line.startswith("#!"):  # an interpreter is looked for in the image
        words += [word for word in _ROOTED.findall(line) if _is_personal(word, contents)]
    folder = posixpath.dirname(name)
    for word in _UPWARD.findall(line):
        path = posixpath.normpath(posixpath.join(folder, word.replace("\\", "/")))
        if path.startswith(".."):
            words.append(word)
    return words


def _is_personal(word: str, contents: ImageContents | None) -> bool:
    if word.startswith((*_PERSONAL, "\\\\")):
        return True
    if word.startswith(_SYSTEM):
        return False
    here = Path(word)
    if contents is not None and contents.has(word):
        return False
    return is_file(here) or is_folder(here)


def _read_lines(path: Path) -> list[str]:
    """The lines of a text; none of a file that is no text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    if b"\0" in data[:_HEAD] or (b"/" not in data and b"\\" not in data):
        return []
    return data.decode("utf-8", "replace").splitlines()
