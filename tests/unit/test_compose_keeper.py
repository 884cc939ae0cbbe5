"""The keeper starts again what ended before its time, over a fake fleet; and logs by line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fake_engine import FakeFleet, make_container
from pestfleet.targets.compose import keeper as module
from pestfleet.targets.compose.fleet import split_lines
from pestfleet.targets.compose.keeper import EARLY, EARLY_ENDS, WORKER_EARLY_ENDS, Keeper
from pestfleet_worker.errors import TargetError


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass for the keeper, without any."""
    now = [1000.0]

    def pass_on(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return pass_on


@pytest.mark.parametrize("role", ["broker", "tunnel", "worker"])
def test_what_was_killed_is_started_again(role: str, sleep: Callable[[float], None]) -> None:
    fleet = FakeFleet(make_container(role, exit_code=137), make_container("worker", number=2))
    (line,) = Keeper(fleet).check()  # type: ignore[arg-type]
    assert fleet.asked == [("start", "worker-1" if role == "worker" else role)]
    assert "exit code 137" in line and "started again" in line


@pytest.mark.parametrize(
    ("role", "exit_code"), [("worker", 0), ("credentials", 0), ("case", 0), ("master", 1)]
)
def test_what_is_over_stays_so(role: str, exit_code: int, sleep: Callable[[float], None]) -> None:
    fleet = FakeFleet(make_container(role, exit_code=exit_code))
    assert Keeper(fleet).check() == []  # type: ignore[arg-type]
    assert fleet.asked == []


def test_a_worker_that_does_not_fit_ends_the_session(sleep: Callable[[float], None]) -> None:
    fleet = FakeFleet(make_container("worker", exit_code=10))
    with pytest.raises(TargetError, match="worker-1 ended with exit code 10"):
        Keeper(fleet).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(("role", "ends"), [("broker", EARLY_ENDS), ("worker", WORKER_EARLY_ENDS)])
def test_what_ends_at_once_each_time_is_given_up(
    role: str, ends: int, sleep: Callable[[float], None]
) -> None:
    fleet = FakeFleet(make_container(role, exit_code=1))
    fleet.lived = EARLY / 2
    keeper = Keeper(fleet)  # type: ignore[arg-type]
    for _ in range(ends - 1):
        assert keeper.check()
        sleep(2.0)
    with pytest.raises(TargetError, match="ended with exit code 1"):
        keeper.check()
    assert len(fleet.asked) == ends - 1


def test_what_the_engine_starts_again_is_left_to_it_but_not_for_ever(
    sleep: Callable[[float], None],
) -> None:
    fleet = FakeFleet(make_container("broker", state="restarting", exit_code=1))
    fleet.lived = EARLY / 2
    keeper = Keeper(fleet)  # type: ignore[arg-type]
    for _ in range(EARLY_ENDS - 1):
        for _ in range(3):  # looks between two starts
            assert keeper.check() == []
            sleep(2.0)
        fleet.starts += 1
    assert fleet.asked == []
    with pytest.raises(TargetError, match="broker ended with exit code 1"):
        keeper.check()


def test_what_works_for_a_while_is_never_given_up(sleep: Callable[[float], None]) -> None:
    fleet = FakeFleet(make_container("worker", exit_code=137))
    fleet.lived = EARLY * 2
    keeper = Keeper(fleet)  # type: ignore[arg-type]
    for _ in range(5 * EARLY_ENDS):
        assert keeper.check()
        sleep(2.0)


def test_two_looks_at_once_are_one(sleep: Callable[[float], None]) -> None:
    fleet = FakeFleet(make_container("broker", exit_code=1))
    keeper = Keeper(fleet)  # type: ignore[arg-type]
    assert keeper.check() and not keeper.check()


def test_lines_of_a_log_that_comes_in_pieces() -> None:
    text = "one\ntwo – ü\n\nlast".encode()
    for size in range(1, len(text) + 1):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert list(split_lines(iter(pieces))) == ["one", "two – ü", "", "last"]
    assert list(split_lines(iter([b"half \xff\n"]))) == ["half \N{REPLACEMENT CHARACTER}"]
