"""From the control file's parameters to the numbers that the smoother works on, and back.

The smoother's vector ("state") has the adjustable parameters only, log10 of those that are
log-transformed. It is not bounded: bounds are applied on the way to the model, as if they were
part of it. So the ensemble keeps a Gaussian prior, and no parameter ever leaves its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pestfleet.control.model import ControlFile
from pestfleet.engines.base import Matrix, Vector
from pestfleet_worker.errors import CaseError


@dataclass(frozen=True, slots=True)
class ParameterSpace:
    """Arrays over all parameters, or (state) over the adjustable ones, in the file's order."""

    names: tuple[str, ...]
    initial: Vector
    adjustable: NDArray[np.intp]
    log: NDArray[np.bool_]  # state
    lower: Vector  # state, as the control file has them
    upper: Vector
    tied: NDArray[np.intp]
    parents: NDArray[np.intp]
    ratios: Vector
    enforce_bounds: bool

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(self.names[i] for i in self.adjustable)

    @property
    def initial_state(self) -> Vector:
        """(state,) The prior mean."""
        return self.transform(self.initial[self.adjustable])

    def transform(self, values: Matrix) -> Matrix:
        """Adjustable parameters' values, last axis (state), to the state."""
        state = np.array(values, dtype=np.float64)
        state[..., self.log] = np.log10(state[..., self.log])
        return state

    def fill(self, states: Matrix, base: Matrix) -> Matrix:
        """(realizations, all parameters) that the model gets for states (realizations, state).

        `base`: the same shape as the result, or one row: where fixed parameters come from.
        """
        adjusted = states.copy()
        with np.errstate(over="ignore"):  # an overflow is caught by the bounds, or by the check
            adjusted[:, self.log] = 10.0 ** adjusted[:, self.log]
        if self.enforce_bounds:
            np.clip(adjusted, self.lower, self.upper, out=adjusted)
        elif not np.isfinite(adjusted).all():
            raise CaseError(
                "a parameter grew beyond all numbers", remedy="Set ies_enforce_bounds(true)."
            )
        values = np.array(np.broadcast_to(base, (len(states), len(self.names))))
        values[:, self.adjustable] = adjusted
        values[:, self.tied] = values[:, self.parents] * self.ratios
        return values


def make_parameter_space(control: ControlFile, *, enforce_bounds: bool) -> ParameterSpace:
    """Raises `CaseError` for a log-transformed parameter that is not positive, and the like."""
    index = {parameter.name: i for i, parameter in enumerate(control.parameters)}
    adjustable, tied, parents, ratios = [], [], [], []
    for i, parameter in enumerate(control.parameters):
        where = f"{parameter.place or control.path}: parameter {parameter.name}"
        if parameter.transform in ("none", "log"):
            adjustable.append(i)
            if parameter.transform == "log" and min(parameter.initial, parameter.lower) <= 0.0:
                raise CaseError(
                    f"{where}: log-transformed, but its initial value or lower bound is not "
                    "positive",
                    remedy="Give it positive values, or do not log-transform it.",
                )
            if not parameter.lower <= parameter.upper:
                raise CaseError(
                    f"{where}: its lower bound is above its upper bound",
                    remedy="Exchange the two.",
                )
        elif parameter.transform == "tied":
            parent = index.get(parameter.tied_to or "")
            if parent is None or control.parameters[parent].initial == 0.0:
                raise CaseError(
                    f"{where}: tied to {parameter.tied_to!r}, which does not exist or is zero",
                    remedy="Tie it to a parameter with an initial value other than zero.",
                )
            tied.append(i)
            parents.append(parent)
            ratios.append(parameter.initial / control.parameters[parent].initial)
    chosen = [control.parameters[i] for i in adjustable]
    return ParameterSpace(
        names=tuple(parameter.name for parameter in control.parameters),
        initial=np.array([parameter.initial for parameter in control.parameters]),
        adjustable=np.array(adjustable, dtype=np.intp),
        log=np.array([parameter.transform == "log" for parameter in chosen], dtype=bool),
        lower=np.array([parameter.lower for parameter in chosen]),
        upper=np.array([parameter.upper for parameter in chosen]),
        tied=np.array(tied, dtype=np.intp),
        parents=np.array(parents, dtype=np.intp),
        ratios=np.array(ratios),
        enforce_bounds=enforce_bounds,
    )
