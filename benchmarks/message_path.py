"""The way of a large run through the channel: everything but the slot's own work."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.fleets import running_fleet
from benchmarks.models import make_case
from pestfleet_worker.messages import Result, Run

RUNS = 15


def measure() -> Iterator[Figure]:
    """Milliseconds from asking for a run to its result, less what the slot took for it."""
    with tempfile.TemporaryDirectory() as name:
        control = make_case(Path(name) / "case", parameters=10_000, observations=100_000)
        with running_fleet(control, workers=1) as running:
            ways = []
            for row in running.parameters(RUNS):
                came = threading.Event()
                results: list[Result] = []

                def take(run: Run, result: Result) -> None:
                    results.append(result)  # noqa: B023  # used up before the next turn
                    came.set()  # noqa: B023

                began = time.perf_counter()
                running.fleet.submit(row.tobytes(), take)
                came.wait()
                seconds = time.perf_counter() - began
                assert results[0].failure is None, results[0].failure
                ways.append(1000.0 * (seconds - results[0].seconds))
    yield Figure(
        "message path of a run with 10,000 parameters and 100,000 observations",
        statistics.median(ways),
        "ms",
        20.0,
        detail={"least": round(min(ways), 2), "most": round(max(ways), 2)},
    )
