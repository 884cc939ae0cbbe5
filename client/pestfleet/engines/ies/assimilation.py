"""Multiple data assimilation (ES-MDA), with ies_use_mda(true).

Emerick and Reynolds (2013), "Ensemble smoother with multiple data assimilation"; the update is
that of the library iterative-ensemble-smoother. NOPTMAX is the number of assimilations; their
inflation factors follow ies_mda_init_fac and ies_mda_dec_fac and are scaled so that their
reciprocals sum to one, which makes the result right for a linear model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pestfleet.engines.ies.members import Evaluator, Members
from pestfleet.engines.ies.settings import Settings

Record = Callable[[int, Members], None]


def assimilate(
    evaluator: Evaluator, settings: Settings, members: Members, record: Record
) -> tuple[Members, int]:
    """Assimilate NOPTMAX times from the prior `members`, whose runs are made.

    `record(iteration, members)` is called after the runs of each. Noise is drawn anew each time;
    with the user's own observation ensemble it is that ensemble's every time.
    """
    from iterative_ensemble_smoother import ESMDA

    measurements = evaluator.measurements
    used = measurements.used
    count = settings.iterations
    values = measurements.values[used]
    smoother = ESMDA(
        covariance=measurements.weights[used] ** -2.0,
        observations=values,
        alpha=settings.assimilation_initial
        * settings.assimilation_decrease ** np.arange(count, dtype=np.float64),
    )
    for iteration in range(1, count + 1):
        if settings.observation_ensemble is None:
            rng = np.random.default_rng([settings.seed, 4, iteration])
            noise = measurements.draw_noise(rng, members.realizations)
        else:
            noise = members.targets - measurements.values
        residuals = measurements.weigh_residuals(members.simulated, measurements.values[np.newaxis])
        # One-way observations that are met count as equal to the measured value.
        outputs = values + residuals / measurements.weights[used]
        smoother.prepare_assimilation(
            Y=outputs.T, truncation=1.0, observation_perturbations=noise[:, used].T
        )
        states = smoother.assimilate_batch(X=members.states.T).T
        purpose = f"iteration {iteration}"
        simulated, reasons = evaluator.evaluate(
            states, members.base, targets=members.targets, purpose=purpose
        )
        members = replace(members, states=states, simulated=simulated)
        members = evaluator.drop(members, reasons, purpose=purpose)
        record(iteration, members)
    return members, count
