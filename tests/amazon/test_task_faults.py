"""Harm to tasks in the middle of a session: no run is lost, and none is made twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from amazon_shell import AmazonShell
from cases import make_case, write_sweep
from compose_shell import Command, count_runs
from ecs_containers import ContainerHost
from ecs_state import Task
from hosting import check_every_run_once
from pestfleet.session import Session
from pestfleet_worker.ecs_agent import name_worker

pytestmark = pytest.mark.docker

SWEEP = ("--engine", "sweep")
SESSION = "pf-harm"
TOLD = "told to stop by a signal"


class Harmed:
    """A session that runs, with what harm needs."""

    def __init__(self, shell: AmazonShell, host: ContainerHost, *words: str, runs: int) -> None:
        self.shell = shell
        self.host = host
        case = make_case(shell.folder / "case", seconds=0.3)
        self.rows = write_sweep(case.parent, runs=runs)
        self.command: Command = shell.launch(case, SESSION, *SWEEP, *words, runs=4)
        self.folder = shell.open_folder(SESSION)

    def find_task(self, role: str) -> Task:
        return self.shell.scheduler.list_tasks(f"pestfleet-{SESSION}-{role}")[0]

    def kill(self, role: str) -> None:
        """SIGKILL for the main process of a role's task."""
        self.host.find_containers(self.find_task(role))[role].kill()

    def await_more(self) -> None:
        done = count_runs(self.folder)
        self.command.wait_for(lambda: count_runs(self.folder) > done + 4, "more runs")

    def await_notes(self, *words: str) -> None:
        """Wait until one sentence that the command has told has all of these words."""

        def look() -> bool:
            lines = self.command.notes().splitlines()
            return any(all(word in line for word in words) for line in lines)

        self.command.wait_for(look, " … ".join(words))

    def list_left(self, task: Task) -> list[str]:
        """Why the worker of a task has left."""
        name = name_worker(task.arn)
        events = self.command.events("worker-left")
        return [event["reason"] for event in events if event["worker"].startswith(name)]

    def read_worker_log(self, worker: str) -> str:
        (path,) = (self.folder.path / "logs").glob(f"worker-{worker.removeprefix('task-')}*.log")
        return path.read_text()

    def check_finished(self) -> None:
        assert count_runs(self.folder) < len(self.rows), "it was over before the last harm"
        self.command.wait()
        assert "could not be renewed" not in self.command.notes(), "the lease"
        check_every_run_once(Session(self.folder), self.rows)
        self.shell.check_nothing_left(SESSION)


@pytest.fixture
def harm(shell: AmazonShell, container_host: ContainerHost) -> Callable[..., Harmed]:
    """Launches a session: its words, and its runs."""

    def launch(*words: str, runs: int) -> Harmed:
        return Harmed(shell, container_host, *words, runs=runs)

    return launch


def test_lost_tasks_lose_no_run(harm: Callable[..., Harmed]) -> None:
    harmed = harm("--workers", "3", runs=900)
    command, scheduler = harmed.command, harmed.shell.scheduler

    spotted = harmed.find_task("worker")
    scheduler.stop_task(spotted.arn, spot=True)
    command.wait_for(lambda: harmed.list_left(spotted), "the end of a worker on Spot")
    assert harmed.list_left(spotted) == [TOLD]
    scheduler.wait_until(lambda: spotted.last_status == "STOPPED")
    codes = {one["name"]: one["exitCode"] for one in spotted.answer["containers"]}
    assert codes["worker"] != 137, "it had to be killed"
    scheduler.wait_for(f"pestfleet-{SESSION}-worker", 3)
    harmed.await_more()

    for role, said in (("broker", "are asked for again"), ("master", "from the runs that are")):
        harmed.kill(role)
        harmed.await_notes(f"the task of the {role} was lost", said)
        harmed.await_more()

    scheduler.stop_task(harmed.find_task("master").arn)
    command.wait_for(lambda: len(command.events("start")) == 3, "a third master")
    assert [event["known_runs"] > 0 for event in command.events("start")] == [False, True, True]
    harmed.check_finished()


def test_a_smaller_fleet_loses_no_run(harm: Callable[..., Harmed]) -> None:
    """Workers that have a run protect their task: only those that are drained are ended."""
    harmed = harm("--workers", "3", runs=500)
    command, shell = harmed.command, harmed.shell
    command.wait_for(lambda: len(command.events("worker-joined")) >= 3, "three workers")
    assert "3 -> 1" in shell.run("scale", "1", SESSION)
    shell.scheduler.wait_for(f"pestfleet-{SESSION}-worker", 1)
    command.wait_for(lambda: len(command.events("worker-left")) == 2, "the end of two workers")
    harmed.await_more()
    assert "1 -> 2" in shell.run("scale", "2", SESSION)
    shell.scheduler.wait_for(f"pestfleet-{SESSION}-worker", 2)
    harmed.check_finished()
    for event in command.events("worker-left")[:2]:
        said = harmed.read_worker_log(event["worker"])
        order = [said.index(text) for text in ("drained", "not protected any more", "leaving: ")]
        assert order == sorted(order), said
