"""The weight factor of regularization mode, and which result is better there.

PEST minimizes the regularization objective function under the condition that the measurement
objective function is PHIMLIM (PEST manual part I, "Regularization"; Doherty 2003). Weights of
regularization are multiplied by a factor, found in each iteration such that the linearized model
meets the target. PHIMACCEPT, a little above PHIMLIM, gives room to move: once the measurement
objective function is not above it, what counts is the regularization objective function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pestfleet.engines.base import Matrix, Vector
from pestfleet.engines.glm.objective import Phi
from pestfleet.engines.glm.settings import Settings


@dataclass(frozen=True, slots=True)
class Merit:
    """Which of two results is better (PEST manual part I, "Regularization", PHIMACCEPT).

    Above PHIMACCEPT the lower measurement phi is; once both are below, the lower regularization
    phi. Without regularization the lower phi is.
    """

    settings: Settings
    regularizing: bool

    def key(self, phi: Phi) -> tuple[bool, float]:
        """Smaller is better."""
        if self.accepts(phi):
            return False, phi.regularization
        return True, phi.measurement

    def accepts(self, phi: Phi) -> bool:
        """Whether regularization phi is what counts: measurement phi is low enough."""
        return self.regularizing and phi.measurement <= self.settings.phimaccept

    def name(self, phi: Phi) -> str:
        """What decides from here on, as the record and messages call it."""
        if not self.regularizing:
            return "phi"
        return "regularization phi" if self.accepts(phi) else "measurement phi"

    def reduction(self, before: Phi, after: Phi) -> float:
        """Relative reduction of what counts; 1 for getting below PHIMACCEPT."""
        old, new = self.key(before), self.key(after)
        if old[0] != new[0]:
            return 1.0 if old[0] else -1.0
        return (old[1] - new[1]) / old[1] if old[1] > 0.0 else 0.0


def find_target(settings: Settings, measurement_phi: float) -> float:
    """What the measurement phi should be after this iteration.

    Above PHIMACCEPT that is PHIMLIM, or FRACPHIM of now. From PHIMLIM to PHIMACCEPT it is what it
    is now: a lower one would cost regularization phi, which counts there, so that no upgrade
    would be better, though regularization phi is not yet the lowest for this measurement phi.
    """
    if measurement_phi <= settings.phimaccept:
        return max(settings.phimlim, measurement_phi)
    return max(settings.phimlim, settings.fracphim * measurement_phi)


def find_weight_factor(
    jacobian: Matrix,
    residuals: Vector,
    regularizing: NDArray[np.bool_],
    *,
    target: float,
    start: float,
    settings: Settings,
) -> float:
    """The factor for which the linearized measurement phi after an undamped upgrade is `target`.

    `jacobian`, `residuals`: weighted with a factor of 1; `regularizing`: rows of regularization.
    From `start`, WFFAC brackets it and bisection of its logarithm narrows it down to a relative
    WFTOL, all inside WFMIN to WFMAX. The measurement phi grows with the factor; where even WFMIN
    cannot reach the target, that is WFMIN, and where WFMAX stays below it, WFMAX.
    """
    measured = ~regularizing
    normal = jacobian[measured].T @ jacobian[measured]
    right = jacobian[measured].T @ residuals[measured]
    normal_reg = jacobian[regularizing].T @ jacobian[regularizing]
    right_reg = jacobian[regularizing].T @ residuals[regularizing]
    now = float(residuals[measured] @ residuals[measured])

    def predict(factor: float) -> float:
        total = normal + factor**2 * normal_reg
        size = np.sqrt(np.maximum(np.diag(total), 0.0))
        size[size == 0.0] = 1.0
        scaled = total / np.outer(size, size)
        upgrade = (
            np.linalg.pinv(scaled, rcond=1e-12, hermitian=True)
            @ ((right + factor**2 * right_reg) / size)
            / size
        )
        return float(now - 2.0 * right @ upgrade + upgrade @ normal @ upgrade)

    low = high = float(np.clip(start, settings.wfmin, settings.wfmax))
    step = settings.wffac
    if predict(low) > target:
        while predict(low) > target:
            if low <= settings.wfmin:
                return settings.wfmin
            high, low, step = low, max(low / step, settings.wfmin), step * step
    else:
        while predict(high) <= target:
            if high >= settings.wfmax:
                return settings.wfmax
            low, high, step = high, min(high * step, settings.wfmax), step * step
    while high / low > 1.0 + settings.wftol:
        middle = float(np.sqrt(low * high))
        if predict(middle) > target:
            high = middle
        else:
            low = middle
    return low
