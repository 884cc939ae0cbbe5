"""sweep: bits, the format of pestpp-swp, and what it says of bad input."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fake_runner import make_control, make_job, make_parameter
from pestfleet.control.model import ControlFile, Observation, PriorInformation
from pestfleet.engines.base import Vector
from pestfleet.engines.sweep import run
from pestfleet.files.ensembles import write_ensemble
from pestfleet.files.parameters import ParameterValue, write_par
from pestfleet_worker.errors import CaseError


def model(parameters: Vector) -> Vector:
    a, b, fix, child = parameters
    return np.array([np.sin(a) / 3.0, a * b + fix, np.exp(child)])


def make_case(tmp_path: Path, options: dict[str, str] | None = None) -> ControlFile:
    control = make_control(
        [
            make_parameter("a", 1.0, lower=-10.0, upper=10.0),
            make_parameter("b", 2.0, lower=0.1, upper=5.0, transform="log"),
            make_parameter("fix", 3.0, transform="fixed"),
            make_parameter("child", 0.5, transform="tied", tied_to="a"),
        ],
        [
            Observation("o1", 0.25, 2.0, "heads"),
            Observation("o2", 4.0, 1.0, "flows"),
            Observation("o3", 1.5, 0.0, "flows"),
        ],
        priors=[PriorInformation("pi1", ((1.0, "b", True),), 0.0, 10.0, "regul_b")],
        options=options or {},
    )
    return replace(control, path=tmp_path / "case.pst")


def read_output(tmp_path: Path, name: str = "sweep_out.csv") -> list[dict[str, str]]:
    with (tmp_path / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_same_bits_as_a_direct_call(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    values = np.column_stack([rng.uniform(-9, 9, 1200), rng.uniform(0.1, 5, 1200)])
    write_ensemble(tmp_path / "sweep_in", [f"r{i}" for i in range(1200)], ["a", "b"], values)
    job, runner, report = make_job(make_case(tmp_path), model, tmp_path)
    summary = run(job)
    rows = read_output(tmp_path)
    found = np.array([[float(row[name]) for name in ("o1", "o2", "o3")] for row in rows])
    direct = np.array([model(np.array([a, b, 3.0, a * 0.5])) for a, b in values])
    assert found.tobytes() == direct.tobytes()
    asked = np.vstack([matrix for _, matrix in runner.asked])
    assert asked[:, :2].tobytes() == values.tobytes()
    assert [len(matrix) for _, matrix in runner.asked] == [500, 500, 200]
    assert runner.asked[2][0] == "runs 1001 to 1200 of 1200"
    assert [row["input_run_id"] for row in rows] == [f"r{i}" for i in range(1200)]
    assert [row["run_id"] for row in rows] == [str(i) for i in range(1200)]
    best = min(rows, key=lambda row: float(row["phi"]))
    assert (summary["best"], summary["phi"]) == (best["input_run_id"], float(best["phi"]))
    assert report.warnings == []


def test_output_has_the_format_of_pestpp_swp(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("run_id,A,b\n0,0,1\n1,1,2\nlast,2,4\n")
    options = {"sweep_parameter_csv_file": "in.csv", "sweep_output_csv_file": "results.csv"}
    job, _, report = make_job(
        make_case(tmp_path, options), model, tmp_path / "out", fail=lambda n, p: n == 1
    )
    summary = run(job)
    lines = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert lines[0] == (
        "run_id,input_run_id,failed_flag,phi,meas_phi,regul_phi,heads,flows,regul_b,o1,o2,o3"
    )
    # heads (0 - 0.25)^2 * 4, flows (3 - 4)^2; a zero weight counts nothing
    assert lines[1] == "0,0,0,1.25,1.25,0.0,0.25,1.0,0.0,0.0,3.0,1.0"
    assert lines[2] == "1,1,1,,,,,,,-1e+100,-1e+100,-1e+100"
    assert lines[3].startswith("2,last,0,")
    assert len(lines) == 4
    assert report.warnings == ["1 of 3 runs failed (1): run 1 was told to fail"]
    assert summary["runs"] == 3 and summary["failed_runs"] == 1
    assert summary["incomplete"] == "1 of 3 runs of the sweep failed"
    assert summary["file"] == "results.csv"


def test_regularization_counts_on_demand(tmp_path: Path) -> None:
    (tmp_path / "sweep_in.csv").write_text("name,a,b\n0,0,2\n")
    case = make_case(tmp_path, {"sweep_include_regul_phi": "true"})
    job, _, _ = make_job(case, model, tmp_path)
    run(job)
    (row,) = read_output(tmp_path)
    expected = (10.0 * np.log10(2.0)) ** 2
    assert float(row["regul_phi"]) == float(row["regul_b"]) == pytest.approx(expected)
    assert float(row["phi"]) == pytest.approx(float(row["meas_phi"]) + expected)


def test_finished_chunks_are_on_disk_when_a_later_one_breaks(tmp_path: Path) -> None:
    values = np.ones((700, 2))
    write_ensemble(tmp_path / "sweep_in", [str(i) for i in range(700)], ["a", "b"], values)

    class StoppedError(Exception):
        pass

    def stop(number: int, parameters: Vector) -> bool:
        if number == 600:
            raise StoppedError
        return False

    job, _, _ = make_job(make_case(tmp_path), model, tmp_path, fail=stop)
    with pytest.raises(StoppedError):
        run(job)
    assert len(read_output(tmp_path)) == 500


@pytest.mark.parametrize("suffix", [".jcb", ".csv"])
def test_binary_and_csv_ask_for_the_same_runs(tmp_path: Path, suffix: str) -> None:
    values = np.array([[1.25, 0.3, 8.0, 0.625], [-1.0, 4.0, 9.0, -0.5]])
    write_ensemble(tmp_path / "pars", ["x", "y"], ["a", "b", "fix", "child"], values)
    options = {"sweep_parameter_csv_file": f"pars{suffix}"}
    job, runner, _ = make_job(make_case(tmp_path, options), model, tmp_path)
    run(job)
    assert runner.asked[0][1].tobytes() == values.tobytes()
    assert [row["input_run_id"] for row in read_output(tmp_path)] == ["x", "y"]


def test_par_files(tmp_path: Path) -> None:
    for number, name in enumerate(("case.2.par", "case.1.par", "other.par")):
        values = [ParameterValue("a", 0.1 + number), ParameterValue("b", 1.0 / 3.0)]
        write_par(tmp_path / name, values)
    options = {"sweep_parameter_csv_file": "case.*.par, other.par"}
    job, runner, _ = make_job(make_case(tmp_path, options), model, tmp_path)
    run(job)
    assert [row["input_run_id"] for row in read_output(tmp_path)] == ["case.1", "case.2", "other"]
    assert runner.asked[0][1][:, 0].tolist() == [1.1, 0.1, 2.1]
    assert (runner.asked[0][1][:, 1] == 1.0 / 3.0).all()


def test_tied_parameters_keep_their_ratio(tmp_path: Path) -> None:
    (tmp_path / "sweep_in.csv").write_text("name,a,b,child\n0,3,2,1.5\n1,3,2,9\n")
    job, runner, report = make_job(make_case(tmp_path), model, tmp_path)
    run(job)
    assert runner.asked[0][1][:, 3].tolist() == [1.5, 1.5]
    assert report.warnings == [
        "sweep_in.csv: tied parameters that do not keep the control file's ratio to their parent "
        "are changed, such as child"
    ]


def test_values_outside_of_bounds_are_run_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "sweep_in.csv").write_text("name,a,b\nok,3,2\nhigh,30,2\nalso,40,9\n")
    job, runner, report = make_job(make_case(tmp_path), model, tmp_path)
    run(job)
    assert runner.asked[0][1][:, 0].tolist() == [3.0, 30.0, 40.0]
    assert report.warnings == [
        "sweep_in.csv: values of a, b are outside of their bounds, first in run high; they are run "
        "as they are"
    ]


def test_missing_parameter_needs_forgiveness(tmp_path: Path) -> None:
    (tmp_path / "sweep_in.csv").write_text("name,a,typo\n0,3,2\n")
    job, runner, _ = make_job(make_case(tmp_path), model, tmp_path)
    with pytest.raises(CaseError) as caught:
        run(job)
    assert caught.value.message == "sweep_in.csv: no column for b"
    assert "sweep_forgive(true)" in caught.value.remedy
    assert runner.runs == 0
    job, runner, report = make_job(make_case(tmp_path, {"sweep_forgive": "true"}), model, tmp_path)
    run(job)
    assert runner.asked[0][1].tolist() == [[3.0, 2.0, 3.0, 1.5]]
    assert report.warnings == [
        "sweep_in.csv: columns that are no parameters are ignored: typo",
        "sweep_in.csv: no column for b; the control file's values are used",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,a,b\n0,1,2\n1,x,2\n", ":3: column 2 (a): 'x' is not a number"),
        ("name,a,b\n0,1,\n", ":2: column 3 (b): '' is not a number"),
        ("name,a,b\n0,1,nan\n", ":2: column 3 (b): 'nan' is not a number"),
        ("name,a,b\n0,1\n", ":2: 2 cells, the header has 3"),
        ("name,a,b,a\n0,1,2,3\n", ":1: columns 2 and 4 are both named 'a'"),
        ("name,a,,b\n0,1,2,3\n", ":1: column 3 has no name"),
        ("a,b,fix\n1,2,3\n", ":1: the first column is parameter 'a'; it must name the runs"),
        ("", ":1: no header with a realization column and parameter names"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sweep_in.csv").write_text(text)
    job, runner, _ = make_job(make_case(tmp_path), model, tmp_path)
    with pytest.raises(CaseError) as caught:
        run(job)
    assert caught.value.message == f"{tmp_path / 'sweep_in.csv'}{message}"
    assert caught.value.remedy
    assert runner.runs == 0
    assert not (tmp_path / "sweep_out.csv").exists()


def test_no_rows_or_no_file(tmp_path: Path) -> None:
    job, _, _ = make_job(make_case(tmp_path), model, tmp_path)
    with pytest.raises(CaseError) as caught:
        run(job)
    path = tmp_path / "sweep_in.csv"
    assert caught.value.message == f"{path}: cannot be read: No such file or directory"
    path.write_text("name,a,b\n")
    with pytest.raises(CaseError) as caught:
        run(job)
    assert caught.value.message == "sweep_in.csv: no parameter set in it"
    globbed = make_case(tmp_path, {"sweep_parameter_csv_file": "no*.par"})
    job, _, _ = make_job(globbed, model, tmp_path)
    with pytest.raises(CaseError) as caught:
        run(job)
    assert caught.value.message == f"{tmp_path}/no*.par: no such file"
