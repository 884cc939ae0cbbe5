"""Parameter covariance and 95 % limits from a linearized model.

For an overdetermined problem, PEST's own: covariance = sigma² (JtQJ)^-1 with
sigma² = phi / (n - p) (PEST manual part I, "Parameter uncertainty"), limits by Student's t with
n - p degrees of freedom. Where JtQJ is singular, or n <= p, or in regularization mode, the
covariance is that of linear Bayes theory, with a prior from the bounds as in PEST++:
(JtQJ / sigma² + C^-1)^-1, C diagonal with ((upper - lower) / par_sigma_range)², written in the
equivalent form of the Schur complement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pestfleet.engines.base import Matrix, Vector
from pestfleet.engines.glm.settings import Settings
from pestfleet.engines.glm.space import ParameterSpace

# Eigenvalues of the scaled JtQJ below this part of the largest are rounding of finite differences.
# Not EIGTHRESH, which says how far an upgrade may go, not what is known.
_SINGULAR = 1e-12


@dataclass(frozen=True, slots=True)
class Statistics:
    """All in estimated space (log10 for log-transformed parameters).

    `method`: one line that says how `covariance` (adjustable, adjustable) was made.
    `half_width`: (adjustable,) of the 95 % limits. `reference_variance`: sigma².
    """

    method: str
    covariance: Matrix
    mean: Vector
    prior_mean: Vector
    prior_deviation: Vector
    half_width: Vector
    reference_variance: float
    degrees_of_freedom: int

    @property
    def deviation(self) -> Vector:
        return np.asarray(np.sqrt(np.maximum(np.diag(self.covariance), 0.0)), dtype=np.float64)

    @property
    def correlation(self) -> Matrix:
        size = np.where(self.deviation > 0.0, self.deviation, 1.0)
        return np.asarray(self.covariance / np.outer(size, size), dtype=np.float64)


def estimate_statistics(
    space: ParameterSpace,
    settings: Settings,
    *,
    values: Vector,
    jacobian: Matrix,
    phi: float,
    regularized: bool,
) -> Statistics:
    """Statistics at `values`.

    `jacobian`: (rows, adjustable), weighted, without rows of regularization; `phi` belongs to
    these rows. `regularized`: the values come from an estimation in regularization mode.
    """
    from scipy.special import ndtri, stdtrit

    rows, adjustable = jacobian.shape
    prior_deviation = (space.estimate(space.upper) - space.estimate(space.lower)) / (
        settings.par_sigma_range
    )
    lengths = np.sqrt(np.sum(jacobian**2, axis=0))
    scaling = np.where(lengths > 0.0, 1.0 / np.where(lengths > 0.0, lengths, 1.0), 1.0)
    _, s, vt = np.linalg.svd(jacobian * scaling, full_matrices=False)
    rank = int(np.sum((s / s[0]) ** 2 > _SINGULAR)) if len(s) and s[0] > 0.0 else 0
    freedom = rows - rank
    variance = phi / freedom if freedom > 0 else 1.0
    if rank == adjustable and freedom > 0 and not regularized:
        root = scaling[:, np.newaxis] * (vt.T / s)
        covariance = variance * (root @ root.T)
        method = (
            f"reference variance x (JtQJ)^-1, with phi / ({rows} - {adjustable}) = {variance:.6g}"
        )
        quantile = float(stdtrit(freedom, 0.975))
    else:
        covariance = _condition(jacobian, prior_deviation, variance)
        why = "regularization mode" if regularized else f"JtQJ has rank {rank} of {adjustable}"
        method = (
            f"{why}: prior from the bounds (par_sigma_range {settings.par_sigma_range:g}), "
            f"conditioned on the observations (Schur complement) with variance {variance:.6g}; "
            "what the observations do not tell keeps its prior uncertainty"
        )
        quantile = float(ndtri(0.975))
    return Statistics(
        method=method,
        covariance=covariance,
        mean=space.estimate(values),
        prior_mean=space.estimate(space.initial),
        prior_deviation=prior_deviation,
        half_width=quantile * np.sqrt(np.maximum(np.diag(covariance), 0.0)),
        reference_variance=variance,
        degrees_of_freedom=freedom,
    )


def _condition(jacobian: Matrix, prior_deviation: Vector, variance: float) -> Matrix:
    """(JtJ / variance + C^-1)^-1 by singular values of J C^1/2, which needs no inverse of C."""
    root = jacobian * prior_deviation
    _, s, vt = np.linalg.svd(root, full_matrices=False)
    if variance > 0.0:
        known = s**2 / (s**2 + variance)
    else:
        known = (s > s.max(initial=0.0) * 1e-9).astype(np.float64)
    inner = np.eye(root.shape[1]) - (vt.T * known) @ vt
    covariance: Matrix = inner * np.outer(prior_deviation, prior_deviation)
    return 0.5 * (covariance + covariance.T)


def find_limits(space: ParameterSpace, statistics: Statistics) -> tuple[Vector, Vector]:
    """Lower and upper 95 % limits as the control file has parameters. Not cut at the bounds."""
    ends = []
    for sign in (-1.0, 1.0):
        end = statistics.mean + sign * statistics.half_width
        with np.errstate(over="ignore"):
            end[space.log] = np.power(10.0, end[space.log])
        ends.append(end)
    return ends[0], ends[1]
