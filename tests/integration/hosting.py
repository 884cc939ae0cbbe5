"""Hosts a session in a thread, so that a test can do harm to it meanwhile."""

from __future__ import annotations

import csv
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases import expected_observations
from pestfleet.master import Master, Outcome
from pestfleet.session import Session, create_session
from pestfleet_worker.processes import WORKER_MARK


class Hosted:
    """A session that runs in a thread of this process."""

    def __init__(self, session: Session, *, broker_url: str = "") -> None:
        self.session = session
        self.events: list[dict[str, Any]] = []
        self.master: Master = session.make_master(
            broker_url=broker_url, on_event=self.events.append
        )
        self._outcome: list[Outcome] = []
        self._thread = threading.Thread(target=self._host, daemon=True)
        self._thread.start()

    def _host(self) -> None:
        self._outcome.append(self.master.host())

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def workers(self) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = self.master.snapshot()["workers"]
        return workers

    def done(self) -> int:
        done: int = self.master.snapshot()["batch"]["done"]
        return done

    def wait(self, timeout: float) -> Outcome:
        """The outcome; fails the test when there is none in time."""
        self._thread.join(timeout)
        assert self._outcome, f"not over after {timeout} s: {self.master.snapshot()}"
        return self._outcome[0]


def host_sweep(case: Path, root: Path, *, broker_url: str = "", **choices: Any) -> Hosted:
    """A sweep over the case's sweep_in.csv."""
    session = create_session(case, engine="sweep", root=root, own_broker=not broker_url, **choices)
    return Hosted(session, broker_url=broker_url)


def wait_for(condition: Callable[[], Any], *, timeout: float = 120.0, what: str = "") -> None:
    """Wait until a condition holds; fails the test when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or condition}"
        time.sleep(0.05)


def send_signal(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return  # it was faster


def marked_processes(session: Session) -> list[int]:
    """Model processes of the session's workers that live."""
    mark = f"{WORKER_MARK}={session.name}/".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:
            continue  # it has ended
        if any(entry.startswith(mark) for entry in environment.split(b"\0")):
            found.append(int(process.name))
    return found


def check_every_run_once(session: Session, rows: list[list[float]]) -> None:
    """The journal has each run once, all successful, and the output has the model's own bits."""
    runs = [event for event in session.events() if event["event"] == "run"]
    failures = [event["failure"] for event in runs if "failure" in event]
    assert not failures
    counts = Counter(event["parameters"] for event in runs)
    assert len(counts) == len(rows) and set(counts.values()) == {1}
    with (session.folder.results / "sweep_out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    names = [f"o{number}" for number in range(1, len(rows[0]) + 1)]
    made = [[float(row[name]) for name in _columns(row, names)] for row in table]
    assert made == [expected_observations(row) for row in rows]


def _columns(row: dict[str, str], names: list[str]) -> list[str]:
    by_lower_case = {column.lower(): column for column in row}
    return [by_lower_case[name] for name in names]
