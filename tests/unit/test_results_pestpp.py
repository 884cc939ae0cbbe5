"""Tables and pictures of sessions with external engines: files as PEST++ writes them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pestfleet.files.ensembles import write_ensemble
from pestfleet.folder import SessionFolder
from pestfleet.results import plot_results, read_control_of, read_results
from session_files import CASE, make_session, write_events
from test_results import ITERATIONS, read_size, write_glm, write_ies, write_sweep

IOBJ = (
    "iteration,model_runs_completed,total_phi,measurement_phi,regularization_phi,piezo_30m\n"
    "0,0,4.33004,4.33004,0,3.24675\n"
    "1,18,0.470741,0.470741,0,0.370474\n"
)
MORRIS = (
    "parameter_name,n_samples,sen_mean,sen_mean_abs,sen_std_dev\n"
    "transm,4,-23292.7,36228.7,64556.1\n"
    "storage,3,38461.7,40371.2,69112.9\n"
)


def write_morris(folder: SessionFolder) -> None:
    (folder.results / f"{CASE}.msn").write_text(MORRIS)


def write_sobol(folder: SessionFolder) -> None:
    for which, values in (("si", "0.2,0.6"), ("sti", "0.3,0.7")):
        text = f"output,transm,storage\nphi,{values}\ns90_33,-0.1,2.6\n"
        (folder.results / f"{CASE}.sobol.{which}.csv").write_text(text)


def write_all(folder: SessionFolder) -> None:
    {
        "pestpp-glm": write_glm,
        "beopest": write_glm,
        "pestpp-ies": write_ies,
        "pestpp-swp": write_sweep,
        "pestpp-sen": write_morris,
    }[folder.read_spec().engine](folder)


def move_to_master(folder: SessionFolder) -> Path:
    """Where an external engine runs, until it has ended."""
    master = folder.results / "master"
    files = list(folder.results.iterdir())
    shutil.copytree(folder.case, master)
    for path in files:
        path.rename(master / path.name)
    return master


@pytest.mark.parametrize("while_it_runs", [False, True])
@pytest.mark.parametrize(
    ("engine", "names"),
    [
        ("pestpp-glm", {"parameters", "observations"}),
        ("beopest", {"parameters", "observations"}),
        ("pestpp-swp", {"sweep"}),
        ("pestpp-sen", {"sensitivities"}),
        ("pestpp-ies", {"parameters", "observations", "phi",
                        "prior_parameters", "posterior_parameters",
                        "prior_observations", "posterior_observations"}),
    ],
)  # fmt: skip
def test_tables_and_picture_of_each_engine(
    tmp_path: Path, engine: str, names: set[str], while_it_runs: bool
) -> None:
    folder = make_session(tmp_path, engine=engine)
    assert set(read_results(folder)) == {"iterations"}
    write_all(folder)
    expected = read_results(folder)
    if while_it_runs:
        move_to_master(folder)
    tables = read_results(folder)
    assert set(tables) == names | {"iterations"}
    assert all(tables[name].equals(expected[name]) for name in names)
    width, height = read_size(plot_results(folder, tmp_path / "fit.png"))
    assert width > height > 400


def test_results_that_came_with_the_case_do_not_count(tmp_path: Path) -> None:
    """A modeller's folder often has the results of earlier days in it."""
    folder = make_session(tmp_path, engine="pestpp-ies")
    write_ies(folder, iterations=2)
    old = {path.name: path.read_bytes() for path in folder.results.iterdir()}
    for name, content in old.items():
        (folder.case / name).write_bytes(content)
    for path in list(folder.results.iterdir()):
        path.unlink()
    master = folder.results / "master"
    shutil.copytree(folder.case, master)  # keeps times, as the engine's folder does
    assert set(read_results(folder)) == {"iterations"}

    (master / f"{CASE}.0.obs.csv").write_bytes(old[f"{CASE}.2.obs.csv"])  # new: another time
    os.utime(master / f"{CASE}.0.obs.csv", ns=(1, 1))
    tables = read_results(folder)
    assert tables["prior_observations"].equals(tables["posterior_observations"])
    assert "prior_parameters" not in tables


def test_the_newest_files_count_after_a_resume(tmp_path: Path) -> None:
    folder = make_session(tmp_path, engine="pestpp-sen")
    write_morris(folder)
    os.utime(folder.results / f"{CASE}.msn", (1000, 1000))
    master = folder.results / "master"
    master.mkdir()
    (master / f"{CASE}.msn").write_text(MORRIS.replace("40371.2", "5.0"))
    assert list(read_results(folder)["sensitivities"]["mean_absolute"]) == [36228.7, 5.0]


