"""What a session will cost: an hour of it, all of it, and what goes on costing after it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pestfleet.costs.charges import HOURS_A_MONTH, Charge
from pestfleet.costs.prices import Prices
from pestfleet.costs.run_counts import RunCount

WORKER = "worker"
# Seconds from a task's image being pulled, from when on it is paid for, to its first run.
START_SECONDS = 60.0
# Paid worker time / model time of an elastic fleet: what benchmarks/simulated_fleet.py is held to.
OVERHEAD = 1.10
# Amazon Route 53: a hosted zone that lives no longer is free; else a month is paid, not a part.
FREE_ZONE_HOURS = 12.0
_WHOLE_MONTHS = ("dns-zone-month",)
_STAYING = ("s3-gb-month",)  # until the results are removed, too

FREE = (
    "cluster and services of ECS, task definitions, the network (VPC, subnets, security groups, "
    "the S3 endpoint), IAM roles, tags",
    "EventBridge Scheduler: 14 million calls a month are free",
    "transfers into Amazon, and between its services within the region",
)
BY_USE = (
    "transfers out to the internet, such as pestfleet fetch: {data-out-gb} USD/GB, after 100 GB a "
    "month that are free",
    "requests to S3, Secrets Manager and DNS: cents for thousands of runs",
    "what is between: a NAT gateway of your network bills the hour and each GB",
    "logs that are kept: 0.03 USD/GB a month until they expire",
)


@dataclass(frozen=True, slots=True)
class Range:
    """US dollars, or hours: at the least and at the most."""

    least: float
    most: float

    def __add__(self, other: Range) -> Range:
        return Range(self.least + other.least, self.most + other.most)


NOTHING = Range(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that costs. `price`: of a unit, None where nobody knows it; then it counts as 0.

    `hourly`: of all of that role; `session`: of the whole session, None where its length is not
    known; `monthly`: after the session's end, until its results are removed.
    """

    charge: Charge
    price: float | None
    hourly: Range
    session: Range | None
    monthly: float


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What a session costs. `hours`: of the session; None where its length is not known.

    `ends`: what ends it before its engine does, in words; "" where nothing does.
    """

    region: str
    source: str
    workers: Range
    slots: int
    runs: RunCount | None
    run_seconds: float | None
    hours: Range | None
    worker_hours: Range | None
    lines: tuple[Line, ...]
    budget: float
    ends: str
    by_use: tuple[str, ...]
    free: tuple[str, ...] = FREE

    @property
    def hourly(self) -> Range:
        return sum((line.hourly for line in self.lines), NOTHING)

    @property
    def total(self) -> Range | None:
        """Of the whole session, not more than its budget."""
        if self.hours is None:
            return None
        total = sum((line.session or NOTHING for line in self.lines), NOTHING)
        if self.budget:
            return Range(min(total.least, self.budget), min(total.most, self.budget))
        return total

    @property
    def monthly(self) -> float:
        """After its end, a month."""
        return sum(line.monthly for line in self.lines)

    @property
    def unknown(self) -> list[str]:
        """Items without a price: the sums lack them."""
        return sorted({line.charge.item for line in self.lines if line.price is None})

    def to_json(self) -> dict[str, Any]:
        """As plain data; ranges are [least, most]."""
        return {
            "region": self.region,
            "prices": self.source,
            "workers": _pair(self.workers),
            "slots": self.slots,
            "runs": list(self.runs.range) if self.runs else None,
            "runs_formula": self.runs.formula if self.runs else "",
            "run_seconds": self.run_seconds,
            "hours": _pair(self.hours),
            "worker_hours": _pair(self.worker_hours),
            "usd_an_hour": _pair(self.hourly),
            "usd": _pair(self.total),
            "usd_a_month_after": self.monthly,
            "ends": self.ends,
            "unknown": self.unknown,
            "items": [
                {
                    "item": line.charge.item,
                    "role": line.charge.role,
                    "amount": line.charge.amount,
                    "why": line.charge.why,
                    "usd_a_unit": line.price,
                    "usd_an_hour": _pair(line.hourly),
                    "usd": _pair(line.session),
                    "usd_a_month_after": line.monthly,
                }
                for line in self.lines
            ],
            "by_use": list(self.by_use),
            "free": list(self.free),
        }


def _pair(values: Range | None) -> list[float] | None:
    return None if values is None else [values.least, values.most]


def make_plan(
    charges: Iterable[Charge],
    prices: Prices,
    *,
    workers: int,
    most: int = 0,
    slots: int = 1,
    runs: RunCount | None = None,
    run_seconds: float | None = None,
    max_hours: float = 0.0,
    budget: float = 0.0,
) -> CostPlan:
    """What a session with these charges costs.

    `workers`, `most`, `slots`, `max_hours`, `budget`: as in `SessionSpec`. `run_seconds`: of one
    run, on one slot of a worker. The length is not known without it, and without `runs`.
    """
    largest = max(workers, most)
    hours = worker_hours = None
    ends = ""
    if runs is not None and run_seconds is not None:
        estimates = [
            estimate_hours(batches, run_seconds, workers=workers, most=most, slots=slots)
            for batches in (runs.least, runs.most)
        ]
        if max_hours:
            if estimates[1][0] > max_hours:
                ends = f"after {max_hours:g} hours (max_hours)"
            estimates = [
                (min(length, max_hours), min(paid, largest * max_hours))
                for length, paid in estimates
            ]
        hours = Range(estimates[0][0], estimates[1][0])
        worker_hours = Range(estimates[0][1], estimates[1][1])
    elif max_hours:
        hours, worker_hours = Range(0.0, max_hours), Range(0.0, largest * max_hours)
        ends = f"after {max_hours:g} hours (max_hours), if its engine does not before"
    lines = [
        _make_line(charge, prices, workers, largest, hours, worker_hours) for charge in charges
    ]
    plan = CostPlan(
        region=prices.region,
        source=prices.source,
        workers=Range(workers, largest),
        slots=slots,
        runs=runs,
        run_seconds=run_seconds,
        hours=hours,
        worker_hours=worker_hours,
        lines=tuple(lines),
        budget=budget,
        ends=ends,
        by_use=_describe_use(prices),
    )
    return plan


def estimate_hours(
    batches: Sequence[int], run_seconds: float, *, workers: int, most: int, slots: int
) -> tuple[float, float]:
    """Hours of a session, and paid hours of its workers, for batches of runs one after another.

    A fixed fleet is paid for from begin to end; an elastic one (`most`) for its model time and
    `OVERHEAD`, at the least for a start of each worker, and for its fewest workers all the time.
    """
    places = max(workers, most) * slots
    seconds = START_SECONDS + sum(math.ceil(batch / places) for batch in batches) * run_seconds
    hours = seconds / 3600
    if not most:
        return hours, workers * hours
    model = sum(batches) * run_seconds / 3600 / slots
    started = min(places, max(batches, default=0)) / slots
    paid = max(OVERHEAD * model, model + started * START_SECONDS / 3600, workers * hours)
    return hours, min(paid, most * hours)


def _make_line(
    charge: Charge,
    prices: Prices,
    workers: int,
    largest: int,
    hours: Range | None,
    worker_hours: Range | None,
) -> Line:
    price = prices.find(charge.item)
    dollars = charge.amount * (price or 0.0)
    once = not charge.item.endswith(("-hour", "-month"))
    whole = charge.item in _WHOLE_MONTHS
    an_hour = 0.0 if once or whole else rate_by_hour(charge, dollars)
    is_worker = charge.role == WORKER
    hourly = Range(workers * an_hour, largest * an_hour) if is_worker else Range(an_hour, an_hour)
    session = None
    length = worker_hours if is_worker else hours
    if length is not None and hours is not None:
        if once:
            times = Range(workers, largest) if is_worker else Range(1, 1)
            session = Range(dollars * times.least, dollars * times.most)
        elif whole:
            session = Range(_charge_zone(hours.least) * dollars, _charge_zone(hours.most) * dollars)
        else:
            session = Range(length.least * an_hour, length.most * an_hour)
    monthly = dollars if charge.item in _STAYING else 0.0
    return Line(charge, price, hourly, session, monthly)


def rate_by_hour(charge: Charge, dollars: float) -> float:
    """Dollars an hour, of dollars for each unit of the charge's own time."""
    return dollars / HOURS_A_MONTH if charge.item.endswith("-month") else dollars


