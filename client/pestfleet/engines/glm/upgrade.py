"""The upgrade vector: damping, change limits and bounds.

Solves (S NS + damping m I) S^-1 u = S g for the parameter upgrade u in estimated space, where
N = JtQJ, g = JtQr and S is a diagonal scaling (PEST manual part I, "The Marquardt parameter",
"Scaling"; Marquardt 1963). Two scalings:

* `sensitivity`: S = 1 / sqrt(diagonal of N), so that the answer does not depend on units. The
  scaled matrix has a diagonal of 1, m is 1. PEST++'s `jac_scale`, and the default.
* `none`, as PEST does with singular value decomposition: what the data cannot tell keeps nearest
  to where it is. Then m is the mean of N's diagonal. For fewer rows than parameters, or where the
  case says `jac_scale(false)`.

It works on singular values of the weighted Jacobian, not on N, which would square its condition
number. Singular values with (s / largest s)² below EIGTHRESH, or beyond MAXSING, are left out,
which makes a rank-deficient problem's upgrade the smallest one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pestfleet.engines.base import Matrix, Vector
from pestfleet.engines.glm.settings import Settings
from pestfleet.engines.glm.space import ParameterSpace

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Parameter values to try. `frozen`: numbers of those held at a bound.

    `limited_by`: number of the parameter whose change limit shortened the upgrade, or None.
    """

    damping: float
    scale: float
    values: Vector
    frozen: tuple[int, ...]
    limited_by: int | None


@dataclass(slots=True)
class UpgradeMaker:
    """Upgrades from one place.

    `jacobian`: (rows, adjustable) and `residuals`: (rows,), both weighted, from
    `Objective.weigh`. Decompositions are kept, so more damping values cost little.
    """

    space: ParameterSpace
    settings: Settings
    values: Vector
    jacobian: Matrix
    residuals: Vector
    _triangle: Matrix = field(init=False)
    _right: Vector = field(init=False)
    _gradient: Vector = field(init=False)
    _limits: tuple[Vector, Vector] = field(init=False)
    _decomposed: dict[bytes, tuple[Matrix, Vector, Matrix, Vector, float]] = field(init=False)

    def __post_init__(self) -> None:
        # With R of J = QR and Qtr everything below is of the size of the parameters.
        if self.jacobian.shape[0] > self.jacobian.shape[1]:
            q, self._triangle = np.linalg.qr(self.jacobian)
            self._right = q.T @ self.residuals
        else:
            self._triangle, self._right = self.jacobian, self.residuals
        self._gradient = self.jacobian.T @ self.residuals
        self._limits = find_limits(self.space, self.settings, self.values)
        self._decomposed = {}

    def upgrade(self, damping: float, *, scale: float = 1.0) -> Upgrade | None:
        """Values after one step with this damping, times `scale`; None where nothing can move.

        A parameter at a bound whose upgrade points outward is frozen there and the upgrade made
        again: first where the steepest descent points outward too, then all. One that would cross
        its bound goes to the bound and the others' upgrade is made again, knowing that.
        """
        space = self.space
        start = space.estimate(self.values)
        lower, upper = space.estimate(space.lower), space.estimate(space.upper)
        at_lower, at_upper = self.values <= space.lower, self.values >= space.upper
        free = np.ones(len(start), dtype=bool)
        step = np.zeros(len(start))
        while True:
            wanted = np.zeros(len(start))
            if free.any():
                wanted[free] = scale * self._solve(free, step, damping)
            outward = free & ((at_lower & (wanted < 0.0)) | (at_upper & (wanted > 0.0)))
            both = outward & (np.sign(wanted) == np.sign(self._gradient))
            if outward.any():
                free &= ~(both if both.any() else outward)
                continue
            fraction, limited_by = _shorten(wanted, start, *self._limits)
            moved = start + fraction * wanted
            crossing = free & ((moved < lower) | (moved > upper))
            if not crossing.any():
                break
            step[crossing] = np.where(wanted > 0.0, upper, lower)[crossing] - start[crossing]
            free &= ~crossing
        step[free] = fraction * wanted[free]
        values = space.restore(start + step)
        values[step == 0.0] = self.values[step == 0.0]
        if (values == self.values).all():
            return None
        frozen = tuple(int(j) for j in np.flatnonzero(~free))
        return Upgrade(damping, scale, values, frozen, limited_by)

    def _solve(self, free: Mask, step: Vector, damping: float) -> Vector:
        """Upgrade of the free parameters, when the others move by `step`."""
        u, s, vt, scaling, mean = self._decompose(free)
        right = self._right - self._triangle[:, ~free] @ step[~free]
        if not len(s):
            return np.zeros(int(free.sum()))
        factors = s / (s**2 + damping * mean)
        solution: Vector = scaling * (vt.T @ (factors * (u.T @ right)))
        return solution

    def _decompose(self, free: Mask) -> tuple[Matrix, Vector, Matrix, Vector, float]:
        key = free.tobytes()
        if key not in self._decomposed:
            part = self._triangle[:, free]
            lengths = np.sqrt(np.sum(part**2, axis=0))
            scaling = np.ones(part.shape[1])
            if self.settings.scaling == "sensitivity":
                scaling[lengths > 0.0] = 1.0 / lengths[lengths > 0.0]
            mean = float(np.mean((lengths * scaling)[lengths > 0.0] ** 2)) if lengths.any() else 1.0
            u, s, vt = np.linalg.svd(part * scaling, full_matrices=False)
            keep = count_singular(s, self.settings)
            self._decomposed[key] = (u[:, :keep], s[:keep], vt[:keep], scaling, mean)
        return self._decomposed[key]


