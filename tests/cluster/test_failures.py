"""Launches that fail and commands that are killed, at each of their steps: nothing is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cases import make_case, write_sweep
from cluster_shell import ClusterShell
from hosting import check_every_run_once, wait_for
from pestfleet.session import Session
from pestfleet_worker.errors import SessionError, TargetError
from request_hook import make_environment

pytestmark = [pytest.mark.docker, pytest.mark.kubernetes]

SWEEP = ("--engine", "sweep", "--workers", "1")
KILLED = -9
CLAIM = "persistentvolumeclaim/"
SOON = ("--set", "session.keepSeconds=1")  # what has ended goes at once


def make_sweep(shell: ClusterShell, runs: int) -> tuple[Path, list[list[float]]]:
    case = make_case(shell.folder / "case")
    return case, write_sweep(case.parent, runs=runs)


def list_kinds(shell: ClusterShell, case: Path) -> list[str]:
    """The kinds of all objects of a session, the Secret with its credentials, too."""
    words = shell.list_words(case, "pf-plan", *SWEEP, "--dry-run")
    objects = yaml.safe_load_all(shell.run(*words))
    return ["Secret", *(one["kind"] for one in objects if one)]


def is_gone(shell: ClusterShell, *, but: str = "") -> bool:
    return all(name.startswith(but or " ") for name in shell.list_objects())


def end_hours(shell: ClusterShell) -> None:
    """As if the hours of all sessions were over."""
    masters = shell.kubectl("get", "jobs", "--selector=pestfleet.role=master", "--output=name")
    for job in masters.split():
        shell.kubectl("patch", job, "--type=merge", '--patch={"spec":{"activeDeadlineSeconds":1}}')


def test_killed_at_each_object_of_a_launch(shell: ClusterShell, tmp_path: Path) -> None:
    """After each one that is made; `down` from elsewhere, or the session's end, removes them."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    case, _ = make_sweep(shell, 4)
    steps = range(1, len(list_kinds(shell, case)) + 1)
    assert len(steps) > 8
    for half, more in ((steps[::2], ()), (steps[1::2], SOON)):
        made = 0
        for number in half:
            words = shell.list_words(case, f"pf-{number}", *SWEEP, *more)
            hook = make_environment(shell.folder, method="POST", number=number)
            shell.run(*words, code=KILLED, env=hook)
            made += number
        assert len(shell.list_objects()) >= made
        if more:
            end_hours(shell)
            wait_for(lambda: is_gone(shell, but=CLAIM), timeout=300, what="all but claims gone")
        on = ("--on", "kubernetes", "--all", "--discard-results")
        shell.run("down", *on, folder=elsewhere)
        wait_for(lambda: is_gone(shell), timeout=240, what="all gone")


def test_killed_while_it_builds_and_pushes(shell: ClusterShell) -> None:
    case, _ = make_sweep(shell, 5)
    with case.open("a") as file:  # another digest: its image is there nowhere
        file.write(f"# {shell.namespace}\n")
    for number, step in enumerate(("building image", "pushing image")):
        command = shell.start(*shell.list_words(case, f"pf-{number}", *SWEEP, "--json"))
        command.wait_for(lambda c=command, step=step: step in c.notes(), step)
        command.kill()
        assert "has nothing on kubernetes" in shell.run("down", f"pf-{number}")
    shell.check_nothing_left("pf-0")


def test_killed_at_its_end(shell: ClusterShell, tmp_path: Path) -> None:
    """While it fetches and while it removes: `down` finishes, and the results are not lost."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    case, rows = make_sweep(shell, 4)
    reader = len(list_kinds(shell, case)) + 1  # what is made after all others
    # One Job of a reader is removed before another one is made, and that one after it; then all.
    for session, method, number in (("pf-fetch", "POST", reader), ("pf-remove", "DELETE", 3)):
        hook = make_environment(shell.folder, method=method, number=number)
        shell.run(*shell.list_words(case, session, *SWEEP), code=KILLED, env=hook)
        assert shell.list_objects(), session
        shell.run("down", session, "--on", "kubernetes", folder=elsewhere)
        shell.check_nothing_left(session, but_results=True)
        shell.run("results", session, "--fetch", "--on", "kubernetes", folder=elsewhere)
        folder = elsewhere / "pestfleet-sessions" / session
        check_every_run_once(Session.open(session, root=folder.parent), rows)
        shell.run("down", session, "--discard-results")
        shell.check_nothing_left(session)


def test_down_while_it_runs(shell: ClusterShell, tmp_path: Path) -> None:
    """The command was killed while it followed; a session that runs is removed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    case = make_case(shell.folder / "case", seconds=0.3)
    write_sweep(case.parent, runs=500)
    shell.launch(case, "pf-run", *SWEEP, runs=2).kill()
    planned = shell.run("down", "pf-run", "--on", "kubernetes", "--dry-run", folder=elsewhere)
    said = shell.run("down", "pf-run", "--on", "kubernetes", folder=elsewhere)
    assert planned.replace(": would remove", ": removed") == said
    assert "removed job" in said and "removed statefulset" in said
    shell.check_nothing_left("pf-run", but_results=True)
    words = ("down", "pf-run", "--discard-results")
    assert "would remove persistentvolumeclaim" in shell.run(*words, "--dry-run")
    assert "removed persistentvolumeclaim" in shell.run(*words)
    shell.check_nothing_left("pf-run")


