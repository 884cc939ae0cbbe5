"""PEST's run record, `.rec`: what an estimation did, for people to read.

Text that a PEST user knows: the settings, each iteration's damping values and their phi, phi by
group, old and new parameter values, why it stopped, values with 95 % limits, covariance. Every
piece is written at once, so that the file can be followed while the estimation runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ParameterChange:
    """A parameter at the start and at the end of an iteration."""

    name: str
    old: float
    new: float

    @property
    def factor(self) -> float | None:
        """By which the size changed, at least 1; None for a change of sign or from or to 0."""
        if self.old * self.new <= 0.0:
            return None
        ratio = self.new / self.old
        return max(ratio, 1.0 / ratio)

    @property
    def relative(self) -> float | None:
        """Relative change; None from 0."""
        return abs(self.new - self.old) / abs(self.old) if self.old != 0.0 else None


class Record:
    """Writes one `.rec`, from the start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("", encoding="utf-8")

    def write(self, *lines: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def title(self, case: str, mode: str) -> None:
        self.write(
            f"                    PESTFLEET GLM RUN RECORD: CASE {case}",
            "",
            f" PEST run mode:- {mode}",
            "",
        )

    def settings(self, heading: str, values: Mapping[str, object]) -> None:
        self.write(f" {heading}:-")
        width = max([30, *(len(name) for name in values)])
        self.write(
            *(f"    {name:<{width}s} : {_text(value)}" for name, value in values.items()), ""
        )

    def table(self, heading: str, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Columns under their names; numbers to seven digits, None as `na`."""
        cells = [[_text(value) for value in row] for row in rows]
        widths = [
            max([len(name), 14, *(len(row[i]) for row in cells)]) for i, name in enumerate(names)
        ]
        self.write(f" {heading}:-")
        for row in (list(names), *cells):
            line = "  ".join(f"{cell:<{w}s}" for cell, w in zip(row, widths, strict=True))
            self.write(f"    {line}".rstrip())
        self.write("")

    def iteration(
        self, number: int, *, runs: int, phi: float, name: str, groups: Mapping[str, float]
    ) -> None:
        """The head of an iteration. `name`: of the `phi` that it is to lower."""
        which = "" if name == "phi" else f" ({name})"
        self.write(
            "",
            f" OPTIMISATION ITERATION NO.        : {number}",
            f"    Model calls so far             : {runs}",
            f"    Starting phi for this iteration: {phi:.7G}{which}",
        )
        self.groups(groups)

    def parts(self, *, measurement: float, regularization: float, factor: float) -> None:
        """Phi in regularization mode, each part by its name, and how the total is made of them."""
        total = measurement + factor**2 * regularization
        self.write(
            f"    Regularization weight factor   : {factor:.7G}",
            f"    Measurement phi                : {measurement:.7G}",
            f"    Regularization phi             : {regularization:.7G}",
            f"    Total phi                      : {total:.7G} (measurement + "
            "factor squared x regularization)",
        )

    def groups(self, groups: Mapping[str, float]) -> None:
        self.write(
            *(
                f'    Contribution to phi from observation group "{name}" : {phi:.7G}'
                for name, phi in groups.items()
            )
        )

    def damping(
        self, value: float, scale: float, phis: Mapping[str, tuple[float, float]] | None
    ) -> None:
        """One damping value (Marquardt lambda) and what it gave; None for a failed run.

        `phis`: name of a phi -> (value, its value at the start of the iteration).
        """
        part = "" if scale == 1.0 else f"   (upgrade times {scale:g})"
        self.write(f"        Lambda = {value:12.5G} ----->{part}")
        if phis is None:
            self.write("           the run failed")
            return
        for name, (phi, start) in phis.items():
            ratio = f"  ({phi / start:8.4f} of the starting one)" if start > 0.0 else ""
            self.write(f"           {name} = {phi:.7G}{ratio}")

    def changes(self, changes: Sequence[ParameterChange]) -> None:
        """Old and new values, and who changed most."""
        self.table(
            "Parameter values",
            ("Name", "Current value", "Previous value", "Factor change", "Relative change"),
            [(c.name, c.new, c.old, c.factor, c.relative) for c in changes],
        )
        for word in ("factor", "relative"):
            sizes = [(getattr(c, word), c.name) for c in changes if getattr(c, word) is not None]
            if sizes:
                size, name = max(sizes, key=lambda pair: pair[0])
                self.write(f"    Maximum {word:<8s} change: {size:.5G} [{name}]")

    def matrix(self, heading: str, names: Sequence[str], matrix: Matrix) -> None:
        """A square matrix; one above 50 x 50 is not for reading and is left to its own file."""
        if len(names) > 50:
            self.write(f" {heading}: {len(names)} x {len(names)}, see the .post.cov file.", "")
            return
        rows = [(name, *map(float, row)) for name, row in zip(names, matrix, strict=True)]
        self.table(heading, ("", *names), rows)


def _text(value: object) -> str:
    if value is None:
        return "na"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value + 0.0:.7G}"  # no -0
    if isinstance(value, tuple):
        return " ".join(_text(v) for v in value)
    return str(value)
