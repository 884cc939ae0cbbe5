"""Sessions on Kubernetes, from their launch to their end; nothing is left of them."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from cases import make_case, write_sweep
from cluster_shell import ClusterShell
from compose_shell import read_results, read_runs
from hosting import check_every_run_once
from pestfleet.session import Session

pytestmark = [pytest.mark.docker, pytest.mark.kubernetes]

CALIBRATION, ENSEMBLE = "oude-korendijk", "ensemble"
SWEEP = ("--engine", "sweep")


def check_same_bits(
    shell: ClusterShell, root: Path, example: str, *words: str
) -> tuple[Path, Path]:
    """One command runs an example in the cluster as it is run here; the folders of both."""
    case = shell.folder / "example"
    shutil.copytree(root / "examples" / example, case)
    local = ("--workers", "2", "--no-cache", "--on", "local", "--session", "here")
    shell.run("run", str(case), *words, *local)
    shell.run(*shell.list_words(case, "pf.K1", *words, "--workers", "2"))
    here, there = (shell.open_folder(name).path for name in ("here", "pf.K1"))
    runs = read_runs(there)
    assert runs == read_runs(here) and len(runs) > 20
    assert len(list((there / "logs").iterdir())) == 2
    shell.check_nothing_left("pf.K1")
    assert "finished" in shell.run("status", "pf.K1")
    return here, there


def check_calibration(shell: ClusterShell, root: Path, engine: str) -> None:
    here, there = check_same_bits(shell, root, CALIBRATION, "--engine", engine)
    assert read_results(there, CALIBRATION) == read_results(here, CALIBRATION)


def check_ensembles(shell: ClusterShell, root: Path, engine: str) -> None:
    few = ("--option", "ies_num_reals=8", "--option", "noptmax=1")
    folders = check_same_bits(shell, root, ENSEMBLE, "--engine", engine, *few)
    here, there = (
        {path.name: path.read_bytes() for path in (folder / "results").glob("ensemble.[01].*.csv")}
        for folder in folders
    )
    assert there == here and {"ensemble.1.par.csv", "ensemble.1.obs.csv"} <= here.keys()


def test_one_command_gives_the_same_bits_as_local(shell: ClusterShell, root: Path) -> None:
    check_calibration(shell, root, "glm")


def test_ensembles_have_the_same_bits_as_local(shell: ClusterShell, root: Path) -> None:
    check_ensembles(shell, root, "ies")


@pytest.mark.pestpp
def test_pestpp_gives_the_same_bits_as_local(shell: ClusterShell, root: Path) -> None:
    check_calibration(shell, root, "pestpp-glm")


@pytest.mark.pestpp
def test_pestpp_ies_gives_the_same_bits_as_local(shell: ClusterShell, root: Path) -> None:
    check_ensembles(shell, root, "pestpp-ies")


def test_ctrl_c_and_resume(shell: ClusterShell) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=40)
    running = shell.launch(case, "pf-2", *SWEEP, "--workers", "2", runs=8)
    running.send(signal.SIGINT)
    assert "pestfleet resume pf-2" in running.wait(130)
    shell.check_nothing_left("pf-2", but_results=True)
    assert "stopped" in shell.run("status", "pf-2")
    resumed = shell.start("resume", "pf-2", "--json")
    resumed.wait()
    assert resumed.events("start")[-1]["known_runs"] >= 8
    check_every_run_once(Session(shell.open_folder("pf-2")), rows)
    shell.check_nothing_left("pf-2")


def test_any_shell_sees_a_session_whose_command_was_killed(
    shell: ClusterShell, tmp_path: Path
) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=160)
    shell.launch(case, "pf-3", *SWEEP, "--workers", "2", runs=4).kill()

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    on = ("--on", "kubernetes", "--namespace", shell.namespace)
    listed = json.loads(shell.run("sessions", *on, "--json", folder=elsewhere))
    (row,) = [row for row in listed if row["name"] == "pf-3"]
    assert (row["state"], row["workers"]) == ("running", 2)
    assert row["folder"] == str(shell.open_folder("pf-3").path)
    status = json.loads(shell.run("status", "pf-3", *on, "--json", folder=elsewhere))
    assert status["state"] == "running" and status["batch"]["total"] == 160
    log = shell.run("logs", "pf-3", *on, "--lines", "999", folder=elsewhere)
    assert " joined (1 slot)" in log
    worker = shell.list_pods("pf-3", "worker")[0]["metadata"]["name"]
    assert "leaving" not in shell.run("logs", "pf-3", worker, *on, folder=elsewhere)

    # More workers, then fewer: none is lost.
    assert "2 -> 4" in shell.run("scale", "4", "pf-3", *on, folder=elsewhere)
    shell.await_pods("pf-3", "worker", 4)
    assert "4 -> 1" in shell.run("scale", "1", "pf-3", *on, folder=elsewhere)

    # From where it was launched it is followed to its end.
    resumed = shell.start("resume", "pf-3", "--json")
    resumed.wait()
    assert "follow" in resumed.notes()
    check_every_run_once(Session(shell.open_folder("pf-3")), rows)
    shell.check_nothing_left("pf-3")


def test_a_session_that_nobody_follows_ends_by_itself(shell: ClusterShell) -> None:
    """The launching machine has died: only the claim with the results stays."""
    case = make_case(shell.folder / "case", seconds=0.1)
    rows = write_sweep(case.parent, runs=40)
    more = ("--workers", "2", "--set", "session.keepSeconds=1")
    shell.launch(case, "pf-4", *SWEEP, *more, runs=2).kill()
    shell.check_nothing_left("pf-4", but_results=True, patience=300)
    shell.run("results", "pf-4", "--fetch")
    check_every_run_once(Session(shell.open_folder("pf-4")), rows)
    assert "persistentvolumeclaim" in shell.run("down", "pf-4", "--discard-results")
    shell.check_nothing_left("pf-4")
