"""Fleets that grow and shrink, workers that are drained, and sessions that end by themselves."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cases import expected_observations, make_case, write_sweep
from hosting import Hosted, check_every_run_once, host_sweep, wait_for
from pestfleet import engine_thread, watch
from pestfleet import master as master_module
from pestfleet.elastic import Elastic
from pestfleet.engines.base import Job
from pestfleet.session import create_session
from pestfleet_worker.errors import Interrupted, LimitReached

IDLE = 2.0  # seconds, in place of a minute


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet that shrinks after two seconds."""
    monkeypatch.setattr(watch, "Elastic", functools.partial(Elastic, idle=IDLE))


def names(hosted: Hosted) -> set[str]:
    return {worker["name"] for worker in hosted.workers()}


def count_busy_slots(hosted: Hosted) -> int:
    slots = [slot for worker in hosted.workers() for slot in worker["slots"]]
    return sum(slot["run"] is not None for slot in slots)


def host_engine(
    monkeypatch: pytest.MonkeyPatch,
    engine: Callable[[Job], dict[str, Any]],
    case: Path,
    root: Path,
    *,
    broker_url: str = "",
    **choices: Any,
) -> Hosted:
    """A session with an engine that the test has written."""
    monkeypatch.setattr(master_module, "load_engine", lambda name: engine)
    session = create_session(case, engine="glm", root=root, own_broker=not broker_url, **choices)
    return Hosted(session, broker_url=broker_url)


