"""ies as a user meets it: files, failures, determinism, options, errors."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyemu
import pytest

from fake_runner import make_control, make_job, make_parameter
from pestfleet.control.model import ControlFile, Observation, Place
from pestfleet.engines.base import Vector
from pestfleet.engines.ies import run
from pestfleet.files.ensembles import read_ensemble, write_ensemble
from pestfleet.files.matrix import write_text
from pestfleet_worker.errors import CaseError, ConfigurationError, RunsFailedError


def model(parameters: Vector) -> Vector:
    a, b, *_ = parameters
    return np.array([a + b, a * b, a - 2 * b, b])


def make_case(
    tmp_path: Path, options: dict[str, str] | None = None, noptmax: int | None = 2
) -> ControlFile:
    parameters = [
        make_parameter("a", 2.0, transform="log", lower=0.5, upper=8.0),
        make_parameter("b", 1.0, lower=-1.0, upper=3.0),
        make_parameter("fix", 7.0, transform="fixed"),
        make_parameter("child", 4.0, transform="tied", tied_to="a"),
    ]
    observations = [
        Observation("o1", 4.0, 10.0, "g1"),
        Observation("o2", 3.5, 4.0, "g1"),
        Observation("o3", 0.5, 5.0, "g2"),
        Observation("o4", 50.0, 0.0, "g2"),
    ]
    control = make_control(
        parameters,
        observations,
        control_data={} if noptmax is None else {"noptmax": noptmax},
        options={"ies_num_reals": "12", **(options or {})},
    )
    return replace(control, path=tmp_path / "case.pst")


def make_pst() -> pyemu.Pst:
    return pyemu.Pst.from_par_obs_names(["a", "b", "fix", "child"], ["o1", "o2", "o3", "o4"])


def test_files_are_those_of_pestpp_ies_and_pyemu_reads_them(tmp_path: Path) -> None:
    job, runner, _ = make_job(make_case(tmp_path), model, tmp_path / "out")
    summary = run(job)
    expected = {f"case.phi.{kind}.csv" for kind in ("actual", "meas")}
    for label in ("obs+noise", *(f"{i}.{k}" for i in range(3) for k in ("par", "obs"))):
        expected |= {f"case.{label}.csv", f"case.{label}.jcb"}
    assert set(summary["files"]) == expected
    assert {path.name for path in job.output.iterdir()} == expected
    pst = make_pst()
    for iteration in range(3):
        frames = []
        for kind, reader in (("par", pyemu.ParameterEnsemble), ("obs", pyemu.ObservationEnsemble)):
            stem = job.output / f"case.{iteration}.{kind}"
            table = reader.from_csv(pst=pst, filename=f"{stem}.csv", float_precision="round_trip")
            binary = reader.from_binary(pst=pst, filename=f"{stem}.jcb")
            assert [str(i) for i in table.index] == [str(i) for i in binary.index]
            assert list(table.columns) == list(binary.columns)
            assert (table.values == binary.values).all()
            frames.append(table)
        assert list(frames[0].index)[-1] == "base"
        again = np.array([model(row) for row in frames[0].values])
        assert (again == frames[1].values).all()  # bit-equal, parameters as the model got them
    noise = pyemu.ObservationEnsemble.from_csv(
        pst=pst, filename=str(job.output / "case.obs+noise.csv")
    )
    assert noise.shape == (12, 4)
    assert (noise.loc["base"].to_numpy() == [4.0, 3.5, 0.5, 50.0]).all()
    assert (noise.values[:, 3] == 50.0).all() and (noise.values[:-1, :3].std(axis=0) > 0).all()
    assert summary["runs"] == runner.runs == sum(len(m) for _, m in runner.asked)


def test_phi_file_agrees_with_the_ensembles(tmp_path: Path) -> None:
    job, _, report = make_job(make_case(tmp_path), model, tmp_path)
    summary = run(job)
    with (tmp_path / "case.phi.actual.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["0", "1", "2"]
    assert int(rows[-1]["total_runs"]) == summary["runs"]
    simulated = read_ensemble(tmp_path / "case.2.obs.csv")
    residuals = (simulated.values - [4.0, 3.5, 0.5, 50.0]) * [10.0, 4.0, 5.0, 0.0]
    phi = (residuals**2).sum(axis=1)
    for name, value in zip(simulated.realizations, phi, strict=True):
        assert float(rows[-1][name]) == pytest.approx(value)
    assert float(rows[-1]["mean"]) == pytest.approx(phi.mean()) == pytest.approx(summary["phi"])
    assert float(rows[-1]["standard_deviation"]) == pytest.approx(phi.std(ddof=1))
    assert float(rows[-1]["min"]) == pytest.approx(phi.min())
    assert float(rows[-1]["max"]) == pytest.approx(phi.max())
    number, mean, detail = report.iterations[-1]
    assert (number, mean, detail["realizations"]) == (2, summary["phi"], 12)
    assert detail["phi_min"] == pytest.approx(phi.min())


def test_fixed_and_tied_parameters_and_base_values(tmp_path: Path) -> None:
    job, runner, _ = make_job(make_case(tmp_path), model, tmp_path)
    run(job)
    asked = np.vstack([matrix for _, matrix in runner.asked])
    assert (asked[:, 2] == 7.0).all()
    assert (asked[:, 3] == asked[:, 0] * 2.0).all()
    assert np.ptp(asked[:, 0]) > 0
    prior = read_ensemble(tmp_path / "case.0.par.csv")
    assert prior.values[-1] == pytest.approx([2.0, 1.0, 7.0, 4.0], rel=1e-15)


def test_prior_comes_from_bounds(tmp_path: Path) -> None:
    case = make_case(tmp_path, {"ies_num_reals": "2000", "ies_enforce_bounds": "false"}, -1)
    job, _, _ = make_job(case, model, tmp_path)
    summary = run(job)
    assert summary["iterations"] == 0 and summary["runs"] == 2000
    values = read_ensemble(tmp_path / "case.0.par.csv").values
    assert np.log10(values[:, 0]).mean() == pytest.approx(np.log10(2.0), abs=0.03)
    assert np.log10(values[:, 0]).std() == pytest.approx(np.log10(16.0) / 4.0, rel=0.06)
    assert values[:, 1].std() == pytest.approx(1.0, rel=0.06)


def test_prior_covariance_from_a_file(tmp_path: Path) -> None:
    covariance = np.array([[0.04, 0.03], [0.03, 0.09]])
    write_text(tmp_path / "prior.cov", covariance, ["b", "a"])
    options = {"ies_num_reals": "3000", "parcov": "prior.cov", "ies_enforce_bounds": "false"}
    job, _, _ = make_job(make_case(tmp_path, options, -1), model, tmp_path)
    run(job)
    values = read_ensemble(tmp_path / "case.0.par.csv").values
    found = np.cov(values[:, 1], np.log10(values[:, 0]))
    assert np.allclose(found, covariance, atol=0.007)


def test_same_seed_asks_for_the_same_runs(tmp_path: Path) -> None:
    asked = []
    for options in ({}, {}, {"rand_seed": "5"}):
        job, runner, _ = make_job(make_case(tmp_path, options), model, tmp_path)
        run(job)
        asked.append(runner.asked)
    assert [purpose for purpose, _ in asked[0]] == [purpose for purpose, _ in asked[1]]
    for (_, first), (_, second) in zip(asked[0], asked[1], strict=True):
        assert first.tobytes() == second.tobytes()
    assert asked[0][0][1].tobytes() != asked[2][0][1].tobytes()


@pytest.mark.parametrize("option", [{}, {"ies_use_mda": "true"}], ids=["damped", "mda"])
def test_failed_realizations_are_dropped_and_named(tmp_path: Path, option: dict[str, str]) -> None:
    case = make_case(tmp_path, {**option, "ies_subset_size": "3"})
    job, runner, report = make_job(case, model, tmp_path, fail=lambda n, p: n in (3, 8) or n == 20)
    summary = run(job)
    warning = "prior ensemble: 2 of 12 realizations are dropped: 3: run 3 was told to fail; "
    assert report.warnings[0] == warning + "8: run 8 was told to fail"
    assert summary["dropped"][:2] == ["3", "8"]
    assert summary["realizations"] == 12 - len(summary["dropped"])
    assert summary["failed_runs"] == runner.failed == 3
    last = read_ensemble(tmp_path / "case.2.par.csv")
    assert not set(last.realizations) & set(summary["dropped"])
    with (tmp_path / "case.phi.actual.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert "3" not in row and row["4"]


def test_realization_that_fails_later_leaves_an_empty_cell(tmp_path: Path) -> None:
    job, _, report = make_job(
        make_case(tmp_path, {"ies_use_mda": "true"}), model, tmp_path, fail=lambda n, p: n == 14
    )
    assert run(job)["dropped"] == ["2"]
    assert report.warnings == [
        "iteration 1: 1 of 12 realizations are dropped: 2: run 14 was told to fail"
    ]
    with (tmp_path / "case.phi.actual.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["2"] and not rows[1]["2"] and not rows[2]["2"]


def test_bad_phi_and_values_that_are_not_finite_count_as_failed(tmp_path: Path) -> None:
    def spoilt(parameters: Vector) -> Vector:
        observations = model(parameters)
        if parameters[1] < 0.2:
            observations[3] = np.nan
        return observations

    job, _, report = make_job(make_case(tmp_path, {"ies_bad_phi": "900"}, -1), spoilt, tmp_path)
    summary = run(job)
    assert "an observation is not a finite number" in report.warnings[0]
    assert "is above ies_bad_phi 900" in report.warnings[0]
    left = read_ensemble(tmp_path / "case.0.par.csv").values
    assert len(left) == summary["realizations"] < 12
    assert (left[:, 1] >= 0.2).all()


def test_too_few_realizations_left(tmp_path: Path) -> None:
    job, _, _ = make_job(make_case(tmp_path), model, tmp_path, fail=lambda n, p: n > 0)
    with pytest.raises(RunsFailedError) as caught:
        run(job)
    assert caught.value.message == (
        "prior ensemble: 1 of 12 realizations are left, ies needs 2 or more"
    )


def test_noptmax_0_is_one_run_with_the_initial_values(tmp_path: Path) -> None:
    job, runner, _ = make_job(make_case(tmp_path, noptmax=0), model, tmp_path)
    summary = run(job)
    assert summary["runs"] == 1
    assert runner.asked[0][1].tolist() == [[2.0, 1.0, 7.0, 4.0]]
    assert summary["phi"] == pytest.approx(100.0 + 16 * 2.25 + 25 * 0.25)
    failing, _, _ = make_job(
        make_case(tmp_path, noptmax=0), model, tmp_path, fail=lambda n, p: True
    )
    with pytest.raises(RunsFailedError, match="the run with the initial values failed: run 0"):
        run(failing)


def test_ensembles_of_the_user(tmp_path: Path) -> None:
    values = np.array([[1.0, 0.5, 9.0], [3.0, 0.9, 10.0], [2.5, 3.5, 11.0], [1.5, 0.0, 12.0]])
    write_ensemble(tmp_path / "pars", ["r1", "r2", "r3", "r4"], ["A", "b", "fix"], values)
    noisy = np.array([[3.0, 1.0], [3.1, 1.1], [3.2, 1.2], [3.3, 1.3]])
    observed = np.column_stack([noisy, noisy[:, 0]])
    write_ensemble(tmp_path / "noise", ["r4", "r3", "r2", "r1"], ["o1", "o2", "o3"], observed)
    options = {
        "ies_parameter_ensemble": "pars.jcb",
        "ies_observation_ensemble": "noise.csv",
        "ies_num_reals": "3",
    }
    job, runner, report = make_job(make_case(tmp_path, options), model, tmp_path)
    run(job)
    prior = runner.asked[0][1]
    assert prior.shape == (4, 4)  # r1 to r3 and base
    assert prior[:3, 2].tolist() == [9.0, 10.0, 11.0]
    assert prior[2, 1] == 3.0
    assert prior[:3, 3] == pytest.approx([2.0, 6.0, 5.0])
    assert any("1 values lie outside of their bounds" in warning for warning in report.warnings)
    noise = read_ensemble(tmp_path / "case.obs+noise.csv")
    assert noise.realizations == ("r1", "r2", "r3", "base")
    assert noise.values[:, 0].tolist() == [3.3, 3.2, 3.1, 4.0]
    assert (noise.values[:, 3] == 50.0).all()
    for _, matrix in runner.asked[1:]:
        assert set(matrix[:, 2]) <= {7.0, 9.0, 10.0, 11.0}


def test_standard_deviation_column_and_no_noise(tmp_path: Path) -> None:
    case = make_case(tmp_path, {"ies_num_reals": "2000"}, -1)
    case = replace(case, observation_data={"standard_deviation": {"o1": "3.0", "o2": ""}})
    job, _, _ = make_job(case, model, tmp_path)
    run(job)
    noise = read_ensemble(tmp_path / "case.obs+noise.csv").values
    assert noise.std(axis=0) == pytest.approx([3.0, 0.25, 0.2, 0.0], rel=0.08, abs=1e-12)
    job, _, _ = make_job(make_case(tmp_path, {"ies_no_noise": "true"}, -1), model, tmp_path)
    run(job)
    assert np.ptp(read_ensemble(tmp_path / "case.obs+noise.csv").values, axis=0).max() == 0.0


def test_options_that_are_not_honoured_are_named_once(tmp_path: Path) -> None:
    options = {"ies_localizer": "loc.csv", "ies_bad_phi_sigma": "2", "ies_verbose_level": "3"}
    job, _, report = make_job(make_case(tmp_path, options, -1), model, tmp_path)
    run(job)
    assert report.warnings == [
        "ies does not honour these options: ies_localizer, ies_bad_phi_sigma"
    ]


def test_the_users_options_win(tmp_path: Path) -> None:
    job, runner, report = make_job(
        make_case(tmp_path), model, tmp_path, options={"++IES_num_reals": "7", "noptmax": "-1"}
    )
    run(job)
    assert runner.runs == 7 and report.warnings == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ies_num_reals": "many"}, CaseError, "case.pst:9: option ies_num_reals: 'many'"),
        ({"ies_add_base": "maybe"}, CaseError, "case.pst: option ies_add_base: 'maybe'"),
        ({"ies_lambda_mults": "1,-1"}, CaseError, "case.pst: option ies_lambda_mults: '1,-1'"),
        ({"parcov": "no.cov"}, CaseError, "no.cov: cannot be read: No such file or directory"),
        ({"ies_par_en": "no.csv"}, CaseError, "no.csv: cannot be read: No such file or directory"),
    ],
)
def test_wrong_options(
    tmp_path: Path, options: dict[str, str], error: type[CaseError], message: str
) -> None:
    case = make_case(tmp_path, options)
    case = replace(case, option_places={"ies_num_reals": Place(case.path, 9)})
    job, runner, _ = make_job(case, model, tmp_path)
    with pytest.raises(error) as caught:
        run(job)
    assert caught.value.message == f"{tmp_path}/{message}"
    assert caught.value.remedy
    assert runner.runs == 0


def test_wrong_option_of_the_user(tmp_path: Path) -> None:
    job, _, _ = make_job(make_case(tmp_path), model, tmp_path, options={"ies_num_reals": "1"})
    with pytest.raises(ConfigurationError) as caught:
        run(job)
    assert caught.value.message == "engine option ies_num_reals: '1'"
    assert caught.value.remedy == "Give ies_num_reals as a whole number, 2 or more."


def test_cases_that_cannot_be_run(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    unweighted = tuple(replace(o, weight=0.0) for o in case.observations)
    fixed = tuple(replace(p, transform="fixed") for p in case.parameters)
    negative = (replace(case.parameters[0], lower=-1.0), *case.parameters[1:])
    for changed, message in (
        (replace(case, observations=unweighted), "no observation has a weight above zero"),
        (replace(case, parameters=fixed), "no adjustable parameter"),
        (replace(case, parameters=negative), "parameter a: log-transformed, but its initial"),
        (replace(case, control_data={"noptmax": -2}), "NOPTMAX -2 means nothing to ies"),
        (replace(case, control_data={"noptmax": "x"}), "NOPTMAX is 'x'"),
    ):
        job, runner, _ = make_job(changed, model, tmp_path)
        with pytest.raises(CaseError) as caught:
            run(job)
        assert message in caught.value.message
        assert str(case.path) in caught.value.message
        assert runner.runs == 0


def test_stops_by_phiredstp(tmp_path: Path) -> None:
    case = make_case(tmp_path, noptmax=30)
    data = {**case.control_data, "phiredstp": 0.01, "nphistp": 3, "nphinored": 3}
    job, _, report = make_job(replace(case, control_data=data), model, tmp_path)
    summary = run(job)
    assert 3 <= summary["iterations"] < 30
    assert any(note.startswith("ies stops after iteration") for note in report.notes)
