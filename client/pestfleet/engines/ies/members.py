"""The ensemble as it goes through the iterations, and the runs that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pestfleet.engines.base import Job, Matrix
from pestfleet.engines.ies.measurements import Measurements
from pestfleet.engines.ies.parameters import ParameterSpace
from pestfleet_worker.errors import RunsFailedError

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Members:
    """Realizations that are left, a row each in every matrix.

    `states`: (n, state); `simulated`, `targets`: (n, all observations); `base`: (n or 1, all
    parameters), see `ParameterSpace.fill`.
    """

    realizations: tuple[str, ...]
    states: Matrix
    simulated: Matrix
    targets: Matrix
    base: Matrix

    def take(self, rows: NDArray[np.intp]) -> Members:
        """Some of them, in that order."""
        return Members(
            tuple(self.realizations[i] for i in rows),
            self.states[rows],
            self.simulated[rows],
            self.targets[rows],
            take_base(self.base, rows),
        )


def take_base(base: Matrix, rows: NDArray[np.intp]) -> Matrix:
    """Rows of `Members.base`, which may be one row for all."""
    return base if len(base) == 1 else base[rows]


@dataclass(slots=True)
class Evaluator:
    """Makes runs for states and says which realizations must be dropped.

    `runs`, `failed_runs`: all that were asked for, and those that failed. `dropped`: names.
    """

    job: Job
    space: ParameterSpace
    measurements: Measurements
    bad_phi: float
    runs: int = 0
    failed_runs: int = 0
    dropped: list[str] = field(default_factory=list)

    def evaluate(
        self, states: Matrix, base: Matrix, *, targets: Matrix, purpose: str
    ) -> tuple[Matrix, dict[int, str]]:
        """Observations (rows of states, all observations) and, by row, why one is of no use.

        That is a run that failed, a value that is not finite, or a phi above `ies_bad_phi`.
        """
        values = self.space.fill(states, base)
        result = self.job.runner.run(values, purpose=purpose)
        self.runs += len(values)
        self.failed_runs += len(result.failures)
        reasons = dict(result.failures)
        finite = np.isfinite(result.observations).all(axis=1)
        for row in np.flatnonzero(~finite).tolist():
            reasons.setdefault(row, "an observation is not a finite number")
        phi = self.measurements.measure_phi(result.observations, targets)
        for row in np.flatnonzero(finite & ~(phi <= self.bad_phi)).tolist():
            reasons.setdefault(row, f"phi {phi[row]:.4g} is above ies_bad_phi {self.bad_phi:.4g}")
        return result.observations, reasons

    def drop(self, members: Members, reasons: Mapping[int, str], *, purpose: str) -> Members:
        """The members without those rows, after a warning with names and reasons.

        Raises `RunsFailedError` if fewer than two are left.
        """
        if not reasons:
            return members
        by_reason: dict[str, list[str]] = {}
        for row in sorted(reasons):
            by_reason.setdefault(reasons[row], []).append(members.realizations[row])
            self.dropped.append(members.realizations[row])
        told = "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items())
        count = len(members.realizations)
        self.job.report.warn(
            f"{purpose}: {len(reasons)} of {count} realizations are dropped: {told}"
        )
        left = np.array([i for i in range(count) if i not in reasons], dtype=np.intp)
        if len(left) < 2:
            raise RunsFailedError(
                f"{purpose}: {len(left)} of {count} realizations are left, ies needs 2 or more",
                remedy="See why the runs failed, correct the model or narrow the bounds, and "
                "start again.",
            )
        return members.take(left)
