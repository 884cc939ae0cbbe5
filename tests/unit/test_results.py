"""Tables and pictures of sessions; the engines' files are made here by the writers they use."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas
import pytest

from pestfleet.engines.ies.records import Records
from pestfleet.files.parameters import ParameterValue, write_par
from pestfleet.files.residuals import Residual, write_rei
from pestfleet.folder import SessionFolder
from pestfleet.plots import draw_results
from pestfleet.results import (
    plot_results,
    read_control_of,
    read_iterations,
    read_results,
    read_runs,
    read_summary,
)
from pestfleet_worker.errors import CaseError, SessionError
from pestfleet_worker.messages import Failure
from session_files import CASE, make_session, write_events, write_runs

PNG = b"\x89PNG\r\n\x1a\n"
ITERATIONS = [
    {"event": "start", "session": "s1"},
    {"event": "iteration", "number": 0, "phi": 4.0},
    {"event": "iteration", "number": 1, "phi": 0.5, "damping": 10.0},
    {"event": "iteration", "number": 2, "phi": 0.2, "damping": 1.0},
]


def write_glm(folder: SessionFolder) -> None:
    results = folder.results / CASE
    values = [ParameterValue("transm", 460.0), ParameterValue("storage", 1e-4)]
    write_par(results.with_suffix(".par"), values)
    control = read_control_of(folder, folder.read_spec())
    rows = [Residual(o.name, o.group, o.value, o.value + 0.1, 2.0) for o in control.observations]
    write_rei(results.with_suffix(".rei"), rows, iteration=2)
    # log10, as in PEST++: both parameters are log-transformed.
    (folder.results / f"{CASE}.par.usum.csv").write_text(
        "name,prior_mean,prior_stdev,prior_lower_bound,prior_upper_bound,"
        "post_mean,post_stdev,post_lower_bound,post_upper_bound\n"
        "transm,2,1,0,4,2.66,0.1,2.5,2.75\n"
        "storage,-3,1,-6,-1,-4,0.1,-4.25,-3.75\n"
    )


def write_ies(folder: SessionFolder, *, iterations: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Returns parameters and observations of the last iteration, of five realizations."""
    control = read_control_of(folder, folder.read_spec())
    observations = [o.name for o in control.observations]
    records = Records(
        folder.results, CASE, parameters=["transm", "storage"], observations=observations
    )
    generator = np.random.default_rng(5)
    for number in range(iterations + 1):
        names = tuple(str(n) for n in range(6 if number == 0 else 5))
        parameters = generator.uniform(1.0, 2.0, (len(names), 2))
        simulated = generator.uniform(0.0, 1.0, (len(names), len(observations)))
        records.write_parameters(number, names, parameters)
        records.write_observations(number, names, simulated)
        records.write_phi(number, 10, names, {"actual": generator.uniform(1, 5, len(names))})
    return parameters, simulated


def write_sweep(folder: SessionFolder, *, cut: bool = False) -> None:
    control = read_control_of(folder, folder.read_spec())
    names = [o.name for o in control.observations]
    head = ["run_id", "input_run_id", "failed_flag", "phi", "meas_phi", "regul_phi", "piezo"]
    lines = [",".join([*head, *names])]
    for number, phi in enumerate((3.0, 1.0, 2.0)):
        row = [number, f"r{number}", 0, phi, phi, 0.0, phi, *[0.1] * len(names)]
        lines.append(",".join(map(str, row)))
    lines.append(",".join(["3", "r3", "1", "", "", "", "", *["-1e+100"] * len(names)]))
    if cut:
        lines.append("4,r4,0,1.5,1.5,0.0,1.5,0.1,0.")
    (folder.results / "sweep_out.csv").write_text("\n".join(lines))


def test_a_session_without_files_has_an_empty_table_of_iterations(tmp_path: Path) -> None:
    tables = read_results(make_session(tmp_path))
    assert list(tables) == ["iterations"]
    assert list(tables["iterations"].columns) == ["number", "phi"]
    assert tables["iterations"].empty


