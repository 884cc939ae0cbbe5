"""The example of the transect: its model, the tables that its script makes, its PEST files."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pyemu
import pytest
from click.testing import CliRunner

from fake_runner import FunctionRunner, ListReport
from pestfleet.cli.main import cli
from pestfleet.control.reader import read_control
from pestfleet.engines import load_engine
from pestfleet.engines.base import Job
from pestfleet.files.ensembles import read_ensemble

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ensemble"
MADE = (
    "conductivity.tpl",
    "observations.csv",
    "parameters.csv",
    "prior.cov",
    "transect.ins",
    "truth.csv",
)


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The example's modules by name; they import each other."""
    names = ("model", "make_data", "exact_posterior")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.syspath_prepend(str(EXAMPLE))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            del sys.modules[name]


@pytest.fixture(scope="module")
def model(scripts: dict[str, ModuleType]) -> ModuleType:
    return scripts["model"]


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.loadtxt(EXAMPLE / "truth.csv", delimiter=",", skiprows=1)[:, 1]


@pytest.fixture(scope="module")
def fields(truth: np.ndarray) -> list[np.ndarray]:
    """Conductivities: the truth, a uniform one, and two with zones that differ wildly."""
    rng = np.random.default_rng(3)
    return [truth, np.full(100, 10.0), *10.0 ** rng.normal(1.0, 0.6, (2, 100))]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, tmp_path / "case"))


def solve_by_finite_volumes(
    model: ModuleType, conductivities: np.ndarray, cells: int, places: list[int]
) -> tuple[np.ndarray, float]:
    """Heads at `places`, which are borders of cells, and the flow at the left end.

    `cells`: equal cells in each zone. Unknown is h squared, in which the flow is linear:
    conductance times difference, with cells in series, and half a cell at the ends.
    """
    k = np.repeat(conductivities, cells)
    width = model.LENGTH / len(k)
    between = 1.0 / (width / k[:-1] + width / k[1:])
    first, last = k[0] / width, k[-1] / width
    matrix = np.diag(np.r_[first, between] + np.r_[between, last])
    matrix -= np.diag(between, 1) + np.diag(between, -1)
    source = np.full(len(k), model.RECHARGE * width)
    source[0] += first * model.HEAD_LEFT**2
    source[-1] += last * model.HEAD_RIGHT**2
    squares = np.linalg.solve(matrix, source)
    right = np.array([round(place / width) for place in places])
    left = right - 1
    # What flows from the left cell's centre to the border flows on to the right cell's centre.
    at_border = (k[left] * squares[left] + k[right] * squares[right]) / (k[left] + k[right])
    return np.sqrt(at_border), -first * (squares[0] - model.HEAD_LEFT**2)


def test_heads_and_flow_agree_with_a_direct_solve(
    model: ModuleType, fields: list[np.ndarray]
) -> None:
    places = [*model.PIEZOMETERS, model.FORECAST_HEAD]
    for field in fields:
        outputs = dict(model.simulate(field.tolist()))
        heads = [outputs[f"head_{place}"] for place in places]
        # Inside a zone the flow between centres is that at the border: no error but rounding.
        direct, flow = solve_by_finite_volumes(model, field, 4, places)
        np.testing.assert_allclose(heads, direct, rtol=1e-10)
        assert outputs["inflow_of_river"] == pytest.approx(-flow, rel=1e-9)


def test_travel_time_agrees_with_a_fine_integration(
    model: ModuleType, fields: list[np.ndarray]
) -> None:
    for field in fields:
        conductivities = field.tolist()
        flow = model.flow_at_left(conductivities)
        heads = model.heads_at_borders(conductivities, flow)
        x = np.linspace(0.0, model.FORECAST_START, 20001)
        middles = (x[:-1] + x[1:]) / 2
        h = np.array([model.head_at(place, conductivities, flow, heads) for place in middles])
        velocity = -(flow + model.RECHARGE * middles) / (model.POROSITY * h)
        years = float((np.diff(x) / velocity).sum()) / model.DAYS_PER_YEAR
        found = dict(model.simulate(conductivities))[f"years_from_{model.FORECAST_START}"]
        assert found == pytest.approx(years, rel=2e-3)


