"""A master that is only played: all that a real one does with Amazon's APIs, without an engine.

Run as a program it is the task's container: it takes the session from the store, claims it, renews
the lease, mirrors its folder, follows `scale` and `stop`, and ends the fleet. Its runs are made up.
`PlayedMaster` is the agent of ECS around it: it gives it the rights of the task's role, and brings
what it writes to the log group with those of the execution role.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3

from ecs_scheduler import EcsScheduler
from ecs_state import Task
from moto_server import Amazon
from pestfleet.targets.ecs.naming import Names

RUNS = 6  # in two batches
FINISH = "finish"  # file in the folder that the program works in: play the end


class PlayedMaster:
    """The task of a session's master, as ECS runs it."""

    def __init__(self, amazon: Amazon, task: Task, session: str, folder: Path) -> None:
        self._amazon = amazon
        self._task = task
        self._session = session
        self._folder = folder
        container = next(
            one for one in task.definition.container_definitions if one["name"] == "master"
        )
        self._words: list[str] = container["command"]
        self._log = container["logConfiguration"]["options"]
        self._process = subprocess.Popen(
            [sys.executable, __file__, session, str(folder), *self._words],
            env={**os.environ, **self._make_key(task.definition.task_role_arn)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._agent = threading.Thread(target=self._keep_log, name="awslogs", daemon=True)
        self._agent.start()

    def finish(self) -> None:
        """Let the engine come to its end, and wait for that of the master."""
        (self._folder / FINISH).touch()
        self.wait()

    def wait(self, code: int = 0) -> None:
        """Until it has ended, by itself."""
        assert self._process.wait(60) == code
        self._agent.join(30)

    def kill(self) -> None:
        """As a machine that dies."""
        self._process.kill()
        self._process.wait()
        self._agent.join(30)

    def _make_key(self, role: str) -> dict[str, str]:
        with self._amazon.lock:
            key = self._amazon.make_key(role)
        return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "secret"}

    def _keep_log(self) -> None:
        key = self._make_key(self._task.definition.execution_role_arn)
        logs = boto3.client(
            "logs",
            endpoint_url=self._amazon.url,
            region_name=self._amazon.region,
            aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key="secret",
        )
        group = self._log["awslogs-group"]
        stream = f"{self._log['awslogs-stream-prefix']}/master/{self._task.id}"
        logs.create_log_stream(logGroupName=group, logStreamName=stream)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = {"timestamp": int(time.time() * 1000), "message": line.rstrip("\n")}
            logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=[event])


@contextmanager
def play_master(
    amazon: Amazon, scheduler: EcsScheduler, session: str, folder: Path
) -> Iterator[PlayedMaster]:
    """The master of a session plays while the block runs, in a new folder."""
    (task,) = scheduler.wait_for(Names(session).service("master"), 1)
    folder.mkdir()
    master = PlayedMaster(amazon, task, session, folder)
    try:
        yield master
    finally:
        master.kill()


# -- the program ---------------------------------------------------------------------------------


def _play(session: str, place: Path, words: list[str]) -> None:
    from pestfleet.folder import SessionFolder
    from pestfleet.store import mirror
    from pestfleet.targets.ecs.master_task import MasterTask

    often = mirror.Pace(requests=0.3, state=0.3, files=0.3, settled=0.3)
    mirror.Pace = lambda: often  # type: ignore[assignment,misc]
    given = dict(pairwise(words))
    folder = SessionFolder(place / session)
    with MasterTask(
        folder, store=given["--store"], cluster=given["--ecs"], group=given["--lease"]
    ) as task:
        launch, began = given["--launch"], time.time()
        noted = json.dumps({"launch": launch, "began": began})
        (folder.path / "launched").write_text(noted, encoding="utf-8")
        task.count_start()
        task.start_lease(folder.read_spec(), began=began)
        state = _make_runs(folder, place, task)
        (folder.path / "ended").write_text(f"{launch} {0 if state == 'finished' else 130}\n")
        task.end()


def _make_runs(folder: Any, place: Path, task: Any) -> str:
    """Runs that are made up; how it ended."""
    from pestfleet.journal import Journal
    from pestfleet.targets.base import FleetPlan
    from pestfleet_worker.messages import Result, Run, pack_vector

    spec = folder.read_spec()
    plan = FleetPlan(spec.session, folder.path, folder.case, "", spec.workers, 1, place)
    workers = task.make_target(plan)
    workers.launch()
    folder.acquire()
    journal = Journal(folder.journal)

    def tell(event: str, **fields: Any) -> None:
        journal.write(event, **fields)
        print(json.dumps({"time": time.time(), "event": event, **fields}), flush=True)

    tell("start", session=spec.session)
    for number in range(1, RUNS + 1):
        vector = pack_vector([0.5, number])
        journal.write_run(Run(number, vector), Result(number, "w", 0, 0.2, pack_vector([0.1] * 69)))
    tell("iteration", number=1, phi=2.5)
    tell("note", text="hello from the master")
    state = "running"
    while state == "running":
        number = folder.take_workers_request()
        if number is not None:
            workers.scale(number)
            tell("note", text=f"{number} workers")
        if folder.stop_requested:
            state = "stopped"
        elif (place / FINISH).exists():
            state = "finished"
        folder.write_state(_make_state(spec, state))
        time.sleep(0.1)  # the tests' commands look meanwhile
    code = {} if state == "finished" else {"exit_code": 130, "error": "stopped"}
    tell("end", state=state, summary={"phi": 2.5}, **code)
    (folder.results / "made-up.txt").write_text("results\n")
    journal.close()
    folder.release()
    return state


def _make_state(spec: Any, state: str) -> dict[str, Any]:
    now = time.time()
    return {
        "session": spec.session,
        "state": state,
        "engine": spec.engine,
        "target": spec.target,
        "case": spec.control_file,
        "began": now,
        "now": now,
        "iteration": 1,
        "phi": 2.5,
        "purpose": "Jacobian, iteration 1",
        "batch": {"total": RUNS, "done": RUNS, "failed": 0, "known": 0},
        "runs": {"made": RUNS, "failed": 0, "mean_seconds": 0.2},
        "workers_wanted": spec.workers,
        "workers": [],
    }


if __name__ == "__main__":
    _play(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
