"""Many sessions of others in the account: all are found, by a number of requests that is known."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amazon_requests import ApiCall
from crowded_account import TASKS, fill
from ecs_scheduler import EcsScheduler
from moto_server import Amazon
from quick_shell import QuickShell, open_quick_shell

SESSIONS = 250
SERVICES = 4 * SESSIONS
PAGES = (SERVICES + SESSIONS // 2) // 100 + 2  # of tagged resources, with those of our session
LOOKS = SERVICES // 2 // 10 + SESSIONS // 2 + 2  # at services: in a shared cluster ten at once


@pytest.fixture
def shell(
    amazon: Amazon, scheduler: EcsScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[QuickShell]:
    with open_quick_shell(amazon, tmp_path, monkeypatch) as made:
        yield made


def test_1_000_services_and_10_000_tasks(shell: QuickShell, scheduler: EcsScheduler) -> None:
    ended = shell.launch("ours", "--max-hours", "2")
    assert ended.code == 0, ended.text
    scheduler.interfaces = False
    names = fill(shell.amazon, SESSIONS)
    wanted = SERVICES * TASKS + 4
    scheduler.wait_until(lambda: len(scheduler.list_tasks()) == wanted, seconds=300)

    for throttled in (False, True):
        if throttled:
            shell.amazon.faults.at(is_tenth(), "throttle", times=float("inf"))
        check_sessions(shell, names)
        check_orphans(shell, names)
        check_status(shell)
        check_removal(shell, names)
        ended, counts = count(shell, "down", "ours", "--on", "ecs", "--dry-run")
        assert ended.startswith("ours: would remove ")
        assert sum(counts.values()) <= 60, counts


def is_tenth() -> Any:
    """Every tenth request, at its first try."""
    seen: set[str] = set()
    total = 0

    def match(call: ApiCall) -> bool:
        nonlocal total
        key = repr((call.action, call.parameters))
        if key in seen:
            return False
        total += 1
        seen.add(key)
        return total % 10 == 0

    return match


def count(shell: QuickShell, *words: str) -> tuple[str, Counter[str]]:
    """What a command says, and the requests that it takes, without those that were refused."""
    shell.amazon.calls.clear()
    met = sum(fault.met for fault in shell.amazon.faults.due)
    ended = shell.run_elsewhere(*words)
    assert ended.code == 0, ended.text
    counts = shell.amazon.count_calls()
    again = sum(fault.met for fault in shell.amazon.faults.due) - met
    counts["again"] = -again
    return ended.text, counts


def check_sessions(shell: QuickShell, names: list[str]) -> None:
    text, counts = count(shell, "sessions", "--on", "ecs", "--json")
    found = {one["name"]: one for one in json.loads(text)}
    assert sorted(found) == sorted([*names, "ours"])
    assert {found[name]["workers"] for name in names} == {TASKS}
    assert {one["state"] for one in found.values()} == {"running"}
    check_listing(counts)
    assert sum(counts.values()) <= PAGES + LOOKS + 10


def check_orphans(shell: QuickShell, names: list[str]) -> None:
    text, counts = count(shell, "orphans", "--json")
    found = {one["session"]: one for one in json.loads(text)}
    assert sorted(found) == sorted([*names, "ours"])
    assert {found[name]["costs"]["service"] for name in names} == {4}
    assert all(found[name]["began"] for name in names)
    check_listing(counts)
    assert sum(counts.values()) <= PAGES + LOOKS + 10


def check_listing(counts: Counter[str]) -> None:
    """In full pages; and tasks are not asked for at all."""
    extra = -counts["again"]
    assert counts["tag:GetResources"] <= PAGES + extra, counts
    assert counts["ecs:DescribeServices"] <= LOOKS + extra, counts
    assert counts["scheduler:ListScheduleGroups"] <= 2 * (SESSIONS // 100 + 1) + extra, counts
    assert counts["ecs:DescribeTasks"] == counts["ecs:ListTasks"] == 0


def check_status(shell: QuickShell) -> None:
    text, counts = count(shell, "status", "ours", "--on", "ecs")
    assert "service worker: 2 asked for, 2 running" in text
    assert sum(counts.values()) <= 10, counts


def check_removal(shell: QuickShell, names: list[str]) -> None:
    """Each session is looked at once more."""
    words = ("down", "--all", "--older-than", "0h", "--on", "ecs", "--dry-run")
    text, counts = count(shell, *words)
    told = {line.partition(":")[0] for line in text.splitlines()}
    assert told == {*names, "ours"}
    each = 3 * (SESSIONS + 1)
    assert sum(counts.values()) <= PAGES + LOOKS + 10 + each, counts
