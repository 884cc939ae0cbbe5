"""A running local fleet for the benchmarks, with every part that a session has."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pestfleet.broker import EmbeddedBroker
from pestfleet.case import Case
from pestfleet.desk import DeskEvents
from pestfleet.fleet import Fleet
from pestfleet.journal import Journal
from pestfleet.ledger import RunLedger
from pestfleet.runner import FleetRunner
from pestfleet.targets.base import FleetPlan
from pestfleet.targets.local import LocalTarget
from pestfleet_worker.messages import Limits, RunConfig


@dataclass(slots=True)
class RunningFleet:
    fleet: Fleet
    runner: FleetRunner
    case: Case

    def parameters(self, runs: int, *, first: int = 0) -> NDArray[np.float64]:
        """Different parameter vectors, (runs, parameters)."""
        count = len(self.case.control.parameters)
        return 1.0 + first + np.arange(runs * count, dtype=np.float64).reshape(runs, count) / 7.0


@contextmanager
def running_fleet(
    control: Path, *, workers: int, slots: int = 1, broker_url: str = ""
) -> Iterator[RunningFleet]:
    """A fleet whose slots have all made a run already."""
    case = Case.read(control)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = None
        if not broker_url:
            broker = EmbeddedBroker()
            broker.start()
            broker_url = broker.url
        config = RunConfig(
            session=f"bench-{folder.name}",
            mode="queue",
            case=case.spec,
            limits=Limits(),
            source=str(case.folder.resolve()),
            heartbeat=2.0,
            master_timeout=30.0,
        )
        events = DeskEvents(lambda _: None, lambda *_: None, lambda *_: None)
        plan = FleetPlan(
            config.session, folder, case.folder, broker_url, workers, slots, folder / "slots"
        )
        target = LocalTarget(plan)
        journal = Journal(folder / "journal.jsonl")
        fleet = Fleet(broker_url, config, events)
        try:
            target.launch()
            ledger = RunLedger(fleet, case.spec, journal, finished={}, check_stop=target.check)
            runner = FleetRunner(ledger, case.control, on_batch=lambda _: None)
            running = RunningFleet(fleet, runner, case)
            while fleet.slots < workers * slots:
                target.check()
                time.sleep(0.05)
            runner.run(running.parameters(2 * workers * slots, first=10**6), purpose="warm-up")
            yield running
        finally:
            fleet.close("measured")
            target.teardown()
            journal.close()
            if broker is not None:
                broker.stop()
