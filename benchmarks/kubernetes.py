"""Sessions on Kubernetes: how fast they begin and grow, and what a thousand workers cost.

On a cluster of one node on this machine, which the tests have: all its programs, the registry, the
workers, and the command itself share the cores. Needs what `make cluster` needs.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from benchmarks.clusters import PATIENCE, Terminal, read_events, start_cluster, wait_for
from benchmarks.containers import EXAMPLE, find_first_run
from benchmarks.figure import Figure

TRIES = 3
REAL, MANY = 100, 1000  # workers
ON = ("--on", "kubernetes", "--no-cache")
SWEEP = ("--engine", "sweep")
# Calls of the API server, lists of 500 pods a page.
CALLS = {"launch": 40, "status": 12, "sessions": 12, "scale": 8, "down": 100}  # looks every 2 s


def measure() -> Iterator[Figure]:
    """Seconds and calls, on a cluster that is there for them alone."""
    with start_cluster() as terminal:
        yield from measure_start(terminal)
        yield from measure_growth(terminal)
        yield from measure_elastic(terminal)
        yield from measure_many_real(terminal)
        yield from measure_thousand(terminal)


# -- from the command to the first run -----------------------------------------------------------


def measure_start(terminal: Terminal) -> Iterator[Figure]:
    """With the images in the registry and on the node; and the whole calibration."""
    values = terminal.write_values("start.json")
    first, whole = [], []
    for number in range(TRIES + 1):  # the first one builds, pushes and pulls images
        session = f"start-{number}"
        words = ["run", str(EXAMPLE), *ON, "--values", values, "--workers", "2"]
        began = time.time()
        terminal.run(*words, "--session", session, "--json")
        whole.append(time.time() - began)
        journal = terminal.folder / "pestfleet-sessions" / session / "journal.jsonl"
        first.append(find_first_run(journal) - began)
    yield _make_median("from command to first run", first[1:], 10.0, cold=round(first[0], 1))
    yield _make_median("whole calibration, nothing left", whole[1:], 30.0)


def _make_median(name: str, seconds: list[float], limit: float, **detail: object) -> Figure:
    shown = {"all": [round(value, 2) for value in seconds], **detail}
    return Figure(f"kubernetes: {name}", statistics.median(seconds), "s", limit, detail=shown)


# -- growing -------------------------------------------------------------------------------------


def measure_growth(terminal: Terminal) -> Iterator[Figure]:
    """From the command `scale` to the new worker's being there."""
    case = _make_slow_case(terminal, runs=4000)
    seconds = []
    with _run(terminal, case, "growth", "--workers", "1") as command:
        events = read_events(command)
        _await_joined(events, 1)
        for workers in range(2, 2 + TRIES):
            began = time.time()
            terminal.run("scale", str(workers), "growth")
            seconds.append(_await_joined(events, 1) - began)
    yield _make_median("from scale to a new worker", seconds, 5.0)


def measure_elastic(terminal: Terminal) -> Iterator[Figure]:
    """From runs that wait to the Job's parallelism, and to a second worker."""
    case = _make_slow_case(terminal, runs=4000)
    raised, joined = [], []
    for number in range(TRIES):
        session = f"elastic-{number}"
        with _run(terminal, case, session, "--workers", "1..2") as command:
            events = read_events(command)
            began, early = _await_batch(events)
            wait_for(
                lambda one=session: _read_parallelism(terminal, one) == 2,
                "a larger Job",
                pause=0.05,
            )
            raised.append(time.time() - began)
            joined.append(_await_joined(events, 2 - early) - began)
    yield _make_median("elastic: from runs to a larger Job", raised, 5.0)
    yield _make_median("elastic: from runs to a second worker", joined, 10.0)


def _read_parallelism(terminal: Terminal, session: str) -> int:
    selector = f"--selector=pestfleet.session={session},pestfleet.role=worker"
    job = "jsonpath={.items[0].spec.parallelism}"
    return int(terminal.kubectl("get", "jobs", selector, "--output", job))


def _make_slow_case(terminal: Terminal, *, runs: int) -> Path:
    from cases import make_case, write_sweep

    folder = terminal.folder / "slow"
    if not folder.exists():
        make_case(folder, seconds=1.0)
    write_sweep(folder, runs=runs)
    return folder