@pytest.mark.usefixtures("hasty")
def test_a_fleet_grows_with_a_batch_and_shrinks_after_it(
    tmp_path: Path, sessions: Path, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"  # a batch goes on until the fleet is as large as it may be
    case = make_case(tmp_path / "case", seconds=0.1, gate=gate)
    go_on = threading.Event()
    rows = np.array([[1.0 + row / 3.0, 2.0, 3.0] for row in range(24)])
    made: list[np.ndarray[Any, Any]] = []

    def engine(job: Job) -> dict[str, Any]:
        made.append(job.runner.run(rows[:12], purpose="first").observations)
        assert go_on.wait(600)
        made.append(job.runner.run(rows[12:], purpose="second").observations)
        return {"phi": 0.0}

    hosted = host_engine(
        monkeypatch, engine, case, sessions, broker_url=broker_url, workers=1, most=3
    )
    wait_for(lambda: len(hosted.workers()) == 3, what="3 workers")
    first = names(hosted)
    gate.touch()
    wait_for(lambda: made, what="the first batch")
    gate.unlink()
    wait_for(lambda: len(hosted.workers()) == 1, what="1 worker")
    assert hosted.master.snapshot()["workers_wanted"] == 1
    go_on.set()
    wait_for(lambda: len(hosted.workers()) == 3, what="3 workers again")
    gate.touch()
    assert not (names(hosted) & first) - {"local-1", "local-2", "local-3"}
    outcome = hosted.wait(240)
    assert outcome.error is None
    found = np.concatenate(made)
    assert found.tolist() == [expected_observations(row) for row in rows.tolist()]
    runs = [event for event in hosted.session.events() if event["event"] == "run"]
    assert len(runs) == 24 and not any("failure" in event for event in runs)


@pytest.mark.usefixtures("hasty")
def test_a_drained_worker_finishes_its_run_and_takes_no_other(
    tmp_path: Path, sessions: Path, broker_url: str
) -> None:
    # A run that was ended and made again would count twice.
    counter = tmp_path / "counter"
    model = f"""#!/bin/sh
echo run >> {counter}
sleep 2
awk '{{ x = x * 0 + $1; printf "%.17g\\n", x * x + NR }}' input.dat > output.dat
"""
    case = make_case(tmp_path / "case", model=model)
    rows = write_sweep(case.parent, runs=20)
    hosted = host_sweep(case, sessions, broker_url=broker_url, workers=3, most=3)
    wait_for(lambda: count_busy_slots(hosted) == 3, what="3 models")
    hosted.session.folder.request_workers(1)
    wait_for(
        lambda: [worker["draining"] for worker in hosted.workers()].count(True) >= 2,
        what="workers that are drained",
    )
    wait_for(lambda: len(hosted.workers()) == 1, what="1 worker")
    wait_for(lambda: hosted.done() >= 2, what="the runs of those that went")
    # The user's number stays, though runs wait.
    hosted.session.folder.request_workers(4)
    wait_for(lambda: len(hosted.workers()) == 4, what="4 workers")
    outcome = hosted.wait(240)
    assert outcome.error is None
    check_every_run_once(hosted.session, rows)
    assert len(counter.read_text().splitlines()) == len(rows), "a running model was ended"


def test_a_worker_that_is_called_back_takes_runs_again(
    tmp_path: Path, sessions: Path, broker_url: str
) -> None:
    case = make_case(tmp_path / "case", seconds=0.1)
    rows = write_sweep(case.parent, runs=200)
    hosted = host_sweep(case, sessions, broker_url=broker_url, workers=2)
    wait_for(lambda: hosted.done() > 5)
    fleet = hosted.master._fleet
    assert fleet is not None
    everybody = names(hosted)
    fleet.desk.drain(everybody)
    wait_for(lambda: all(worker.drained for worker in fleet.desk.workers), what="all are drained")
    time.sleep(0.5)  # a result may still be on its way
    done = hosted.done()
    assert done < len(rows)
    time.sleep(0.5)
    assert hosted.done() == done
    fleet.desk.drain(())
    outcome = hosted.wait(240)
    assert outcome.error is None
    check_every_run_once(hosted.session, rows)
    assert names(hosted) <= everybody


def test_a_session_that_wants_no_runs_ends_by_itself(
    tmp_path: Path, sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_thread, "GRACE", 0.5)
    case = make_case(tmp_path / "case")
    hanging, over = threading.Event(), threading.Event()

    def engine(job: Job) -> dict[str, Any]:
        job.runner.run(np.ones((4, 3)), purpose="all there is")
        hanging.set()
        over.wait(240)  # it does not look at whether the session has ended
        return {}

    hosted = host_engine(
        monkeypatch, engine, case, sessions, workers=1, idle_minutes=0.1, max_hours=1.0
    )
    outcome = hosted.wait(240)
    assert hanging.is_set()
    over.set()
    assert isinstance(outcome.error, LimitReached)
    assert "has wanted no run for 0.1 minutes" in outcome.error.message
    assert hosted.session.status()["state"] == "stopped"
    end = list(hosted.session.events())[-1]
    assert (end["event"], end["state"], end["exit_code"]) == ("end", "stopped", 130)


def test_a_session_ends_after_its_hours(tmp_path: Path, sessions: Path) -> None:
    case = make_case(tmp_path / "case", seconds=0.1)
    write_sweep(case.parent, runs=4000)
    hosted = host_sweep(case, sessions, workers=1, max_hours=20 / 3600)
    outcome = hosted.wait(240)
    assert (
        isinstance(outcome.error, LimitReached) and "its 0.00555556 hours" in outcome.error.message
    )
    assert hosted.session.status()["state"] == "stopped"
    assert 0 < len([e for e in hosted.session.events() if e["event"] == "run"]) < 4000


def test_a_stop_does_not_wait_for_an_engine_that_computes(
    tmp_path: Path, sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_thread, "GRACE", 0.5)
    case = make_case(tmp_path / "case")
    began, over = threading.Event(), threading.Event()

    def engine(job: Job) -> dict[str, Any]:
        began.set()
        over.wait(240)
        return {}

    hosted = host_engine(monkeypatch, engine, case, sessions, workers=1)
    assert began.wait(120)
    hosted.master.interrupt()
    assert isinstance(hosted.wait(120).error, Interrupted)
    over.set()
