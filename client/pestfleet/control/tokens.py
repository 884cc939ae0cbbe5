"""Text, tokens and numbers of PEST's input files."""

from __future__ import annotations

import math
import re
from pathlib import Path

from pestfleet.checks.problem import Problems, describe_os_error
from pestfleet.control.model import Place

_SNIFFED_BYTES = 8192
_QUOTED = re.compile(r"\"([^\"]*)\"|'([^']*)'|(\S+)")
# 1.0d+03 and, with a three-digit exponent, 1.0-105: both are what Fortran writes.
_FORTRAN_EXPONENT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[dDqQ]([+-]?\d+)|([+-]\d+))")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path, problems: Problems) -> str | None:
    """The text of a file with `\\n` line ends; None, with a problem added, if it has none.

    UTF-8, with or without byte order mark, else Latin-1: old control files have comments in it.
    """
    place = Place(path)
    try:
        if not path.exists():
            problems.error(place, "the file does not exist", "Correct the name, or add the file.")
            return None
        if not path.is_file():
            kind = "is a folder, not a file" if path.is_dir() else "is not an ordinary file"
            problems.error(place, kind, "Name a file here.")
            return None
        with path.open("rb") as file:
            head = file.read(_SNIFFED_BYTES)
            if head.startswith(_UTF16_MARKS):
                message = "the file is stored as UTF-16, which PEST cannot read"
                problems.error(place, message, "Save it as plain text (UTF-8 or ANSI).")
                return None
            if b"\0" in head:
                message = "the file is binary, not text"
                problems.error(place, message, "Give a text file; this one may be damaged.")
                return None
            data = head + file.read()
    except (OSError, ValueError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        problems.error(place, f"the file {reason}", "Make the file readable, or correct its name.")
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_number(token: str) -> float | None:
    """A finite number as Fortran or C writes it, or None.

    Python's own extras (`1_000`, `nan`, `inf`, digits of other scripts) are not numbers here.
    """
    try:
        value = float(token)
    except ValueError:
        match = _FORTRAN_EXPONENT.fullmatch(token)
        if match is None:
            return None
        value = float(f"{match[1]}e{match[2] or match[3]}")
    if not math.isfinite(value) or "_" in token or not token.isascii():
        return None
    return value


def strip_comment(line: str) -> str:
    """The line without a comment: `#` at its start or after a blank, to its end.

    A `#` inside a name is part of the name.
    """
    start = line.find("#")
    while start > 0 and not line[start - 1].isspace():
        start = line.find("#", start + 1)
    return line if start < 0 else line[:start]


def split_quoted(line: str) -> list[str]:
    """Tokens of a line that names files: blanks separate, quotes hold a name with blanks."""
    return [a or b or c for a, b, c in _QUOTED.findall(line)]