@contextmanager
def _run(
    terminal: Terminal, case: Path, session: str, *words: str, values: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A session of sweeps; it is removed at the end, whatever it has."""
    values = values or terminal.write_values("start.json")
    words = ("run", str(case), *ON, *SWEEP, "--values", values, "--session", session, *words)
    command = terminal.start(*words, "--json")
    limit = threading.Timer(PATIENCE, command.kill)  # then its events end
    limit.start()
    try:
        yield command
    finally:
        limit.cancel()
        command.kill()
        command.communicate()
        terminal.run("down", session, "--on", "kubernetes", "--discard-results")


def _await_batch(events: Iterator[dict[str, Any]]) -> tuple[float, int]:
    """When runs began to wait, in seconds since 1970; and the workers that were there by then."""
    early = 0
    for event in events:
        early += event["event"] == "worker-joined"
        if event["event"] == "batch":
            return float(event["time"]), early
    raise AssertionError("no run was asked for before the session ended")


def _await_joined(events: Iterator[dict[str, Any]], count: int) -> float:
    """When so many more workers had joined, in seconds since 1970."""
    times: list[float] = []
    for event in events:
        if event["event"] == "worker-joined":
            times.append(float(event["time"]))
            if len(times) == count:
                return max(times)
    raise AssertionError(f"{len(times)} of {count} workers joined before the session ended")


# -- many real pods ------------------------------------------------------------------------------


def measure_many_real(terminal: Terminal) -> Iterator[Figure]:
    """From the command to the last worker's being there; and of the pods alone."""
    case = _make_slow_case(terminal, runs=4000)
    began = time.time()
    with _run(terminal, case, "real", "--workers", str(REAL)) as command:
        last = _await_joined(read_events(command), REAL)
        pods = json.loads(terminal.kubectl("get", "pods", "--output=json"))["items"]
    restarts = len(pods) - REAL - 2  # beside workers, master and broker
    yield Figure(
        f"kubernetes: from command to {REAL} workers in one session",
        last - began, "s", 60.0,
        detail={"cores": os.cpu_count(), "pods_that_failed": restarts},
    )  # fmt: skip


# -- a thousand, on nodes that are not there -----------------------------------------------------


def measure_thousand(terminal: Terminal) -> Iterator[Figure]:
    from api_calls import record_calls
    from fake_nodes import SELECTOR, TOLERATION, run_fake_nodes

    values = terminal.write_values("fake.json", nodeSelector=SELECTOR, tolerations=[TOLERATION])
    case = _make_slow_case(terminal, runs=4000)
    calls: dict[str, int] = {}
    with (
        record_calls(terminal.kubectl_program, terminal.kubeconfig, terminal.folder) as recorder,
        run_fake_nodes(terminal.kubectl_program, terminal.kubeconfig, count=4),
    ):

        def run(*words: str) -> float:
            recorder.take()
            began = time.perf_counter()
            terminal.run(*words, KUBECONFIG=str(recorder.kubeconfig))
            seconds = time.perf_counter() - began
            name = "launch" if words[0] == "run" else words[0]
            calls[name] = max(calls.get(name, 0), len(recorder.take()))
            return seconds

        words = ("run", str(case), *ON, *SWEEP, "--values", values, "--detach")
        seconds = run(*words, "--session", "many", "--workers", str(MANY))
        seconds += wait_for(lambda: _count_ready(terminal) == MANY, f"{MANY} workers")
        yield Figure(f"kubernetes: {MANY} pods on fake nodes", seconds, "s", 120.0)
        with _stand_in(terminal, "many", MANY):
            wait_for(lambda: _count_known(terminal, "many") == MANY, "the desk to know all")
            shown = [run("status", "many") for _ in range(TRIES)]
        detail = {"all": [round(value, 2) for value in shown]}
        yield Figure(f"kubernetes: status of {MANY} workers", min(shown), "s", 2.0, detail=detail)
        run("sessions", "--on", "kubernetes")
        for workers in (MANY // 2, MANY):
            seconds = run("scale", str(workers), "many")
            seconds += wait_for(lambda n=workers: _count_ready(terminal) == n, f"{workers} workers")
        yield Figure(f"kubernetes: {MANY // 2} to {MANY} pods", seconds, "s", 60.0)
        seconds = run("down", "many", "--discard-results")
        yield Figure(f"kubernetes: down of {MANY} pods", seconds, "s", 120.0)
    for name, limit in CALLS.items():
        yield Figure(f"kubernetes: API calls of {name}, {MANY} workers", calls[name], "", limit)


def _count_ready(terminal: Terminal) -> int:
    """Workers that are ready, by their Job; 0 while some are on their way out."""
    selector = "--selector=pestfleet.role=worker"
    jobs = json.loads(terminal.kubectl("get", "jobs", selector, "--output=json"))["items"]
    status = jobs[0]["status"] if jobs else {}
    return 0 if status.get("terminating") else int(status.get("ready", 0))


def _count_known(terminal: Terminal, session: str) -> int:
    return len(json.loads(terminal.run("status", session, "--json")).get("workers", ()))


@contextmanager
def _stand_in(terminal: Terminal, session: str, count: int) -> Iterator[None]:
    """So many workers of the session that its desk knows: they are one process on this machine."""
    selector = f"--selector=pestfleet.session={session}"
    (secret,) = json.loads(terminal.kubectl("get", "secrets", selector, "--output=json"))["items"]
    (service,) = json.loads(terminal.kubectl("get", "services", selector, "--output=json"))["items"]
    files = {name: base64.b64decode(text) for name, text in secret["data"].items()}
    authority = terminal.folder / "broker.pem"
    authority.write_bytes(files["worker.ca.pem"])
    parts = urlsplit(files["worker.broker-url"].decode().strip())
    user = parts.netloc.rpartition("@")[0]
    place = f"{user}@{service['spec']['clusterIP']}:{parts.port}"
    query = parts.query.replace("/secrets/ca.pem", str(authority))
    url = urlunsplit((parts.scheme, place, parts.path, query, ""))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.announcer", session, str(count)],
        env={**os.environ, "PESTFLEET_BROKER": url},
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()