def _charge_zone(hours: float) -> int:
    """For how many months a hosted zone is paid."""
    return 0 if hours <= FREE_ZONE_HOURS else math.ceil(hours / HOURS_A_MONTH)


def make_session_prices(charges: Iterable[Charge], prices: Prices) -> dict[str, float]:
    """`SessionSpec.prices`: US dollars an hour of a `worker`, and of the `rest`.

    Also `once`: dollars at the launch; `late`: dollars once the session is older than 12 hours; and
    `worker/ITEM`, `rest/ITEM`: what the first two consist of. What has no price is left out.
    """
    found = {WORKER: 0.0, "rest": 0.0, "once": 0.0, "late": 0.0}
    for charge in charges:
        dollars = charge.amount * (prices.find(charge.item) or 0.0)
        if charge.item in _WHOLE_MONTHS:
            found["late"] += dollars
        elif not charge.item.endswith(("-hour", "-month")):
            found["once"] += dollars
        else:
            role = WORKER if charge.role == WORKER else "rest"
            an_hour = rate_by_hour(charge, dollars)
            found[role] += an_hour
            name = f"{role}/{charge.item}"
            found[name] = found.get(name, 0.0) + an_hour
    return found


def _describe_use(prices: Prices) -> tuple[str, ...]:
    out = prices.find("data-out-gb")
    text = f"{out:g}" if out is not None else "some"
    return tuple(line.replace("{data-out-gb}", text) for line in BY_USE)
