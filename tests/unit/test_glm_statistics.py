from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from fake_runner import make_control, make_parameter
from pestfleet.engines.glm.settings import Settings
from pestfleet.engines.glm.space import ParameterSpace, build_space
from pestfleet.engines.glm.statistics import estimate_statistics, find_limits


def make_space(count: int) -> ParameterSpace:
    return build_space(
        make_control(
            [make_parameter(f"p{i}", 2.0, lower=0.0, upper=8.0) for i in range(count)], [0.0]
        )
    )


def test_overdetermined_covariance_is_pests() -> None:
    j = np.random.default_rng(1).normal(size=(12, 3)) * [1.0, 1e5, 1e-5]
    space = make_space(3)
    found = estimate_statistics(
        space, Settings(), values=space.initial, jacobian=j, phi=18.0, regularized=False
    )
    assert found.covariance == pytest.approx(2.0 * np.linalg.inv(j.T @ j), rel=1e-9)
    assert found.degrees_of_freedom == 9
    half = t.ppf(0.975, 9) * np.sqrt(np.diag(found.covariance))
    lower, upper = find_limits(space, found)
    assert upper == pytest.approx(2.0 + half)
    assert lower == pytest.approx(2.0 - half)
    assert np.diag(found.correlation) == pytest.approx(np.ones(3))


@pytest.mark.parametrize(("rows", "regularized"), [(2, False), (12, True)])
def test_otherwise_the_prior_is_conditioned(rows: int, regularized: bool) -> None:
    j = np.random.default_rng(1).normal(size=(rows, 3))
    space = make_space(3)
    found = estimate_statistics(
        space, Settings(), values=space.initial, jacobian=j, phi=18.0, regularized=regularized
    )
    variance = 18.0 / 9.0 if rows == 12 else 1.0
    prior = np.eye(3) * (8.0 / 4.0) ** 2
    wanted = np.linalg.inv(j.T @ j / variance + np.linalg.inv(prior))
    assert found.covariance == pytest.approx(wanted, rel=1e-9)
    schur = (
        prior - prior @ j.T @ np.linalg.inv(j @ prior @ j.T + variance * np.eye(rows)) @ j @ prior
    )
    assert found.covariance == pytest.approx(schur, rel=1e-9)
    assert "prior from the bounds" in found.method
