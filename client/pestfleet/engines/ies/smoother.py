"""The linear algebra of the damped iterative ensemble smoother.

Every realization j minimizes its own objective function (randomized maximum likelihood),

    |z - z0_j|^2 + |W (g(z) - d_j)|^2,

where z are coordinates in the space that the prior ensemble spans, scaled so that the prior
covariance of the ensemble is the identity, z0_j is the prior realization and d_j are the measured
values with its own noise. All of them take Levenberg-Marquardt steps with one sensitivity
matrix, the least-squares regression of outputs on z over the ensemble:

    step_j = -((1 + lambda) I + S S^T)^-1 ((z_j - z0_j) + S W (g(z_j) - d_j))

Sources: Chen and Oliver (2013), "Levenberg-Marquardt forms of the iterative ensemble smoother",
equation 10 with the prior term kept (pestpp-ies with ies_use_approx(false)); Raanes, Stordal and
Evensen (2019), "Revising the stochastic iterative ensemble smoother", for regression in the
ensemble's space. For a linear model and many realizations, the result is the Gaussian posterior.
No matrix has the number of parameters squared as its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pestfleet.engines.base import Matrix, Vector


@dataclass(frozen=True, slots=True)
class Subspace:
    """state = mean + z @ directions. `mean`: (state,); `directions`: (rank, state)."""

    mean: Vector
    directions: Matrix

    def expand(self, z: Matrix) -> Matrix:
        """(realizations, state) for coordinates (realizations, rank)."""
        return self.mean + z @ self.directions


def make_subspace(states: Matrix) -> tuple[Subspace, Matrix]:
    """The space that prior states (realizations, state) span, and their coordinates in it.

    Coordinates: (realizations, rank), rank <= min(realizations - 1, state), mean 0 and sample
    covariance identity.
    """
    mean = states.mean(axis=0)
    anomalies = states - mean
    # Parameters come in all magnitudes: without this, small ones would count as no variation.
    scales = anomalies.std(axis=0)
    scales[scales == 0.0] = 1.0
    left, singular, right = np.linalg.svd(anomalies / scales, full_matrices=False)
    rank = int((singular > 1e-10 * max(singular.max(initial=0.0), 1e-300)).sum())
    root = np.sqrt(len(states) - 1.0)
    directions = (singular[:rank, np.newaxis] / root) * right[:rank] * scales
    return Subspace(mean, directions), left[:, :rank] * root


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of all realizations for any damping; see `make_steps`."""

    basis: Matrix
    values: Vector
    projected: Matrix

    def damp(self, damping: float) -> Matrix:
        """(realizations, rank) step for a Marquardt lambda."""
        return -(self.projected / (damping + self.values)) @ self.basis.T


def make_steps(z: Matrix, prior: Matrix, outputs: Matrix, residuals: Matrix) -> Steps:
    """Steps from `z` (realizations, rank) with prior coordinates `prior` of the same shape.

    `outputs`, `residuals`: (realizations, observations), weighted.
    """
    left, singular, right = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
    # Directions that the ensemble has (almost) lost say nothing about sensitivity.
    kept = singular > 1e-8 * singular.max(initial=0.0)
    left, singular, right = left[:, kept], singular[kept], right[kept]
    root = np.sqrt(len(z) - 1.0)
    spread = right.T * (singular / root)  # P = spread spread^T
    # (rank kept, observations) sensitivity to a step of one standard deviation of the ensemble
    sensitivity = (left * root).T @ (outputs - outputs.mean(axis=0)) / (len(z) - 1.0)
    values, vectors = np.linalg.eigh(spread.T @ spread + sensitivity @ sensitivity.T)
    gradient = (z - prior) @ spread + residuals @ sensitivity.T
    return Steps(spread @ vectors, np.maximum(values, 0.0), gradient @ vectors)
