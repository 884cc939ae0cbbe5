"""What a session has cost, by journals that are worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pestfleet.costs.report import make_report

PRICES = {
    "worker": 0.36,
    "rest": 0.1,
    "once": 1.0,
    "late": 0.5,
    "worker/fargate-vcpu-hour": 0.3,
    "worker/fargate-gb-hour": 0.06,
    "rest/fargate-vcpu-hour": 0.1,
}


def event(time: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"time": time, "event": kind, **fields}


def joined(time: float, worker: str, slots: int = 1) -> dict[str, Any]:
    return event(time, "worker-joined", worker=worker, slots=slots)


def run(time: float, seconds: float = 600.0) -> dict[str, Any]:
    return event(time, "run", id=1, seconds=seconds)


def test_paid_time_model_time_and_dollars() -> None:
    report = make_report(
        [
            event(1000, "start"),
            joined(1100, "a"),
            joined(1100, "b", slots=2),
            run(1700),
            run(1710),
            run(2300, 500.0),
            event(4700, "worker-left", worker="a"),
            event(8300, "end"),
        ],
        PRICES,
    )
    # A minute before it joined counts, from the pull of the image on.
    a, b = 3600 + 60, 7200 + 60
    assert report.worker_seconds == a + b
    assert report.slot_seconds == a + 2 * b
    assert report.model_seconds == 1700.0
    assert report.ratio == pytest.approx((a + 2 * b) / 1700.0)
    assert (report.workers, report.runs, report.seconds) == (2, 3, 7300.0)
    hours = (a + b) / 3600
    assert report.dollars == pytest.approx(
        {
            "worker/fargate-vcpu-hour": 0.3 * hours,
            "worker/fargate-gb-hour": 0.06 * hours,
            "rest/fargate-vcpu-hour": 0.1 * 7300 / 3600,
            "once": 1.0,
        }
    )
    assert report.total == pytest.approx(0.36 * hours + 0.1 * 7300 / 3600 + 1.0)


def test_a_session_that_runs_costs_until_now() -> None:
    events = [event(0, "start"), joined(60, "a")]
    assert make_report(events, PRICES, now=3600.0).worker_seconds == 3600.0
    assert make_report(events, PRICES).worker_seconds == 60.0  # it died: until its last word


def test_workers_that_outlive_their_master_are_paid_for_all_the_time() -> None:
    report = make_report(
        [
            event(0, "start"),
            joined(60, "kept"),
            joined(60, "gone"),
            run(900),
            event(1000, "start"),  # the next master
            joined(1030, "kept"),
            joined(1060, "new"),
            event(2060, "end"),
        ],
        PRICES,
    )
    assert report.worker_seconds == 2060 + 900 + 1060
    assert report.workers == 3
    assert report.seconds == 2060


def test_nothing_is_paid_between_a_session_s_end_and_its_resumption() -> None:
    report = make_report(
        [
            event(0, "start"),
            joined(60, "a"),
            event(600, "end"),
            event(100_000, "start"),
            joined(100_060, "a"),
            event(100_600, "end"),
        ],
        PRICES,
    )
    assert report.worker_seconds == 1200
    assert report.seconds == 1200
    assert "late" not in report.dollars


def test_a_zone_costs_after_half_a_day() -> None:
    report = make_report([event(0, "start"), event(43_201, "end")], PRICES)
    assert report.dollars["late"] == 0.5


def test_a_session_without_prices_is_free() -> None:
    report = make_report(
        [event(0, "start"), joined(60, "a"), run(100, 30.0), event(120, "end")], {}
    )
    assert (report.worker_seconds, report.total, report.paid) == (60.0, 0.0, False)
    assert report.to_json()["usd"] is None
    assert report.ratio == 2.0


def test_prices_without_their_parts_will_do() -> None:
    report = make_report([event(0, "start"), event(3600, "end")], {"worker": 1.0, "rest": 0.25})
    assert report.dollars == {"rest": 0.25}
    assert report.ratio is None


def test_an_empty_journal_costs_nothing_but_the_launch() -> None:
    assert make_report([], PRICES).total == 1.0
