"""Containers killed and fleets scaled in the middle of a session: no run lost, the same values."""

from __future__ import annotations

import pytest

from cases import make_case, write_sweep
from compose_shell import Command, Shell, count_runs
from hosting import check_every_run_once
from pestfleet.session import Session

pytestmark = pytest.mark.docker

RUNS = 180
SESSION = "pf-harm"


def launch(shell: Shell, *words: str, runs: int = RUNS) -> tuple[Command, list[list[float]]]:
    """A sweep of runs that take a while, some of which are finished."""
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=runs)
    how = ("--on", "compose", "--engine", "sweep", "--no-cache", "--session", SESSION)
    return shell.launch("run", str(case), *how, *words, runs=6), rows


def test_killed_containers_lose_no_run(shell: Shell, compose_v1: None) -> None:
    command, rows = launch(shell, "--workers", "2")
    session = shell.open_folder(SESSION)
    for role in ("worker", "broker", "master"):
        done = count_runs(session)
        shell.containers(SESSION, role)[0].kill()
        name = "worker-1" if role == "worker" else role
        said = f"{name} had ended (exit code 137) and is started again"
        command.wait_for(lambda said=said: said in command.notes(), said)
        command.wait_for(lambda done=done: count_runs(session) > done + 4, "more runs")
    assert count_runs(session) < len(rows), "it was over before the last harm"
    command.wait()
    check_every_run_once(Session(session), rows)
    shell.check_nothing_left(SESSION)


def test_scale_up_and_down(shell: Shell, each_compose: str) -> None:
    command, rows = launch(shell, "--workers", "1", runs=200)

    def find_workers() -> list[str]:
        return [
            str(container.name).rpartition("worker")[2].strip("-_")
            for container in shell.containers(SESSION, "worker")
            if container.status == "running"
        ]

    said = shell.run("scale", "4", SESSION)
    assert [line for line in said.splitlines() if "started" in line] == [
        f"worker-{number} is started" for number in (2, 3, 4)
    ]
    assert len(find_workers()) == 4
    command.wait_for(lambda: len(set(_list_makers(shell))) == 4, "runs of each worker")
    said = shell.run("scale", "2", SESSION, "--on", "compose")
    assert "worker-3 gave back its runs and is gone" in said
    assert "worker-4 gave back its runs and is gone" in said
    assert len(find_workers()) == 2
    assert count_runs(shell.open_folder(SESSION)) < len(rows), "it was over before the last scale"
    assert "there are 2 workers already" in shell.run("scale", "2", SESSION)
    command.wait()
    check_every_run_once(Session(shell.open_folder(SESSION)), rows)
    shell.check_nothing_left(SESSION)


def _list_makers(shell: Shell) -> list[str]:
    """The workers that are there and have finished a run."""
    workers = shell.open_folder(SESSION).read_state().get("workers", ())
    return [worker["name"] for worker in workers if worker["finished"]]
