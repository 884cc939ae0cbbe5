"""From the command to the first run of the model."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.models import make_case

TRIES = 5


def measure() -> Iterator[Figure]:
    """Seconds from starting `pestfleet run` until the model starts for the first time."""
    with tempfile.TemporaryDirectory() as name:
        seconds = [_time_start(Path(name) / str(number)) for number in range(TRIES)]
    yield Figure(
        "from command to first run",
        statistics.median(seconds),
        "s",
        1.5,
        detail={"all": [round(value, 3) for value in seconds]},
    )


def _time_start(folder: Path) -> float:
    folder.mkdir()
    control = make_case(folder / "case")
    case = control.parent
    stamp = folder / "stamp"
    script = case / "timed.sh"
    script.write_text(f"#!/bin/sh\n[ -e {stamp} ] || date +%s.%N > {stamp}\nexec ./model\n")
    script.chmod(0o755)
    control.write_text(control.read_text().replace("\n./model\n", "\n./timed.sh\n"))
    began = time.time()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pestfleet",
            "run",
            "case",
            "--engine",
            "glm",
            "--workers",
            "2",
            "--no-cache",
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return float(stamp.read_text()) - began
