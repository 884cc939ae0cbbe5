"""Measured values with their weights and noise, and how far simulated values are from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pestfleet.control.model import ControlFile
from pestfleet.engines.base import Job, Matrix, Vector
from pestfleet.engines.ies.prior import BASE
from pestfleet.engines.ies.settings import Settings
from pestfleet.files.ensembles import read_ensemble
from pestfleet_worker.errors import CaseError

# Groups of one-way observations, by how their names begin (PEST++ manual, "Observation Groups").
LESS_THAN = ("l_", "less_", "<@")
GREATER_THAN = ("g_", "greater_", ">@")


@dataclass(frozen=True, slots=True)
class Measurements:
    """Arrays over all observations, except `used`: columns with a weight above zero."""

    names: tuple[str, ...]
    values: Vector
    weights: Vector
    deviations: Vector  # of the noise; 0 where there is none
    sense: NDArray[np.int8]  # 1: simulated should be above, -1: below, 0: equal
    used: NDArray[np.intp]

    def weigh_residuals(self, simulated: Matrix, targets: Matrix) -> Matrix:
        """(realizations, used) weight * (simulated - target), 0 for one-way ones that are met.

        `simulated` and `targets`: (realizations, all observations); `targets` may have one row.
        """
        residuals = simulated[:, self.used] - targets[:, self.used]
        sense = self.sense[self.used]
        residuals[:, sense < 0] = np.maximum(residuals[:, sense < 0], 0.0)
        residuals[:, sense > 0] = np.minimum(residuals[:, sense > 0], 0.0)
        return residuals * self.weights[self.used]

    def measure_phi(self, simulated: Matrix, targets: Matrix | None = None) -> Vector:
        """(realizations,) sum of squared weighted residuals; `targets` None: measured values."""
        chosen = self.values[np.newaxis] if targets is None else targets
        with np.errstate(over="ignore"):  # infinite for a realization that went astray
            return np.asarray((self.weigh_residuals(simulated, chosen) ** 2).sum(axis=1))

    def draw_noise(self, rng: np.random.Generator, realizations: tuple[str, ...]) -> Matrix:
        """(realizations, all observations) draws of noise, none for the base realization."""
        noise = rng.standard_normal((len(realizations), len(self.names))) * self.deviations
        noise[[name == BASE for name in realizations]] = 0.0
        return noise


def make_measurements(control: ControlFile, *, no_noise: bool) -> Measurements:
    """Noise: 1 / weight, or the column `standard_deviation` of a version 2 table."""
    observations = control.observations
    weights = np.array([observation.weight for observation in observations])
    sense = np.array(
        [
            -1 if o.group.startswith(LESS_THAN) else 1 if o.group.startswith(GREATER_THAN) else 0
            for o in observations
        ],
        dtype=np.int8,
    )
    used = weights > 0.0
    deviations = np.zeros(len(weights))
    deviations[used] = 1.0 / weights[used]
    given = control.observation_data.get("standard_deviation", {})
    for i, observation in enumerate(observations):
        text = given.get(observation.name, "").strip()
        if not text:
            continue
        try:
            deviation = float(text)
        except ValueError:
            deviation = math.nan
        if math.isnan(deviation):  # how tables say that there is none
            continue
        if deviation < 0.0 or math.isinf(deviation):
            raise CaseError(
                f"{observation.place or control.path}: observation {observation.name}: "
                f"standard_deviation {text}",
                remedy="Give a positive number, or none.",
            )
        deviations[i] = deviation
    # A one-way observation states what is known, not what was measured: it gets no noise.
    deviations[~used | (sense != 0)] = 0.0
    if no_noise:
        deviations[:] = 0.0
    return Measurements(
        names=tuple(observation.name for observation in observations),
        values=np.array([observation.value for observation in observations]),
        weights=weights,
        deviations=deviations,
        sense=sense,
        used=np.flatnonzero(used),
    )


def make_targets(
    job: Job, settings: Settings, measurements: Measurements, realizations: tuple[str, ...]
) -> Matrix:
    """(realizations, all observations) measured values with noise, drawn or the user's own."""
    path = settings.observation_ensemble
    if path is None:
        rng = np.random.default_rng([settings.seed, 2])
        return measurements.values + measurements.draw_noise(rng, realizations)
    ensemble = read_ensemble(path)
    column = {name: i for i, name in enumerate(ensemble.columns)}
    missing = [n for n in (measurements.names[i] for i in measurements.used) if n not in column]
    if missing:
        raise CaseError(
            f"{path}: no column for {', '.join(missing[:5])}",
            remedy="Add a column for every observation with a weight above zero.",
        )
    row = {name: i for i, name in enumerate(ensemble.realizations)}
    own = [name for name in realizations if name != BASE or name in row]
    if all(name in row for name in own):
        rows = [row[name] for name in own]
    elif len(row) >= len(own):
        job.report.note(f"{path}: realizations are taken in the order of the file")
        rows = list(range(len(own)))
    else:
        raise CaseError(
            f"{path}: {len(row)} realizations for {len(own)} of the parameter ensemble",
            remedy="Give both the same realizations.",
        )
    known = [i for i, name in enumerate(measurements.names) if name in column]
    taken = [column[measurements.names[i]] for i in known]
    targets = np.tile(measurements.values, (len(realizations), 1))
    places = [i for i, name in enumerate(realizations) if name in own]
    targets[np.ix_(places, known)] = ensemble.values[np.ix_(rows, taken)]
    return targets
