"""The iterations of the damped smoother: lambda testing on a subset, as pestpp-ies does it.

PEST++ manual, "Upgrade Testing": candidates (lambda and step length) are tried on a few
realizations at once, all in one batch; the best one is then completed with the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pestfleet.engines.base import Matrix, Vector
from pestfleet.engines.ies.members import Evaluator, Members, take_base
from pestfleet.engines.ies.prior import BASE
from pestfleet.engines.ies.settings import Settings
from pestfleet.engines.ies.smoother import Steps, Subspace, make_steps, make_subspace

LEAST_LAMBDA = 1e-10
LEAST_SUBSET = 4  # fewer say little, whatever the percentage
REJECTIONS = 3  # in a row, where the control file has no NPHINORED

Record = Callable[[int, Members, Vector], None]


@dataclass(frozen=True, slots=True)
class Position:
    """Members with coordinates `z` and prior coordinates, (realizations, rank) each."""

    members: Members
    z: Matrix
    prior: Matrix

    def take(self, rows: NDArray[np.intp]) -> Position:
        return Position(self.members.take(rows), self.z[rows], self.prior[rows])


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate on the subset: new coordinates, observations, and rows that failed."""

    damping: float
    scale: float
    z: Matrix
    simulated: Matrix
    reasons: dict[int, str]
    ratio: float  # mean objective after / before, where the run worked