def test_parameters_have_limits_in_their_own_unit(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    write_glm(folder)
    parameters = read_results(folder)["parameters"].set_index("name")
    assert list(parameters.index) == ["transm", "storage"]
    assert parameters.loc["transm", "value"] == 460.0
    assert parameters.loc["transm", "lower95"] == pytest.approx(10**2.5)
    assert parameters.loc["storage", "upper95"] == pytest.approx(10**-3.75)
    assert parameters.loc["transm", "initial"] != 460.0
    assert (parameters["lower_bound"] < parameters["upper_bound"]).all()


def test_limits_of_parameters_that_are_not_log_transformed_stay_as_they_are(
    tmp_path: Path,
) -> None:
    folder = make_session(tmp_path)
    write_glm(folder)
    control = folder.case / f"{CASE}.pst"
    lines = control.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("transm"))
    lines[place] = lines[place].replace(" log ", " none ")
    control.write_text("\n".join(lines) + "\n")
    parameters = read_results(folder)["parameters"].set_index("name")
    assert parameters.loc["transm", "transform"] == "none"
    assert parameters.loc["transm", "lower95"] == 2.5
    assert parameters.loc["storage", "lower95"] == pytest.approx(10**-4.25)


def test_without_statistics_there_are_no_limits(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    write_glm(folder)
    (folder.results / f"{CASE}.par.usum.csv").unlink()
    assert read_results(folder)["parameters"][["lower95", "upper95"]].isna().all(axis=None)


def test_observations_come_with_residuals(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    write_glm(folder)
    observations = read_results(folder)["observations"]
    assert len(observations) == 69
    np.testing.assert_allclose(
        observations["residual"], observations["measured"] - observations["modelled"]
    )
    assert set(observations["group"]) == {"piezo_30m", "piezo_90m"}


def test_a_cut_off_file_is_told_with_file_and_line(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    write_glm(folder)
    path = folder.results / f"{CASE}.rei"
    path.write_text(path.read_text()[:-60])
    with pytest.raises(CaseError, match=rf"{CASE}\.rei:\d+"):
        read_results(folder)


def test_iterations_that_are_done_again_count_once(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    write_events(folder, *ITERATIONS)
    again = [event | {"phi": 3.0} for event in ITERATIONS[:3] if event["event"] == "iteration"]
    assert list(read_iterations(folder)["phi"]) == [4.0, 0.5, 0.2]
    write_events(folder, {"event": "start", "session": "s1"}, *again)
    iterations = read_iterations(folder)
    assert list(iterations["number"]) == [0, 1]
    assert list(iterations["phi"]) == [3.0, 3.0]
    assert list(iterations.columns) == ["number", "phi", "damping"]
    assert math.isnan(iterations["damping"][0])


def test_the_summary_is_that_of_the_last_end(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    assert read_summary(folder) == {}
    write_events(
        folder,
        {"event": "end", "state": "stopped", "summary": {}},
        {"event": "end", "state": "finished", "summary": {"phi": 1.5}},
    )
    assert read_summary(folder) == {"phi": 1.5}


def test_runs_with_their_failures(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    failure = Failure("model-failed", "exit code 2", file="m.in", line=3, exit_code=2, log="boom\n")
    write_runs(folder, [None, failure], purpose="Jacobian")
    write_runs(folder, [None], purpose="damping values")
    runs = read_runs(folder)
    assert list(runs["id"]) == [1, 2, 1]
    assert list(runs["purpose"]) == ["Jacobian", "Jacobian", "damping values"]
    assert list(runs["failed"]) == [False, True, False]
    (failed,) = read_runs(folder, failed=True).to_dict("records")
    assert (failed["reason"], failed["message"]) == ("model-failed", "exit code 2")
    assert (failed["file"], failed["line"], failed["log"]) == ("m.in", 3, "boom\n")
    assert failed["seconds"] == 0.5
    assert len(read_runs(folder, failed=False)) == 2
    assert list(read_runs(make_session(tmp_path, "s2")).columns) == list(runs.columns)


def test_ensembles_and_their_quantiles(tmp_path: Path) -> None:
    folder = make_session(tmp_path, engine="ies")
    values, simulated = write_ies(folder)  # ten iterations: 10 comes after 9, not after 1
    tables = read_results(folder)
    assert len(tables["prior_parameters"]) == 6
    np.testing.assert_array_equal(tables["posterior_parameters"].to_numpy(), values)
    np.testing.assert_array_equal(tables["posterior_observations"].to_numpy(), simulated)
    parameters = tables["parameters"].set_index("name")
    np.testing.assert_array_equal(parameters["value"], np.median(values, axis=0))
    np.testing.assert_allclose(parameters["lower95"], np.quantile(values, 0.025, axis=0))
    observations = tables["observations"]
    np.testing.assert_array_equal(observations["modelled"], np.median(simulated, axis=0))
    np.testing.assert_allclose(
        observations["residual"], observations["measured"] - observations["modelled"]
    )
    assert tables["phi"].shape == (11, 6)
    assert tables["phi"].iloc[1:, 5].isna().all()
    assert tables["phi"].iloc[:, :5].notna().all(axis=None)


@pytest.mark.parametrize("cut", [False, True])
def test_sweeps(tmp_path: Path, cut: bool) -> None:
    folder = make_session(tmp_path, engine="sweep")
    write_sweep(folder, cut=cut)
    sweep = read_results(folder)["sweep"]
    # Without the row that is being written now; r3 failed, but is there.
    assert list(sweep["input_run_id"]) == ["r0", "r1", "r2", "r3"]
    assert list(sweep["phi"].dropna()) == [3.0, 1.0, 2.0]
    assert list(sweep["s30_01"].isna()) == [False, False, False, True]


def test_the_output_of_a_sweep_may_have_another_name(tmp_path: Path) -> None:
    folder = make_session(
        tmp_path, engine="sweep", options={"sweep_output_csv_file": "out/mine.csv"}
    )
    write_sweep(folder)
    (folder.results / "sweep_out.csv").rename(folder.results / "mine.csv")
    assert len(read_results(folder)["sweep"]["phi"].dropna()) == 3


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    folder = make_session(tmp_path, engine="ies")
    write_ies(folder, iterations=1)
    path = folder.results / f"{CASE}.phi.actual.csv"
    path.write_text('a,"b\n1,2,3\n4')
    with pytest.raises(SessionError, match=r"phi\.actual\.csv cannot be read"):
        read_results(folder)


def read_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(PNG)
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize("engine", ["glm", "ies", "sweep"])
def test_pictures(tmp_path: Path, engine: str) -> None:
    folder = make_session(tmp_path, engine=engine)
    write_events(folder, *ITERATIONS)
    {"glm": write_glm, "ies": write_ies, "sweep": write_sweep}[engine](folder)
    path = plot_results(folder, tmp_path / "new" / "fit.png")
    width, height = read_size(path)
    assert width > height > 400


def test_a_picture_of_phi_alone_while_there_is_no_fit(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    write_events(folder, *ITERATIONS[:2])
    assert plot_results(folder, tmp_path / "fit.png").exists()


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no results that can be drawn"):
        plot_results(make_session(tmp_path), tmp_path / "fit.png")


def make_tables(observations: list[tuple[str, float, float, float]]) -> dict[str, pandas.DataFrame]:
    table = pandas.DataFrame(observations, columns=["group", "measured", "modelled", "weight"])
    table["residual"] = table["measured"] - table["modelled"]
    iterations = pandas.DataFrame({"number": [0, 1], "phi": [4.0, 0.2]})
    return {"observations": table, "iterations": iterations}


def test_the_fit_shows_each_group_and_only_what_has_a_weight() -> None:
    tables = make_tables(
        [("a", 1.0, 1.1, 1.0), ("b", 2.0, 2.1, 1.0), ("b", 3.0, 2.0, 2.0), ("c", 1e9, 0.0, 0.0)]
    )
    figure = draw_results(tables, title="t")
    assert figure is not None
    fit, residuals, phi = figure.axes
    legend = fit.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    assert fit.get_xlim() == fit.get_ylim()
    assert fit.get_xlim()[1] < 10  # the observation without weight is not there
    weighted = np.vstack([points.get_offsets() for points in residuals.collections])
    np.testing.assert_allclose(weighted[:, 1], [-0.1, -0.1, 2.0])
    assert phi.get_yscale() == "log"
    np.testing.assert_array_equal(phi.lines[0].get_ydata(), [4.0, 0.2])


def test_a_phi_of_zero_has_no_logarithm() -> None:
    tables = make_tables([("a", 1.0, 1.0, 1.0)])
    tables["iterations"]["phi"] = [4.0, 0.0]
    figure = draw_results(tables, title="t")
    assert figure is not None
    assert figure.axes[2].get_yscale() == "linear"


def test_many_groups_have_no_legend() -> None:
    tables = make_tables([(f"g{n}", float(n), float(n), 1.0) for n in range(12)])
    figure = draw_results(tables, title="t")
    assert figure is not None
    assert figure.axes[0].get_legend() is None
