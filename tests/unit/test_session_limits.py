"""Sessions that end by themselves, and what a session cannot have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pestfleet.folder import SessionFolder
from pestfleet.placement import Placement
from pestfleet.session import create_session
from pestfleet.watch import Limits, Requests
from pestfleet_worker.errors import ConfigurationError, Interrupted, LimitReached, SentAway
from session_files import EXAMPLE, make_session

HOUR = 3600.0


class Time:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def make_limits(folder: SessionFolder, *, began: float = Time.now) -> tuple[Limits, Time]:
    clock = Time()
    return Limits(folder, folder.read_spec(), began=began, clock=clock), clock


def test_a_session_without_limits_goes_on(tmp_path: Path) -> None:
    limits, clock = make_limits(make_session(tmp_path))
    clock.now += 10_000 * HOUR
    limits.check(0)


def test_idle_minutes_count_from_the_last_run_that_was_wanted(tmp_path: Path) -> None:
    limits, clock = make_limits(make_session(tmp_path, idle_minutes=10.0))
    limits.check(0)
    clock.now += 599
    limits.check(1)
    clock.now += 5 * HOUR  # it runs all the time
    limits.check(1)
    clock.now += 599
    limits.check(0)
    clock.now += 1
    with pytest.raises(LimitReached, match=r"no run for 10 minutes.* does glm hang") as caught:
        limits.check(0)
    assert f"pestfleet resume s1 --sessions {tmp_path}" in caught.value.remedy


def test_in_agent_mode_nobody_knows_what_is_idle(tmp_path: Path) -> None:
    limits, clock = make_limits(make_session(tmp_path, idle_minutes=10.0, mode="agent"))
    clock.now += 100 * HOUR
    limits.check(0)


def test_hours_count_from_the_launch(tmp_path: Path) -> None:
    folder = make_session(tmp_path, max_hours=2.0)
    limits, clock = make_limits(folder, began=Time.now - HOUR)
    clock.now += HOUR - 1
    limits.check(5)
    clock.now += 1
    with pytest.raises(LimitReached, match="has had its 2 hours"):
        limits.check(5)


def test_a_signal_means_the_session_or_this_master_alone(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    for keep, meaning in ((False, Interrupted), (True, SentAway)):
        requests = Requests(folder, folder.read_spec(), keep_workers=keep)
        requests.check()
        requests.interrupted.set()
        with pytest.raises(meaning):
            requests.check()
    folder.request_stop()
    with pytest.raises(Interrupted):  # also where a signal has come, too
        requests.check()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"workers": 5, "most": 4}, "at most 4 workers are less than at least 5"),
        ({"most": 9, "on": "compose"}, "cannot start and end workers"),
        ({"most": 9, "engine": "beopest"}, "in agent mode the number of workers stays"),
        ({"idle_minutes": -1.0}, "idle_minutes must be 0"),
        ({"max_hours": float("inf")}, "max_hours must be 0"),
    ],
)
def test_what_a_session_cannot_have(tmp_path: Path, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_session(EXAMPLE, root=tmp_path / "sessions", **choices)
    assert not (tmp_path / "sessions").exists()


def test_a_master_here_can_scale_containers(tmp_path: Path) -> None:
    session = create_session(
        EXAMPLE, root=tmp_path, on="compose", workers=2, most=9, place=Placement(master="here")
    )
    assert (session.spec.workers, session.spec.most) == (2, 9)
