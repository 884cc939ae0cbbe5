"""The embedded engine `glm`: Gauss-Levenberg-Marquardt estimation as PEST does it.

Honours the control file's derivative settings, change limits, bounds, weights, prior information,
termination criteria and regularization mode; tries many damping values at once, since the fleet
is parallel. Not the same to the last digit as PEST or PEST++: see the modules for formulas.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pestfleet.engines.base import Job, Vector
from pestfleet.engines.glm.estimation import Estimation, Iteration, Place, build_estimation
from pestfleet.engines.glm.objective import build_objective
from pestfleet.engines.glm.output import Output
from pestfleet.engines.glm.settings import choose_scaling, read_settings
from pestfleet.engines.glm.space import build_space
from pestfleet.engines.glm.statistics import Statistics, estimate_statistics, find_limits
from pestfleet_worker.errors import CaseError

__all__ = ["run"]


def run(job: Job) -> dict[str, Any]:
    """Estimate parameters. Options: PEST and PEST++ variables by lower-case name.

    NOPTMAX 0 makes one run, -1 a Jacobian and statistics, -2 a Jacobian. The summary has
    `engine`, `iterations`, `phi` and `phi_initial` (of the measurements, in regularization mode,
    which adds `phi_regularization`, `weight_factor` and `phi_total`), `stop_reason`,
    `parameters` {name: value, lower95, upper95}, `files`, `runs`, `failed_runs`. A limit is None
    where there are no statistics or it is infinite.

    Raises `CaseError`, `ConfigurationError`, and `RunsFailedError` when the run of the initial
    values or all runs of a Jacobian fail.
    """
    control = job.control
    settings = read_settings(control, job.options)
    space = build_space(control, enforce_tied_bounds=settings.enforce_tied_bounds)
    if not space.parameters and settings.noptmax != 0:
        raise CaseError(
            f"{control.path}: no parameter is adjustable",
            remedy="Set PARTRANS of some parameter to none or log, or NOPTMAX to 0 for one run.",
        )
    objective = build_objective(control, space)
    settings = choose_scaling(settings, rows=len(objective.used), adjustable=len(space.parameters))
    if settings.unused:
        job.report.warn(f"the engine glm does not use: {', '.join(settings.unused)}")
    estimation = build_estimation(job, settings, space, objective)
    output = Output(job.output, control, settings, estimation)
    output.write_head()
    try:
        return _run(job, estimation, output)
    except BaseException as error:
        output.record.write("", f" STOPPED: {type(error).__name__}: {error}")
        raise


def _run(job: Job, estimation: Estimation, output: Output) -> dict[str, Any]:
    noptmax = estimation.settings.noptmax
    initial = estimation.run_initial() if noptmax == 0 else estimation.start()
    output.write_place(0, initial)
    job.report.iteration(0, phi=initial.phi.measurement, **_detail(estimation, initial))

    def tell(iteration: Iteration) -> None:
        output.write_iteration(iteration)
        detail = _detail(estimation, iteration.end)
        if iteration.best is not None:
            detail["damping"] = iteration.best.upgrade.damping
        job.report.iteration(iteration.number, phi=iteration.end.phi.measurement, **detail)

    if noptmax > 0:
        iterations, reason = estimation.iterate(tell)
        estimation.finish()
    else:
        iterations, reason = 0, f"NOPTMAX is {noptmax}"
    statistics = None
    if noptmax != 0:
        output.write_jacobian()
    if noptmax not in (0, -2):
        statistics = _estimate_statistics(estimation)
        output.write_statistics(statistics)
        if not statistics.method.startswith("reference variance"):
            job.report.note(f"parameter uncertainty: {statistics.method}")
    output.write_end(reason)
    job.report.note(f"stopped: {reason}")
    return _summarize(estimation, output, initial, iterations, reason, statistics)


def _detail(estimation: Estimation, place: Place) -> dict[str, float | int | str]:
    detail: dict[str, float | int | str] = {"runs": estimation.runner.runs}
    if estimation.merit.regularizing:
        detail["phi_regularization"] = place.phi.regularization
        detail["weight_factor"] = estimation.weight_factor
    return detail


def _estimate_statistics(estimation: Estimation) -> Statistics:
    measurements = ~estimation.objective.regularizing
    return estimate_statistics(
        estimation.space,
        estimation.settings,
        values=estimation.best.values,
        jacobian=estimation.weighted_jacobian()[measurements],
        phi=estimation.best.phi.measurement,
        regularized=estimation.merit.regularizing,
    )


def _summarize(
    estimation: Estimation,
    output: Output,
    initial: Place,
    iterations: int,
    reason: str,
    statistics: Statistics | None,
) -> dict[str, Any]:
    best = estimation.best
    full: Vector = estimation.space.expand(best.values[None, :])[0]
    limits: dict[str, tuple[float | None, float | None]] = {}
    if statistics is not None:
        lower, upper = find_limits(estimation.space, statistics)
        limits = {
            name: (_finite(a), _finite(b))
            for name, a, b in zip(estimation.space.names, lower, upper, strict=True)
        }
    summary: dict[str, Any] = {
        "engine": "glm",
        "iterations": iterations,
        "phi": best.phi.measurement,
        "phi_initial": initial.phi.measurement,
        "stop_reason": reason,
        "parameters": {
            p.name: {
                "value": float(value),
                "lower95": limits.get(p.name, (None, None))[0],
                "upper95": limits.get(p.name, (None, None))[1],
            }
            for p, value in zip(output.control.parameters, full, strict=True)
        },
        "files": sorted(output.files),
        "runs": estimation.runner.runs,
        "failed_runs": estimation.runner.failed,
    }
    if estimation.merit.regularizing:
        summary["phi_regularization"] = best.phi.regularization
        summary["weight_factor"] = estimation.weight_factor
        summary["phi_total"] = best.phi.total(estimation.weight_factor)
    return summary


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return float(value) if np.isfinite(value) else None
