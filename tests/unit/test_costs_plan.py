"""What a session will cost, beside sums that are worked out by hand."""

from __future__ import annotations

import json

import pytest

from pestfleet.costs.charges import Charge
from pestfleet.costs.plan import (
    CostPlan,
    Range,
    estimate_hours,
    make_plan,
    make_session_prices,
)
from pestfleet.costs.prices import Prices
from pestfleet.costs.run_counts import RunCount

PRICES = Prices(
    "eu-central-1",
    "2026-01-01",
    {
        "fargate-vcpu-hour": 0.04,
        "fargate-gb-hour": 0.004,
        "secret-month": 0.73,  # 0.001 an hour
        "s3-gb-month": 0.0365,  # 0.00005 an hour
        "log-gb": 0.5,
        "dns-zone-month": 0.6,
        "data-out-gb": 0.09,
    },
)
CHARGES = (
    Charge("fargate-vcpu-hour", 2.0, "worker", "2 vCPU"),
    Charge("fargate-gb-hour", 4.0, "worker", "4 GB"),  # 0.096 an hour of a worker
    Charge("fargate-vcpu-hour", 0.5, "broker", "0.5 vCPU"),  # 0.02
    Charge("secret-month", 3.0, "", "secrets"),  # 0.003
    Charge("s3-gb-month", 10.0, "", "results"),  # 0.0005
    Charge("log-gb", 2.0, "", "logs"),  # 1.00, once
    Charge("dns-zone-month", 1.0, "", "names"),
)
REST = 0.02 + 0.003 + 0.0005


def count(least: tuple[int, ...], most: tuple[int, ...] | None = None) -> RunCount:
    return RunCount(least, most or least, "as many", "the test")


def plan(runs: RunCount | None, seconds: float | None, **choices: float) -> CostPlan:
    values = {"workers": 10, "most": 0, "slots": 1} | choices
    return make_plan(CHARGES, PRICES, runs=runs, run_seconds=seconds, **values)  # type: ignore[arg-type]


def test_a_fixed_fleet_is_paid_for_from_begin_to_end() -> None:
    found = plan(count((100,)), 600.0)
    hours = (60 + 10 * 600) / 3600  # a minute to start, ten rounds
    assert found.hours == Range(hours, hours)
    assert found.worker_hours == Range(10 * hours, 10 * hours)
    total = 10 * 0.096 * hours + REST * hours + 1.0
    assert found.total is not None
    assert (found.total.least, found.total.most) == pytest.approx((total, total))
    assert found.hourly.most == pytest.approx(10 * 0.096 + REST)
    assert found.monthly == pytest.approx(0.365)


def test_an_elastic_fleet_is_paid_for_its_model_time_and_a_tenth() -> None:
    batches = (100, 5, 5, 5)
    hours, paid = estimate_hours(batches, 600.0, workers=1, most=10, slots=1)
    assert hours == pytest.approx((60 + 13 * 600) / 3600)
    assert paid == pytest.approx(1.1 * 115 * 600 / 3600)
    found = plan(count(batches), 600.0, workers=1, most=10)
    assert found.worker_hours == Range(paid, paid)
    assert found.hourly.least == pytest.approx(0.096 + REST)
    assert found.hourly.most == pytest.approx(0.96 + REST)
    assert found.total is not None
    assert found.total.most == pytest.approx(0.096 * paid + REST * hours + 1.0)


def test_the_fewest_workers_are_paid_for_all_the_time() -> None:
    hours, paid = estimate_hours((1,) * 10, 600.0, workers=5, most=10, slots=1)
    assert paid == pytest.approx(5 * hours)


def test_short_runs_do_not_make_a_start_free() -> None:
    _, paid = estimate_hours((100, 20), 2.0, workers=1, most=10, slots=1)
    assert paid == pytest.approx((120 * 2 + 10 * 60) / 3600)


def test_slots_share_a_worker() -> None:
    hours, paid = estimate_hours((40,), 900.0, workers=5, most=0, slots=4)
    assert hours == pytest.approx((60 + 2 * 900) / 3600)
    assert paid == pytest.approx(5 * hours)
    _, paid = estimate_hours((40, 4), 900.0, workers=1, most=5, slots=4)
    assert paid == pytest.approx(1.1 * 44 * 900 / 3600 / 4)


def test_a_range_of_runs_gives_a_range_of_costs() -> None:
    found = plan(count((10,), (10, 100)), 3600.0)
    assert found.hours == Range(1 + 1 / 60, 11 + 1 / 60)
    assert found.total is not None and found.total.least < found.total.most


def test_hours_end_a_session_and_its_costs() -> None:
    found = plan(count((10,), (1000,)), 3600.0, max_hours=5.0)
    assert found.hours == Range(1 + 1 / 60, 5.0)
    assert found.worker_hours is not None and found.worker_hours.most == 50.0
    assert found.ends == "after 5 hours (max_hours)"
    assert plan(count((10,)), 3600.0, max_hours=5.0).ends == ""


def test_a_budget_bounds_the_total() -> None:
    found = plan(count((1000,)), 3600.0, budget=20.0)
    assert found.total == Range(20.0, 20.0)


def test_without_a_length_there_is_the_hour_and_what_ends_it() -> None:
    found = plan(None, None)
    assert (found.hours, found.total) == (None, None)
    assert found.hourly.most == pytest.approx(0.96 + REST)
    found = plan(count((10,)), None, max_hours=2.0)
    assert found.hours == Range(0.0, 2.0)
    assert found.total is not None
    assert found.total.most == pytest.approx(20 * 0.096 + 2 * REST + 1.0)


@pytest.mark.parametrize(("hours", "months"), [(11.0, 0), (13.0, 1), (731.0, 2)])
def test_a_zone_is_free_for_half_a_day_and_then_paid_by_whole_months(
    hours: float, months: int
) -> None:
    found = plan(count((10,)), hours * 3600 - 60)
    (zone,) = (line for line in found.lines if line.charge.item == "dns-zone-month")
    assert zone.session is not None
    assert zone.session.most == pytest.approx(0.6 * months)
    assert zone.hourly == Range(0.0, 0.0)


def test_what_has_no_price_is_told() -> None:
    charges = (*CHARGES, Charge("ec2:odd.large-hour", 1.0, "worker", "a machine"))
    found = make_plan(charges, PRICES, workers=1)
    assert found.unknown == ["ec2:odd.large-hour"]
    assert plan(None, None).unknown == []


def test_a_plan_is_json_and_lists_all() -> None:
    found = json.loads(json.dumps(plan(count((100,)), 600.0).to_json()))
    assert [entry["item"] for entry in found["items"]] == [charge.item for charge in CHARGES]
    assert found["usd"] == [pytest.approx(found["usd"][0])] * 2
    assert found["runs"] == [100, 100]
    assert any("0.09 USD/GB" in text for text in found["by_use"])
    assert any("IAM roles" in text for text in found["free"])


def test_prices_of_a_session_have_their_parts() -> None:
    found = make_session_prices(CHARGES, PRICES)
    assert found["worker"] == pytest.approx(0.096)
    assert found["rest"] == pytest.approx(REST)
    assert (found["once"], found["late"]) == (1.0, 0.6)
    for role in ("worker", "rest"):
        parts = [price for name, price in found.items() if name.startswith(f"{role}/")]
        assert sum(parts) == pytest.approx(found[role])
