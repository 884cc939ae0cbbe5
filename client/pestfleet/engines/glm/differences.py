"""Finite differences: the points of a parameter, and the slope through them.

PEST manual part I, "Calculating derivatives by finite differences" and "Parameter groups".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pestfleet.control.model import ParameterGroup
from pestfleet.engines.base import Matrix, Vector

# Where the points of a stencil go, in increments, best first; the first ones inside the bounds
# are taken, so that near a bound the stencil turns inward.
_PLACES = (1, -1, 2, -2, 3, -3, 4, -4)


def count_points(group: ParameterGroup, *, switched: bool) -> int:
    """Points of a derivative, with the middle one: 2, 3 or 5 (FORCEN).

    `switched`: the estimation went over to central derivatives (PHIREDSWH).
    """
    if group.central == "always_3" or (group.central == "switch" and switched):
        return 3
    if group.central == "always_5" or (group.central == "switch_5" and switched):
        return 5
    return 2


def find_increment(group: ParameterGroup, *, value: float, largest: float, points: int) -> float:
    """DERINC by INCTYP, not below DERINCLB, times DERINCMUL for central derivatives; may be 0.

    `largest`: greatest absolute value of the group's parameters, for `rel_to_max`.
    DERINCLB has no meaning for `absolute`.
    """
    if group.increment_type == "absolute":
        increment = group.increment
    else:
        size = largest if group.increment_type == "rel_to_max" else abs(value)
        increment = max(group.increment * size, group.increment_floor)
    return increment * group.increment_multiplier if points > 2 else increment


def place_points(
    *, value: float, lower: float, upper: float, increment: float, points: int
) -> list[float]:
    """Values of the parameter at which the model runs, without the middle one, all in bounds.

    2 points: value + increment, or - increment at the upper bound. 3: one on each side. 5: two on
    each side, one and two increments away. At a bound the missing ones come from the other side.
    Where the bounds leave no room for that, a forward difference with what room there is.
    """
    inside = [value + k * increment for k in _PLACES if lower <= value + k * increment <= upper]
    found = [x for x in inside if x != value][: points - 1]
    if len(found) == points - 1:
        return found
    return [upper if upper - value >= value - lower else lower]


def find_slope(*, offsets: Vector, outputs: Matrix, method: str) -> Vector:
    """Derivative at offset 0 of each output.

    `offsets`: (points,) distance of each point from the middle, which is one of them.
    `outputs`: (points, outputs). `method` is DERMTHD: `outside_pts` takes the outer two points,
    `best_fit` and `minvar` a straight line through all by least squares, `parabolic` and
    `maxprec` the slope at 0 of the polynomial through all.
    """
    order = np.argsort(offsets)
    offsets, outputs = offsets[order], outputs[order]
    if len(offsets) == 2 or method == "outside_pts":
        # Written so, it is exact for a linear model with increments that are powers of two.
        slope: Vector = (outputs[-1] - outputs[0]) / (offsets[-1] - offsets[0])
        return slope
    if method in ("best_fit", "minvar"):
        centred = offsets - offsets.mean()
        weights = centred / (centred @ centred)
    else:
        weights = _lagrange_weights(offsets)
    middle = outputs[int(np.flatnonzero(offsets == 0.0)[0])]
    fitted: Vector = weights @ (outputs - middle)  # weights sum to 0: same slope, less rounding
    return fitted


def _lagrange_weights(offsets: Vector) -> Vector:
    """Weights that give the slope at 0 of the polynomial through the points, one of them 0."""
    weights = np.zeros(len(offsets))
    for i, x in enumerate(offsets):
        others = np.delete(offsets, i)
        if x == 0.0:
            weights[i] = -np.sum(1.0 / others)
        else:
            rest = others[others != 0.0]
            weights[i] = np.prod(-rest) / (x * np.prod(x - rest))
    return weights


def turn_points(tried: Sequence[float], *, value: float, lower: float, upper: float) -> list[float]:
    """The nearest of the failed points mirrored at `value`, where bounds allow: a second chance."""
    nearest = sorted(tried, key=lambda x: (abs(x - value), x))
    for x in nearest:
        mirrored = 2.0 * value - x
        if lower <= mirrored <= upper and mirrored not in tried and mirrored != value:
            return [mirrored]
    # No room on the other side, or tried as well: half the distance.
    half = 0.5 * (value + nearest[0])
    return [half] if half not in tried and half != value else []
