"""Harm in the middle of a session: nothing finished is lost, and what happened is said."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cases import make_case, write_sweep
from cluster_shell import ClusterShell
from compose_shell import END, Command, count_runs
from hosting import check_every_run_once, wait_for
from pestfleet.session import Session
from pestfleet_worker.errors import RunsFailedError, TargetError

pytestmark = [pytest.mark.docker, pytest.mark.kubernetes]

SWEEP = ("--engine", "sweep")
SESSION = "pf-harm"
OUTAGE = 30.0  # seconds without an API server
# Eats memory to its container's limit. Where the kernel ends one process of the container only,
# the worker goes, too.
EAT = "tail -c 1000000000 /dev/zero | tail >/dev/null; kill -9 -1"


def make_sweep(
    shell: ClusterShell, runs: int, *, model: str = ""
) -> tuple[Path, list[list[float]]]:
    case = make_case(shell.folder / "case", seconds=0.3, model=model)
    return case, write_sweep(case.parent, runs=runs)


def await_note(command: Command, *words: str) -> None:
    """Wait until one sentence that the command has told has all of these words."""

    def look() -> bool:
        return any(all(word in line for word in words) for line in command.notes().splitlines())

    command.wait_for(look, " … ".join(words))


def check_finished(shell: ClusterShell, command: Command, rows: list[list[float]]) -> None:
    command.wait()
    check_every_run_once(Session(shell.open_folder(SESSION)), rows)
    shell.check_nothing_left(SESSION)


def evict(shell: ClusterShell, pod: str) -> None:
    """As `kubectl drain` does it."""
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": shell.namespace},
    }
    path = f"/api/v1/namespaces/{shell.namespace}/pods/{pod}/eviction"
    shell.kubectl("create", f"--raw={path}", "--filename=-", given=json.dumps(body))


def test_lost_pods_lose_no_run(shell: ClusterShell) -> None:
    case, rows = make_sweep(shell, 600)
    command = shell.launch(case, SESSION, *SWEEP, "--workers", "3", runs=4)
    folder = shell.open_folder(SESSION)

    def await_more() -> None:
        done = count_runs(folder)
        command.wait_for(lambda: count_runs(folder) > done + 4, "more runs")

    deleted = shell.find_pod(SESSION, "worker")
    shell.kubectl("delete", "pod", deleted, "--wait=false")
    command.wait_for(lambda: _list_left(command, deleted), "the end of a deleted worker")
    assert _list_left(command, deleted) == ["told to stop by a signal"]
    joined = {event["host"] for event in command.events("worker-joined")}
    pods = {pod["metadata"]["name"] for pod in shell.list_pods(SESSION, "worker")}
    evicted = min(joined & pods)
    evict(shell, evicted)
    command.wait_for(lambda: _list_left(command, evicted), "the end of an evicted worker")
    shell.await_pods(SESSION, "worker", 3)

    eater = shell.find_pod(SESSION, "worker")
    shell.cluster.try_kubectl(
        f"--namespace={shell.namespace}", "exec", eater, "--", "sh", "-c", EAT
    )
    await_note(command, "1 worker", "out of memory: more than the limit of 256 MiB")
    await_note(command, "--memory 512m")
    await_more()

    for role, said in (("broker", "are asked for again"), ("master", "from the runs that are")):
        pod = shell.find_pod(SESSION, role)
        shell.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
        await_note(command, f"the pod of the {role} was lost", said)
        await_more()

    shell.kubectl("delete", "pod", shell.find_pod(SESSION, "master"), "--wait=false")
    command.wait_for(lambda: len(command.events("start")) == 3, "a third master")
    assert [event["known_runs"] > 0 for event in command.events("start")] == [False, True, True]
    assert count_runs(folder) < len(rows), "it was over before the last harm"
    check_finished(shell, command, rows)


def _list_left(command: Command, pod: str) -> list[str]:
    return [e["reason"] for e in command.events("worker-left") if e["worker"].startswith(pod)]


def test_the_api_server_is_away(shell: ClusterShell) -> None:
    own = shell.cluster.own
    if own is None:
        pytest.skip("another one's cluster goes on")
    case, rows = make_sweep(shell, 400)
    command = shell.launch(case, SESSION, *SWEEP, "--workers", "2", runs=4)
    done = count_runs(shell.open_folder(SESSION))
    own.end_program("kube-apiserver")
    began = time.monotonic()
    await_note(command, "the cluster does not answer", "the session goes on meanwhile")
    time.sleep(max(0.0, OUTAGE - (time.monotonic() - began)))  # that long is the harm
    own.start_program("kube-apiserver")
    await_note(command, "the cluster answers again")
    command.wait_for(lambda: count_runs(shell.open_folder(SESSION)) > done + 50, "made meanwhile")
    check_finished(shell, command, rows)


def test_a_model_that_always_eats_too_much(shell: ClusterShell) -> None:
    case, _ = make_sweep(shell, 1, model=f"#!/bin/sh\n{EAT}\n")
    words = shell.list_words(case, SESSION, *SWEEP, "--workers", "1", "--deliveries", "1", "--json")
    command = shell.start(*words)
    said = command.wait(RunsFailedError.exit_code)
    await_words = "1 worker ended: out of memory: more than the limit of 256 MiB"
    assert await_words in command.notes() and "--memory 512m" in command.notes()
    assert "1 of 1 runs" in said
    shell.check_nothing_left(SESSION, but_results=True)


def test_an_image_that_cannot_be_pulled(
    shell: ClusterShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = f"{shell.cluster.registry}/no-such-broker:1"
    monkeypatch.setenv("PESTFLEET_IMAGE__BROKER", image)
    case, _ = make_sweep(shell, 2)
    said = shell.run(*shell.list_words(case, SESSION, *SWEEP), code=TargetError.exit_code)
    assert f"the registry has no image {image}" in said
    shell.check_nothing_left(SESSION)


def test_a_quota_and_a_closed_node(shell: ClusterShell) -> None:
    """Three of five workers fit, and none of them until the node is open."""
    pods = "--hard=pods=5"  # besides master and broker
    shell.kubectl("create", "quota", "small", pods)
    quota = ("get", "quota", "small", "--output=jsonpath={.status.hard.pods}")
    wait_for(lambda: shell.kubectl(*quota) == "5", timeout=END, what="the quota")
    case, rows = make_sweep(shell, 80)
    more = (*SWEEP, "--workers", "5", "--min-workers")
    words = shell.list_words(case, "pf-four", *more, "4")
    said = shell.run(*words, code=TargetError.exit_code)
    assert f"the quota small of namespace {shell.namespace} leaves room for 3 of 5 workers" in said
    shell.check_nothing_left(SESSION)

    (node,) = shell.cluster.kubectl("get", "nodes", "--output=name").split()
    shell.cluster.kubectl("cordon", node)
    try:
        command = shell.start(*shell.list_words(case, SESSION, *more, "3", "--json"))
        await_note(command, "warning: ", "leaves room for 3 of 5 workers")
        await_note(command, "no node takes a worker for now")
    finally:
        shell.cluster.kubectl("uncordon", node)
    check_finished(shell, command, rows)
    assert len({event["host"] for event in command.events("worker-joined")}) == 3


def test_no_node_is_large_enough(shell: ClusterShell) -> None:
    case, _ = make_sweep(shell, 2)
    words = shell.list_words(case, SESSION, *SWEEP, "--memory", "900g")
    said = shell.run(*words, code=TargetError.exit_code)
    assert "no node of the cluster can take a worker" in said and "900 GiB" in said
    shell.check_nothing_left(SESSION)