class DampedSmoother:
    """Iterates from the prior `members`, whose runs are made. `run` gives the last ensemble.

    `record(iteration, members, regularization)` is called at the end of each iteration;
    `regularization`: (realizations,) squared distance from the prior realization.
    """

    def __init__(
        self, evaluator: Evaluator, settings: Settings, members: Members, record: Record
    ) -> None:
        self._evaluator = evaluator
        self._measurements = evaluator.measurements
        self._settings = settings
        self._record = record
        self._subspace: Subspace
        self._subspace, z = make_subspace(members.states)
        self._position = Position(members, z, z)
        self._history = [float(self._objective(self._position).mean())]
        self._lambda = self._choose_initial_lambda()
        self._rejections = 0

    def run(self) -> tuple[Members, int]:
        """Iterate until NOPTMAX or a stop criterion. Returns the members and the iterations."""
        report = self._evaluator.job.report
        for iteration in range(1, self._settings.iterations + 1):
            self._iterate(iteration)
            position = self._position
            self._history.append(float(self._objective(position).mean()))
            self._record(iteration, position.members, _measure_distance(position))
            reason = self._find_reason_to_stop()
            if reason:
                report.note(f"ies stops after iteration {iteration}: {reason}")
                return position.members, iteration
        return self._position.members, self._settings.iterations

    def _iterate(self, iteration: int) -> None:
        before = self._position
        residuals = self._measurements.weigh_residuals(
            before.members.simulated, before.members.targets
        )
        used = self._measurements.used
        # With the residual of one-way observations that are met, which is zero, in it: so these
        # have no sensitivity.
        outputs = residuals + before.members.targets[:, used] * self._measurements.weights[used]
        steps = make_steps(before.z, before.prior, outputs, residuals)
        subset = self._choose_subset(iteration)
        best = self._choose_trial(iteration, subset, steps)
        if best is None or best.ratio > self._settings.accept_factor:
            self._reject(iteration)
            return
        self._complete(iteration, subset, steps, best)

    def _choose_subset(self, iteration: int) -> NDArray[np.intp]:
        """Rows for lambda testing: drawn anew each iteration, the base realization always."""
        names = self._position.members.realizations
        size = self._settings.subset_size
        if size <= 0:
            size = max(math.ceil(len(names) * -size / 100.0), LEAST_SUBSET)
        size = min(size, len(names))
        rng = np.random.default_rng([self._settings.seed, 3, iteration])
        order = rng.permutation(len(names))
        if BASE in names:
            base = names.index(BASE)
            order = np.array([base, *(i for i in order if i != base)])
        return np.sort(order[:size])

    def _choose_trial(self, iteration: int, subset: NDArray[np.intp], steps: Steps) -> Trial | None:
        """Try every lambda and step length on the subset; the best, or None if all runs failed."""
        part = self._position.take(subset)
        dampings = [max(self._lambda * m, LEAST_LAMBDA) for m in self._settings.lambda_multipliers]
        candidates = [(d, s) for d in dampings for s in self._settings.scale_factors]
        trials_z = [part.z + scale * steps.damp(damping)[subset] for damping, scale in candidates]
        base = part.members.base
        if len(base) > 1:
            base = np.tile(base, (len(candidates), 1))
        simulated, reasons = self._evaluator.evaluate(
            self._subspace.expand(np.vstack(trials_z)),
            base,
            targets=np.tile(part.members.targets, (len(candidates), 1)),
            purpose=f"iteration {iteration}: damping values",
        )
        before = self._objective(part)
        best: Trial | None = None
        size = len(subset)
        for number, ((damping, scale), z) in enumerate(zip(candidates, trials_z, strict=True)):
            first = number * size
            own = {row - first: why for row, why in reasons.items() if 0 <= row - first < size}
            worked = np.array([row not in own for row in range(size)])
            if not worked.any():
                continue
            outcome = simulated[first : first + size]
            moved = replace(part, z=z, members=replace(part.members, simulated=outcome))
            ratio = _divide(self._objective(moved)[worked].mean(), before[worked].mean())
            trial = Trial(damping, scale, z, outcome, own, ratio)
            if best is None or (len(own), ratio) < (len(best.reasons), best.ratio):
                best = trial
        return best

    def _complete(
        self, iteration: int, subset: NDArray[np.intp], steps: Steps, best: Trial
    ) -> None:
        """Make the chosen step with all realizations, drop what fails, keep what is better."""
        old = self._position
        count = len(old.z)
        rest = np.setdiff1d(np.arange(count), subset)
        z = old.z + best.scale * steps.damp(best.damping)
        z[subset] = best.z
        simulated = np.empty_like(old.members.simulated)
        simulated[subset] = best.simulated
        reasons = {int(subset[row]): why for row, why in best.reasons.items()}
        if len(rest):
            simulated[rest], failed = self._evaluator.evaluate(
                self._subspace.expand(z[rest]),
                take_base(old.members.base, rest),
                targets=old.members.targets[rest],
                purpose=f"iteration {iteration}",
            )
            reasons |= {int(rest[row]): why for row, why in failed.items()}
        members = replace(old.members, states=self._subspace.expand(z), simulated=simulated)
        left = np.array([row for row in range(count) if row not in reasons], dtype=np.intp)
        members = self._evaluator.drop(members, reasons, purpose=f"iteration {iteration}")
        new = Position(members, z[left], old.prior[left])
        old = old.take(left)
        before, after = self._objective(old), self._objective(new)
        if _divide(after.mean(), before.mean()) <= self._settings.accept_factor:
            self._position = new
            self._lambda = max(best.damping * self._settings.lambda_decrease, LEAST_LAMBDA)
            self._rejections = 0
            return
        better = after < before
        self._position = Position(
            _merge(new.members, old.members, better),
            np.where(better[:, np.newaxis], new.z, old.z),
            old.prior,
        )
        self._raise_lambda()
        self._evaluator.job.report.note(
            f"iteration {iteration}: the mean objective function grew; only the "
            f"{int(better.sum())} realizations that got better are changed, "
            f"lambda is now {self._lambda:.4g}"
        )

    def _reject(self, iteration: int) -> None:
        self._raise_lambda()
        self._evaluator.job.report.note(
            f"iteration {iteration}: no damping value lowers the objective function; lambda is now "
            f"{self._lambda:.4g}"
        )

    def _raise_lambda(self) -> None:
        self._lambda *= self._settings.lambda_increase
        self._rejections += 1

    def _choose_initial_lambda(self) -> float:
        """10^floor(log10(mean phi / (2 * observations))), unless given (PEST++ manual)."""
        given = self._settings.initial_lambda
        if given > 0.0:
            return given
        members = self._position.members
        phi = float(self._measurements.measure_phi(members.simulated, members.targets).mean())
        ratio = phi / (2.0 * len(self._measurements.used))
        found = 10.0 ** math.floor(math.log10(ratio)) if 1e-300 < ratio < 1e300 else LEAST_LAMBDA
        return max(found * (abs(given) or 1.0), LEAST_LAMBDA)

    def _objective(self, position: Position) -> Vector:
        """(realizations,) what each realization minimizes."""
        members = position.members
        phi = self._measurements.measure_phi(members.simulated, members.targets)
        return phi + _measure_distance(position)

    def _find_reason_to_stop(self) -> str:
        """PHIREDSTP, NPHISTP and NPHINORED on the mean objective function, as pestpp-ies."""
        settings = self._settings
        if self._rejections >= (settings.iterations_no_reduction or REJECTIONS):
            return f"no better step in {self._rejections} iterations"
        best = min(self._history)
        since = len(self._history) - 1 - self._history.index(best)
        if settings.iterations_no_reduction and since >= settings.iterations_no_reduction:
            return f"no reduction of the objective function in {since} iterations (NPHINORED)"
        if best == 0.0:
            return "the objective function is zero"
        if settings.phi_reduction is not None and settings.iterations_flat:
            near = sum((phi - best) / phi <= settings.phi_reduction for phi in self._history)
            if near >= settings.iterations_flat:
                return f"{near} iterations within PHIREDSTP of the lowest objective function"
        return ""


def _measure_distance(position: Position) -> Vector:
    return np.asarray(((position.z - position.prior) ** 2).sum(axis=1))


def _merge(new: Members, old: Members, better: NDArray[np.bool_]) -> Members:
    column = better[:, np.newaxis]
    return replace(
        old,
        states=np.where(column, new.states, old.states),
        simulated=np.where(column, new.simulated, old.simulated),
    )


def _divide(after: float, before: float) -> float:
    if before <= 0.0:
        return 1.0 if after <= 0.0 else math.inf
    ratio = float(after / before)
    return ratio if math.isfinite(ratio) else math.inf
