"""The engine glm from a control file to its files."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyemu
import pytest
from scipy.optimize import least_squares

from fake_runner import Function, make_control, make_job, make_parameter
from pestfleet.control.model import Observation, ParameterGroup, PriorInformation
from pestfleet.engines.base import Vector
from pestfleet.engines.glm import run
from pestfleet.files.matrix import read_matrix, write_text
from pestfleet.files.parameters import read_par
from pestfleet.files.residuals import read_residuals
from pestfleet_worker.errors import CaseError, RunsFailedError

TIMES = np.linspace(0.0, 5.0, 30)


def decay(x: Vector) -> Vector:
    return np.asarray(x[0] * np.exp(-x[1] * TIMES) + x[2])


def decay_case(noise: float = 0.05, **changes: object):  # type: ignore[no-untyped-def]
    measured = decay(np.array([5.0, 0.7, 1.0])) + noise * np.random.default_rng(1).normal(size=30)
    parameters = [
        make_parameter("a", 1.0, transform="log", lower=1e-3, upper=100.0, change_limit="factor"),
        make_parameter("k", 0.1, transform="log", lower=1e-3, upper=10.0, change_limit="factor"),
        make_parameter("c", 0.5, lower=-10.0, upper=10.0),
    ]
    return make_control(parameters, measured, **changes)  # type: ignore[arg-type]


def values_of(summary) -> list[float]:  # type: ignore[no-untyped-def]
    return [p["value"] for p in summary["parameters"].values()]


def test_linear_problem_is_solved_in_one_iteration(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    a, truth = rng.normal(size=(20, 4)), np.array([1.0, -2.0, 3.0, 0.5])
    control = make_control({f"p{i}": 1.0 for i in range(4)}, a @ truth)
    job, runner, report = make_job(control, lambda x: a @ x, tmp_path)
    summary = run(job)
    assert values_of(summary) == pytest.approx(truth, rel=1e-11)
    assert summary["iterations"] == 1
    assert summary["phi_initial"] == pytest.approx(np.sum((a @ truth - a @ np.ones(4)) ** 2))
    assert summary["runs"] == runner.runs
    assert [n for n, _, _ in report.iterations] == [0, 1]
    json.dumps(summary, allow_nan=False)


def test_nonlinear_problem_agrees_with_scipy(tmp_path: Path) -> None:
    control = decay_case(control_data={"phiredstp": 1e-8})
    job, _, report = make_job(control, decay, tmp_path)
    summary = run(job)
    measured = np.array([o.value for o in control.observations])
    best = least_squares(lambda x: decay(x) - measured, [1.0, 0.1, 0.5], xtol=1e-14, ftol=1e-14)
    assert values_of(summary) == pytest.approx(best.x, rel=1e-5)
    assert summary["phi"] == pytest.approx(2.0 * best.cost, rel=1e-9)
    # limits: PEST's formula in log10 space, from scipy's Jacobian
    scale = np.log(10.0) * np.array([best.x[0], best.x[1], 1.0 / np.log(10.0)])
    covariance = 2.0 * best.cost / 27.0 * np.linalg.inv((best.jac * scale).T @ (best.jac * scale))
    half = 2.0518305 * np.sqrt(np.diag(covariance))  # Student's t, 27 degrees of freedom
    for j, p in enumerate(summary["parameters"].values()):
        estimate = np.log10(p["value"]) if j < 2 else p["value"]
        upper = np.log10(p["upper95"]) if j < 2 else p["upper95"]
        lower = np.log10(p["lower95"]) if j < 2 else p["lower95"]
        assert upper - estimate == pytest.approx(half[j], rel=1e-3)
        assert estimate - lower == pytest.approx(half[j], rel=1e-3)
    assert any("central derivatives" in note for note in report.notes)


@pytest.mark.parametrize("start", [(-1.2, 1.0), (3.0, -3.0)])
def test_rosenbrock_within_bounds(tmp_path: Path, start: tuple[float, float]) -> None:
    def rosenbrock(x: Vector) -> Sequence[float]:
        return [10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]]

    parameters = [
        make_parameter(n, v, lower=-5.0, upper=5.0) for n, v in zip("xy", start, strict=True)
    ]
    data = {"noptmax": 60, "nphinored": 8, "phiredstp": 1e-10}
    group = ParameterGroup("pargp", increment_floor=1e-4)
    control = make_control(parameters, [0.0, 0.0], control_data=data, groups=[group])
    job, _, _ = make_job(control, rosenbrock, tmp_path, slots=8)
    assert values_of(run(job)) == pytest.approx([1.0, 1.0], abs=1e-4)


def test_bound_that_is_active_at_the_optimum(tmp_path: Path) -> None:
    control = decay_case()
    parameters = [control.parameters[0], control.parameters[1],
                  make_parameter("c", 0.5, lower=0.0, upper=0.8)]  # fmt: skip
    measured = [o.value for o in control.observations]
    bounded = make_control(parameters, measured, control_data={"phiredstp": 1e-8})
    job, runner, _ = make_job(bounded, decay, tmp_path)
    summary = run(job)
    best = least_squares(
        lambda x: decay(x) - measured,
        [1.0, 0.1, 0.5],
        bounds=([1e-3, 1e-3, 0.0], [100.0, 10.0, 0.8]),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-12,
    )
    assert summary["parameters"]["c"]["value"] == 0.8
    assert values_of(summary) == pytest.approx(best.x, rel=1e-4)
    assert all((m[:, 2] <= 0.8).all() for _, m in runner.asked)
    assert "held at a bound: c" in (tmp_path / "case.rec").read_text()


@pytest.mark.parametrize("scale", ["true", "false"])
def test_rank_deficient_problem(tmp_path: Path, scale: str) -> None:
    """Only a + b and c matter: the fit is perfect, a and b share the change, d stays."""

    def function(x: Vector) -> Vector:
        return np.array([x[0] + x[1], 2.0 * (x[0] + x[1]), x[2], x[0] + x[1] + x[2]])

    truth = np.array([3.0, 4.0, 5.0, 6.0])
    options = {"jac_scale": scale}
    control = make_control(dict.fromkeys("abcd", 1.0), function(truth), options=options)
    job, _, report = make_job(control, function, tmp_path)
    summary = run(job)
    assert values_of(summary) == pytest.approx([3.5, 3.5, 5.0, 1.0], rel=1e-9)
    assert summary["phi"] < 1e-18
    assert any("rank 2 of 4" in note for note in report.notes)
    width = [p["upper95"] - p["lower95"] for p in summary["parameters"].values()]
    assert width[3] == pytest.approx(2.0 * 1.959964 * 2e10 / 4.0, rel=1e-6)  # the prior's
    assert width[2] < 1e-3 * width[0]


def test_tied_fixed_scale_and_offset(tmp_path: Path) -> None:
    parameters = [
        make_parameter("k", 2.0, transform="log", lower=1e-3, upper=1e3, scale=3.0, offset=-1.0),
        make_parameter("twin", 1.0, transform="tied", tied_to="k"),
        make_parameter("still", 7.0, transform="fixed"),
        make_parameter("c", 1.0),
    ]

    def function(x: Vector) -> Vector:
        return np.array([x[0] + x[1], x[2] * x[3], x[0] * x[3]])

    truth = function(np.array([3.0 * 8.0 - 1.0, 4.0, 7.0, -2.0]))
    control = make_control(parameters, truth, control_data={"noptmax": 30})
    job, runner, _ = make_job(control, function, tmp_path)
    summary = run(job)
    assert values_of(summary) == pytest.approx([8.0, 4.0, 7.0, -2.0], rel=1e-6)
    assert summary["parameters"]["still"]["lower95"] is None
    for _, batch in runner.asked:
        assert (batch[:, 2] == 7.0).all()
        assert batch[:, 1] == pytest.approx(batch[:, 0] / 2.0, rel=1e-15)
    par = {v.name: v for v in read_par(tmp_path / "case.par").values}
    assert (par["k"].scale, par["k"].offset) == (3.0, -1.0)
    assert [par[p.name].value for p in parameters] == values_of(summary)


def test_weights_zero_weights_and_prior_information(tmp_path: Path) -> None:
    a = np.random.default_rng(8).normal(size=(6, 2))
    weights = [1.0, 2.0, 0.0, 0.5, 3.0, 0.0]
    observations = [
        Observation(f"o{i}", float(i) if w else 1e30, w, "heads" if i < 3 else "flows")
        for i, w in enumerate(weights)
    ]
    prior = PriorInformation("pi1", ((2.0, "x", False), (1.0, "y", False)), 4.0, 5.0, "prior")
    control = make_control({"x": 1.0, "y": 1.0}, observations, priors=[prior])
    job, _, _ = make_job(control, lambda x: a @ x, tmp_path)
    summary = run(job)
    w = np.array([*weights, 5.0])
    rows, right = np.vstack([a, [2.0, 1.0]]), np.array([0.0, 1.0, 0.0, 3.0, 4.0, 0.0, 4.0])
    best = np.linalg.lstsq(rows * w[:, np.newaxis], right * w)[0]
    assert values_of(summary) == pytest.approx(best, rel=1e-9)
    squares = (w * (right - rows @ best)) ** 2
    assert summary["phi"] == pytest.approx(squares.sum(), rel=1e-12)
    with (tmp_path / "case.iobj").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["total_phi"]) == pytest.approx(squares.sum(), rel=1e-12)
    assert float(last["heads"]) == pytest.approx(squares[:3].sum(), rel=1e-9)
    assert float(last["flows"]) == pytest.approx(squares[3:6].sum(), rel=1e-9)
    assert float(last["prior"]) == pytest.approx(squares[6], rel=1e-9)
    table = read_residuals(tmp_path / "case.rei")
    assert [r.name for r in table] == [*(o.name for o in observations), "pi1"]
    assert sum((r.weight * r.residual) ** 2 for r in table) == pytest.approx(summary["phi"])


def test_prior_information_of_logarithms(tmp_path: Path) -> None:
    parameters = [
        make_parameter("k", 1.0, transform="log", lower=1e-6, upper=1e6, change_limit="factor"),
        make_parameter("t", 3.0, transform="tied", tied_to="k"),
        make_parameter("c", 2.0, lower=0.1, upper=1e3),
    ]
    priors = [
        PriorInformation("p1", ((1.0, "k", True), (-1.0, "c", True)), 1.0, 1.0, "g"),
        PriorInformation("p2", ((1.0, "t", True),), np.log10(3e2), 1.0, "g"),
    ]
    control = make_control(parameters, [0.0], priors=priors, control_data={"noptmax": 30})
    job, _, _ = make_job(control, lambda x: [0.0 * x[0]], tmp_path)
    assert values_of(run(job)) == pytest.approx([100.0, 300.0, 10.0], rel=1e-6)


def test_covariance_of_observations_takes_the_place_of_weights(tmp_path: Path) -> None:
    a = np.random.default_rng(8).normal(size=(6, 2))
    root = np.random.default_rng(9).normal(size=(6, 6))
    covariance, y = root @ root.T + np.eye(6), np.arange(6.0)
    names = [f"o{i}" for i in range(1, 7)]
    write_text(tmp_path / "obs.cov", covariance[::-1, ::-1], names[::-1])
    control = make_control(
        {"x": 1.0, "y": 1.0},
        y,
        name=str(tmp_path / "case"),
        observation_covariances={"obsgp": "obs.cov"},
    )
    job, _, _ = make_job(control, lambda x: a @ x, tmp_path / "out")
    summary = run(job)
    inverse = np.linalg.inv(covariance)
    best = np.linalg.solve(a.T @ inverse @ a, a.T @ inverse @ y)
    r = y - a @ best
    assert values_of(summary) == pytest.approx(best, rel=1e-9)
    assert summary["phi"] == pytest.approx(r @ inverse @ r, rel=1e-10)


def test_same_runs_in_the_same_order_when_repeated(tmp_path: Path) -> None:
    asked = []
    for slots, folder in ((5, "a"), (5, "b"), (40, "a")):  # the third resumes the first
        job, runner, _ = make_job(decay_case(), decay, tmp_path / folder, slots=slots)
        run(job)
        asked.append([(purpose, batch.tobytes()) for purpose, batch in runner.asked])
    assert asked[0] == asked[1] == asked[2]


def test_damping_values_fill_the_fleet(tmp_path: Path) -> None:
    job, runner, _ = make_job(decay_case(), decay, tmp_path, slots=20)
    run(job)
    sizes = [len(m) for purpose, m in runner.asked if purpose.startswith("damping")]
    assert max(sizes) == 20


def test_failed_damping_values_are_ignored(tmp_path: Path) -> None:
    control = decay_case(control_data={"phiredstp": 1e-8})
    job, runner, _ = make_job(control, decay, tmp_path, fail=lambda n, p: n > 4 and n % 3 == 0)
    summary = run(job)
    good, _, _ = make_job(control, decay, tmp_path / "good")
    assert runner.failed > 3
    assert summary["failed_runs"] == runner.failed
    assert values_of(summary) == pytest.approx(values_of(run(good)), rel=1e-3)


def test_when_all_damping_values_fail_it_stops_and_keeps_the_best(tmp_path: Path) -> None:
    control = decay_case(control_data={"nphinored": 3})
    start = np.array([1.0, 0.1, 0.5])
    job, _, report = make_job(
        control, decay, tmp_path, fail=lambda n, p: bool(np.count_nonzero(p != start) > 1)
    )
    summary = run(job)
    assert values_of(summary) == [1.0, 0.1, 0.5]
    assert "NPHINORED" in summary["stop_reason"]
    assert sum("all damping values failed" in w for w in report.warnings) == summary["iterations"]


def test_what_does_not_lower_phi_is_not_taken(tmp_path: Path) -> None:
    def cliff(x: Vector) -> Vector:
        derivative = np.abs(x - [0.98, 1.0, 1.01, 1.02]).min() < 1e-12
        return x if derivative else x + 99.0

    job, _, report = make_job(make_control({"a": 1.0}, [5.0]), cliff, tmp_path)
    summary = run(job)
    assert values_of(summary) == [1.0]
    assert {phi for _, phi, _ in report.iterations} == {16.0}
    assert "No lower phi in this iteration" in (tmp_path / "case.rec").read_text()


def test_nphistp_of_one_does_not_end_it_at_once(tmp_path: Path) -> None:
    control = decay_case(control_data={"nphistp": 1, "noptmax": 4, "phiredstp": 0.0})
    job, _, _ = make_job(control, decay, tmp_path)
    assert run(job)["iterations"] == 4


def test_failed_initial_run_is_an_error_and_recorded(tmp_path: Path) -> None:
    job, _, _ = make_job(decay_case(), decay, tmp_path, fail=lambda n, p: n == 0)
    with pytest.raises(RunsFailedError, match="run with the initial values failed"):
        run(job)
    assert "STOPPED: RunsFailedError" in (tmp_path / "case.rec").read_text()


@pytest.mark.parametrize(
    ("noptmax", "runs", "present", "absent"),
    [
        (0, 1, {"par", "rei", "rec", "iobj"}, {"jco", "post.cov"}),
        (-1, 4, {"par", "rei", "jco", "jcb", "post.cov", "par.usum.csv"}, set()),
        (-2, 4, {"par", "rei", "jco", "jcb"}, {"post.cov"}),
    ],
)
def test_noptmax(
    tmp_path: Path, noptmax: int, runs: int, present: set[str], absent: set[str]
) -> None:
    control = decay_case(control_data={"noptmax": noptmax})
    job, runner, _ = make_job(control, decay, tmp_path)
    summary = run(job)
    assert runner.runs == runs
    assert summary["iterations"] == 0
    measured = np.array([o.value for o in control.observations])
    expected = np.sum((measured - decay(np.array([1.0, 0.1, 0.5]))) ** 2)
    assert summary["phi"] == pytest.approx(expected, rel=1e-12)
    files = {f.removeprefix("case.") for f in summary["files"]}
    assert present <= files
    assert not absent & files
    assert all((tmp_path / f).is_file() for f in summary["files"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"noptmax": 2}, "NOPTMAX iterations done: 2"),
        ({"phistopthresh": 1.0}, "PHISTOPTHRESH"),
        ({"phiredstp": 0.5, "nphistp": 3}, "PHIREDSTP"),
        ({"phiredstp": 0.0, "relparstp": 0.1, "nrelpar": 2}, "RELPARSTP"),
    ],
)
def test_termination(tmp_path: Path, data: dict[str, float | str], reason: str) -> None:
    job, _, report = make_job(decay_case(control_data=data), decay, tmp_path)
    summary = run(job)
    assert reason in summary["stop_reason"]
    assert report.iterations[-1][0] == summary["iterations"]
    assert summary["stop_reason"] in (tmp_path / "case.rec").read_text()


def test_phi_never_rises_and_change_limits_hold(tmp_path: Path) -> None:
    control = decay_case(control_data={"facparmax": 1.5, "relparmax": 0.5})
    job, _, report = make_job(control, decay, tmp_path)
    run(job)
    phi = [p for _, p, _ in report.iterations]
    assert phi == sorted(phi, reverse=True)
    with (tmp_path / "case.ipar").open() as file:
        rows = [[float(x) for x in row[1:]] for row in list(csv.reader(file))[1:]]
    steps = np.array(rows)
    ratio = steps[1:, :2] / steps[:-1, :2]
    assert (np.maximum(ratio, 1.0 / ratio) <= 1.5 * (1 + 1e-12)).all()
    assert (np.abs(np.diff(steps[:, 2])) <= 0.5 * np.abs(steps[:-1, 2]) * (1 + 1e-12)).all()
    assert "shortened by the change limit" in (tmp_path / "case.rec").read_text()


def test_pyemu_reads_the_files_and_agrees(tmp_path: Path) -> None:
    control = decay_case()
    job, _, _ = make_job(control, decay, tmp_path)
    summary = run(job)
    names = [p.name for p in control.parameters]
    par = pyemu.pst_utils.read_parfile(str(tmp_path / "case.par"))
    assert par.parval1.to_list() == pytest.approx(values_of(summary), rel=1e-15)
    residuals = pyemu.pst_utils.read_resfile(str(tmp_path / "case.rei"))
    phi = float((residuals.weight**2 * residuals.residual**2).sum())
    assert phi == pytest.approx(summary["phi"], rel=1e-12)
    for kind in ("jco", "jcb"):
        jacobian = pyemu.Jco.from_binary(str(tmp_path / f"case.{kind}"))
        assert jacobian.col_names == names
        assert jacobian.row_names == [o.name for o in control.observations]
    a, k, _ = values_of(summary)
    exact = np.log(10.0) * np.array(
        [a * np.exp(-k * TIMES), -a * k * TIMES * np.exp(-k * TIMES), np.full(30, 1 / np.log(10.0))]
    )
    assert jacobian.x == pytest.approx(exact.T, abs=1e-3)
    covariance = pyemu.Cov.from_ascii(str(tmp_path / "case.post.cov"))
    wanted = summary["phi"] / 27 * np.linalg.inv(jacobian.x.T @ jacobian.x)
    assert covariance.x == pytest.approx(wanted, rel=1e-6)
    with (tmp_path / "case.par.usum.csv").open() as file:
        usum = list(csv.DictReader(file))
    assert [row["name"] for row in usum] == names
    assert float(usum[0]["post_mean"]) == pytest.approx(np.log10(a))
    assert float(usum[0]["post_stdev"]) == pytest.approx(np.sqrt(wanted[0, 0]), rel=1e-6)
    assert float(usum[1]["prior_stdev"]) == pytest.approx(1.0)  # bounds 1e-3 to 10: 4 sigma


def test_jco_is_of_the_best_values_and_has_prior_information(tmp_path: Path) -> None:
    prior = PriorInformation("pi1", ((1.0, "c", False),), 1.0, 0.1, "prior")
    job, runner, _ = make_job(decay_case(priors=[prior]), decay, tmp_path)
    summary = run(job)
    matrix, rows, _ = read_matrix(tmp_path / "case.jco")
    assert rows[-1] == "pi1"
    assert matrix[-1].tolist() == [0.0, 0.0, 1.0]
    best = np.array(values_of(summary))
    assert all((np.abs(row - best) <= 0.03 * np.abs(best)).all() for row in runner.asked[-1][1])
    assert "Jacobian" in runner.asked[-1][0]


def test_record_tells_what_a_pest_user_looks_for(tmp_path: Path) -> None:
    job, _, report = make_job(decay_case(), decay, tmp_path)
    run(job)
    text = (tmp_path / "case.rec").read_text()
    for words in (
        f"Lowest phi this iteration      : {report.iterations[1][1]:.7G}",
        "RUN RECORD: CASE case",
        "OPTIMISATION ITERATION NO.        : 1",
        "Lambda = ",
        'Contribution to phi from observation group "obsgp"',
        "Maximum factor   change",
        "95% lower limit",
        "Parameter covariance matrix",
        "OPTIMISATION COMPLETE",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": 0.0}, "no observation has a weight above 0"),
        ({"transform": "fixed"}, "no parameter is adjustable"),
        ({"prior": "nobody"}, "prior information pi has parameter nobody"),
    ],
)
def test_cases_that_cannot_be_estimated(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    parameter = make_parameter("a", 1.0, transform=changes.get("transform", "none"))
    observation = Observation("o", 1.0, float(str(changes.get("weight", 1.0))), "g")
    name = str(changes.get("prior", "a"))
    priors = [PriorInformation("pi", ((1.0, name, False),), 1.0, 0.0, "g")]
    control = make_control([parameter], [observation], priors=priors)
    function: Function = lambda x: x  # noqa: E731
    job, _, _ = make_job(control, function, tmp_path)
    with pytest.raises(CaseError, match=message):
        run(job)
