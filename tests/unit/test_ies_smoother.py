"""The update itself: its algebra, and how steps are tried, completed and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fake_runner import FunctionRunner, make_control, make_job, make_parameter
from pestfleet.control.model import ControlFile, Observation
from pestfleet.engines.base import Vector
from pestfleet.engines.ies import run
from pestfleet.engines.ies.smoother import make_steps, make_subspace
from pestfleet.files.ensembles import read_ensemble

MATRIX = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.3]])


def test_subspace_gives_the_states_back_with_unit_covariance() -> None:
    rng = np.random.default_rng(0)
    scales = 10.0 ** np.linspace(-8, 8, 30)
    for count, rank in ((8, 7), (200, 30)):
        states = 5.0 * scales + scales * rng.normal(size=(count, 30))
        subspace, z = make_subspace(states)
        assert z.shape == (count, rank)
        assert np.allclose(subspace.expand(z) / scales, states / scales)
        assert np.allclose(np.cov(z.T), np.eye(rank))
        assert np.allclose(z.mean(axis=0), 0.0)


def test_a_parameter_that_does_not_vary_stays() -> None:
    states = np.random.default_rng(0).normal(size=(10, 3))
    states[:, 1] = 4.0
    subspace, z = make_subspace(states)
    assert z.shape == (10, 2)
    assert (subspace.expand(z + 1.0)[:, 1] == 4.0).all()


def test_undamped_step_solves_a_linear_problem_at_once() -> None:
    """The minimum of |z - z0|^2 + |A z - d|^2, from any ensemble, not only from the prior."""
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(6, 3))
    prior = rng.normal(size=(12, 3))
    targets = rng.normal(size=(12, 6))
    best = (prior + targets @ matrix) @ np.linalg.inv(np.eye(3) + matrix.T @ matrix)
    for z in (prior, prior * [1.0, 0.1, 3.0] + 2.0):
        steps = make_steps(z, prior, z @ matrix.T, z @ matrix.T - targets)
        assert np.allclose(z + steps.damp(0.0), best)
        lengths = [np.linalg.norm(steps.damp(damping)) for damping in (0.0, 1.0, 10.0, 1e6)]
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[-1] < 1e-3


def make_linear(**options: str) -> ControlFile:
    return make_control(
        [make_parameter(n, 0.0, lower=-2.0, upper=2.0) for n in ("a", "b")],
        [Observation(f"o{i}", v, 2.0, "g") for i, v in enumerate((3.0, -1.0, 4.0))],
        control_data={"noptmax": 1},
        options={
            "ies_num_reals": "20",
            "ies_enforce_bounds": "false",
            "ies_lambda_mults": "1",
            "ies_initial_lambda": "2",
            **options,
        },
    )


def test_the_chosen_candidate_is_completed_with_all_realizations(tmp_path: Path) -> None:
    prior, moved = [], []
    for scale in ("1", "0.5"):
        control = make_linear(lambda_scale_fac=scale, ies_subset_size="5")
        job, runner, _ = make_job(control, lambda p: MATRIX @ p, tmp_path)
        run(job)
        purposes = [(purpose, len(matrix)) for purpose, matrix in runner.asked]
        assert purposes == [
            ("prior ensemble", 20),
            ("iteration 1: damping values", 5),
            ("iteration 1", 15),
        ]
        prior.append(runner.asked[0][1])
        moved.append(read_ensemble(tmp_path / "case.1.par.csv").values)
    assert (prior[0] == prior[1]).all()
    assert np.allclose(moved[1] - prior[1], 0.5 * (moved[0] - prior[0]))
    assert np.abs(moved[0] - prior[0]).min() > 1e-3


def test_all_candidates_are_tried_in_one_batch(tmp_path: Path) -> None:
    control = make_linear(ies_lambda_mults="0.1,1,10", lambda_scale_fac="0.5,1")
    job, runner, _ = make_job(control, lambda p: MATRIX @ p, tmp_path)
    run(job)
    assert [len(matrix) for _, matrix in runner.asked] == [20, 6 * 4, 16]


class Sabotage:
    """The linear model; runs with a number in `bad` give values far from the measured ones."""

    def __init__(self, bad: range) -> None:
        self.bad = bad
        self.runner: FunctionRunner | None = None

    def __call__(self, parameters: Vector) -> Vector:
        assert self.runner is not None
        far = 1e4 if self.runner.runs - 1 in self.bad else 0.0
        return MATRIX @ parameters + far


def run_sabotaged(tmp_path: Path, bad: range) -> tuple[list[str], np.ndarray, np.ndarray]:
    function = Sabotage(bad)
    control = make_linear(ies_subset_size="5", lambda_scale_fac="1")
    job, runner, report = make_job(control, function, tmp_path)
    function.runner = runner
    run(job)
    ensembles = [read_ensemble(tmp_path / f"case.{i}.par.csv").values for i in (0, 1)]
    return report.notes[1:], ensembles[0], ensembles[1]


def test_only_what_got_better_is_changed_when_the_mean_grows(tmp_path: Path) -> None:
    notes, before, after = run_sabotaged(tmp_path, range(25, 28))
    assert notes == [
        "iteration 1: the mean objective function grew; only the 17 realizations that got better "
        "are changed, lambda is now 20"
    ]
    assert (before == after).all(axis=1).sum() == 3
    observed = read_ensemble(tmp_path / "case.1.obs.csv").values
    assert np.allclose(observed, after @ MATRIX.T)


def test_nothing_is_changed_when_no_candidate_is_better(tmp_path: Path) -> None:
    notes, before, after = run_sabotaged(tmp_path, range(20, 25))
    assert notes == [
        "iteration 1: no damping value lowers the objective function; lambda is now 20"
    ]
    assert (before == after).all()


def test_it_gives_up_after_nphinored_refusals(tmp_path: Path) -> None:
    function = Sabotage(range(20, 10_000))
    control = make_linear(ies_subset_size="5")
    control.control_data.update({"noptmax": 50, "nphinored": 4})
    job, runner, report = make_job(control, function, tmp_path)
    function.runner = runner
    assert run(job)["iterations"] == 4
    assert report.notes[-1] == ("ies stops after iteration 4: no better step in 4 iterations")


@pytest.mark.parametrize(("given", "expected"), [("0", 1e4), ("-0.5", 5e3), ("7", 7.0)])
def test_initial_lambda_follows_phi_as_in_pestpp_ies(
    tmp_path: Path, given: str, expected: float
) -> None:
    """10^floor(log10(phi / (2 n))): phi is about 3 * (2 * 200)^2 here, n is 3."""
    control = make_linear(ies_initial_lambda=given, ies_no_noise="true", ies_subset_size="5")
    job, runner, report = make_job(control, lambda p: MATRIX @ p + 200.0, tmp_path)
    function = Sabotage(range(20, 10_000))
    function.runner = runner
    runner._function = lambda p: function(p) + 200.0
    run(job)
    assert report.notes[-1].endswith(f"lambda is now {10 * expected:.4g}")
