"""Sessions in Amazon's cloud, from their launch to their end: their tasks run as registered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from amazon_shell import LAUNCH, ON, AmazonShell
from cases import make_case, write_sweep
from compose_shell import read_results, read_runs
from hosting import check_every_run_once, wait_for
from pestfleet.costs.plan import START_SECONDS
from pestfleet.folder import SessionFolder
from pestfleet.session import Session

pytestmark = pytest.mark.docker

EXAMPLE = "oude-korendijk"
PATIENCE = 400.0  # seconds
THERE = ("--on", "ecs")


def check_calibration(shell: AmazonShell, root: Path, engine: str) -> None:
    """One command runs the example in the cloud as it is run here."""
    case = shell.folder / "example"
    shutil.copytree(root / "examples" / EXAMPLE, case)
    words = ("--engine", engine, "--workers", "2")
    shell.run("run", str(case), *words, "--on", "local", "--no-cache", "--session", "here")
    shell.start("run", str(case), *words, *ON, "--session", "there").wait(timeout=LAUNCH)
    here, there = (shell.open_folder(name).path for name in ("here", "there"))
    runs = read_runs(there)
    assert runs == read_runs(here) and len(runs) > 20
    assert read_results(there, EXAMPLE) == read_results(here, EXAMPLE)
    assert len(list((there / "logs").iterdir())) == 2
    shell.check_nothing_left("there")
    assert "finished" in shell.run("status", "there")
    check_cost(shell, "there", runs=len(runs), workers=2)


def check_cost(shell: AmazonShell, session: str, *, runs: int, workers: int) -> None:
    cost = json.loads(shell.run("cost", session, "--json"))
    assert (cost["runs"], cost["workers"]) == (runs, workers) and not cost["running"]
    # A task is paid for from its start, before its worker joins.
    started = workers * START_SECONDS
    assert started < cost["worker_seconds"] < started + workers * (cost["seconds"] + 1)
    assert cost["slot_seconds"] == cost["worker_seconds"]  # one slot each
    assert 0 < cost["model_seconds"] < workers * cost["seconds"]
    assert cost["usd"] > 0


def test_one_command_gives_the_same_bits_as_local(shell: AmazonShell, root: Path) -> None:
    check_calibration(shell, root, "glm")
    # The account holds each role to its policy; these are those that were used. A worker has a
    # wish only when it sees, every half a second, that it has a run: such short ones seldom.
    roles = {call.caller.rpartition("/")[2] for call in shell.amazon.calls if call.caller}
    master, worker = "pestfleet-there-master", "pestfleet-there-worker"
    assert {master} <= roles <= {master, worker}


@pytest.mark.pestpp
def test_pestpp_gives_the_same_bits_as_local(shell: AmazonShell, root: Path) -> None:
    check_calibration(shell, root, "pestpp-glm")


def test_any_shell_follows_a_session_that_was_launched_and_left_alone(
    shell: AmazonShell, tmp_path: Path
) -> None:
    """The fleet grows with its runs. Who has its files goes on with it, wherever that is."""
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=600)
    fleet = ("--engine", "sweep", "--workers", "1..3", "--detach")
    shell.start("run", str(case), "--session", "pf-2", *ON, *fleet).wait(timeout=LAUNCH)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    tasks = shell.scheduler.wait_for("pestfleet-pf-2-worker", 3, seconds=PATIENCE)

    def look() -> dict[str, object]:
        found: dict[str, object] = json.loads(
            shell.run("status", "pf-2", *THERE, "--json", folder=elsewhere)
        )
        return found

    wait_for(lambda: "batch" in look(), timeout=PATIENCE, what="a state with runs")
    (row,) = json.loads(shell.run("sessions", *THERE, "--json", folder=elsewhere))
    assert (row["name"], row["state"], row["workers"]) == ("pf-2", "running", 3)
    assert row["folder"] == str(shell.open_folder("pf-2").path)
    log = shell.run("logs", "pf-2", *THERE, "--lines", "999", folder=elsewhere)
    assert " joined (1 slot)" in log
    shell.run("logs", "pf-2", tasks[0].id, *THERE, folder=elsewhere)

    shell.run("cost", "pf-2", "--fetch", *THERE, folder=elsewhere)
    resumed = shell.start("resume", "pf-2", "--json", folder=elsewhere)
    resumed.wait(timeout=LAUNCH)
    assert "following it" in resumed.notes()
    folder = SessionFolder(elsewhere / "pestfleet-sessions" / "pf-2")
    check_every_run_once(Session(folder), rows)
    shell.check_nothing_left("pf-2")
