"""The objective function: weighted residuals of observations and prior information.

Phi is the sum of squared weighted residuals (PEST manual part I, "The objective function"). Rows
are all observations, then all prior information equations, in the control file's order. In
regularization mode rows of groups whose names start with `regul` make the regularization
objective function, the others the measurement one (PEST manual part I, "Regularization").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pestfleet.control.model import ControlFile, Observation, PriorInformation
from pestfleet.engines.base import Matrix, Vector
from pestfleet.engines.glm.space import ParameterSpace
from pestfleet.files.matrix import read_matrix
from pestfleet.files.residuals import Residual
from pestfleet_worker.errors import CaseError

_LN10 = float(np.log(10.0))


@dataclass(frozen=True, slots=True)
class Phi:
    """Objective function. `total` is measurement + weight factor² x regularization."""

    measurement: float
    regularization: float
    groups: dict[str, float]

    def total(self, weight_factor: float) -> float:
        return self.measurement + weight_factor**2 * self.regularization


@dataclass(frozen=True, slots=True)
class Objective:
    """Residuals and phi of one case.

    `group_names`: each group once, the control file's order; `group_numbers`: each row's in that.
    `used`: rows with a weight above 0, or in a group with a covariance matrix.
    `roots`: for each such group its rows and the inverse of the Cholesky factor of its matrix,
    which takes the place of the weights (PEST manual part I, "Observation covariance matrices").
    """

    control: ControlFile
    space: ParameterSpace
    names: tuple[str, ...]
    groups: tuple[str, ...]
    group_names: tuple[str, ...]
    group_numbers: NDArray[np.intp]
    measured: Vector
    weights: Vector
    used: NDArray[np.intp]
    regularization: NDArray[np.bool_]
    roots: tuple[tuple[NDArray[np.intp], Matrix], ...]

    def simulate(self, outputs: Vector, full: Vector) -> Vector:
        """(rows,) model outputs, then the left sides of the prior information equations."""
        if not self.control.priors:
            return outputs
        column = {p.name: i for i, p in enumerate(self.control.parameters)}
        sides = []
        for equation in self.control.priors:
            terms = [(f, full[column[name]], log) for f, name, log in equation.terms]
            sides.append(sum(f * (np.log10(x) if log else x) for f, x, log in terms))
        return np.concatenate([outputs, np.array(sides, dtype=np.float64)])

    def extend(self, matrix: Matrix, values: Vector) -> Matrix:
        """(observations, adjustable) derivatives, with those of prior information below."""
        if not self.control.priors:
            return matrix
        column = {p.name: i for i, p in enumerate(self.control.parameters)}
        full = self.space.expand(values[np.newaxis, :])[0]
        ratios = self.space.tied_ratios()
        rows = np.zeros((len(self.control.priors), matrix.shape[1]))
        for i, equation in enumerate(self.control.priors):
            for factor, name, log in equation.terms:
                if column[name] not in ratios:
                    continue  # fixed
                j, ratio = ratios[column[name]]
                slope = ratio * (values[j] * _LN10 if self.space.log[j] else 1.0)
                rows[i, j] += factor * (slope / (full[column[name]] * _LN10) if log else slope)
        return np.vstack([matrix, rows])

    def weigh(self, rows: Matrix) -> Matrix:
        """Rows of a vector or matrix times the square root of the weight matrix; used rows only.

        `rows`: (rows,) or (rows, columns). Rows of weight 0 are left out, whatever they hold.
        """
        weights = self.weights if rows.ndim == 1 else self.weights[:, np.newaxis]
        weighted = np.zeros_like(rows)
        weighted[self.used] = (weights * np.ones_like(rows))[self.used] * rows[self.used]
        for index, root in self.roots:
            weighted[index] = root @ rows[index]
        picked: Matrix = weighted[self.used]
        return picked

    def residuals(self, simulated: Vector) -> Vector:
        """(used rows,) weighted residuals, measured minus simulated."""
        return self.weigh(self.measured - simulated)

    @property
    def regularizing(self) -> NDArray[np.bool_]:
        """(used rows,) True where the row belongs to the regularization objective function."""
        return self.regularization[self.used]

    def phi(self, simulated: Vector) -> Phi:
        with np.errstate(over="ignore"):  # a wild run's phi is infinite and not taken
            squares = self.residuals(simulated) ** 2
        names = self.group_names
        sums = np.bincount(self.group_numbers[self.used], weights=squares, minlength=len(names))
        groups = dict(zip(names, sums.tolist(), strict=True))
        mask = self.regularizing
        return Phi(float(squares[~mask].sum()), float(squares[mask].sum()), groups)

    def negligible(self, simulated: Vector) -> float:
        """A phi below this means that outputs agree with measurements to twelve digits."""
        size = np.maximum(np.abs(self.measured), np.abs(simulated))
        return float(np.sum(self.weigh(1e-12 * size) ** 2))

    def table(self, simulated: Vector, weight_factor: float) -> list[Residual]:
        """Rows of a residuals file; weights of regularization rows times the weight factor."""
        weights = np.where(self.regularization, weight_factor * self.weights, self.weights)
        rows = zip(self.names, self.groups, self.measured, simulated, weights, strict=True)
        return [Residual(n, g, float(m), float(s), float(w)) for n, g, m, s, w in rows]


def _list_rows(control: ControlFile) -> Sequence[Observation | PriorInformation]:
    return [*control.observations, *control.priors]


def build_objective(control: ControlFile, space: ParameterSpace) -> Objective:
    """The objective of a case.

    Raises `CaseError` where nothing has a weight, a covariance matrix does not fit, or
    regularization mode has no regularization.
    """
    sources = _list_rows(control)
    groups = tuple(s.group for s in sources)
    names = tuple(dict.fromkeys([*control.observation_groups, *groups]))
    number = {name: i for i, name in enumerate(names)}
    weights = np.array([s.weight for s in sources], dtype=np.float64)
    roots = tuple(
        _read_root(control, group, file)
        for group, file in sorted(control.observation_covariances.items())
    )
    used = weights > 0.0
    for index, _ in roots:
        used[index] = True
    regularization = np.zeros(len(sources), dtype=bool)
    if control.mode == "regularization":
        regularization[:] = [g.startswith("regul") for g in groups]
        if not (used & regularization).any():
            raise CaseError(
                f"{control.path}: PESTMODE is regularization, but no observation or prior "
                'information with a weight is in a group whose name starts with "regul"',
                remedy="Add such prior information, or set PESTMODE to estimation.",
            )
    if not (used & ~regularization).any():
        raise CaseError(
            f"{control.path}: no observation has a weight above 0", remedy="Give some a weight."
        )
    known = {p.name for p in control.parameters}
    for equation in control.priors:
        for _, name, _ in equation.terms:
            if name not in known:
                raise CaseError(
                    f"{equation.place or control.path}: prior information {equation.name} has "
                    f"parameter {name}, which the control file has not",
                    remedy="Correct the name.",
                )
    return Objective(
        control=control,
        space=space,
        names=tuple(s.name for s in sources),
        groups=groups,
        group_names=names,
        group_numbers=np.array([number[g] for g in groups], dtype=np.intp),
        measured=np.array([s.value for s in sources], dtype=np.float64),
        weights=weights,
        used=np.flatnonzero(used),
        regularization=regularization,
        roots=roots,
    )


def _read_root(control: ControlFile, group: str, file: str) -> tuple[NDArray[np.intp], Matrix]:
    path = Path(control.path).parent / file
    matrix, names, columns = read_matrix(path)
    position = {name: i for i, name in enumerate(names)}
    sources = _list_rows(control)
    index = [i for i, s in enumerate(sources) if s.group == group]
    missing = [sources[i].name for i in index if sources[i].name not in position]
    if missing or names != columns:
        raise CaseError(
            f"{path}: is not the covariance matrix of observation group {group}"
            + (f": {missing[0]} is not in it" if missing else ""),
            remedy="Its rows and columns must have the names of the group's observations.",
        )
    pick = [position[sources[i].name] for i in index]
    try:
        factor = np.linalg.cholesky(matrix[np.ix_(pick, pick)])
    except np.linalg.LinAlgError as error:
        raise CaseError(
            f"{path}: the covariance matrix is not positive definite",
            remedy="Correct the matrix; all its eigenvalues must be above 0.",
        ) from error
    return np.array(index, dtype=np.intp), np.linalg.inv(factor)
