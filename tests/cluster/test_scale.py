"""A thousand workers, on nodes that are not there: what is asked of the API server for them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from api_calls import Call, CallRecorder, record_calls
from cases import make_case, write_sweep
from cluster_access import Cluster
from cluster_shell import ClusterShell
from fake_nodes import SELECTOR, TOLERATION, run_fake_nodes
from hosting import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.kubernetes]

WORKERS, FEWER = 1000, 500
FURTHER_PAGES = 2  # of all pods: a page has 500
PATIENCE = 1200.0  # seconds for a thousand pods
SESSION = "pf-many"
LAUNCH, LOOK, CHANGE, REMOVAL = 40, 12, 8, 40  # calls


@pytest.fixture
def recorder(cluster: Cluster, tmp_path: Path) -> Iterator[CallRecorder]:
    with record_calls(cluster.kubectl_program, cluster.kubeconfig, tmp_path) as made:
        yield made


@pytest.fixture
def fake_nodes(cluster: Cluster) -> Iterator[list[str]]:
    with run_fake_nodes(cluster.kubectl_program, cluster.kubeconfig, count=4) as names:
        yield names


def write_values(folder: Path) -> Path:
    """Workers on fake nodes; master and broker do not tolerate these."""
    path = folder / "fake.yaml"
    path.write_text(
        json.dumps({"workers": {"nodeSelector": SELECTOR, "tolerations": [TOLERATION]}})
    )
    return path


def count_workers(shell: ClusterShell) -> tuple[int, int]:
    """How many pods the workers' Job has, and how many of them are ready."""
    selector = f"--selector=pestfleet.session={SESSION},pestfleet.role=worker"
    jobs = json.loads(shell.kubectl("get", "jobs", selector, "--output=json"))["items"]
    status = jobs[0]["status"] if jobs else {}
    there = int(status.get("active", 0)) + int(status.get("terminating", 0))
    return there, int(status.get("ready", 0))


def await_workers(shell: ClusterShell, number: int) -> None:
    def look() -> bool:
        return count_workers(shell) == (number, number)

    wait_for(look, timeout=PATIENCE, what=f"{number} workers")


def check(calls: Sequence[Call], *, most: int, paged: int = 0) -> None:
    """Few calls, but for `paged` lists of all pods; and none about one of the workers."""
    further = [call for call in calls if call.is_further_page]
    said = "\n".join(f"{call.verb} {call.path} {call.query}" for call in calls)
    assert 0 < len(calls) - len(further) <= most, said
    assert len(further) <= paged * FURTHER_PAGES, said
    assert not any("-workers-" in call.path for call in calls), said


def test_a_thousand_workers_take_no_call_each(
    shell: ClusterShell,
    recorder: CallRecorder,
    fake_nodes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(recorder.kubeconfig))
    case = make_case(shell.folder / "case")
    write_sweep(case.parent, runs=3)
    more = ("--values", str(write_values(shell.folder)), "--engine", "sweep", "--detach")
    shell.run(*shell.list_words(case, SESSION, *more, "--workers", str(WORKERS)))
    check(recorder.take(), most=LAUNCH)
    await_workers(shell, WORKERS)

    status = json.loads(shell.run("status", SESSION, "--json"))
    assert any(f"{WORKERS} there, {WORKERS} ready" in part for part in status["containers"])
    check(recorder.take(), most=LOOK)
    (row,) = json.loads(shell.run("sessions", "--on", "kubernetes", "--json"))
    assert (row["name"], row["workers"]) == (SESSION, WORKERS)
    check(recorder.take(), most=LOOK)
    assert SESSION in shell.run("logs", SESSION)  # of the master, which is a real pod
    check(recorder.take(), most=LOOK)

    # Of one worker: all are looked through for it. A fake node has no log, as the API server says.
    name = shell.list_pods(SESSION, "worker")[-1]["metadata"]["name"]
    shell.run("logs", SESSION, name.rpartition("-")[2], code=7)
    *calls, last = recorder.take()
    assert last.path.endswith(f"/pods/{name}/log")
    check(calls, most=LOOK, paged=1)

    # Who follows it looks at all pods every few seconds, a page after the other.
    following = shell.start("resume", SESSION, "--json")
    seen: list[Call] = []

    def has_looked() -> bool:
        seen.extend(recorder.take())
        return sum(call.is_further_page for call in seen) >= FURTHER_PAGES

    following.wait_for(has_looked, "a look at all pods")
    following.kill()
    time.sleep(5)  # what it asked last is answered, and written down
    assert not any("-workers-" in call.path for call in [*seen, *recorder.take()])

    for before, after in ((WORKERS, FEWER), (FEWER, WORKERS)):
        recorder.take()
        assert f"{before} -> {after}" in shell.run("scale", str(after), SESSION)
        check(recorder.take(), most=CHANGE)
        await_workers(shell, after)

    recorder.take()
    shell.start("down", SESSION, "--discard-results").wait(timeout=PATIENCE)
    check([call for call in recorder.take() if not is_wait(call)], most=REMOVAL, paged=1)
    shell.check_nothing_left(SESSION, patience=PATIENCE)


def is_wait(call: Call) -> bool:
    """Is it one of the looks whether there is a pod left?"""
    return call.verb == "GET" and call.query.get("limit") == ["1"]
