from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from fake_runner import make_control, make_parameter
from pestfleet.control.model import Parameter
from pestfleet.engines.glm.damping import SlotCounts, extend_trials, fill_batch, plan_trials
from pestfleet.engines.glm.settings import Settings
from pestfleet.engines.glm.space import build_space
from pestfleet.engines.glm.upgrade import UpgradeMaker, find_limits

FREE = Settings(relparmax=1e9, facparmax=1e9, scaling="sensitivity")


def make_maker(
    parameters: list[Parameter],
    jacobian: np.ndarray,
    residuals: np.ndarray,
    settings: Settings = FREE,
) -> UpgradeMaker:
    space = build_space(make_control(parameters, residuals))
    return UpgradeMaker(space, settings, space.initial, jacobian, residuals)


def test_undamped_upgrade_is_the_least_squares_solution() -> None:
    rng = np.random.default_rng(3)
    a, r = rng.normal(size=(15, 4)) * [1.0, 1e4, 1e-5, 1.0], rng.normal(size=15)
    for scaling in ("sensitivity", "none"):
        settings = Settings(relparmax=1e9, scaling=scaling, eigthresh=0.0)
        maker = make_maker([make_parameter(f"p{i}", 1.0) for i in range(4)], a, r, settings)
        found = maker.upgrade(0.0)
        assert found is not None
        assert found.values - 1.0 == pytest.approx(np.linalg.lstsq(a, r)[0], rel=1e-9)


def test_damped_upgrade_does_not_depend_on_units() -> None:
    rng = np.random.default_rng(4)
    a, r = rng.normal(size=(9, 3)), rng.normal(size=9)
    units = np.array([1.0, 1024.0, 2.0**-12])
    plain = make_maker([make_parameter(f"p{i}", 1.0) for i in range(3)], a, r)
    other = make_maker([make_parameter(f"p{i}", u) for i, u in enumerate(units)], a / units, r)
    one, two = plain.upgrade(3.0), other.upgrade(3.0)
    assert one is not None
    assert two is not None
    assert two.values == pytest.approx(one.values * units, rel=1e-12)
    n = a.T @ a
    wanted = np.linalg.solve(n + 3.0 * np.diag(np.diag(n)), a.T @ r)
    assert one.values - 1.0 == pytest.approx(wanted, rel=1e-9)


def test_rank_deficient_upgrade_is_the_smallest() -> None:
    a, r = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]), np.array([3.0, 6.0])
    for scaling in ("none", "sensitivity"):
        settings = Settings(relparmax=1e9, scaling=scaling)
        found = make_maker([make_parameter(n, 1.0) for n in "abc"], a, r, settings).upgrade(0.0)
        assert found is not None
        assert found.values == pytest.approx([2.5, 2.5, 1.0])


def test_maxsing_cuts_singular_values() -> None:
    a, r = np.diag([4.0, 2.0, 1.0]), np.array([4.0, 4.0, 4.0])
    settings = Settings(relparmax=1e9, scaling="none", maxsing=2)
    found = make_maker([make_parameter(n, 1.0) for n in "abc"], a, r, settings).upgrade(0.0)
    assert found is not None
    assert found.values == pytest.approx([2.0, 3.0, 1.0])


@pytest.mark.parametrize("seed", range(6))
def test_bounds_are_held_and_repeated_upgrades_reach_the_bounded_optimum(seed: int) -> None:
    """For a linear model the upgrades must end where scipy's bounded least squares does."""
    rng = np.random.default_rng(seed)
    a, y = rng.normal(size=(10, 5)), rng.normal(size=10) * 3.0
    low, high = np.full(5, -0.4), np.full(5, 0.3)
    start = np.array([0.1, -0.4, 0.3, 0.05, 0.2])
    parameters = [make_parameter(f"p{i}", x, lower=-0.4, upper=0.3) for i, x in enumerate(start)]
    space = build_space(make_control(parameters, y))
    values = space.initial
    for _ in range(20):
        found = UpgradeMaker(space, FREE, values, a, y - a @ values).upgrade(0.0)
        if found is None:
            break
        assert (found.values >= low).all()
        assert (found.values <= high).all()
        values = found.values
    best = lsq_linear(a, y, bounds=(low, high), tol=1e-14).x
    assert values == pytest.approx(best, abs=1e-6)
    assert ((best < -0.399) | (best > 0.299)).any()  # some bound matters


def test_upgrade_of_the_others_knows_who_stops_at_a_bound() -> None:
    a, r = np.array([[1.0, 0.8], [0.2, 1.0]]), np.array([4.0, -1.0])
    parameters = [make_parameter("x", 1.0, upper=2.0), make_parameter("y", 1.0)]
    found = make_maker(parameters, a, r).upgrade(0.0)
    assert found is not None
    best = lsq_linear(a, r + a @ [1.0, 1.0], bounds=([-np.inf, -np.inf], [2.0, np.inf])).x
    assert found.values == pytest.approx(best, rel=1e-9)
    assert found.values[0] == 2.0
    assert found.frozen == (0,)


