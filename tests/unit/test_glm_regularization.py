from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq, minimize

from fake_runner import Function, make_control, make_job, make_parameter
from pestfleet.control.model import ControlFile, PriorInformation
from pestfleet.engines.base import Vector
from pestfleet.engines.glm import run
from pestfleet.engines.glm.regularization import find_weight_factor
from pestfleet.engines.glm.settings import Settings
from pestfleet_worker.errors import CaseError

CELLS = 12
SPREAD = np.random.default_rng(4).uniform(0.2, 1.0, size=(8, CELLS))
TRUTH = 1.0 + 0.5 * np.sin(np.arange(CELLS))


def linear(x: Vector) -> Vector:
    return np.asarray(SPREAD @ x)


def curved(x: Vector) -> Vector:
    return np.asarray(SPREAD @ (10.0 ** (x / 4.0)))


def make_case(function: Function, **data: float | str) -> ControlFile:
    """Twelve cells, eight observations with noise, and a preferred value of 1 for each cell."""
    noise = 0.1 * np.random.default_rng(6).normal(size=8)
    priors = [
        PriorInformation(f"pi{i}", ((1.0, f"p{i}", False),), 1.0, 1.0, "regul_values")
        for i in range(CELLS)
    ]
    parameters = [make_parameter(f"p{i}", 1.5, lower=-9.0, upper=9.0) for i in range(CELLS)]
    return make_control(
        parameters,
        np.asarray(function(TRUTH)) + noise,
        priors=priors,
        mode="regularization",
        control_data={"phimlim": 0.08, "phimaccept": 0.084, **data},
    )


@pytest.mark.parametrize("function", [linear, curved])
@pytest.mark.parametrize("fracphim", [0.0, 0.1])
def test_phimlim_is_reached_and_no_more_structure_than_needed(
    tmp_path: Path,
    function: Function,
    fracphim: float,
) -> None:
    control = make_case(function, fracphim=fracphim, noptmax=40)
    job, _, report = make_job(control, function, tmp_path)
    summary = run(job)
    assert 0.07 < summary["phi"] <= 0.084
    assert summary["phi_regularization"] < np.sum((TRUTH - 1.0) ** 2)
    detail = report.iterations[-1][2]
    assert detail["phi_regularization"] == summary["phi_regularization"]
    assert detail["weight_factor"] == summary["weight_factor"]
    assert "Regularization weight factor" in (tmp_path / "case.rec").read_text()


def test_linear_problem_agrees_with_the_constrained_optimum(tmp_path: Path) -> None:
    """Tikhonov's solution with the multiplier for which the measurement phi is PHIMLIM."""
    control = make_case(linear, noptmax=40)
    job, _, _ = make_job(control, linear, tmp_path)
    summary = run(job)
    y = np.array([o.value for o in control.observations])

    def solve(factor: float) -> Vector:
        normal = SPREAD.T @ SPREAD + factor**2 * np.eye(CELLS)
        return np.linalg.solve(normal, SPREAD.T @ y + factor**2 * np.ones(CELLS))

    factor = brentq(lambda f: np.sum((y - SPREAD @ solve(f)) ** 2) - 0.08, 1e-6, 1e3)
    wanted = solve(factor)
    assert summary["phi_regularization"] == pytest.approx(np.sum((wanted - 1.0) ** 2), rel=5e-3)
    found = np.array([p["value"] for p in summary["parameters"].values()])
    assert found == pytest.approx(wanted, abs=5e-3)


