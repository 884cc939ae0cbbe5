"""Sessions that end when they have cost their budget, by a simulated clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pestfleet.costs.meter import LONGEST_GAP, Budget, Meter, resume_meter
from pestfleet.folder import SessionFolder
from pestfleet.snapshot import take_snapshot
from pestfleet.watch import Spending
from pestfleet_worker.errors import LimitReached
from session_files import make_session

HOUR = 3600.0
# 0.36 USD an hour of a worker is 0.0001 USD a second.
PRICES = {"worker": 0.36, "rest": 0.036}


class Time:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Teller:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        raise AssertionError(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def names(count: int) -> list[str]:
    return [f"w{number}" for number in range(count)]


def make_spending(
    tmp_path: Path, clock: Time, *, budget: float, **choices: Any
) -> tuple[Spending, Meter, Teller]:
    folder = make_session(tmp_path, budget=budget)
    meter, teller = Meter(PRICES, clock=clock, **choices), Teller()
    return Spending(folder, folder.read_spec(), meter, teller), meter, teller


def test_dollars_are_workers_and_the_rest_by_time() -> None:
    clock = Time()
    meter = Meter({**PRICES, "once": 1.0}, clock=clock)
    assert meter.dollars == 1.0
    clock.now += 100  # nobody is there yet
    meter.look(names(10))
    clock.now += 1000
    meter.look(names(4))
    clock.now += 500
    dollars = meter.look(names(4))
    # Ten workers came, a minute each before they did.
    worker_seconds = 10 * 60 + 10 * 1000 + 4 * 500
    assert dollars == pytest.approx(1.0 + worker_seconds * 0.0001 + 1600 * 0.00001)
    assert meter.hourly == pytest.approx(4 * 0.36 + 0.036)


def test_a_worker_that_comes_back_is_not_new() -> None:
    clock = Time()
    meter = Meter(PRICES, clock=clock)
    meter.look(["a"])
    meter.look([])
    assert meter.look(["a"]) == pytest.approx(60 * 0.0001)


def test_a_clock_that_is_set_back_pays_nothing_back() -> None:
    clock = Time()
    meter = Meter(PRICES, clock=clock)
    meter.look(["a"])
    before = meter.dollars
    clock.now -= 10_000
    assert meter.look(["a"]) == before
    clock.now += 100
    assert meter.look(["a"]) == pytest.approx(before + 100 * 0.00011)


def test_the_zone_costs_after_twelve_hours() -> None:
    clock = Time()
    meter = Meter({"rest": 0.0, "worker": 0.0, "late": 0.5}, clock=clock)
    clock.now += 12 * HOUR
    assert meter.look([]) == 0.0
    clock.now += 1
    assert meter.look([]) == 0.5


def test_a_session_ends_when_it_has_cost_its_budget(tmp_path: Path) -> None:
    clock = Time()
    spending, meter, teller = make_spending(tmp_path, clock, budget=1.0)
    spending.check(names(10))  # 0.06 for their starts; then 0.00101 a second
    clock.now += 730
    spending.check(names(10))
    assert meter.dollars == pytest.approx(0.7973) and teller.warnings == []
    clock.now += 3
    spending.check(names(10))
    assert teller.warnings == ["0.80 of the budget of 1.00 USD are spent, 3.64 USD/h now"]
    clock.now += 190
    spending.check(names(10))
    assert len(teller.warnings) == 1
    clock.now += 8
    with pytest.raises(LimitReached, match=r"s1 has cost 1\.00 USD, its budget is 1\.00") as caught:
        spending.check(names(10))
    assert "finished runs are kept" in caught.value.message
    assert f"pestfleet resume s1 --sessions {tmp_path}" in caught.value.remedy


def test_without_a_budget_it_is_only_counted(tmp_path: Path) -> None:
    clock = Time()
    spending, meter, teller = make_spending(tmp_path, clock, budget=0.0)
    spending.check(names(10))
    clock.now += 1000 * HOUR
    spending.check(names(10))
    assert meter.dollars > 3000 and teller.warnings == []


def test_a_budget_without_prices_is_told(tmp_path: Path) -> None:
    folder, teller = make_session(tmp_path, budget=5.0), Teller()
    spending = Spending(folder, folder.read_spec(), None, teller)
    spending.check(names(10))
    assert teller.warnings == ["nobody knows what local costs: the budget ends nothing"]


def count_on(before: Meter, clock: Time, launched: float, *, known: int, ended: bool) -> Meter:
    """The meter of the next master, which reads what the one before has written."""
    state = json.loads(json.dumps(before.to_json(ended=ended)))
    return Meter(PRICES, launched=launched, before=state, known=names(known), clock=clock)


def test_the_next_master_of_a_launch_counts_on(tmp_path: Path) -> None:
    clock = Time()
    launched = clock.now - 1000
    first = Meter(PRICES, launched=launched, clock=clock)
    assert first.dollars == pytest.approx(1000 * 0.00001)  # the launch itself
    first.look(names(10))
    clock.now += 2000
    first.look(names(10))
    before = 10 * 60 * 0.0001 + 10 * 2000 * 0.0001 + 3000 * 0.00001
    assert first.dollars == pytest.approx(before)
    clock.now += 300  # without a master the workers are paid for, too
    second = count_on(first, clock, launched, known=10, ended=False)
    assert second.dollars == pytest.approx(before + 300 * 10 * 0.0001 + 300 * 0.00001, abs=1e-3)
    at_once = second.dollars
    assert second.look(names(10)) == pytest.approx(at_once)  # they are not new
    assert second.launch_dollars == pytest.approx(at_once)


def test_a_long_time_without_a_master_is_not_paid_for() -> None:
    clock = Time()
    first = Meter(PRICES, clock=clock)
    first.look(names(10))
    before = first.dollars
    clock.now += 1000 * HOUR
    second = count_on(first, clock, 0.0, known=10, ended=False)
    assert second.dollars == pytest.approx(before + LONGEST_GAP * 0.00101, abs=1e-3)


def test_a_session_that_is_resumed_has_its_budget_once_more(tmp_path: Path) -> None:
    clock = Time()
    first = Meter(PRICES, launched=clock.now, clock=clock)
    first.look(names(10))
    clock.now += 5000
    first.look(names(10))
    before = first.dollars
    clock.now += HOUR
    second = count_on(first, clock, clock.now, known=0, ended=True)
    assert second.dollars == pytest.approx(before, abs=1e-3)
    assert second.launch_dollars == pytest.approx(0.0, abs=1e-3)
    clock.now += 100
    second.look(["x"])
    third = count_on(second, clock, clock.now - 100, known=1, ended=False)
    assert third.launch_dollars == pytest.approx(second.launch_dollars, abs=1e-3)


def test_how_long_a_budget_lasts() -> None:
    clock = Time()
    meter = Meter(PRICES, clock=clock)
    assert Budget(1.0).find_seconds_left(Meter({}, clock=clock)) == float("inf")
    meter.look(names(10))
    assert Budget(1.0).find_seconds_left(meter) == pytest.approx((1.0 - 0.06) / 0.00101)
    assert Budget(0.05).find_seconds_left(meter) == 0.0
    assert Budget(0.0).find_seconds_left(meter) == float("inf")


def test_the_cost_is_in_the_state_and_is_read_from_it(tmp_path: Path) -> None:
    folder: SessionFolder = make_session(tmp_path)
    assert resume_meter({}, folder.read_state(), launched=1.0) is None
    meter = resume_meter(PRICES, folder.read_state(), launched=1.0)
    assert meter is not None
    meter.look(names(3))
    from pestfleet.ledger import Counts
    from pestfleet.runner import Batch

    def snapshot(cost: dict[str, Any] | None) -> dict[str, Any]:
        return take_snapshot(
            folder.read_spec(),
            state="running",
            began=0.0,
            iteration={},
            batch=Batch("", 0),
            counts=Counts(),
            workers=[],
            wanted=3,
            cost=cost,
        )

    assert "cost" not in snapshot(None)
    folder.write_state(snapshot(meter.to_json()))
    found = folder.read_state()["cost"]
    assert found["workers"] == 3 and found["usd"] == round(meter.dollars, 4)
    again = resume_meter(PRICES, folder.read_state(), launched=1.0)
    assert again is not None and again.dollars >= meter.dollars - 1e-4
