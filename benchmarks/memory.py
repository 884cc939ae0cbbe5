"""Memory of an idle worker, and of a master with many results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.figure import Figure
from benchmarks.fleets import running_fleet
from benchmarks.models import make_case
from pestfleet.broker import EmbeddedBroker
from pestfleet.case import Case
from pestfleet.desk import DeskEvents
from pestfleet.fleet import Fleet
from pestfleet.journal import Journal
from pestfleet.ledger import RunLedger
from pestfleet.runner import FleetRunner
from pestfleet_worker.messages import Limits, RunConfig

RESULTS, OBSERVATIONS = 100_000, 100


def measure() -> Iterator[Figure]:
    """Resident memory in MB (10^6 bytes)."""
    with tempfile.TemporaryDirectory() as name:
        control = make_case(Path(name) / "case", observations=OBSERVATIONS)
        with running_fleet(control, workers=1) as running:
            process = running.fleet.desk.workers[0].process
            yield Figure("idle worker", _resident(process, "VmRSS"), "MB", 80.0)
        # A process of its own, for nothing else may count.
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", str(control)],
            check=True,
            stdout=subprocess.PIPE,
        )
        measured = json.loads(ended.stdout)
    yield Figure(
        "master with 100,000 results of 100 observations, at its peak",
        measured["peak"],
        "MB",
        400.0,
        detail={"results": measured["results"], "before": measured["before"]},
    )


def _resident(process: int, field: str) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def _fill_master(control: Path) -> None:
    """Be a master with an embedded broker, and get all results through the channel."""
    case = Case.read(control)
    config = RunConfig(
        "memory", "queue", case.spec, Limits(), str(case.folder), heartbeat=2.0, master_timeout=30.0
    )
    events = DeskEvents(lambda _: None, lambda *_: None, lambda *_: None)
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(broker.url, config, events)
        journal = Journal(Path(folder) / "journal.jsonl")
        ledger = RunLedger(fleet, case.spec, journal, finished={}, check_stop=lambda: None)
        runner = FleetRunner(ledger, case.control, on_batch=lambda _: None)
        before = _resident(os.getpid(), "VmRSS")
        answerer = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.answerer", config.session, str(OBSERVATIONS)],
            env={**os.environ, "PESTFLEET_BROKER": broker.url},
        )
        try:
            count = len(case.control.parameters)
            parameters = np.arange(RESULTS * count, dtype=np.float64).reshape(RESULTS, count)
            runs = runner.run(parameters, purpose="measured")
            assert not runs.failures
            assert np.isfinite(runs.observations).all()
        finally:
            answerer.kill()
            answerer.wait()
            fleet.close("measured")
            journal.close()
    print(json.dumps({
        "results": len(runs.observations),
        "before": round(before, 1),
        "peak": _resident(os.getpid(), "VmHWM"),
    }))  # fmt: skip


if __name__ == "__main__":
    _fill_master(Path(sys.argv[1]))
