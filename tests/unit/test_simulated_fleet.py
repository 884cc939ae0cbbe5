"""The simulation of paid worker time, and what it says of the policy that sessions have."""

from __future__ import annotations

from types import ModuleType

import pytest

from pestfleet.costs.plan import OVERHEAD
from source import ROOT


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import simulated_fleet

    return simulated_fleet


def test_a_fixed_fleet_costs_what_it_does_by_hand(fleet: ModuleType) -> None:
    world = fleet.World(spread=0.0, losses=0.0)
    bill = fleet.simulate((75,), world, elastic=False)
    # 15 s until the image is pulled, 60 s until the first run, two rounds, 10 s to stop.
    assert bill.model == 75 * 600
    assert bill.tasks == 50
    assert bill.paid == pytest.approx(50 * (60 + 2 * 600 + 10), abs=50 * 3)


def test_a_task_is_paid_for_a_minute_at_least(fleet: ModuleType) -> None:
    world = fleet.World(run_seconds=5.0, spread=0.0, losses=0.0, start=2.0, stop=1.0)
    assert fleet.simulate((50,), world, elastic=False).paid == 50 * 60


def test_every_run_is_made_once_though_workers_are_lost(fleet: ModuleType) -> None:
    world = fleet.World(spread=0.0, losses=2.0)
    bill = fleet.simulate((120, 60), world)
    assert bill.lost > 20
    assert bill.model == 180 * 600  # only what gave results counts
    assert bill.ratio > 1.2


@pytest.mark.parametrize("batches", ["IES", "GLM"])
def test_elastic_fleets_are_paid_for_a_tenth_more_than_their_model_time(
    fleet: ModuleType, batches: str
) -> None:
    elastic = fleet.simulate(getattr(fleet, batches))
    fixed = fleet.simulate(getattr(fleet, batches), elastic=False)
    assert elastic.ratio <= OVERHEAD
    assert elastic.ratio < fixed.ratio
    assert elastic.elapsed < 1.15 * fixed.elapsed
    assert elastic.lost > 0
