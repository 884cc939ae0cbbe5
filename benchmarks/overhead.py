"""What the fleet adds to a short model, for each run and slot."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.rabbitmq import RabbitMQ

from benchmarks.figure import Figure
from benchmarks.fleets import running_fleet
from benchmarks.models import make_case

RUNS, SLOTS = 1000, 2


def measure() -> Iterator[Figure]:
    """Milliseconds a run and slot above the bare model, on both brokers."""
    with tempfile.TemporaryDirectory() as name:
        control = make_case(Path(name) / "case")
        bare = _time_bare_model(control.parent)
        yield _figure("overhead of a run, embedded broker", _time_fleet(control, ""), bare, 4.0)
        with _rabbitmq() as broker_url:
            over = _time_fleet(control, broker_url)
        yield _figure("overhead of a run, RabbitMQ", over, bare, 6.0)


def _figure(name: str, total: float, bare: float, limit: float) -> Figure:
    detail = {
        "bare_model_ms": round(bare, 3),
        "with_fleet_ms": round(total, 3),
        "runs": RUNS,
        "slots": SLOTS,
    }
    return Figure(name, total - bare, "ms", limit, detail=detail)


def _time_bare_model(folder: Path) -> float:
    """Milliseconds a run: as many shell loops at a time as there are slots."""
    copies = [folder.parent / f"bare-{number}" for number in range(SLOTS)]
    for copy in copies:
        shutil.copytree(folder, copy)
    loop = f"i=0; while [ $i -lt {RUNS // SLOTS} ]; do ./model; i=$((i+1)); done"
    began = time.perf_counter()
    processes = [subprocess.Popen(["sh", "-c", loop], cwd=copy) for copy in copies]
    for process in processes:
        process.wait()
    return _milliseconds_a_run(time.perf_counter() - began)


def _time_fleet(control: Path, broker_url: str) -> float:
    with running_fleet(control, workers=SLOTS, broker_url=broker_url) as running:
        parameters = running.parameters(RUNS)
        began = time.perf_counter()
        runs = running.runner.run(parameters, purpose="measured")
        seconds = time.perf_counter() - began
        assert not runs.failures, runs.failures
    return _milliseconds_a_run(seconds)


def _milliseconds_a_run(seconds: float) -> float:
    return 1000.0 * seconds * SLOTS / RUNS


@contextmanager
def _rabbitmq() -> Iterator[str]:
    """The URL of a RabbitMQ of our own, as the integration tests start it."""
    with tempfile.TemporaryDirectory() as name:
        broker = RabbitMQ(Path(name))
        try:
            broker.start()
            yield broker.url
        finally:
            broker.remove()