def count_singular(s: Vector, settings: Settings) -> int:
    """How many of the singular values (largest first) are used: EIGTHRESH and MAXSING."""
    if not len(s) or s[0] == 0.0:
        return 0
    keep = int(np.sum((s / s[0]) ** 2 > settings.eigthresh))
    return keep if settings.maxsing is None else min(keep, settings.maxsing)


def find_limits(space: ParameterSpace, settings: Settings, values: Vector) -> tuple[Vector, Vector]:
    """Lowest and highest place in estimated space that RELPARMAX, FACPARMAX and ABSPARMAX allow.

    PEST manual part I, "Parameter change limits". A size below FACORIG times the initial one
    counts as that, so that a parameter can get away from 0. One that is 0 and was 0 initially has
    no relative limit.
    """
    low, high = np.empty(len(values)), np.empty(len(values))
    for j, p in enumerate(space.parameters):
        value = float(values[j])
        size = max(abs(value), settings.facorig * abs(p.initial))
        if p.change_limit.startswith("absolute"):
            limit = (settings.absparmax or {}).get(_index(p.change_limit), np.inf)
            low[j], high[j] = value - limit, value + limit
        elif p.change_limit == "factor":
            sign = 1.0 if value > 0 or (value == 0 and p.initial > 0) else -1.0
            ends = (sign * min(abs(value), size / settings.facparmax),
                    sign * size * settings.facparmax)  # fmt: skip
            low[j], high[j] = min(ends), max(ends)
        else:
            change = settings.relparmax * size if size > 0.0 else np.inf
            low[j], high[j] = value - change, value + change
    with np.errstate(divide="ignore"):
        logs = space.log
        low[logs] = np.log10(np.maximum(low[logs], 0.0))
        high[logs] = np.log10(high[logs])
    return low, high


def _index(change_limit: str) -> int:
    digits = "".join(c for c in change_limit if c.isdigit())
    return int(digits) if digits else 0


def _shorten(wanted: Vector, start: Vector, low: Vector, high: Vector) -> tuple[float, int | None]:
    """The part of `wanted` (at most 1) that stays within the limits, and who says so."""
    room = np.where(wanted > 0.0, high - start, low - start)
    moving = wanted != 0.0
    parts = np.full(len(wanted), np.inf)
    with np.errstate(over="ignore"):
        parts[moving] = room[moving] / wanted[moving]
    if not len(parts) or parts.min() >= 1.0:
        return 1.0, None
    j = int(np.argmin(parts))
    return max(float(parts[j]), 0.0), j