@pytest.mark.parametrize(
    ("counted", "most", "refused"),
    [
        ("jobs.batch", 0, "job"),
        ("jobs.batch", 1, "job"),
        ("statefulsets.apps", 0, "statefulset"),
        ("services", 0, "service"),
        ("networkpolicies.networking.k8s.io", 0, "networkpolicy"),
        ("configmaps", 1, "configmap"),  # one is the cluster's own
        ("secrets", 0, "secret"),
        ("persistentvolumeclaims", 0, "persistentvolumeclaim"),
    ],
)
def test_refused_objects(shell: ClusterShell, counted: str, most: int, refused: str) -> None:
    case, _ = make_sweep(shell, 4)
    shell.kubectl("create", "quota", "small", f"--hard=count/{counted}={most}")

    def is_counted() -> bool:
        quota = json.loads(shell.kubectl("get", "quota", "small", "--output=json"))
        return f"count/{counted}" in quota.get("status", {}).get("used", {})

    wait_for(is_counted, what="the quota")
    said = shell.run(*shell.list_words(case, "pf-no", *SWEEP), code=TargetError.exit_code)
    assert "Traceback" not in said and "quota: small" in said and "quota raised" in said
    assert f"the cluster does not make {refused} pf-pf-no-" in said
    shell.kubectl("delete", "quota", "small")
    shell.check_nothing_left("pf-no")


def test_an_api_server_that_fails(shell: ClusterShell) -> None:
    case, _ = make_sweep(shell, 4)
    hook = make_environment(shell.folder, method="POST", number=4, status="500")
    words = shell.list_words(case, "pf-500", *SWEEP)
    said = shell.run(*words, code=TargetError.exit_code, env=hook)
    assert "the cluster does not make" in said and "Try again" in said
    shell.check_nothing_left("pf-500")


def test_results_that_cannot_be_fetched_are_kept(shell: ClusterShell) -> None:
    case, rows = make_sweep(shell, 4)
    reader = len(list_kinds(shell, case)) + 1
    hook = make_environment(shell.folder, method="POST", number=reader, status="403")
    words = shell.list_words(case, "pf-kept", *SWEEP)
    said = shell.run(*words, code=TargetError.exit_code, env=hook)
    assert "the results of session pf-kept could not be fetched" in said
    assert "pestfleet results pf-kept --fetch" in said
    shell.check_nothing_left("pf-kept", but_results=True)
    # What is there already is taken, no run is made again.
    shell.run("resume", "pf-kept")
    check_every_run_once(Session(shell.open_folder("pf-kept")), rows)
    shell.check_nothing_left("pf-kept")


def test_an_account_that_may_not(shell: ClusterShell, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it needs is said before anything is made; and that is enough."""
    case, rows = make_sweep(shell, 4)
    shell.kubectl("create", "serviceaccount", "poor")
    poor = f"--serviceaccount={shell.namespace}:poor"
    shell.kubectl("create", "rolebinding", "poor", "--clusterrole=view", poor)
    token = shell.kubectl("create", "token", "poor").strip()
    given = yaml.safe_load(shell.cluster.kubeconfig.read_text())
    given["users"] = [{"name": one["name"], "user": {"token": token}} for one in given["users"]]
    limited = shell.folder / "kubeconfig"
    limited.write_text(yaml.safe_dump(given))
    monkeypatch.setenv("KUBECONFIG", str(limited))
    before = shell.list_objects()
    words = shell.list_words(case, "pf-poor", *SWEEP)
    said = shell.run(*words, code=TargetError.exit_code)
    assert "secrets: create" in said and "jobs (batch): create" in said
    assert shell.list_objects() == before
    shell.kubectl("create", "--filename=-", given=said[said.index("apiVersion:") :])
    shell.kubectl("create", "rolebinding", "enough", "--role=pestfleet", poor)
    before = shell.list_objects()
    shell.run(*shell.list_words(case, "pf-rich", *SWEEP))
    check_every_run_once(Session(shell.open_folder("pf-rich")), rows)
    wait_for(lambda: shell.list_objects() == before, timeout=240, what="nothing left")


def test_an_id_that_is_in_use(shell: ClusterShell, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    case, _ = make_sweep(shell, 4)
    hook = make_environment(shell.folder, method="POST", number=2)
    shell.run(*shell.list_words(case, "pf-used", *SWEEP), code=KILLED, env=hook)
    words = shell.list_words(case, "pf-used", *SWEEP)
    said = shell.run(*words, code=SessionError.exit_code, folder=elsewhere)
    assert "session pf-used has Jobs in namespace" in said
    # The one who launched it goes on with it.
    shell.run("resume", "pf-used")
    shell.check_nothing_left("pf-used")
