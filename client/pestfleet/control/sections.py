"""A control file cut into its sections, with the `++` options that may stand anywhere."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

from pestfleet.checks.problem import Problems
from pestfleet.control.model import Place
from pestfleet.control.tokens import strip_comment

KNOWN_SECTIONS = frozenset({
    "control data", "automatic user intervention", "singular value decomposition", "lsqr",
    "svd assist", "sensitivity reuse", "parameter groups", "parameter data",
    "observation groups", "observation data", "derivatives command line", "model command line",
    "model input/output", "model input", "model output", "prior information",
    "predictive analysis", "regularization", "pareto",
})  # fmt: skip
_EXTERNAL_SECTIONS = frozenset({
    "parameter groups", "parameter data", "observation groups", "observation data",
    "model input", "model output", "prior information",
})  # fmt: skip
_OPTION = re.compile(r"\s*(?:\+\+)?\s*([^\s()]+)\s*(\(([^()]*)\))?")


@dataclass(slots=True)
class Section:
    """A section's lines, without empty ones and comments. `line`: where its title stands."""

    title: str
    line: int
    external: bool = False
    keyword: bool = False
    lines: list[tuple[int, str]] = field(default_factory=list)


@dataclass(slots=True)
class Sections:
    """A control file, cut up. `header`: its first line, `pcf` with what follows."""

    header: str
    last_line: int
    by_title: dict[str, Section] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    option_places: dict[str, Place] = field(default_factory=dict)

    def get(self, title: str) -> Section | None:
        return self.by_title.get(title)


def split_sections(text: str, path: Path, problems: Problems) -> Sections | None:
    """Cut a control file up; None, with a problem added, if it is not one at all."""
    lines = text.split("\n")
    first = _find_first(lines)
    if first is None:
        problems.error(Place(path), "the file is empty", "Give a PEST control file.")
        return None
    header = lines[first].strip().lower()
    if header.split()[0] != "pcf":
        message = f"not a PEST control file: it begins with '{_shorten(lines[first])}', not 'pcf'"
        problems.error(Place(path, first + 1), message, "Give a PEST control file (.pst).")
        return None
    sections = Sections(header=header, last_line=len(lines) - (not lines[-1]))
    current: Section | None = None
    for number, raw in enumerate(lines[first + 1 :], first + 2):
        line = raw.strip()
        if not line:
            continue
        mark = line[0]
        if mark == "#":
            continue
        if mark == "*":
            current = _open_section(line, number, sections, path, problems)
        elif mark == "+" and line.startswith("++"):
            _read_options(line, Place(path, number), sections, problems)
        elif current is None:
            message = f"'{_shorten(line)}' stands before the first section"
            problems.error(Place(path, number), message, "Begin with '* control data'.")
        else:
            # A shell command may well have a `#` in it.
            if "#" in line and current.title != "model command line":
                line = strip_comment(line)
            current.lines.append((number, line))
    return sections


def _find_first(lines: list[str]) -> int | None:
    for index, line in enumerate(lines):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            return index
    return None


def _open_section(
    line: str, number: int, sections: Sections, path: Path, problems: Problems
) -> Section:
    words = strip_comment(line).lstrip("*").lower().split()
    external = words[-1:] == ["external"]
    keyword = words[-1:] == ["keyword"]
    title = " ".join(words[:-1] if external or keyword else words)
    title = title.replace("regularisation", "regularization").replace(" / ", "/")
    place = Place(path, number)
    section = Section(title, number, external=external, keyword=keyword)
    if title not in KNOWN_SECTIONS:
        near = _find_section(title)
        problems.warning(
            place,
            f"the section '* {title}' is unknown and ignored",
            f"Did you mean '* {near}'?" if near else "Correct its name if it is misspelt.",
        )
        return section
    if external and title not in _EXTERNAL_SECTIONS:
        message = f"the section '* {title}' cannot be external"
        problems.error(place, message, "Write its lines into the control file.")
    if keyword and title != "control data":
        message = f"the section '* {title}' cannot have keywords"
        problems.error(place, message, "Only '* control data keyword' has them.")
    earlier = sections.by_title.get(title)
    if earlier is not None:
        problems.error(
            place,
            f"the section '* {title}' is there twice, first at line {earlier.line}",
            "Make one section of them.",
        )
        return section
    sections.by_title[title] = section
    return section


def _find_section(title: str) -> str:
    """The known section that a misspelt title may be meant for; "" if none is near."""
    slash = "/" in title
    near = difflib.get_close_matches(
        title, sorted(known for known in KNOWN_SECTIONS if "/" in known or not slash), 1, 0.7
    )
    return near[0] if near else ""


def _read_options(line: str, place: Place, sections: Sections, problems: Problems) -> None:
    """`++key(value)`, several a line; `++#` is a comment."""
    text = line[2:].lstrip()
    position = 0
    while position < len(text) and not text[position:].lstrip().startswith("#"):
        match = _OPTION.match(text, position)
        if match is None:
            message = f"'{_shorten(text[position:])}' is not an option"
            problems.error(place, message, "Write ++key(value).")
            return
        key = match[1].lower().lstrip("+")
        if match[2] is None and text[match.end() :].lstrip().startswith("("):
            message = f"the option '{key}' has no ')' at the end of its value"
            problems.error(place, message, f"Write ++{key}(value).")
            return
        if match[2] is None:
            problems.warning(place, f"the option '{key}' has no value", f"Write ++{key}(value).")
        value = (match[3] or "").strip().strip("'\"")
        add_option(key, value, place, sections, problems)
        position = match.end()


def add_option(key: str, value: str, place: Place, sections: Sections, problems: Problems) -> None:
    """Note an option; of one that is given twice the last value counts, as in PEST++."""
    earlier = sections.option_places.get(key)
    if earlier is not None:
        problems.warning(
            place,
            f"the option '{key}' is given twice, first at line {earlier.line}: the last one counts",
            "Remove one of them.",
        )
    sections.options[key] = value
    sections.option_places[key] = place


def _shorten(text: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in text.strip())
    return printable if len(printable) <= 40 else f"{printable[:37]}..."
