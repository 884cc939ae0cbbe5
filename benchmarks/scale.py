"""Many slots whose model sleeps: how close the fleet comes to the ideal."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.fleets import running_fleet
from benchmarks.models import make_case

WORKERS, SLOTS, ROUNDS, SECONDS = 4, 25, 20, 1.0


def measure() -> Iterator[Figure]:
    """Per cent of the ideal time for 100 slots that make 20 runs of 1 s each."""
    with tempfile.TemporaryDirectory() as name:
        control = make_case(Path(name) / "case", sleep_ms=int(SECONDS * 1000))
        with running_fleet(control, workers=WORKERS, slots=SLOTS) as running:
            parameters = running.parameters(WORKERS * SLOTS * ROUNDS)
            began = time.perf_counter()
            runs = running.runner.run(parameters, purpose="measured")
            seconds = time.perf_counter() - began
            assert not runs.failures, runs.failures
    yield Figure(
        "100 sleeping slots × 20 runs × 1 s, of the ideal",
        100.0 * ROUNDS * SECONDS / seconds,
        "%",
        95.0,
        at_least=True,
        detail={"seconds": round(seconds, 2)},
    )
