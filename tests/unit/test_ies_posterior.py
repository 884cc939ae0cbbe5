"""ies against what is known: the Gaussian posterior, nonlinear problems, bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fake_runner import make_control, make_job, make_parameter
from pestfleet.control.model import Observation, Parameter
from pestfleet.engines.base import Matrix, Vector
from pestfleet.engines.ies import run
from pestfleet.files.ensembles import read_ensemble

TIMES = np.linspace(0.1, 4.0, 20)


def decay(parameters: Vector) -> Vector:
    return parameters[0] * np.exp(-parameters[1] * TIMES) + parameters[2]


def make_gaussian() -> tuple[Matrix, list[Parameter], list[Observation], Vector, Matrix]:
    """Matrix, parameters, observations, posterior mean and covariance."""
    rng = np.random.default_rng(7)
    matrix = rng.normal(size=(10, 5))
    mean = np.linspace(-1.0, 2.0, 5)
    deviation = np.array([2.0, 0.5, 1.0, 1.0, 3.0])
    data = matrix @ (mean + deviation * rng.normal(size=5)) + 2.0 * rng.normal(size=10)
    parameters = [
        make_parameter(f"p{i}", mean[i], lower=mean[i] - 2 * sd, upper=mean[i] + 2 * sd)
        for i, sd in enumerate(deviation)
    ]
    observations = [Observation(f"o{i}", value, 0.5, "g") for i, value in enumerate(data)]
    prior = np.diag(deviation**2)
    gain = prior @ matrix.T @ np.linalg.inv(matrix @ prior @ matrix.T + np.eye(10) * 4.0)
    return (
        matrix,
        parameters,
        observations,
        mean + gain @ (data - matrix @ mean),
        prior - gain @ matrix @ prior,
    )


@pytest.mark.parametrize("option", [{}, {"ies_use_mda": "true"}], ids=["damped", "mda"])
def test_posterior_is_the_analytic_one(tmp_path: Path, option: dict[str, str]) -> None:
    matrix, parameters, observations, mean, covariance = make_gaussian()
    count = 1500
    control = make_control(
        parameters,
        observations,
        control_data={"noptmax": 4},
        # Bounds would cut the Gaussian off, and the base realization is no draw from it.
        options={
            "ies_num_reals": str(count),
            "ies_enforce_bounds": "false",
            "ies_add_base": "false",
            **option,
        },
    )
    job, _, _ = make_job(control, lambda p: matrix @ p, tmp_path)
    summary = run(job)
    values = read_ensemble(tmp_path / f"case.{summary['iterations']}.par.csv").values
    deviation = np.sqrt(np.diag(covariance))
    # Standard errors: of a mean sd/sqrt(n), of a standard deviation sd/sqrt(2n). The update adds
    # some, since its gain comes from a sample too.
    error = 1.0 / np.sqrt(count)
    assert np.abs(values.mean(axis=0) - mean).max() < (5 * error * deviation).max()
    assert np.abs(values.std(axis=0, ddof=1) / deviation - 1.0).max() < 4 * error
    correlation = covariance / np.outer(deviation, deviation)
    assert np.abs(np.corrcoef(values.T) - correlation).max() < 5 * error
    # Data and prior both matter here, else a wrong weight of either would not be noticed.
    ratio = deviation / np.array([2.0, 0.5, 1.0, 1.0, 3.0])
    assert ratio.min() < 0.5 and 0.8 < ratio.max() < 0.98


def test_more_iterations_leave_the_posterior_where_it_is(tmp_path: Path) -> None:
    """The prior term keeps the ensemble from collapsing, however often data are used."""
    matrix, parameters, observations, _, _ = make_gaussian()
    spreads = []
    for iterations in (4, 9):
        control = make_control(
            parameters,
            observations,
            control_data={"noptmax": iterations},
            options={"ies_num_reals": "100", "ies_enforce_bounds": "false"},
        )
        job, _, _ = make_job(control, lambda p: matrix @ p, tmp_path)
        summary = run(job)
        spreads.append([p["std"] for p in summary["parameters"].values()])
    assert np.allclose(spreads[0], spreads[1], rtol=1e-3)


@pytest.mark.parametrize("option", [{}, {"ies_use_mda": "true"}], ids=["damped", "mda"])
def test_nonlinear_problem_is_solved_within_bounds(tmp_path: Path, option: dict[str, str]) -> None:
    truth = np.array([5.0, 0.8, 1.0])
    data = decay(truth) + 0.05 * np.random.default_rng(1).normal(size=len(TIMES))
    parameters = [
        make_parameter("a", 3.0, transform="log", lower=1.0, upper=10.0),
        make_parameter("k", 0.5, transform="log", lower=0.1, upper=2.0),
        make_parameter("c", 0.0, lower=-2.0, upper=1.02),
    ]
    observations = [Observation(f"o{i}", value, 20.0, "g") for i, value in enumerate(data)]
    control = make_control(parameters, observations, control_data={"noptmax": 5}, options=option)
    job, runner, report = make_job(control, decay, tmp_path)
    summary = run(job)
    assert summary["phi"] < 3 * len(TIMES) < summary["phi_initial"] / 100
    assert report.iterations[0][1] == summary["phi_initial"]
    assert report.iterations[-1][1] == summary["phi"]
    for name, value in zip(("a", "k", "c"), truth, strict=True):
        found = summary["parameters"][name]
        assert abs(found["mean"] - value) < 4 * found["std"] + 0.05 * value
        assert 0 < found["std"] < 0.2
    asked = np.vstack([matrix for _, matrix in runner.asked])
    lower = np.array([p.lower for p in parameters])
    upper = np.array([p.upper for p in parameters])
    assert (asked >= lower).all() and (asked <= upper).all()
    assert (asked[:, 2] == 1.02).any()  # the bound was met, so the line above means something


def test_less_realizations_than_parameters(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(8, 300)) / 17.0
    parameters = [make_parameter(f"p{i}", 0.0, lower=-2.0, upper=2.0) for i in range(300)]
    observations = [Observation(f"o{i}", v, 5.0, "g") for i, v in enumerate(rng.normal(size=8))]
    control = make_control(
        parameters,
        observations,
        control_data={"noptmax": 3},
        options={"ies_num_reals": "40"},
    )
    job, _, _ = make_job(control, lambda p: matrix @ p, tmp_path)
    summary = run(job)
    assert summary["phi"] < 4 * 8 < summary["phi_initial"] / 4


def test_one_way_observations_push_only_when_they_are_not_met(tmp_path: Path) -> None:
    parameters = [make_parameter(n, 0.0, lower=-4.0, upper=4.0) for n in ("a", "b")]
    observations = [
        Observation("met", 100.0, 10.0, "less_than_x"),
        Observation("above", 3.0, 10.0, "g_x"),
    ]
    control = make_control(
        parameters,
        observations,
        control_data={"noptmax": 5},
        options={"ies_num_reals": "200", "ies_enforce_bounds": "false"},
    )
    job, _, _ = make_job(control, lambda p: p, tmp_path)
    summary = run(job)
    found = summary["parameters"]
    assert abs(found["a"]["mean"]) < 0.5 and abs(found["a"]["std"] - 2.0) < 0.4
    values = read_ensemble(tmp_path / f"case.{summary['iterations']}.par.csv").values
    assert values[:, 1].min() > 2.5
    assert found["b"]["std"] < 1.5
