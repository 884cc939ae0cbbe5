"""Sessions on docker compose, from their launch to their end; nothing is left of them."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from cases import make_case, write_sweep
from compose_shell import Shell, read_results, read_runs
from hosting import check_every_run_once, wait_for
from pestfleet.session import Session

pytestmark = pytest.mark.docker

EXAMPLE = "oude-korendijk"


def calibrate(shell: Shell, root: Path, engine: str, session: str, *where: str) -> Path:
    """The folder of a session with the example."""
    case = shell.folder / "example"
    if not case.exists():
        shutil.copytree(root / "examples" / EXAMPLE, case)
    words = ("--engine", engine, "--workers", "2", "--session", session, "--no-cache")
    shell.run("run", str(case), *words, *where)
    return shell.folder / "pestfleet-sessions" / session


def check_calibration(shell: Shell, root: Path, engine: str) -> None:
    here = calibrate(shell, root, engine, "here", "--on", "local")
    there = calibrate(shell, root, engine, "pf.T1", "--on", "compose")
    assert read_results(there, EXAMPLE) == read_results(here, EXAMPLE)
    runs = read_runs(there)
    assert runs == read_runs(here) and len(runs) > 20
    assert {path.stem for path in (there / "logs").iterdir()} == {"worker-1", "worker-2"}
    shell.check_nothing_left("pf.T1")
    assert "finished" in shell.run("status", "pf.T1")


def test_one_command_gives_the_same_bits_as_local(
    shell: Shell, each_compose: str, root: Path
) -> None:
    check_calibration(shell, root, "glm")


@pytest.mark.pestpp
def test_pestpp_gives_the_same_bits_as_local(shell: Shell, compose_v1: None, root: Path) -> None:
    check_calibration(shell, root, "pestpp-glm")


SWEEP = ("--on", "compose", "--engine", "sweep", "--no-cache")


def test_ctrl_c_and_resume(shell: Shell, compose_v1: None) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=100)
    running = shell.launch("run", str(case), *SWEEP, "--workers", "2", "--session", "pf-2", runs=8)
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
    shell: Shell, compose_v1: None, tmp_path: Path
) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=240)
    words = ("run", str(case), *SWEEP, "--workers", "2", "--session", "pf-3")
    shell.launch(*words, runs=4).kill()

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    listed = json.loads(shell.run("sessions", "--on", "compose", "--json", folder=elsewhere))
    (row,) = [row for row in listed if row["name"] == "pf-3"]
    assert (row["state"], row["workers"]) == ("running", 2)
    assert row["folder"] == str(shell.open_folder("pf-3").path)
    status = json.loads(shell.run("status", "pf-3", "--on", "compose", "--json", folder=elsewhere))
    assert status["state"] == "running" and status["batch"]["total"] == 240
    log = shell.run("logs", "pf-3", "--on", "compose", "--lines", "999", folder=elsewhere)
    assert " joined (1 slot)" in log
    log = shell.run("logs", "pf-3", "worker-2", "--on", "compose", folder=elsewhere)
    assert "broker" in log

    # From where it was launched it is followed to its end.
    resumed = shell.start("resume", "pf-3", "--json")
    resumed.wait()
    assert "follow" in resumed.notes()
    check_every_run_once(Session(shell.open_folder("pf-3")), rows)
    shell.check_nothing_left("pf-3")


def test_down_all_after_commands_were_killed(
    shell: Shell, compose_v1: None, tmp_path: Path
) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    write_sweep(case.parent, runs=5000)
    sessions = ("pf-4", "pf-5")
    for session in sessions:
        words = ("run", str(case), *SWEEP, "--workers", "1", "--session", session)
        shell.launch(*words, runs=1).kill()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    said = shell.run("down", "--all", "--on", "compose", folder=elsewhere)
    for session in sessions:
        assert f"{session}: removed container worker-1" in said
        shell.check_nothing_left(session, but_results=True)
    # There is nothing to show yet, but its files are here.
    shell.run("results", "pf-4", "--on", "compose", "--fetch", folder=elsewhere, code=8)
    assert (elsewhere / "pestfleet-sessions" / "pf-4" / "journal.jsonl").exists()
    shell.run("down", "--all", "--on", "compose", "--discard-results", folder=elsewhere)
    for session in sessions:
        shell.check_nothing_left(session)


def test_detached_session_is_stopped_from_elsewhere(
    shell: Shell, compose_v1: None, tmp_path: Path
) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=200)
    words = (*SWEEP, "--workers", "2", "--session", "pf-6")
    assert "pestfleet resume pf-6" in shell.run("run", str(case), *words, "--detach")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    look = ("status", "pf-6", "--on", "compose", "--json")
    wait_for(
        lambda: json.loads(shell.run(*look, folder=elsewhere)).get("batch", {}).get("done", 0) > 4,
        timeout=300,
    )
    shell.run("stop", "pf-6", "--on", "compose", folder=elsewhere)
    assert json.loads(shell.run(*look, folder=elsewhere))["state"] == "stopped"
    resumed = shell.start("resume", "pf-6", "--json")
    resumed.wait()
    assert resumed.events("start")[-1]["known_runs"] > 4
    check_every_run_once(Session(shell.open_folder("pf-6")), rows)
    shell.check_nothing_left("pf-6")


@pytest.mark.parametrize("how", [("stop",), ("down", "--on", "compose")])
def test_a_session_that_is_followed_is_ended_from_elsewhere(
    shell: Shell, compose_v1: None, how: tuple[str, ...], tmp_path: Path
) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    write_sweep(case.parent, runs=5000)
    words = ("run", str(case), *SWEEP, "--workers", "1", "--session", "pf-7")
    command = shell.launch(*words, runs=2)
    folder = tmp_path / "elsewhere" if "--on" in how else shell.folder
    folder.mkdir(exist_ok=True)
    shell.run(how[0], "pf-7", *how[1:], folder=folder)
    assert "pestfleet resume pf-7" in command.wait(130)
    assert "stopped" in shell.run("status", "pf-7")
    shell.check_nothing_left("pf-7", but_results=True)
