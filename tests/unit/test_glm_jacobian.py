from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fake_runner import Fail, Function, FunctionRunner, ListReport, make_control, make_parameter
from pestfleet.control.model import ControlFile, ParameterGroup
from pestfleet.engines.base import Matrix
from pestfleet.engines.glm.differences import find_increment, find_slope, place_points
from pestfleet.engines.glm.jacobian import Differentiator, Jacobian
from pestfleet.engines.glm.space import build_space
from pestfleet_worker.errors import RunsFailedError

WIDE = (-math.inf, math.inf)


def points(value: float, bounds: tuple[float, float], increment: float, number: int) -> list[float]:
    return place_points(
        value=value, lower=bounds[0], upper=bounds[1], increment=increment, points=number
    )


def differentiate(
    control: ControlFile, function: Function, *, central: bool = False, fail: Fail | None = None
) -> tuple[Matrix, FunctionRunner, ListReport]:
    space = build_space(control)
    runner = FunctionRunner(control, function, fail=fail)
    report = ListReport()
    maker = Differentiator(control, space, runner, report)
    jacobian: Jacobian = maker.differentiate(
        space.initial, None, central=central, purpose="Jacobian"
    )
    return jacobian.matrix, runner, report


@pytest.mark.parametrize(
    ("group", "value", "largest", "wanted"),
    [
        (ParameterGroup("g", "relative", 0.01), -50.0, 80.0, 0.5),
        (ParameterGroup("g", "relative", 0.01, 0.75), 50.0, 80.0, 0.75),
        (ParameterGroup("g", "absolute", 0.3, 5.0), 50.0, 80.0, 0.3),
        (ParameterGroup("g", "rel_to_max", 0.01), 50.0, 80.0, 0.8),
    ],
)
def test_increment_types(
    group: ParameterGroup, value: float, largest: float, wanted: float
) -> None:
    found = find_increment(group, value=value, largest=largest, points=2)
    assert found == pytest.approx(wanted, rel=1e-14)
    central = find_increment(group, value=value, largest=largest, points=3)
    assert central == pytest.approx(2.0 * wanted, rel=1e-14)  # DERINCMUL


def test_points_turn_inward_at_bounds() -> None:
    assert points(1.0, WIDE, 0.5, 2) == [1.5]
    assert points(1.0, (0.0, 1.2), 0.5, 2) == [0.5]
    assert points(1.0, WIDE, 0.5, 3) == [1.5, 0.5]
    assert points(1.0, (-9.0, 1.0), 0.5, 3) == [0.5, 0.0]
    assert points(1.0, (1.0, 9.0), 0.5, 3) == [1.5, 2.0]
    assert points(1.0, WIDE, 0.5, 5) == [1.5, 0.5, 2.0, 0.0]
    assert points(1.0, (0.5, 9.0), 0.5, 5) == [1.5, 0.5, 2.0, 2.5]
    assert points(1.0, (0.9, 1.2), 0.5, 5) == [1.2]  # no room: one point, the roomier side


@pytest.mark.parametrize("method", ["parabolic", "maxprec"])
@pytest.mark.parametrize(
    "offsets", [[0.0, 1.0, -1.0], [0.0, 1.0, 2.0], [0.0, -0.5, 0.75, 1.5, -2.0]]
)
def test_polynomial_slope_is_exact_for_its_degree(method: str, offsets: list[float]) -> None:
    d = np.array(offsets)
    powers = np.arange(len(d))
    outputs = d[:, np.newaxis] ** powers  # slope at 0 is 1 for the power 1, else 0
    slope = find_slope(offsets=d, outputs=outputs, method=method)
    assert slope == pytest.approx((powers == 1).astype(float), abs=1e-13)


def test_line_slopes_agree_with_a_fit() -> None:
    d, y = np.array([0.0, 1.0, -1.0, 2.5]), np.array([[0.3], [1.0], [-2.0], [4.0]])
    fitted = np.polyfit(d, y[:, 0], 1)[0]
    for method in ("best_fit", "minvar"):
        assert find_slope(offsets=d, outputs=y, method=method)[0] == pytest.approx(fitted)
    outer = find_slope(offsets=d, outputs=y, method="outside_pts")[0]
    assert outer == pytest.approx((4.0 - -2.0) / 3.5)


@pytest.mark.parametrize("central", ["always_2", "always_3", "always_5"])
@pytest.mark.parametrize("increment_type", ["relative", "absolute", "rel_to_max"])
@pytest.mark.parametrize("method", ["parabolic", "best_fit", "outside_pts"])
def test_jacobian_of_a_linear_model_is_exact(
    central: str, increment_type: str, method: str
) -> None:
    """Integers and increments that are powers of two: no rounding anywhere, so equal bits."""
    a = np.random.default_rng(2).integers(-9, 9, size=(12, 3)).astype(float)
    group = ParameterGroup("pargp", increment_type, 2.0**-6, 0.0, central, 2.0, method)
    control = make_control(
        [make_parameter(f"p{i}", 2.0**i) for i in range(3)], np.zeros(12), groups=[group]
    )
    matrix, _, _ = differentiate(control, lambda x: a @ x)
    if central == "always_2" or method == "outside_pts":
        assert (matrix == a).all()
    else:
        assert np.abs(matrix - a).max() <= 1e-12 * np.abs(a).max()


