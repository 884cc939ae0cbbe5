"""Sessions on docker compose, from their launch to their end; nothing is left of them."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from cases import make_case, write_sweep
from compose_shell import Shell, read_results, read_runs
from hosting import check_every_run_once
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


@pytest.mark.parametrize("engine", ["glm", pytest.param("pestpp-glm", marks=pytest.mark.pestpp)])
def test_one_command_calibrates_with_the_same_bits_as_local(
    shell: Shell, each_compose: str, root: Path, engine: str
) -> None:
    here = calibrate(shell, root, engine, "here", "--on", "local")
    there = calibrate(shell, root, engine, "pf.T1", "--on", "compose")
    assert read_results(there, EXAMPLE) == read_results(here, EXAMPLE)
    runs = read_runs(there)
    assert runs == read_runs(here) and len(runs) > 20
    assert {path.stem for path in (there / "logs").iterdir()} == {"worker-1", "worker-2"}
    shell.check_nothing_left("pf.T1")
    assert "finished" in shell.run("status", "pf.T1")


SWEEP = ("--on", "compose", "--engine", "sweep", "--no-cache")


def test_ctrl_c_and_resume(shell: Shell, compose_v1: None) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=40)
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
    rows = write_sweep(case.parent, runs=100)
    words = ("run", str(case), *SWEEP, "--workers", "2", "--session", "pf-3")
    shell.launch(*words, runs=4).kill()

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    listed = json.loads(shell.run("sessions", "--on", "compose", "--json", folder=elsewhere))
    assert [(row["name"], row["state"], row["workers"]) for row in listed] == [
        ("pf-3", "running", 2)
    ]
    assert listed[0]["folder"] == str(shell.open_folder("pf-3").path)
    status = json.loads(shell.run("status", "pf-3", "--on", "compose", "--json", folder=elsewhere))
    assert status["state"] == "running" and status["batch"]["total"] == 100
    log = shell.run("logs", "pf-3", "--on", "compose", "--lines", "999", folder=elsewhere)
    assert "worker-joined" in log
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
    write_sweep(case.parent, runs=100)
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
    shown = shell.run("results", "pf-4", "--on", "compose", "--fetch", folder=elsewhere)
    assert "session pf-4" in shown
    assert (elsewhere / "pestfleet-sessions" / "pf-4" / "journal.jsonl").exists()
    shell.run("down", "--all", "--on", "compose", "--discard-results", folder=elsewhere)
    for session in sessions:
        shell.check_nothing_left(session)
