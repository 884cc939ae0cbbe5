"""The example of the Oude Korendijk: its model, its numbers and its PEST files."""

from __future__ import annotations

import csv
import importlib.util
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyemu
import pytest
from scipy.optimize import least_squares
from scipy.special import exp1

from fake_runner import FunctionRunner, ListReport
from pestfleet.control.reader import read_control
from pestfleet.engines import load_engine
from pestfleet.engines.base import Job

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "oude-korendijk"
RATE = 788.0
ROUNDING = 6e-8  # of the sums of squares below

# Published with the measurements: unweighted least squares with the formula of Theis.
REFERENCES = {
    "both": (462.6166, 1.778778e-4, 0.1729162),
    "30": (480.4694, 1.125070e-4, 0.0340765),
    "90": (501.0545, 2.037892e-4, 0.0180639),
}


def load_model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_model", EXAMPLE / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> ModuleType:
    return load_model()


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, tmp_path / "case"))


@pytest.fixture(scope="module")
def pst() -> pyemu.Pst:
    return pyemu.Pst(str(EXAMPLE / "oude-korendijk.pst"))


def read_measured() -> list[tuple[str, float, float]]:
    """(distance as written, time in days, drawdown) of each measurement."""
    with (EXAMPLE / "drawdown.csv").open(newline="") as file:
        return [
            (row["distance_m"], float(row["time_min"]) / 1440, float(row["drawdown_m"]))
            for row in csv.DictReader(file)
        ]


def compute_residuals(
    model: ModuleType, transmissivity: float, storage: float, piezometer: str
) -> np.ndarray:
    return np.array(
        [
            model.drawdown(transmissivity, storage, RATE, float(distance), time) - measured
            for distance, time, measured in read_measured()
            if piezometer in ("both", distance)
        ]
    )


def test_well_function_agrees_with_scipy(model: ModuleType) -> None:
    arguments = np.concatenate([np.logspace(-14, math.log10(700), 2000), [1.0, 1.0 + 1e-12]])
    ours = [model.well_function(float(u)) for u in arguments]
    np.testing.assert_allclose(ours, exp1(arguments), rtol=2e-14)


def test_well_function_far_from_the_well_is_zero(model: ModuleType) -> None:
    assert model.well_function(3e4) == 0.0


@pytest.mark.parametrize("piezometer", REFERENCES)
def test_published_parameters_give_the_published_sum_of_squares(
    model: ModuleType, piezometer: str
) -> None:
    transmissivity, storage, expected = REFERENCES[piezometer]
    residuals = compute_residuals(model, transmissivity, storage, piezometer)
    assert float(residuals @ residuals) == pytest.approx(expected, abs=ROUNDING)


def test_least_squares_from_the_control_file_reaches_the_reference(
    model: ModuleType, pst: pyemu.Pst
) -> None:
    start = np.log10(pst.parameter_data.loc[["transm", "storage"], "parval1"].to_numpy(float))
    fit = least_squares(lambda p: compute_residuals(model, 10 ** p[0], 10 ** p[1], "both"), start)
    transmissivity, storage = 10**fit.x
    assert transmissivity == pytest.approx(REFERENCES["both"][0], rel=1e-4)
    assert storage == pytest.approx(REFERENCES["both"][1], rel=5e-4)


def test_glm_calibrates_the_example(model: ModuleType, tmp_path: Path) -> None:
    control = read_control(EXAMPLE / "oude-korendijk.pst")
    points = [(float(distance), time) for distance, time, _ in read_measured()]
    runner = FunctionRunner(
        control, lambda values: [model.drawdown(values[0], values[1], RATE, *p) for p in points]
    )
    report = ListReport()
    job = Job(control=control, runner=runner, report=report, output=tmp_path)

    parameters = load_engine("glm")(job)["parameters"]

    assert parameters["transm"]["value"] == pytest.approx(REFERENCES["both"][0], rel=1e-3)
    assert parameters["storage"]["value"] == pytest.approx(REFERENCES["both"][1], rel=5e-3)
    assert report.warnings == []


def test_starting_values_are_wrong_enough_to_calibrate(model: ModuleType, pst: pyemu.Pst) -> None:
    start = pst.parameter_data.parval1
    residuals = compute_residuals(model, start["transm"], start["storage"], "both")
    assert float(residuals @ residuals) > 20 * REFERENCES["both"][2]


def test_control_file_holds_the_measurements(pst: pyemu.Pst) -> None:
    measured = read_measured()
    observations = pst.observation_data
    assert (pst.npar, pst.nobs) == (2, 69)
    assert observations.obsval.tolist() == [value for _, _, value in measured]
    assert observations.obgnme.tolist() == [f"piezo_{distance}m" for distance, _, _ in measured]
    assert set(observations.weight) == {1.0}
    assert pst.control_data.pestmode == "estimation"
    parameters = pst.parameter_data
    assert set(parameters.partrans) == {"log"}
    assert (parameters.parlbnd < parameters.parval1).all()
    assert (parameters.parval1 < parameters.parubnd).all()


def test_template_and_instruction_files_fit_the_control_file(
    case: Path, monkeypatch: pytest.MonkeyPatch, pst: pyemu.Pst
) -> None:
    # pyEMU writes the model input and reads the outputs relative to the current folder.
    monkeypatch.chdir(case)
    assert sorted(pyemu.pst_utils.parse_tpl_file("model_input.tpl")) == sorted(pst.par_names)
    assert pyemu.pst_utils.parse_ins_file("drawdown.ins") == pst.obs_names

    transmissivity, storage, expected = REFERENCES["both"]
    pyemu.pst_utils.write_to_template(
        {"transm": transmissivity, "storage": storage}, "model_input.tpl", "model_input.txt"
    )
    subprocess.run([sys.executable, "model.py"], check=True, timeout=60)
    simulated = pyemu.pst_utils.InstructionFile("drawdown.ins").read_output_file("drawdown.out")
    residuals = simulated.obsval[pst.obs_names] - pst.observation_data.obsval
    assert float((residuals**2).sum()) == pytest.approx(expected, abs=ROUNDING)


def test_model_uses_nothing_but_the_standard_library(case: Path) -> None:
    (case / "model_input.txt").write_text(
        "rate_m3_per_d 788\ntransmissivity_m2_per_d 462.6166\nstorage 1.778778e-4\n"
    )
    # -I and -S: no installed package can be imported.
    subprocess.run([sys.executable, "-I", "-S", "model.py"], cwd=case, check=True, timeout=60)
    assert len((case / "drawdown.out").read_text().splitlines()) == 70
