"""Each request of a launch fails, or is the last that the launching process makes.

Launches are killed at one place in two, and fail in other ways at one in four; with
PESTFLEET_TEST_EACH=1 it is each place, which takes a quarter of an hour.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest

from amazon_faults import Kind
from amazon_requests import ApiCall
from ecs_scheduler import EcsScheduler
from forked_commands import TIMES, Ended
from moto_server import Amazon
from quick_shell import QuickShell, open_quick_shell

# A launch with a network and machines of its own.
WITH_ALL = ("--instances", "c7i.4xlarge", "--capacity", "mixed:50")
# Without these a launch goes on: prices, quotas, which of the case's files are there already.
OPTIONAL = ("pricing:GetProducts", "servicequotas:GetServiceQuota", "ec2:DescribeSpotPriceHistory",
            "s3:GetObject")  # fmt: skip
QUESTIONS = ("Describe", "Get", "Head", "List")
# It is of all sessions. Where its tags may not be read it stays, empty, for the next one.
BUCKET = {"s3:aws:bucket/pestfleet-123456789012-eu-central-1"}
STEP = 1 if os.environ.get("PESTFLEET_TEST_EACH") else 4
LEFT = "parts may be left; remove them with: pestfleet down"


@pytest.fixture
def shell(
    amazon: Amazon, scheduler: EcsScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[QuickShell]:
    with open_quick_shell(amazon, tmp_path, monkeypatch) as made:
        yield made


@dataclass(frozen=True, slots=True)
class Place:
    """A request of a launch: the `nth` (from 1) with this action. `changes`: is it no question?"""

    action: str
    nth: int
    changes: bool

    def __str__(self) -> str:
        return f"{self.action} number {self.nth}"


def list_places(shell: QuickShell, *more: str) -> list[Place]:
    """The requests of a good launch, which is removed again.

    Of the same questions one after the other it is the first.
    """
    shell.amazon.calls.clear()
    name = f"good{len(more)}"
    ended = shell.launch(name, *more)
    assert ended.code == 0, ended.text
    counts: Counter[str] = Counter()
    places: list[Place] = []
    asked: set[str] = set()  # since the last change
    for call in list(shell.amazon.calls):
        if call.caller:
            continue
        counts[call.action] += 1
        changes = not call.operation.startswith(QUESTIONS)
        if changes:
            asked.clear()
        if call.action not in asked:
            places.append(Place(call.action, counts[call.action], changes))
        if not changes:
            asked.add(call.action)
    remove_all(shell, name)
    return places


def remove_all(shell: QuickShell, session: str) -> None:
    ended = shell.remove(session)
    assert ended.code == 0, ended.text
    assert shell.list_left() == set(), ended.text


# -- what is wrong with how a launch ended: sentences --------------------------------------------


def check_words(ended: Ended, place: Place) -> Iterator[str]:
    """Does it say what failed, and what to do?"""
    if "Traceback" in ended.text or "defect in pestfleet" in ended.text:
        yield "a traceback"
    if ended.code in (0, 1, 2) and not (ended.code == 0 and place.action in OPTIONAL):
        yield f"exit code {ended.code}"
    if ended.code == 0:
        return
    error = ended.text.partition("error: ")[2]
    if place.action not in error and "s3://" not in error and "bucket" not in error:
        yield "neither action nor resource is named"
    lines = error.strip().splitlines()
    if not any(line.startswith("  ") and line.strip() for line in lines):
        yield "no remedy"


def check_left(shell: QuickShell, ended: Ended, place: Place, session: str) -> Iterator[str]:
    """Is nothing left, at the latest when somebody else has said so?"""
    left = shell.list_left()
    if not left:
        return
    if place.action == "s3:GetBucketTagging" and left == BUCKET:
        shell.empty_account()
        return
    if ended.code > 0 and LEFT not in ended.text:
        yield f"left without a word: {sorted(left)}"
    removal = shell.remove(session)
    if removal.code:
        yield f"down ends with {removal.code}: {removal.text[-600:]}"
    if left := shell.list_left():
        yield f"left after down: {sorted(left)}"


def fail_each(
    shell: QuickShell,
    places: list[Place],
    set_fault: Callable[[Place], None],
    *more: str,
    check: Callable[[Ended, Place], Iterator[str]] = check_words,
) -> None:
    """A launch for each place, with a fault at it; fails with all that was wrong."""
    wrong = []
    for number, place in enumerate(places):
        session = f"f{number}"
        shell.amazon.faults.clear()
        set_fault(place)
        ended = shell.launch(session, *more)
        met = any(fault.met for fault in shell.amazon.faults.due)
        shell.amazon.faults.clear()
        found = [*check(ended, place), *check_left(shell, ended, place, session)]
        if not met:
            found.append("the fault did not happen")
        if found:
            text = ended.text[-1500:]
            wrong.append(f"{place}: {'; '.join(found)}\n{text}")
            shell.empty_account()
    assert not wrong, f"{len(wrong)} of {len(places)}\n" + "\n\n".join(wrong)


# -- each request in its turn ----------------------------------------------------------------------

KINDS: tuple[Kind, ...] = ("error", "throttle", "silence")
_DENIED = {"s3": "AccessDenied", "iam": "AccessDenied", "ec2": "UnauthorizedOperation"}


@pytest.fixture(params=["network found", "network and machines made"])
def places(
    request: pytest.FixtureRequest, shell: QuickShell, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Place], tuple[str, ...]]:
    """Requests, and what else the launch's command line has.

    Of the second launch those only whose action the first does not have.
    """
    plain = list_places(shell)
    if request.param == "network found":
        return plain, ()
    monkeypatch.delenv("PESTFLEET_AMAZON__PUBLIC")
    monkeypatch.setenv("PESTFLEET_AMAZON__NETWORK", "make")
    known = {place.action for place in plain}
    return [one for one in list_places(shell, *WITH_ALL) if one.action not in known], WITH_ALL


def test_it_is_killed_after_each_change(
    shell: QuickShell, places: tuple[list[Place], tuple[str, ...]]
) -> None:
    def check(ended: Ended, place: Place) -> Iterator[str]:
        if ended.code != -9:
            yield f"exit code {ended.code}"

    def kill(place: Place) -> None:
        shell.amazon.faults.at(place.action, "kill", nth=place.nth)

    # Whoever is killed after a question has left what there was before it.
    changes = [place for place in places[0] if place.changes]
    fail_each(shell, changes[:: (STEP + 1) // 2], kill, *places[1], check=check)


def test_each_action_is_refused(
    shell: QuickShell, places: tuple[list[Place], tuple[str, ...]]
) -> None:
    """As an action that is not allowed: always, also when all is removed again."""

    def refuse(place: Place) -> None:
        code = _DENIED.get(place.action.partition(":")[0], "AccessDeniedException")
        said = "you are not authorized"
        shell.amazon.faults.at(
            place.action, "error", times=float("inf"), code=code, status=403, message=said
        )

    chosen = [place for place in places[0] if place.nth == 1]
    fail_each(shell, chosen[::STEP], refuse, *places[1])


def test_each_fails_for_good(
    shell: QuickShell, places: tuple[list[Place], tuple[str, ...]]
) -> None:
    """As often as it is asked; by a server's error, for it is asked too often, or in silence."""
    kinds = cycle(KINDS)

    def fail(place: Place) -> None:
        # Two threads ask the same at the same time.
        times = 2 * TIMES if place.action == "servicediscovery:ListNamespaces" else TIMES
        shell.amazon.faults.at(match_again(place), next(kinds), times=times)

    # Of each question the first is enough: they are asked alike.
    chosen = [place for place in places[0] if place.changes or place.nth == 1]
    fail_each(shell, chosen[::STEP], fail, *places[1])


def match_again(place: Place) -> Callable[[ApiCall], bool]:
    """That request, and the same again."""
    seen = 0
    found: list[ApiCall] = []

    def match(call: ApiCall) -> bool:
        nonlocal seen
        if call.action != place.action:
            return False
        if found:
            return call.parameters == found[0].parameters
        seen += 1
        if seen == place.nth:
            found.append(call)
        return bool(found)

    return match


@pytest.mark.parametrize("kind", [*KINDS, "lost"])
def test_each_is_granted_at_the_second_try(shell: QuickShell, kind: Kind) -> None:
    """lost: it was done at the first, but the answer did not come."""
    tried: Counter[str] = Counter()

    def is_first(call: ApiCall) -> bool:
        tried[repr((call.action, call.parameters))] += 1
        return tried[repr((call.action, call.parameters))] == 1

    fault = shell.amazon.faults.at(is_first, kind, times=float("inf"))
    ended = shell.launch("again")
    assert ended.code == 0, ended.text
    assert fault.met > 60
    met = fault.met
    tried.clear()
    remove_all(shell, "again")
    assert fault.met > met + 60