def test_binary_ensembles(tmp_path: Path) -> None:
    folder = make_session(tmp_path, engine="pestpp-ies")
    values, simulated = write_ies(folder)
    before = read_results(folder)
    for path in folder.results.glob("*.[op][ba][sr].csv"):
        path.unlink()
    assert not list(folder.results.glob("*.par.csv"))
    tables = read_results(folder)
    np.testing.assert_array_equal(tables["posterior_parameters"].to_numpy(), values)
    np.testing.assert_array_equal(tables["posterior_observations"].to_numpy(), simulated)
    assert tables["observations"].equals(before["observations"])


def test_phi_of_a_session_whose_journal_has_no_iterations(tmp_path: Path) -> None:
    folder = make_session(tmp_path, engine="pestpp-glm")
    (folder.results / f"{CASE}.iobj").write_text(IOBJ)
    assert read_results(folder)["iterations"].to_dict("list") == {
        "number": [0, 1],
        "phi": [4.33004, 0.470741],
    }
    write_events(folder, *ITERATIONS)
    assert list(read_results(folder)["iterations"]["phi"]) == [4.0, 0.5, 0.2]


def test_the_last_iteration_stands_in_for_a_final_parameter_file(tmp_path: Path) -> None:
    folder = make_session(tmp_path, engine="pestpp-opt")
    for number, transmissivity in ((2, 200.0), (10, 1000.0)):
        (folder.results / f"{CASE}.{number}.par").write_text(
            f"single point\n transm {transmissivity} 1.0 0.0\n storage 0.0001 1.0 0.0\n"
        )
    assert list(read_results(folder)["parameters"]["value"]) == [1000.0, 0.0001]


def test_sensitivities(tmp_path: Path) -> None:
    morris = make_session(tmp_path, "s1", engine="pestpp-sen")
    write_morris(morris)
    table = read_results(morris)["sensitivities"]
    assert list(table["name"]) == ["storage", "transm"]
    assert list(table["samples"]) == [3, 4]
    assert list(table["standard_deviation"]) == [69112.9, 64556.1]
    sobol = make_session(tmp_path, "s2", engine="pestpp-sen")
    write_sobol(sobol)
    assert read_results(sobol)["sensitivities"].to_dict("list") == {
        "name": ["storage", "transm"],
        "first_order": [0.6, 0.2],
        "total": [0.7, 0.3],
    }
    assert plot_results(sobol, tmp_path / "fit.png").exists()


def write_forecasts(folder: SessionFolder, *, named: str = "", unweighted: int = 2) -> None:
    """Take the weight of the last observations, and name forecasts in the control file."""
    path = folder.case / f"{CASE}.pst"
    lines = path.read_text().splitlines()
    control = read_control_of(folder, folder.read_spec())
    for observation in control.observations[-unweighted:]:
        place = next(i for i, line in enumerate(lines) if line.startswith(observation.name + " "))
        lines[place] = lines[place].replace(" 1.0 ", " 0.0 ")
    if named:
        lines.append(f"++forecasts({named})")
    path.write_text("\n".join(lines) + "\n")


def test_forecasts_are_few_observations_without_weight_or_those_that_are_named(
    tmp_path: Path,
) -> None:
    few = make_session(tmp_path, "s1", engine="pestpp-ies")
    write_forecasts(few)
    write_ies(few)
    tables = read_results(few)
    forecasts = tables["forecasts"].set_index("name")
    assert list(forecasts.index) == ["s90_34", "s90_35"]
    ensembles = {w: tables[f"{w}_observations"]["s90_35"] for w in ("prior", "posterior")}
    for which, values in ensembles.items():
        assert forecasts.loc["s90_35", f"{which}_median"] == np.median(values)
        assert forecasts.loc["s90_35", f"{which}_upper95"] == np.quantile(values, 0.975)
    assert forecasts.loc["s90_35", "written"] == 0.716
    assert tables["observations"].set_index("name")["noise"].isna().sum() == 2

    many = make_session(tmp_path, "s2", engine="pestpp-ies")
    write_forecasts(many, unweighted=10)
    write_ies(many)
    assert "forecasts" not in read_results(many)
    write_forecasts(many, unweighted=10, named="S90_30,s30_01")
    assert list(read_results(many)["forecasts"]["name"]) == ["s30_01", "s90_30"]
    assert plot_results(many, tmp_path / "fit.png").exists()


def test_damaged_ensembles_are_told(tmp_path: Path) -> None:
    from pestfleet_worker.errors import PestfleetError

    folder = make_session(tmp_path, engine="pestpp-ies")
    (path, _) = write_ensemble(folder.results / f"{CASE}.0.par", ["a"], ["transm"], np.ones((1, 1)))
    path.unlink()
    binary = folder.results / f"{CASE}.0.par.jcb"
    binary.write_bytes(binary.read_bytes()[:20])
    with pytest.raises(PestfleetError, match=rf"{CASE}\.0\.par\.jcb"):
        read_results(folder)