def test_a_uniform_aquifer_has_the_textbook_head(model: ModuleType) -> None:
    """h2 = h02 + (hL2 - h02) x / L + N x (L - x) / K (Bear, 1972, section 8.2)."""
    x, length = 2000.0, model.LENGTH
    left, right = model.HEAD_LEFT**2, model.HEAD_RIGHT**2
    square = left + (right - left) * x / length + model.RECHARGE * x * (length - x) / 7.0
    assert dict(model.simulate([7.0] * 100))["head_2000"] == pytest.approx(square**0.5, rel=1e-12)


def test_water_that_never_comes_to_the_river_takes_very_long(model: ModuleType) -> None:
    # All the resistance is near the left river, and so is the divide.
    assert dict(model.simulate([1e-3] * 2 + [100.0] * 98))["years_from_1000"] == 1e6


def test_the_script_makes_the_same_files_again(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    scripts["make_data"].main(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(MADE)
    for name in MADE:
        assert (tmp_path / name).read_bytes() == (EXAMPLE / name).read_bytes(), name


def test_the_exact_posterior_has_the_same_model(
    scripts: dict[str, ModuleType], model: ModuleType, fields: list[np.ndarray]
) -> None:
    never = np.array([1e-3] * 2 + [100.0] * 98)
    outputs = scripts["exact_posterior"].simulate(np.array([*fields, never]))
    expected = [[v for _, v in model.simulate(field.tolist())] for field in (*fields, never)]
    np.testing.assert_allclose(outputs, expected, rtol=1e-10)


def test_measurements_are_the_truth_with_noise(model: ModuleType, truth: np.ndarray) -> None:
    control = read_control(EXAMPLE / "ensemble.pst")
    outputs = [value for _, value in model.simulate(truth.tolist())]
    measured = [o for o in control.observations if o.weight > 0]
    assert len(measured) == 16
    weighted = [
        (o.value - value) * o.weight
        for o, value in zip(control.observations, outputs, strict=True)
        if o.weight > 0
    ]
    # Sixteen standard normal draws: not zero, and none of them wild.
    assert 0.5 < float(np.std(weighted)) < 1.5
    assert float(np.abs(weighted).max()) < 3.5
    forecasts = [(o.value, value) for o, value in zip(control.observations, outputs, strict=True)
                 if o.weight == 0]  # fmt: skip
    assert [o for o, _ in forecasts] == [pytest.approx(t, abs=5e-4) for _, t in forecasts]
    assert control.options["forecasts"].split(",") == [
        o.name for o in control.observations if o.weight == 0
    ]


def test_check_finds_no_fault() -> None:
    result = CliRunner().invoke(cli, ["check", str(EXAMPLE)])
    assert result.exit_code == 0, result.output
    assert "0 errors, 0 warnings" in result.output


def test_pyemu_reads_the_case(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case)  # pyEMU looks for the tables in the current folder
    pst = pyemu.Pst("ensemble.pst")
    control = read_control(Path("ensemble.pst"))
    assert (pst.npar_adj, pst.nobs, pst.nnz_obs) == (100, 18, 16)
    assert pst.par_names == [p.name for p in control.parameters]
    assert pst.observation_data.obsval.tolist() == [o.value for o in control.observations]
    assert pst.parameter_data.parlbnd.tolist() == [p.lower for p in control.parameters]
    assert sorted(pyemu.pst_utils.parse_tpl_file("conductivity.tpl")) == sorted(pst.par_names)
    assert pyemu.pst_utils.parse_ins_file("transect.ins") == pst.obs_names
    covariance = pyemu.Cov.from_ascii("prior.cov")
    assert list(covariance.row_names) == pst.par_names
    assert np.linalg.eigvalsh(covariance.x).min() > 0.0
    # Bounds are four standard deviations away: they cut off next to nothing.
    logs = np.log10(pst.parameter_data[["parlbnd", "parval1", "parubnd"]].to_numpy(float))
    deviations = np.sqrt(np.diag(covariance.x))
    np.testing.assert_allclose(np.diff(logs) / deviations[:, np.newaxis], 4.0, rtol=0.01)


def test_every_digit_goes_into_the_model_and_comes_out(
    case: Path, model: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(case)
    template = Path("conductivity.tpl").read_text().splitlines()[2]
    assert len(template) - template.index("~") >= 25
    field = (10.0 ** np.random.default_rng(8).normal(1.0, 0.4, 100)).tolist()
    lines = [f"{number},{value!r}\n" for number, value in enumerate(field)]
    Path("conductivity.csv").write_text("x_m,conductivity_m_per_d\n" + "".join(lines))
    # -I and -S: nothing but the standard library can be imported.
    subprocess.run([sys.executable, "-I", "-S", "model.py"], check=True, timeout=60)
    read = pyemu.pst_utils.InstructionFile("transect.ins").read_output_file("transect.out")
    expected = [value for _, value in model.simulate(field)]
    written = Path("transect.out").read_text().splitlines()
    assert [float(line.split()[1]) for line in written] == expected
    names = [o.name for o in read_control(Path("ensemble.pst")).observations]
    np.testing.assert_allclose(read.obsval[names], expected, rtol=1e-12)


def test_ies_fits_the_measurements_and_brackets_the_truth(
    model: ModuleType, truth: np.ndarray, tmp_path: Path
) -> None:
    control = read_control(EXAMPLE / "ensemble.pst")
    runner = FunctionRunner(control, lambda values: [v for _, v in model.simulate(values.tolist())])
    report = ListReport()
    summary = load_engine("ies")(
        Job(control=control, runner=runner, report=report, output=tmp_path)
    )

    assert report.warnings == []
    assert summary["realizations"] == 50
    phis = [phi for _, phi, _ in report.iterations]
    assert all(after < before for before, after in pairwise(phis))
    # 16 measurements that fit to their noise: phi near 16, neither far above nor overfitted.
    assert phis[0] > 1000
    assert 5.0 < phis[-1] < 32.0
    ensembles = [read_ensemble(tmp_path / f"ensemble.{n}.par.csv").values for n in (0, 4)]
    prior, posterior = (np.log10(values) for values in ensembles)
    error = [np.sqrt(np.mean((e.mean(axis=0) - np.log10(truth)) ** 2)) for e in (prior, posterior)]
    assert error[1] < 0.65 * error[0]
    assert posterior.std(axis=0).mean() < 0.65 * prior.std(axis=0).mean()
    low, high = np.quantile(posterior, [0.025, 0.975], axis=0)
    assert np.mean((low <= np.log10(truth)) & (np.log10(truth) <= high)) > 0.7
    observations = read_ensemble(tmp_path / "ensemble.4.obs.csv")
    outputs = dict(model.simulate(truth.tolist()))
    for name, output in (("h4250", "head_4250"), ("t1000", "years_from_1000")):
        forecast = observations.values[:, observations.columns.index(name)]
        assert forecast.min() < outputs[output] < forecast.max()


@pytest.mark.pestpp
def test_pestpp_ies_reads_the_case_and_makes_the_same_runs(case: Path, model: ModuleType) -> None:
    control = case / "ensemble.pst"
    text = control.read_text().replace("ies_num_reals        50", "ies_num_reals        4")
    control.write_text(re.sub(r"(?m)^noptmax .*$", "noptmax -1", text))
    subprocess.run(
        ["pestpp-ies", "ensemble.pst"], cwd=case, check=True, timeout=120, capture_output=True
    )
    fields = read_ensemble(case / "ensemble.0.par.csv")
    observations = read_ensemble(case / "ensemble.0.obs.csv")
    assert len(fields.realizations) == len(observations.realizations) == 4
    for field, simulated in zip(fields.values, observations.values, strict=True):
        outputs = [value for _, value in model.simulate(field.tolist())]
        # pestpp-ies writes fewer digits into its tables than into the model's input.
        np.testing.assert_allclose(simulated, outputs, rtol=1e-6)
