"""The prior parameter ensemble: drawn, or given by the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pestfleet.engines.base import Job, Matrix
from pestfleet.engines.ies.parameters import ParameterSpace
from pestfleet.engines.ies.settings import Settings
from pestfleet.files.ensembles import Ensemble, read_ensemble
from pestfleet.files.uncertainty import CovarianceBlock, read_covariance
from pestfleet_worker.errors import CaseError

BASE = "base"  # PEST++'s name for the realization with the control file's values and no noise


@dataclass(frozen=True, slots=True)
class Prior:
    """`states`: (realizations, state); `base`: rows for `ParameterSpace.fill`, one or as many."""

    realizations: tuple[str, ...]
    states: Matrix
    base: Matrix


def make_prior(job: Job, settings: Settings, space: ParameterSpace) -> Prior:
    """The user's ensemble if one is given, else draws from the prior covariance."""
    if settings.parameter_ensemble is not None:
        return _take_ensemble(job, settings, space, settings.parameter_ensemble)
    rng = np.random.default_rng([settings.seed, 1])
    count = settings.realizations
    states = draw(rng, count, make_covariance(job, settings, space), space)
    names = [str(i) for i in range(count)]
    if settings.add_base:
        names[-1] = BASE
        states[-1] = space.initial_state
    return Prior(tuple(names), states, space.initial[np.newaxis])


def make_covariance(job: Job, settings: Settings, space: ParameterSpace) -> list[CovarianceBlock]:
    """Prior covariance of the state: the file's, or from bounds, in blocks.

    From bounds: they are `par_sigma_range` (4) standard deviations apart, in log10 for
    log-transformed parameters (PEST++ manual, "Initial Realizations").
    """
    names = space.state_names
    if settings.prior_covariance is None:
        bounds = space.transform(np.array([space.lower, space.upper]))
        return [CovarianceBlock(names, ((bounds[1] - bounds[0]) / settings.sigma_range) ** 2)]
    blocks = read_covariance(settings.prior_covariance, parameters=space.names)
    chosen = [block for block in (block.select(set(names)) for block in blocks) if block]
    missing = sorted(set(names) - {name for block in chosen for name in block.names})
    if missing:
        raise CaseError(
            f"{settings.prior_covariance}: no uncertainty for {_shorten(missing)}",
            remedy="Add every adjustable parameter, or fix these in the control file.",
        )
    return chosen


def draw(
    rng: np.random.Generator, count: int, blocks: list[CovarianceBlock], space: ParameterSpace
) -> Matrix:
    """(count, state) Gaussian draws around the control file's initial values."""
    states = np.tile(space.initial_state, (count, 1))
    column = {name: i for i, name in enumerate(space.state_names)}
    for block in blocks:
        normal = rng.standard_normal((count, len(block.names)))
        columns = [column[name] for name in block.names]
        if block.covariance.ndim == 1:
            if (block.covariance < 0.0).any():
                raise _make_indefinite_error(block)
            states[:, columns] += normal * np.sqrt(block.covariance)
            continue
        # The symmetric root does not depend on the signs that eigenvectors happen to have.
        values, vectors = np.linalg.eigh(block.covariance)
        if values.min() < -1e-8 * max(values.max(), 0.0) or values.max() <= 0.0:
            raise _make_indefinite_error(block)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        states[:, columns] += normal @ root
    return states


def _make_indefinite_error(block: CovarianceBlock) -> CaseError:
    return CaseError(
        f"the prior covariance of {_shorten(block.names)} is not positive definite",
        remedy="Correct the file that parcov names.",
    )


def _take_ensemble(job: Job, settings: Settings, space: ParameterSpace, path: Path) -> Prior:
    limit = settings.realizations if settings.realizations_given else None
    ensemble = read_ensemble(path, limit=limit)
    values = _order_columns(job, space, ensemble, path)
    names = list(ensemble.realizations)
    if settings.add_base and BASE not in names:
        # The base realization comes on top of the user's own, none of which is thrown away.
        names.append(BASE)
        values = np.vstack([values, space.initial])
    if len(names) < 2:
        raise CaseError(
            f"{path}: {len(names)} realization, a smoother needs 2 or more",
            remedy="Add realizations.",
        )
    adjusted = values[:, space.adjustable]
    outside = (adjusted < space.lower) | (adjusted > space.upper)
    if settings.enforce_bounds and outside.any():
        which = [space.state_names[i] for i in np.flatnonzero(outside.any(axis=0))]
        job.report.warn(
            f"{path}: {int(outside.sum())} values lie outside of their bounds and are moved to "
            f"them: {_shorten(which)}"
        )
        adjusted = np.clip(adjusted, space.lower, space.upper)
    bad = np.argwhere((adjusted <= 0.0) & space.log)
    if len(bad):
        row, column = bad[0]
        raise CaseError(
            f"{path}: realization {names[row]}, {space.state_names[column]}: log-transformed, but "
            "not positive",
            remedy="Correct the value, or do not log-transform the parameter.",
        )
    return Prior(tuple(names), space.transform(adjusted), values)


def _order_columns(job: Job, space: ParameterSpace, ensemble: Ensemble, path: Path) -> Matrix:
    """(realizations, all parameters): fixed parameters may be missing, tied ones are made later."""
    column = {name: i for i, name in enumerate(ensemble.columns)}
    missing = [name for name in space.state_names if name not in column]
    if missing:
        raise CaseError(
            f"{path}: no column for {_shorten(missing)}",
            remedy="Add a column for every adjustable parameter.",
        )
    unknown = [name for name in ensemble.columns if name not in space.names]
    if unknown:
        job.report.warn(f"{path}: columns that are no parameters are ignored: {_shorten(unknown)}")
    values = np.tile(space.initial, (len(ensemble.realizations), 1))
    for i, name in enumerate(space.names):
        if name in column:
            values[:, i] = ensemble.values[:, column[name]]
    return values


def _shorten(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