def test_initial_run_and_jacobian_are_one_batch() -> None:
    control = make_control({"a": 1.0, "b": 2.0}, [0.0])
    _, runner, _ = differentiate(control, lambda x: [x.sum()])
    assert [len(m) for _, m in runner.asked] == [3]
    assert runner.asked[0][1].tolist() == [[1.0, 2.0], [1.01, 2.0], [1.0, 2.02]]


def test_log_tied_fixed_scale_and_offset() -> None:
    parameters = [
        make_parameter("k", 10.0, transform="log", scale=2.0, offset=1.0, lower=1.0, upper=100.0),
        make_parameter("child", 30.0, transform="tied", tied_to="k"),
        make_parameter("still", 7.0, transform="fixed"),
        make_parameter("c", 1.0),
    ]
    group = ParameterGroup("pargp", increment=1e-4, central="always_3")
    control = make_control(parameters, np.zeros(3), groups=[group])
    matrix, runner, _ = differentiate(control, lambda x: [x[0] ** 2, x[1], x[2] * x[3]])
    batch = runner.asked[0][1]
    assert (batch[:, 2] == 7.0).all()
    assert batch[:, 1] == pytest.approx(3.0 * batch[:, 0], rel=1e-15)
    ln10 = math.log(10.0)
    wanted = [[2 * 21.0 * 2.0 * 10.0 * ln10, 0.0], [30.0 * ln10, 0.0], [0.0, 7.0]]
    assert matrix == pytest.approx(np.array(wanted), rel=1e-6, abs=1e-9)


def test_increment_at_a_bound_turns_inward() -> None:
    control = make_control([make_parameter("a", 2.0, upper=2.0)], [0.0])
    matrix, runner, _ = differentiate(control, lambda x: 3.0 * x)
    assert (runner.asked[0][1] <= 2.0).all()
    assert matrix[0, 0] == pytest.approx(3.0)


def test_increment_of_zero_is_replaced_and_said() -> None:
    control = make_control({"a": 0.0}, [0.0])
    matrix, _, report = differentiate(control, lambda x: 3.0 * x)
    assert matrix[0, 0] == pytest.approx(3.0)
    assert any("DERINCLB" in w for w in report.warnings)


def test_failed_run_is_made_on_the_other_side() -> None:
    control = make_control({"a": 1.0, "b": 1.0}, [0.0])
    matrix, runner, report = differentiate(
        control, lambda x: [x[0] + 5 * x[1]], fail=lambda n, p: p[1] > 1.0
    )
    assert matrix == pytest.approx(np.array([[1.0, 5.0]]))
    assert runner.asked[1][1].tolist() == [[1.0, 0.99]]
    assert report.warnings == []


def test_parameter_that_always_fails_gets_a_zero_column_and_a_warning() -> None:
    control = make_control({"a": 1.0, "b": 1.0}, [0.0])
    matrix, _, report = differentiate(
        control, lambda x: [x[0] + 5 * x[1]], fail=lambda n, p: p[1] != 1.0
    )
    assert matrix == pytest.approx(np.array([[1.0, 0.0]]))
    assert len(report.warnings) == 1
    assert "parameter b" in report.warnings[0]


def test_central_derivative_with_one_failed_side_uses_the_other() -> None:
    group = ParameterGroup("pargp", central="always_3")
    control = make_control({"a": 1.0, "b": 1.0}, [0.0], groups=[group])
    matrix, runner, report = differentiate(
        control, lambda x: [x[0] + 5 * x[1]], fail=lambda n, p: p[1] > 1.0
    )
    assert matrix == pytest.approx(np.array([[1.0, 5.0]]))
    assert len(runner.asked) == 1
    assert report.warnings == []


def test_all_failed_is_an_error() -> None:
    control = make_control({"a": 1.0, "b": 1.0}, [0.0])
    with pytest.raises(RunsFailedError, match="all runs with a changed parameter failed"):
        differentiate(control, lambda x: x[:1], fail=lambda n, p: (p != 1.0).any())
    with pytest.raises(RunsFailedError, match="initial values failed: run 0 was told to fail"):
        differentiate(control, lambda x: x[:1], fail=lambda n, p: n == 0)


def test_large_batches_are_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pestfleet.engines.glm.jacobian._MOST_ELEMENTS", 8)
    a = np.arange(12.0).reshape(3, 4)
    control = make_control({f"p{i}": 1.0 for i in range(4)}, np.zeros(3))
    matrix, runner, _ = differentiate(control, lambda x: a @ x)
    assert [len(m) for _, m in runner.asked] == [2, 2, 1]
    assert matrix == pytest.approx(a)
