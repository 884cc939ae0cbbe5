"""A master on the user's machine with broker, tunnel and workers in Amazon's cloud."""

from __future__ import annotations

import shutil
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from amazon_shell import LAUNCH, AmazonShell
from cases import make_case, write_sweep
from compose_shell import count_runs, read_results, read_runs
from hosting import check_every_run_once
from pestfleet.session import Session
from pestfleet.targets.ecs.lease import TERM
from schedule_runner import run_schedules

pytestmark = pytest.mark.docker

EXAMPLE = "oude-korendijk"
HERE = ("--master", "here")
SWEEP = ("--engine", "sweep", "--workers", "2", *HERE)
ADDRESS = "203.0.113.7/32"  # that this machine has, says its user


@pytest.fixture
def home(shell: AmazonShell, monkeypatch: pytest.MonkeyPatch) -> AmazonShell:
    monkeypatch.setenv("PESTFLEET_AMAZON__ALLOW_FROM", ADDRESS)
    return shell


def test_a_master_here_gives_the_same_bits_as_local(home: AmazonShell, root: Path) -> None:
    case = home.folder / "example"
    shutil.copytree(root / "examples" / EXAMPLE, case)
    words = ("run", str(case), "--engine", "glm", "--workers", "2", "--no-cache")
    home.run(*words, "--on", "local", "--session", "local")
    home.start(*words, "--on", "ecs", *HERE, "--session", "pf-home1").wait(timeout=LAUNCH)
    local, there = (home.open_folder(name).path for name in ("local", "pf-home1"))
    assert read_results(there, EXAMPLE) == read_results(local, EXAMPLE)
    runs = read_runs(there)
    assert runs == read_runs(local) and len(runs) > 20
    assert len(list((there / "logs").iterdir())) == 2
    home.check_nothing_left("pf-home1")
    assert "finished" in home.run("status", "pf-home1")


def test_ctrl_c_leaves_nothing_and_a_lost_broker_no_run_undone(home: AmazonShell) -> None:
    case = make_case(home.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=200)
    running = home.launch(case, "pf-home2", *SWEEP, runs=4)
    folder = home.open_folder("pf-home2")
    for role in ("broker", "worker"):
        home.scheduler.stop_task(home.scheduler.list_tasks(f"pestfleet-pf-home2-{role}")[0].arn)
        done = count_runs(folder)
        running.wait_for(lambda done=done: count_runs(folder) > done + 4, f"more, without {role}")  # type: ignore[misc]
    assert count_runs(folder) < len(rows), "it was over before the last harm"
    running.send(signal.SIGINT)
    assert "pestfleet resume pf-home2" in running.wait(130)
    home.check_nothing_left("pf-home2")
    resumed = home.start("resume", "pf-home2", "--json")
    resumed.wait()
    assert resumed.events("start")[-1]["known_runs"] >= 12
    check_every_run_once(Session(folder), rows)
    home.check_nothing_left("pf-home2")


def test_runs_come_through_the_tunnel_to_a_broker_here(home: AmazonShell) -> None:
    case = make_case(home.folder / "case", seconds=0.1)
    rows = write_sweep(case.parent, runs=300)
    running = home.launch(case, "pf-home3", *SWEEP, "--tunnel", runs=6)
    assert not home.scheduler.list_tasks("pestfleet-pf-home3-broker")
    folder = home.open_folder("pf-home3")
    (tunnel,) = home.scheduler.list_tasks("pestfleet-pf-home3-tunnel")
    home.scheduler.stop_task(tunnel.arn)
    home.scheduler.wait_until(lambda: tunnel.last_status == "STOPPED")
    done = count_runs(folder)
    running.wait_for(lambda: count_runs(folder) > done + 6, "runs through another tunnel")
    assert count_runs(folder) < len(rows), "it was over before the harm"
    running.wait()
    check_every_run_once(Session(folder), rows)
    home.check_nothing_left("pf-home3")


def test_what_a_killed_command_left_stops_and_another_shell_removes_it(
    home: AmazonShell, tmp_path: Path
) -> None:
    case = make_case(home.folder / "case", seconds=0.3)
    write_sweep(case.parent, runs=5000)
    home.launch(case, "pf-home4", *SWEEP, runs=4).kill()

    # The lease is not over yet; when it is, and nobody has renewed it, the services stop.
    now = datetime.now(UTC)
    assert run_schedules(home.amazon, now) == []
    services = {f"pestfleet-pf-home4-{role}" for role in ("broker", "worker")}
    assert set(run_schedules(home.amazon, now + timedelta(seconds=TERM))) == services
    for service in services:
        home.scheduler.wait_for(service, 0)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    said = home.run("down", "--all", "--on", "ecs", folder=elsewhere)
    assert "pf-home4: removed service" in said
    home.check_nothing_left("pf-home4")
    assert "died" in home.run("status", "pf-home4")


def test_another_shell_removes_a_session_whose_tasks_still_run(
    home: AmazonShell, tmp_path: Path
) -> None:
    case = make_case(home.folder / "case", seconds=0.3)
    write_sweep(case.parent, runs=5000)
    home.launch(case, "pf-home5", *SWEEP, "--tunnel", runs=4).kill()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    home.run("down", "--all", "--on", "ecs", folder=elsewhere)
    home.check_nothing_left("pf-home5")
