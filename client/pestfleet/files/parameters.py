"""PEST's parameter value file, `.par`.

First line: precision and decimal point (`single point`, `double point`, …); then a line for each
parameter: name, value, scale, offset (PEST manual part I, "The parameter value file"). The value
is as the control file has it, before scale and offset.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pestfleet_worker.errors import CaseError


@dataclass(frozen=True, slots=True)
class ParameterValue:
    name: str
    value: float
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class ParameterFile:
    """A `.par` file. `precision`: single | double, `decimal_point`: point | nopoint."""

    values: tuple[ParameterValue, ...]
    precision: str = "double"
    decimal_point: str = "point"


def write_par(
    path: Path,
    values: Iterable[ParameterValue],
    *,
    precision: str = "double",
    decimal_point: str = "point",
) -> None:
    """Write a `.par`, each number with 17 significant digits, which give the same float64 back."""
    rows = list(values)
    width = max([12, *(len(row.name) for row in rows)])
    lines = [f"{precision} {decimal_point}"]
    lines += [
        f"{row.name:<{width}s} {row.value: .16E} {row.scale: .16E} {row.offset: .16E}"
        for row in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_par(path: Path) -> ParameterFile:
    """Read a `.par`. Names come in lower case. Scale and offset may be missing: 1 and 0.

    Raises `CaseError` with file and line for what is no parameter value file.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise CaseError(
            f"{path}: cannot be read: {error.strerror}", remedy="Check the file's name and rights."
        ) from error
    first = lines[0].lower().split() if lines else []
    if len(first) < 2 or first[0] not in ("single", "double") or not first[1].endswith("point"):
        raise CaseError(
            f'{path}:1: a parameter value file starts with "single point" or "double point"',
            remedy="Check that this is a .par file of PEST or PEST++.",
        )
    values = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        words = line.split()
        if not words:
            continue
        name = words[0].lower()
        try:
            numbers = [float(w.lower().replace("d", "e")) for w in words[1:4]]
            values.append(ParameterValue(name, *numbers))
        except (ValueError, TypeError) as error:
            raise CaseError(
                f"{path}:{number}: cannot read {line.strip()!r}",
                remedy="Each line has a parameter's name, value, scale and offset.",
            ) from error
        if name in seen:
            raise CaseError(
                f"{path}:{number}: parameter {name} is on line {seen[name]} already",
                remedy="Remove one of the two lines.",
            )
        seen[name] = number
    return ParameterFile(tuple(values), precision=first[0], decimal_point=first[1])
