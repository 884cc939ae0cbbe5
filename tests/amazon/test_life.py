"""Whole lives of sessions, by the commands of a user, and what the account has then."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compose_shell import Terminal
from ecs_scheduler import EcsScheduler
from moto_server import Amazon
from played_master import RUNS, play_master
from quick_shell import ON, QuickShell, open_quick_shell
from schedule_runner import run_schedules

WORKERS = 10
FLEETS = {
    "on demand": ("--capacity", "ondemand"),
    "spot": ("--capacity", "spot"),
    "mixed": ("--capacity", "mixed:20"),
    "machines": ("--instances", "c7i.4xlarge"),
    "network made": ("--capacity", "spot"),
}
# How many tasks of the workers each provider has.
PROVIDERS = {
    "on demand": {"FARGATE": 10},
    "spot": {"FARGATE_SPOT": 10},
    "mixed": {"FARGATE": 2, "FARGATE_SPOT": 8},
    "machines": {"pestfleet-life": 10},
    "network made": {"FARGATE_SPOT": 10},
}


@pytest.fixture
def shell(
    amazon: Amazon, scheduler: EcsScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[QuickShell]:
    with open_quick_shell(amazon, tmp_path, monkeypatch) as made:
        yield made


@pytest.mark.parametrize("fleet", FLEETS)
def test_a_life(
    shell: QuickShell, scheduler: EcsScheduler, monkeypatch: pytest.MonkeyPatch, fleet: str
) -> None:
    if fleet == "network made":
        monkeypatch.delenv("PESTFLEET_AMAZON__PUBLIC")
        monkeypatch.setenv("PESTFLEET_AMAZON__NETWORK", "make")
    choices = (*FLEETS[fleet], "--workers", str(WORKERS), "--max-hours", "2")

    plan = shell.plan("life", *choices)
    assert shell.list_left() == set()

    launched = shell.launch("life", *choices)
    assert launched.code == 0, launched.text
    check_made(shell, plan)
    tasks = scheduler.wait_for("pestfleet-life-worker", WORKERS)
    assert Counter(task.provider for task in tasks) == PROVIDERS[fleet]
    assert {task.provider for task in scheduler.wait_for("pestfleet-life-broker", 1)} == {"FARGATE"}

    assert f"{WORKERS} asked for, {WORKERS} running" in shell.expect("status", "life")
    assert "running" in shell.expect("sessions")
    assert "10 -> 12" in shell.expect("scale", "12", "life")
    scheduler.wait_for("pestfleet-life-worker", 12)
    assert "12 -> 3" in shell.expect("scale", "3", "life")
    scheduler.wait_for("pestfleet-life-worker", 3)

    with play_master(shell.amazon, scheduler, "life", shell.folder / "task") as master:
        shell.wait_for_text("hello from the master", "logs", "life")
        shell.wait_for_text(f"{RUNS} runs made", "status", "life")
        master.finish()
    scheduler.wait_for("pestfleet-life-worker", 0)
    scheduler.wait_for("pestfleet-life-master", 0)
    assert "finished" in shell.expect("status", "life")
    assert "hello from the master" in shell.expect("logs", "life")
    assert "finished" in shell.expect("results", "life", "--fetch")
    found = shell.elsewhere / "pestfleet-sessions" / "life"
    assert (found / "results" / "made-up.txt").read_text() == "results\n"

    planned = shell.expect("down", "life", "--dry-run")
    said = shell.expect("down", "life")
    assert "removed service pestfleet-life-worker" in said
    assert sorted(planned.splitlines()) == sorted(
        line.replace(": removed", ": would remove") for line in said.splitlines()
    )
    left = shell.list_left()
    assert left and all(name.startswith("s3:") for name in left), left
    assert "s3:aws:object/pestfleet-123456789012-eu-central-1/sessions/life/files/results/" \
        "made-up.txt" in left  # fmt: skip
    assert "finished" in shell.expect("results", "life", "--fetch")

    words = ("down", "life", "--discard-results")
    assert "would remove files in s3://" in shell.expect(*words, "--dry-run")
    shell.expect(*words)
    assert shell.list_left() == set()
    assert shell.expect("sessions").strip() == "there is no session on ecs"


def check_made(shell: QuickShell, plan: dict[str, Any]) -> None:
    """The account has what the plan has, and each thing of it has the session's tags."""
    wanted = Counter(one["kind"] for one in plan["resources"])
    tagged = shell.amazon.client("resourcegroupstaggingapi")
    pages = tagged.get_paginator("get_resources").paginate(
        TagFilters=[{"Key": "pestfleet:session", "Values": ["life"]}]
    )
    found = Counter(
        name_kind(one["ResourceARN"]) for page in pages for one in page["ResourceTagMappingList"]
    )
    untagged = ("bucket", "role", "schedule", "instance-profile", "auto-scaling-group",
                "security-group-ingress", "security-group-egress")  # fmt: skip
    for kind, count in wanted.items():
        if kind not in untagged:
            assert found[kind] == count, (kind, found)
    iam = shell.amazon.client("iam")
    for role in iam.list_roles(PathPrefix="/pestfleet/")["Roles"]:
        tags = iam.list_role_tags(RoleName=role["RoleName"])["Tags"]
        assert {"Key": "pestfleet:session", "Value": "life"} in tags