def test_nothing_can_move_gives_none() -> None:
    parameters = [make_parameter("a", 1.0, upper=1.0)]
    assert make_maker(parameters, np.array([[1.0]]), np.array([5.0])).upgrade(0.0) is None
    assert (
        make_maker([make_parameter("a", 1.0)], np.array([[0.0]]), np.array([5.0])).upgrade(1.0)
        is None
    )


@pytest.mark.parametrize(
    ("limit", "value", "initial", "log", "wanted"),
    [
        ("relative", 10.0, 10.0, False, (-20.0, 40.0)),
        ("relative", 1e-9, 10.0, False, (-0.03, 0.03)),  # FACORIG 1e-3 of the initial value
        ("relative", 10.0, 10.0, True, (0.0, 40.0)),
        ("factor", 10.0, 10.0, False, (5.0, 20.0)),
        ("factor", 10.0, 10.0, True, (5.0, 20.0)),
        ("factor", -10.0, -10.0, False, (-20.0, -5.0)),
        ("absolute(2)", 10.0, 10.0, False, (9.25, 10.75)),
    ],
)
def test_change_limits(
    limit: str, value: float, initial: float, log: bool, wanted: tuple[float, float]
) -> None:
    settings = Settings(relparmax=3.0, facparmax=2.0, absparmax={1: 9.0, 2: 0.75})
    bounds = (1e-10, 1e10) if value > 0 else (-1e10, -1e-10)
    transform = "log" if log else "none"
    parameter = make_parameter(
        "a", initial, change_limit=limit, transform=transform, lower=bounds[0], upper=bounds[1]
    )
    low, high = find_limits(
        build_space(make_control([parameter], [0.0])), settings, np.array([value])
    )
    ends = 10.0 ** np.array([low[0], high[0]]) if log else np.array([low[0], high[0]])
    assert ends == pytest.approx(wanted, abs=1e-7)


def test_change_limit_shortens_the_whole_upgrade() -> None:
    parameters = [make_parameter("a", 1.0), make_parameter("b", 1.0)]
    settings = Settings(relparmax=2.0, scaling="none")
    found = make_maker(parameters, np.eye(2), np.array([8.0, 1.0]), settings).upgrade(0.0)
    assert found is not None
    assert found.values == pytest.approx([3.0, 1.25])
    assert found.limited_by == 0


def test_batch_fills_the_slots() -> None:
    assert [fill_batch(n) for n in (1, 2, 3, 4, 7)] == [4, 4, 6, 4, 7]
    for slots in (1, 3, 8, 24):
        trials = plan_trials(Settings(), 10.0, slots=slots, attempt=0)
        assert len(trials) == fill_batch(slots)
        assert len(set(trials)) == len(trials)
        assert trials[0].damping == 10.0
        assert any(t.damping == 0.0 for t in trials)
    assert len(plan_trials(Settings(numlam=3), 10.0, slots=8, attempt=0)) == 8


def test_failed_iterations_try_something_new() -> None:
    for settings in (Settings(), Settings(rlambda1=0.0), Settings(lambdas=(0.1, 1.0))):
        base = settings.rlambda1
        batches = [plan_trials(settings, base, slots=4, attempt=n) for n in range(4)]
        everything = [t for batch in batches for t in batch]
        assert len(set(everything)) == len(everything)


def test_users_lambdas_and_scales_are_taken() -> None:
    settings = Settings(lambdas=(0.1, 1.0), scale_factors=(0.5, 1.0))
    trials = plan_trials(settings, 77.0, slots=99, attempt=0)
    assert {(t.damping, t.scale) for t in trials} == {
        (0.1, 0.5),
        (0.1, 1.0),
        (1.0, 0.5),
        (1.0, 1.0),
    }
    assert extend_trials(settings, [0.1, 1.0], best=0.1, slots=4) == []


def test_search_goes_on_beyond_the_end_where_the_best_is() -> None:
    s = Settings(rlamfac=2.0, numlam=6)
    assert [t.damping for t in extend_trials(s, [4.0, 0.0, 2.0, 8.0], best=2.0, slots=2)] == [
        1.0,
        0.5,
    ]
    assert [t.damping for t in extend_trials(s, [4.0, 0.0, 2.0, 8.0], best=8.0, slots=2)] == [
        16.0,
        32.0,
    ]
    assert extend_trials(s, [4.0, 0.0, 2.0, 8.0], best=4.0, slots=2) == []
    assert extend_trials(s, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], best=1.0, slots=2) == []


def test_slot_counts_are_those_of_the_first_time(tmp_path: Path) -> None:
    path = tmp_path / "c.batches.csv"
    first = SlotCounts(path)
    assert [first.take(8), first.take(3)] == [8, 3]
    again = SlotCounts(path)
    assert [again.take(100), again.take(100), again.take(5)] == [8, 3, 5]
