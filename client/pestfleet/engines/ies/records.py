"""The files of ies, named and laid out as pestpp-ies does (PEST++ manual, "Output Files")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pestfleet.engines.base import Matrix, Vector
from pestfleet.files.ensembles import write_ensemble


class Records:
    """Writes into one folder and remembers what it wrote. Each call leaves complete files."""

    def __init__(
        self, folder: Path, case: str, *, parameters: Sequence[str], observations: Sequence[str]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._case = case
        self._parameters = parameters
        self._observations = observations
        self._order: tuple[str, ...] = ()
        self.files: list[str] = []

    def write_noise(self, realizations: Sequence[str], targets: Matrix) -> None:
        """`<case>.obs+noise.csv` and `.jcb`."""
        self._write("obs+noise", realizations, self._observations, targets)

    def write_parameters(
        self, label: int | str, realizations: Sequence[str], values: Matrix
    ) -> None:
        """`<case>.<label>.par.csv` and `.jcb`; values as in the control file, not log10."""
        self._write(f"{label}.par", realizations, self._parameters, values)

    def write_observations(
        self, label: int | str, realizations: Sequence[str], values: Matrix
    ) -> None:
        """`<case>.<label>.obs.csv` and `.jcb`."""
        self._write(f"{label}.obs", realizations, self._observations, values)

    def write_phi(
        self, iteration: int, runs: int, realizations: tuple[str, ...], phis: Mapping[str, Vector]
    ) -> None:
        """A row in `<case>.phi.<kind>.csv` for each kind, empty cells for dropped realizations.

        The first call starts the files, with all its realizations in the header.
        """
        starts = not self._order
        if starts:
            self._order = realizations
        for kind, phi in phis.items():
            path = self._folder / f"{self._case}.phi.{kind}.csv"
            value = dict(zip(realizations, phi.tolist(), strict=True))
            spread = float(phi.std(ddof=1)) if len(phi) > 1 else 0.0
            statistics = [float(phi.mean()), spread, float(phi.min()), float(phi.max())]
            cells = [str(iteration), str(runs), *map(repr, statistics)]
            cells += [repr(value[name]) if name in value else "" for name in self._order]
            with path.open("w" if starts else "a", encoding="utf-8", newline="\n") as file:
                if starts:
                    head = "iteration,total_runs,mean,standard_deviation,min,max"
                    file.write(",".join([head, *self._order]) + "\n")
                file.write(",".join(cells) + "\n")
            self._remember(path)

    def _write(
        self, label: str, rows: Sequence[str], columns: Sequence[str], values: Matrix
    ) -> None:
        stem = self._folder / f"{self._case}.{label}"
        for path in write_ensemble(stem, rows, columns, np.asarray(values)):
            self._remember(path)

    def _remember(self, path: Path) -> None:
        if path.name not in self.files:
            self.files.append(path.name)
