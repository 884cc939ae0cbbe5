"""Adjustable parameters: their values, logarithms, bounds, and what is tied to them.

Three kinds of vectors: *full* (all parameters of the control file, what the runner gets),
*values* (adjustable ones, as the control file has them) and *estimated* (adjustable ones, log10
where the control file says so; increments of the Jacobian and upgrades are in this one).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pestfleet.control.model import ControlFile, Parameter
from pestfleet.engines.base import Matrix, Vector
from pestfleet_worker.errors import CaseError


@dataclass(frozen=True, slots=True)
class ParameterSpace:
    """`tied`: for each tied parameter (its column, adjustable parent's number, own initial)."""

    parameters: tuple[Parameter, ...]  # adjustable
    columns: NDArray[np.intp]
    log: NDArray[np.bool_]
    lower: Vector
    upper: Vector
    initial: Vector
    full_initial: Vector
    tied: tuple[tuple[int, int, float], ...]

    @property
    def names(self) -> list[str]:
        return [p.name for p in self.parameters]

    def estimate(self, values: Vector) -> Vector:
        """Values to estimated space."""
        estimated = np.array(values, dtype=np.float64)
        estimated[self.log] = np.log10(estimated[self.log])
        return estimated

    def restore(self, estimated: Vector) -> Vector:
        """Estimated space to values, inside the bounds to the last bit."""
        values = np.array(estimated, dtype=np.float64)
        values[self.log] = np.power(10.0, values[self.log])
        return np.clip(values, self.lower, self.upper)

    def expand(self, values: Matrix) -> Matrix:
        """(runs, adjustable) to (runs, all). Tied ones keep their initial ratio to the parent."""
        full = np.tile(self.full_initial, (len(values), 1))
        full[:, self.columns] = values
        for column, parent, own in self.tied:
            of_parent = values[:, parent]
            first = self.initial[parent]
            full[:, column] = np.where(of_parent == first, own, of_parent * (own / first))
        return full

    def tied_ratios(self) -> Mapping[int, tuple[int, float]]:
        """Column of every parameter that moves: (number of the adjustable one, ratio to it)."""
        ratios = {int(c): (j, 1.0) for j, c in enumerate(self.columns)}
        ratios |= {c: (j, own / float(self.initial[j])) for c, j, own in self.tied}
        return ratios


def build_space(control: ControlFile, *, enforce_tied_bounds: bool = False) -> ParameterSpace:
    """The space of a case. Raises `CaseError` for parameters that cannot be estimated so."""
    parameters = control.parameters
    adjustable = [i for i, p in enumerate(parameters) if p.transform in ("none", "log")]
    for i in adjustable:
        _check(control, parameters[i])
    number = {parameters[c].name: j for j, c in enumerate(adjustable)}
    by_name = {p.name: p for p in parameters}
    lower = np.array([parameters[c].lower for c in adjustable], dtype=np.float64)
    upper = np.array([parameters[c].upper for c in adjustable], dtype=np.float64)
    initial = np.array([parameters[c].initial for c in adjustable], dtype=np.float64)
    tied = []
    for column, p in enumerate(parameters):
        if p.transform != "tied":
            continue
        parent = by_name.get(p.tied_to or "")
        if parent is None or parent.transform == "tied":
            problem = f"is tied to {p.tied_to}, which is missing or tied itself"
            raise _error(control, p, problem, "Tie it to an adjustable parameter.")
        if parent.transform == "fixed":
            continue  # keeps its own initial value
        if parent.initial == 0.0:
            problem = f"is tied to {parent.name}, whose initial value is 0"
            raise _error(control, p, problem, "Give the parent an initial value other than 0.")
        j = number[parent.name]
        tied.append((column, j, p.initial))
        if enforce_tied_bounds and p.initial != 0.0:
            ends = sorted(b * parent.initial / p.initial for b in (p.lower, p.upper))
            lower[j], upper[j] = max(lower[j], ends[0]), min(upper[j], ends[1])
    return ParameterSpace(
        parameters=tuple(parameters[c] for c in adjustable),
        columns=np.array(adjustable, dtype=np.intp),
        log=np.array([parameters[c].transform == "log" for c in adjustable], dtype=bool),
        lower=lower,
        upper=upper,
        initial=initial,
        full_initial=np.array([p.initial for p in parameters], dtype=np.float64),
        tied=tuple(tied),
    )


def _check(control: ControlFile, p: Parameter) -> None:
    problem = remedy = ""
    if not p.lower < p.upper:
        problem = f"has a lower bound of {p.lower:g} and an upper one of {p.upper:g}"
        remedy = "Correct the bounds, or fix the parameter."
    elif not p.lower <= p.initial <= p.upper:
        problem = f"starts at {p.initial:g}, outside its bounds {p.lower:g} to {p.upper:g}"
        remedy = "Correct the initial value or the bounds."
    elif p.transform == "log" and p.lower <= 0.0:
        problem = f"is log-transformed, but its lower bound is {p.lower:g}"
        remedy = "Use a lower bound above 0, or PARTRANS none."
    elif p.change_limit == "factor" and (p.lower * p.upper < 0.0 or p.initial == 0.0):
        problem = "is factor-limited, but is 0 or may change its sign inside its bounds"
        remedy = "Use PARCHGLIM relative, or bounds of one sign."
    if problem:
        raise _error(control, p, problem, remedy)


def _error(control: ControlFile, p: Parameter, problem: str, remedy: str) -> CaseError:
    return CaseError(f"{p.place or control.path}: parameter {p.name} {problem}", remedy=remedy)
