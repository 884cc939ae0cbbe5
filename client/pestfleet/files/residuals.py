"""PEST's residuals files: `.rei` (one iteration) and `.res` (end of the estimation).

A title, a line of column names, then a line for each observation and prior information equation
(PEST manual part I, "The residuals file" and "The interim residuals file"). pyEMU finds the
column names as the first line with the word "name", so a title must not have it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pestfleet_worker.errors import CaseError

_REI = ("Name", "Group", "Measured", "Modelled", "Residual", "Weight")
_RES = (*_REI, "Weight*Measured", "Weight*Modelled", "Weight*Residual",
        "Measurement_sd", "Natural_weight")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Residual:
    """One observation, measured and modelled; the residual is measured minus modelled."""

    name: str
    group: str
    measured: float
    modelled: float
    weight: float

    @property
    def residual(self) -> float:
        return self.measured - self.modelled


def write_rei(path: Path, residuals: Iterable[Residual], *, iteration: int) -> None:
    """Write a `.rei`: what the model gave at the end of `iteration` (0: initial values)."""
    title = f" MODEL OUTPUTS AT END OF OPTIMISATION ITERATION NO. {iteration:3d}:-"
    _write(path, [title, "", ""], _REI, [(r, _row(r)) for r in residuals])


def write_res(path: Path, residuals: Iterable[Residual], *, reference_variance: float) -> None:
    """Write a `.res`. `reference_variance`: phi / (observations - parameters).

    The natural weight is 1 / measurement standard deviation, where that is
    sqrt(reference variance) / weight; both are `na` for an observation of weight 0.
    """
    rows = []
    for r in residuals:
        w = r.weight
        numbers = [*_row(r), *(f"{w * x: .9E}" for x in (r.measured, r.modelled, r.residual))]
        if w > 0 and reference_variance > 0:
            deviation = reference_variance**0.5 / w
            numbers += [f"{deviation: .9E}", f"{1.0 / deviation: .9E}"]
        else:
            numbers += ["na", "na"]
        rows.append((r, numbers))
    _write(path, [], _RES, rows)


def read_residuals(path: Path) -> list[Residual]:
    """Read a `.rei` or `.res`. Raises `CaseError` with file and line where it cannot."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise CaseError(
            f"{path}: cannot be read: {error.strerror}", remedy="Check the file's name and rights."
        ) from error
    start = next((i for i, line in enumerate(lines) if "name" in line.lower()), None)
    wanted = [name.lower() for name in _REI if name != "Residual"]
    header = lines[start].lower().split() if start is not None else []
    if start is None or not set(wanted) <= set(header):
        raise CaseError(
            f"{path}: has no line with the column names {', '.join(_REI)}",
            remedy="Check that this is a .rei or .res file of PEST or PEST++.",
        )
    columns = [header.index(name) for name in wanted]
    residuals = []
    for number, line in enumerate(lines[start + 1 :], start=start + 2):
        words = line.split()
        if not words:
            continue
        try:
            name, group, *numbers = (words[c] for c in columns)
            measured, modelled, weight = (float(n) for n in numbers)
        except (IndexError, ValueError) as error:
            raise CaseError(
                f"{path}:{number}: cannot read {line.strip()!r}",
                remedy="Make the residuals file again; this one is damaged or cut off.",
            ) from error
        residuals.append(Residual(name.lower(), group.lower(), measured, modelled, weight))
    return residuals


def _row(r: Residual) -> list[str]:
    return [f"{x: .16E}" for x in (r.measured, r.modelled, r.residual, r.weight)]


def _write(
    path: Path,
    title: list[str],
    header: tuple[str, ...],
    rows: list[tuple[Residual, list[str]]],
) -> None:
    names = max([20, *(len(r.name) for r, _ in rows)])
    groups = max([12, *(len(r.group) for r, _ in rows)])
    widths = [names, groups, *([23] * 4), *([17] * (len(header) - 6))]
    lines = [*title, " ".join(f"{h:<{w}s}" for h, w in zip(header, widths, strict=True)).rstrip()]
    for r, numbers in rows:
        cells = [r.name, r.group, *numbers]
        lines.append(" ".join(f"{c:<{w}s}" for c, w in zip(cells, widths, strict=True)).rstrip())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