def name_kind(arn: str) -> str:
    service, tail = arn.split(":", 5)[2::3]
    kind = tail.replace(":", "/").partition("/")[0]
    known = {"repository": "repository", "namespace": "dns-namespace", "log-group": "log-group"}
    if service == "servicediscovery" and kind == "service":
        return "dns-service"
    return known.get(kind, kind)


def test_a_session_that_is_followed_leaves_its_results_only(
    shell: QuickShell, scheduler: EcsScheduler
) -> None:
    terminal = Terminal(shell.folder)
    with ExitStack() as stack:
        stack.callback(terminal.close)
        words = ("--engine", "glm", "--workers", "3", "--session", "seen", "--no-cache", "--json")
        command = terminal.start("run", str(shell.case), *words, *ON)
        command.wait_for(lambda: "starting the tasks" in command.text, "the launch")
        scheduler.wait_for("pestfleet-seen-worker", 3)
        master = stack.enter_context(
            play_master(shell.amazon, scheduler, "seen", shell.folder / "task")
        )
        command.wait_for(lambda: "hello from the master" in command.text, "the log")
        master.finish()
        command.wait(0)
    folder = terminal.open_folder("seen")
    assert (folder.path / "results" / "made-up.txt").exists()
    assert folder.read_state()["state"] == "finished"
    assert shell.list_left() == set()


def test_a_stopped_session_goes_on(shell: QuickShell, scheduler: EcsScheduler) -> None:
    assert shell.launch("again").code == 0
    with play_master(shell.amazon, scheduler, "again", shell.folder / "first") as master:
        shell.wait_for_text(f"{RUNS} runs made", "status", "again")
        shell.expect("stop", "again")
        master.wait()
    scheduler.wait_for("pestfleet-again-worker", 0)
    assert "stopped" in shell.expect("status", "again")
    terminal = Terminal(shell.folder)
    with ExitStack() as stack:
        stack.callback(terminal.close)
        command = terminal.start("resume", "again", "--json")
        command.wait_for(lambda: "starting the tasks" in command.text, "the second launch")
        scheduler.wait_for("pestfleet-again-worker", 2)
        second = stack.enter_context(
            play_master(shell.amazon, scheduler, "again", shell.folder / "second")
        )
        command.wait_for(lambda: "hello from the master" in command.text, "the log")
        second.finish()
        command.wait(0)
    assert shell.list_left() == set()


def test_a_fleet_ends_when_nobody_lives_that_knows_of_it(
    shell: QuickShell, scheduler: EcsScheduler
) -> None:
    """Neither who launched it nor its master: the schedules are the account's."""
    assert shell.launch("lost", "--workers", "5").code == 0
    with play_master(shell.amazon, scheduler, "lost", shell.folder / "task") as master:
        shell.wait_for_text(f"{RUNS} runs made", "status", "lost")
        master.kill()
    now = datetime.now(UTC)
    assert run_schedules(shell.amazon, now + timedelta(minutes=10)) == []
    done = run_schedules(shell.amazon, now + timedelta(minutes=61))
    services = [f"pestfleet-lost-{role}" for role in ("broker", "master", "worker")]
    assert sorted(done) == services
    for service in services:
        scheduler.wait_for(service, 0)

    ended = shell.run_elsewhere("orphans")
    assert ended.code == 0, ended.text
    assert "pestfleet down lost --on ecs --region eu-central-1" in ended.text
    assert "3 secrets" in " ".join(ended.text.split())
    ended = shell.run_elsewhere("orphans", "--json")
    (orphan,) = json.loads(ended.text)
    assert (orphan["session"], orphan["runs"]) == ("lost", False)
    assert orphan["costs"]["secret"] == 3
    assert "would remove service worker: 0 asked for" in shell.expect(
        "down", "--all", "--older-than", "0h", "--dry-run"
    )
    shell.expect("down", "--all", "--older-than", "0h")
    assert all(name.startswith("s3:") for name in shell.list_left())
