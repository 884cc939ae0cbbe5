"""PEST++ through the gateway, next to its own agents, in the same run on the same machine.

Measured only where the programs of PEST++ are on PATH.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.models import make_case
from pestfleet.session import create_session

SLOTS = 2
RUNS = 1000
OWN_RUNS = (20, 80)  # its own agents take so long that fewer runs must do
SLEEPERS, ROUNDS = 100, 15
REALIZATIONS, ITERATIONS = 50, 2


def measure() -> Iterator[Figure]:
    """Time a run and slot, time of an ensemble, and per cent of the ideal with 100 slots."""
    if shutil.which("pestpp-swp") is None:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from _measure_sweep(folder)
        yield _measure_ensemble(folder)
        yield _measure_sleepers(folder)


def _measure_sweep(folder: Path) -> Iterator[Figure]:
    case = make_case(folder / "sweep")
    _write_sweep(case.parent, RUNS)
    _, runs = _host(case, "pestpp-swp", folder, workers=SLOTS)
    ours = 1000 * SLOTS * (runs[-1] - runs[0]) / (len(runs) - 1)
    # Of its own agents two sweeps of different length, so that their start does not count either.
    own = {}
    for count in OWN_RUNS:
        _write_sweep(case.parent, count)
        own[count] = _time_own_agents(case, "pestpp-swp", SLOTS)
    few, many = OWN_RUNS
    theirs = 1000 * SLOTS * (own[many] - own[few]) / (many - few)
    detail = {"own_agents_ms": round(theirs, 1), "ratio": round(theirs / ours, 1), "runs": RUNS}
    yield Figure("pestpp-swp, a run and slot through the gateway", ours, "ms", 8.0, detail=detail)


def _measure_ensemble(folder: Path) -> Figure:
    """Both from their command to their end, launching included."""
    case = make_case(folder / "ensemble", parameters=20, observations=20)
    text = case.read_text().replace("\n10 0.005 4 4", f"\n{ITERATIONS} 0.005 4 4")
    text = text.replace("-1e9 1e9", "1.0 3.0")
    case.write_text(text + f"++ies_num_reals({REALIZATIONS})\n++rand_seed(1)\n")
    gateway, _ = _host(case, "pestpp-ies", folder, workers=SLOTS)
    own = _time_own_agents(case, "pestpp-ies", SLOTS)
    detail = {"gateway_s": round(gateway, 2), "own_agents_s": round(own, 2)}
    return Figure(
        "pestpp-ies, 50 realizations, 2 iterations: its own agents' time over ours",
        own / gateway, "", 5.0, at_least=True, detail=detail,
    )  # fmt: skip


def _measure_sleepers(folder: Path) -> Figure:
    """Runs a second while all slots are busy: after all workers came, before the last round."""
    case = make_case(folder / "sleepers", sleep_ms=1000)
    _write_sweep(case.parent, SLEEPERS * ROUNDS)
    _, runs = _host(case, "pestpp-swp", folder, workers=4, slots=SLEEPERS // 4)
    began, ended = runs[2 * SLEEPERS], runs[-1] - 2.0
    counted = sum(began < when <= ended for when in runs)
    return Figure(
        "pestpp-swp, 100 sleeping slots × 1 s, of the ideal",
        100.0 * counted / (SLEEPERS * (ended - began)), "%", 97.0, at_least=True,
        detail={"runs": counted, "seconds": round(ended - began, 2)},
    )  # fmt: skip


def _host(
    case: Path, engine: str, folder: Path, *, workers: int, slots: int = 1
) -> tuple[float, list[float]]:
    """Seconds for the whole session; when each result came, in seconds since 1970."""
    began = time.perf_counter()
    session = create_session(
        case, engine=engine, workers=workers, slots=slots, root=folder / "sessions", cache="none"
    )
    outcome = session.make_master().host()
    seconds = time.perf_counter() - began
    assert outcome.error is None, outcome.error
    return seconds, [event["time"] for event in session.events() if event["event"] == "run"]


def _time_own_agents(case: Path, engine: str, agents: int) -> float:
    """Seconds with the engine's own agents on loopback, with its fastest polling."""
    master_folder = Path(tempfile.mkdtemp(dir=case.parent.parent)) / "master"
    shutil.copytree(case.parent, master_folder)
    options = "++panther_poll_interval(0)\n"
    with (master_folder / case.name).open("a") as control:
        control.write(options)
    address = "localhost:4567"
    began = time.perf_counter()
    master = subprocess.Popen(
        [engine, case.name, "/h", ":4567"], cwd=master_folder, stdout=subprocess.DEVNULL
    )
    workers = []
    for number in range(agents):
        place = master_folder.with_name(f"{master_folder.name}-{number}")
        shutil.copytree(master_folder, place)
        workers.append(
            subprocess.Popen(
                [engine, case.name, "/h", address], cwd=place, stdout=subprocess.DEVNULL
            )
        )
    try:
        assert master.wait(600) == 0
        return time.perf_counter() - began
    finally:
        for process in (master, *workers):
            process.kill()
            process.wait()


def _write_sweep(folder: Path, runs: int) -> None:
    names = ",".join(f"p{number}" for number in range(10))
    rows = (",".join(f"{2.0 + run / 7.0 + n}" for n in range(10)) for run in range(runs))
    lines = [f"run,{names}", *(f"{number},{row}" for number, row in enumerate(rows))]
    (folder / "sweep_in.csv").write_text("\n".join(lines) + "\n")