@pytest.mark.parametrize("function", [linear, curved])
@pytest.mark.parametrize(
    "data",
    [
        {},
        {"fracphim": 0.1},
        # A damped upgrade is kept here first, and what aims at PHIMLIM has more regularization phi.
        {"phimaccept": 0.085},
        {"phimlim": 0.5, "phimaccept": 0.6},
        {"phimlim": 0.5, "phimaccept": 0.53, "rlambda1": 100.0, "numlam": 2.0},
        {"phimlim": 1.0, "phimaccept": 1.06, "wffac": 2.0, "wftol": 0.1},
    ],
)
def test_the_end_has_the_least_regularization_phi_for_its_measurement_phi(
    tmp_path: Path, function: Function, data: dict[str, float | str]
) -> None:
    control = make_case(function, noptmax=40, **data)
    job, _, _ = make_job(control, function, tmp_path)
    summary = run(job)
    limit, accept = control.control_data["phimlim"], control.control_data["phimaccept"]
    assert isinstance(limit, float) and isinstance(accept, float)
    assert 0.9 * limit < summary["phi"] <= accept
    measured = np.array([o.value for o in control.observations])
    least = minimize(
        lambda x: np.sum((x - 1.0) ** 2),
        [p["value"] for p in summary["parameters"].values()],
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda x: summary["phi"] - np.sum((measured - function(x)) ** 2),
        },
        options={"ftol": 1e-14, "maxiter": 2000},
    )
    assert least.success
    assert summary["phi_regularization"] == pytest.approx(least.fun, rel=2e-3)


def test_record_and_summary_agree_and_say_what_decides(tmp_path: Path) -> None:
    control = make_case(linear, noptmax=40)
    job, _, _ = make_job(control, linear, tmp_path)
    summary = run(job)
    head, _, rest = (tmp_path / "case.rec").read_text().partition("OPTIMISATION ITERATION NO.")
    assert "above PHIMACCEPT 0.084: the lowest measurement phi" in head
    end = rest.partition("OPTIMISATION COMPLETE")[2]
    assert f"Measurement phi                : {summary['phi']:.7G}\n" in end
    assert f"Regularization phi             : {summary['phi_regularization']:.7G}\n" in end
    assert f"Total phi                      : {summary['phi_total']:.7G} (" in end
    factor = summary["weight_factor"]
    total = summary["phi"] + factor**2 * summary["phi_regularization"]
    assert summary["phi_total"] == pytest.approx(total, rel=1e-12)
    # An upgrade that is not kept shows why: its regularization phi is not below the starting one.
    last = rest.rpartition("OPTIMISATION ITERATION NO.")[2].partition("OPTIMISATION COMPLETE")[0]
    assert "No lower regularization phi with a measurement phi up to PHIMACCEPT 0.084" in last
    tried = [float(line.split("(")[1].split()[0]) for line in last.splitlines()
             if "Regularization phi = " in line]  # fmt: skip
    assert tried and min(tried) >= 0.9999


def test_weight_factor_meets_the_target_from_any_start() -> None:
    rng = np.random.default_rng(0)
    j, r = rng.normal(size=(20, 5)), rng.normal(size=20)
    mask = np.arange(20) >= 15
    for start in (1e-9, 1.0, 1e9):
        factor = find_weight_factor(
            j, r, mask, target=12.0, start=start, settings=Settings(wftol=1e-6)
        )
        weights = np.where(mask, factor, 1.0)
        u = np.linalg.lstsq(j * weights[:, np.newaxis], r * weights)[0]
        assert np.sum((r - j @ u)[~mask] ** 2) == pytest.approx(12.0, rel=1e-4)


def test_weight_factor_stays_in_its_range() -> None:
    rng = np.random.default_rng(0)
    j, r = rng.normal(size=(20, 5)), rng.normal(size=20)
    mask = np.arange(20) >= 15
    settings = Settings(wfmin=1e-3, wfmax=1e3)
    for target, wanted in ((0.0, 1e-3), (1e9, 1e3)):
        assert find_weight_factor(j, r, mask, target=target, start=1.0, settings=settings) == wanted


def test_regularization_without_any_is_an_error(tmp_path: Path) -> None:
    control = make_control({"a": 1.0}, [0.0], mode="regularization", control_data={"phimlim": 1.0})
    job, _, _ = make_job(control, lambda x: x, tmp_path)
    with pytest.raises(CaseError, match='starts with "regul"'):
        run(job)
