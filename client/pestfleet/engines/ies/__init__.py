"""ies: iterative ensemble smoother, with the options and files of pestpp-ies.

Two ways of updating the ensemble, on the same prior, noise, bounds and files:

* the default, `damped.DampedSmoother`: Levenberg-Marquardt steps with the prior term, lambda
  tested on a subset; for nonlinear models;
* with ies_use_mda(true), `assimilation.assimilate`: ES-MDA by a library.

The library has ES-MDA only, which asks no runs for testing but takes every step as it comes;
that is why the first way is here and is the default.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pestfleet.engines.base import Job, Matrix, Vector
from pestfleet.engines.ies.assimilation import assimilate
from pestfleet.engines.ies.damped import DampedSmoother
from pestfleet.engines.ies.measurements import Measurements, make_measurements, make_targets
from pestfleet.engines.ies.members import Evaluator, Members
from pestfleet.engines.ies.parameters import ParameterSpace, make_parameter_space
from pestfleet.engines.ies.prior import BASE, make_prior
from pestfleet.engines.ies.records import Records
from pestfleet.engines.ies.settings import Settings, read_settings
from pestfleet_worker.errors import CaseError, RunsFailedError


def run(job: Job) -> dict[str, Any]:
    """Condition an ensemble of parameters on the control file's observations.

    Returns: engine, iterations, phi and phi_initial (ensemble means, without noise),
    realizations, dropped (names), files (names in `job.output`), runs, failed_runs, parameters
    {name: {mean, std}}. Raises `CaseError` for a case that cannot be run so, `RunsFailedError`
    when fewer than two realizations are left.
    """
    settings = read_settings(job)
    space = make_parameter_space(job.control, enforce_bounds=settings.enforce_bounds)
    measurements = make_measurements(job.control, no_noise=settings.no_noise)
    evaluator = Evaluator(job, space, measurements, settings.bad_phi)
    records = Records(
        job.output,
        job.control.name,
        parameters=space.names,
        observations=measurements.names,
    )
    if settings.iterations == 0:
        return _run_base(job, evaluator, records)
    if not len(space.adjustable):
        raise CaseError(
            f"{job.control.path}: no adjustable parameter",
            remedy="Give a parameter the transformation none or log.",
        )
    if settings.iterations > 0 and not len(measurements.used):
        raise CaseError(
            f"{job.control.path}: no observation has a weight above zero",
            remedy="Give measured values a weight, or set NOPTMAX to -1 for the prior only.",
        )
    history = _History(job, records, space, measurements, evaluator)
    members = _run_prior(job, settings, evaluator, records)
    history.record(0, members)
    iterations = 0
    if settings.iterations > 0 and settings.multiple_assimilation:
        members, iterations = assimilate(evaluator, settings, members, history.record)
    elif settings.iterations > 0:
        smoother = DampedSmoother(evaluator, settings, members, history.record)
        members, iterations = smoother.run()
    values = space.fill(members.states, members.base)
    dropped = len(evaluator.dropped)
    gap = f"{dropped} realizations were dropped, for their runs failed"
    return {
        **({"incomplete": gap} if dropped else {}),
        "engine": "ies",
        "iterations": iterations,
        "phi": history.mean_phi[-1],
        "phi_initial": history.mean_phi[0],
        "realizations": len(members.realizations),
        "dropped": evaluator.dropped,
        "files": records.files,
        "runs": evaluator.runs,
        "failed_runs": evaluator.failed_runs,
        "parameters": _summarize(space, values),
    }


def _run_prior(job: Job, settings: Settings, evaluator: Evaluator, records: Records) -> Members:
    """Make the prior ensemble and its runs."""
    prior = make_prior(job, settings, evaluator.space)
    targets = make_targets(job, settings, evaluator.measurements, prior.realizations)
    records.write_noise(prior.realizations, targets)
    job.report.note(
        f"ies: {len(prior.realizations)} realizations, "
        f"{len(evaluator.space.adjustable)} adjustable parameters, "
        f"{len(evaluator.measurements.used)} observations with weight, seed {settings.seed}"
    )
    purpose = "prior ensemble"
    simulated, reasons = evaluator.evaluate(
        prior.states, prior.base, targets=targets, purpose=purpose
    )
    members = Members(prior.realizations, prior.states, simulated, targets, prior.base)
    return evaluator.drop(members, reasons, purpose=purpose)


class _History:
    """Files and report at the end of each iteration."""

    def __init__(
        self,
        job: Job,
        records: Records,
        space: ParameterSpace,
        measurements: Measurements,
        evaluator: Evaluator,
    ) -> None:
        self._job = job
        self._records = records
        self._space = space
        self._measurements = measurements
        self._evaluator = evaluator
        self.mean_phi: list[float] = []

    def record(self, iteration: int, members: Members, distance: Vector | None = None) -> None:
        """`distance`: the prior term of each realization, where the method has one."""
        names = members.realizations
        values = self._space.fill(members.states, members.base)
        self._records.write_parameters(iteration, names, values)
        self._records.write_observations(iteration, names, members.simulated)
        actual = self._measurements.measure_phi(members.simulated)
        phis = {
            "actual": actual,
            "meas": self._measurements.measure_phi(members.simulated, members.targets),
        }
        self._records.write_phi(iteration, self._evaluator.runs, names, phis)
        self.mean_phi.append(float(actual.mean()))
        detail = {} if distance is None else {"prior_term": float(distance.mean())}
        self._job.report.iteration(
            iteration,
            phi=self.mean_phi[-1],
            phi_min=float(actual.min()),
            phi_max=float(actual.max()),
            phi_std=float(actual.std(ddof=1)),
            realizations=len(names),
            **detail,
        )


def _run_base(job: Job, evaluator: Evaluator, records: Records) -> dict[str, Any]:
    """NOPTMAX 0: one run with the initial values."""
    space, measurements = evaluator.space, evaluator.measurements
    # Straight from the control file: back from log10 a value would differ in its last bit.
    values = space.initial[np.newaxis]
    result = job.runner.run(values, purpose="initial values")
    if result.failures:
        raise RunsFailedError(
            f"the run with the initial values failed: {result.failures[0]}",
            remedy="Run 'pestfleet check --run' on the case, correct it and start again.",
        )
    phi = float(measurements.measure_phi(result.observations)[0])
    records.write_parameters(BASE, [BASE], values)
    records.write_observations(BASE, [BASE], result.observations)
    job.report.iteration(0, phi=phi, phi_min=phi, phi_max=phi, phi_std=0.0, realizations=1)
    return {
        "engine": "ies",
        "iterations": 0,
        "phi": phi,
        "phi_initial": phi,
        "realizations": 1,
        "dropped": [],
        "files": records.files,
        "runs": 1,
        "failed_runs": 0,
        "parameters": _summarize(space, values),
    }


def _summarize(space: ParameterSpace, values: Matrix) -> dict[str, dict[str, float]]:
    mean = values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(mean))
    return {
        name: {"mean": float(mean[i]), "std": float(spread[i])}
        for i, name in enumerate(space.names)
    }
