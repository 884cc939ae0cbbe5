"""The syntax of PEST instruction files: what is wrong in one, and the shape of each of its lines.

A shape is an instruction line without observation names; `instruction_blocks` says how it is
written. Many lines of a file have the same one.
"""

from __future__ import annotations

import re
from pathlib import Path

from pestfleet_worker.errors import CaseError

_FORBIDDEN_MARKERS = frozenset("![]():&")
_COLUMNS = re.compile(r"(?:\[(.+)\]|\((.+)\))(\d+):(\d+)")


class InstructionError(CaseError):
    """An instruction file that breaks the rules, or that does not fit the model output.

    `file` and `line` are the instruction's. `problem` is the message without them; it names the
    line of the model output where one was read.
    """

    def __init__(self, problem: str, *, file: Path, line: int = 0, remedy: str = "") -> None:
        place = f"{file}:{line}" if line else str(file)
        super().__init__(f"{place}: {problem}", remedy=remedy)
        self.problem = problem
        self.file = file
        self.line = line


class Parser:
    """Collects the shape of each instruction line: its instructions without observation names."""

    def __init__(self, path: Path, marker: str) -> None:
        self.path = path
        self.marker = marker
        self.seen: dict[str, int] = {}
        self.starts: list[int] = []
        self.shapes: list[str] = []
        mark = re.escape(marker)
        self._token = re.compile(rf"{mark}[^{mark}]*{mark}|\S+")

    def split(self, line: str, number: int) -> list[str]:
        """The instructions of a line, markers with their delimiters."""
        if self.marker not in line:
            return line.split()
        tokens: list[str] = self._token.findall(line)
        for token in tokens:
            if token[0] == self.marker and (len(token) == 1 or token[-1] != self.marker):
                raise self.error(
                    f"the marker that begins with {token!r} is not closed on this line",
                    number,
                    f"Put {self.marker} at both ends of each marker.",
                )
        return tokens

    def add(self, line: str, number: int) -> None:
        tokens = self.split(line, number)
        if not tokens:
            return
        continued = tokens[0] == "&"
        if continued:
            if not self.shapes:
                raise self.error("the first instruction line cannot be a continuation (&)", number)
            parts = [self.shapes[-1]]
            del tokens[0]
        else:
            parts = []
            first = tokens[0]
            if first[0] not in ("l", "L", self.marker):
                raise self.error(
                    f"an instruction line must begin with a line advance (such as l1), a marker "
                    f"({self.marker}text{self.marker}) or &, not with {first!r}",
                    number,
                    "Instructions are separated by spaces.",
                )
        seen = self.seen
        for token in tokens:
            if token[0] == "!" and token[-1] == "!" and len(token) > 2:
                name = token[1:-1].lower()
                if name == "dum":
                    parts.append("d")
                    continue
                if name in seen or "!" in name:
                    raise self._bad_name(name, number)
                seen[name] = number
                parts.append("!")
            else:
                parts.append(self._describe(token, number, first=not parts))
        shape = "\n".join(parts)
        if continued:
            self.shapes[-1] = shape
        else:
            self.shapes.append(shape)
            self.starts.append(number)

    def _describe(self, token: str, number: int, *, first: bool) -> str:
        """The part of a shape for an instruction that is not a non-fixed observation."""
        kind = token[0]
        if kind == self.marker:
            if len(token) < 3:
                raise self.error("a marker without text", number)
            if "\t" in token:
                raise self.error(
                    "a marker with a tab is never found, since tabs in the output count as spaces",
                    number,
                    "Write spaces in the marker.",
                )
            return "m" + token[1:-1]
        if kind in "lL" and token[1:].isdecimal() and int(token[1:]) > 0:
            if not first:
                raise self.error(
                    f"the line advance {token} must be the first instruction of its line",
                    number,
                    "Begin a new instruction line with it.",
                )
            return "l" + token[1:]
        if token in ("w", "W"):
            return "w"
        if kind in "tT" and token[1:].isdecimal() and int(token[1:]) > 0:
            return "t" + token[1:]
        match = _COLUMNS.fullmatch(token)
        if match:
            name = (match[1] or match[2]).lower()
            begin, end = int(match[3]), int(match[4])
            if not 0 < begin <= end:
                raise self.error(
                    f"columns {begin}:{end} of {name} must count from 1, in ascending order", number
                )
            if name == "dum":
                return f"{kind}d{begin}:{end}"
            if name in self.seen:
                raise self._bad_name(name, number)
            self.seen[name] = number
            return f"{kind}{begin}:{end}"
        raise self.error(
            f"cannot understand the instruction {token!r}",
            number,
            "Instructions are l1, w, t5, !name!, [name]1:9, (name)1:9 and markers, "
            "each separated from the next by a space.",
        )

    def _bad_name(self, name: str, number: int) -> InstructionError:
        if "!" in name:
            return self.error(f"{name!r} is not an observation name: put a space between", number)
        return self.error(
            f"observation {name} is read twice, first in line {self.seen[name] + 1}",
            number,
            "Give each observation a name of its own; use dum for numbers that are not needed.",
        )

    def error(self, problem: str, number: int, remedy: str = "") -> InstructionError:
        return InstructionError(problem, file=self.path, line=number + 1, remedy=remedy)


def read_marker(head: str, path: Path) -> str:
    """The marker delimiter out of the first line `pif X`."""
    words = head.split()
    kind = words[0].lower() if words else ""
    if kind != "pif" or len(words) != 2 or len(words[1]) != 1:
        raise InstructionError(
            f"the first line must be pif, a space and one marker delimiter, not {head.strip()!r}",
            file=path,
            line=1,
            remedy="An instruction file begins with a line such as: pif ~",
        )
    marker = words[1]
    if marker in _FORBIDDEN_MARKERS or (marker.isascii() and marker.isalnum()):
        raise InstructionError(
            f"{marker} cannot be the marker delimiter",
            file=path,
            line=1,
            remedy="Use a character that is nowhere else in the file, such as ~ or #.",
        )
    return marker
