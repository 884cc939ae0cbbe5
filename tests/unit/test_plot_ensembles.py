"""The picture of an ensemble smoother, for cases of many shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pytest

from pestfleet.plots import draw_results

MIXED = {"head": (1500, 30.0), "flow": (12, 1e6), "conc": (300, 1e-3), "few": (2, 1.0)}


def make_tables(
    groups: dict[str, tuple[int, float]], *, realizations: int = 20
) -> dict[str, pandas.DataFrame]:
    """`groups`: {name: (observations, size of their values)}."""
    rng = np.random.default_rng(4)
    rows = [
        (f"{name}_{number}", name, size * (1.0 + 0.1 * np.sin(number)), 50.0 / size)
        for name, (count, size) in groups.items()
        for number in range(count)
    ]
    table = pandas.DataFrame(rows, columns=["name", "group", "measured", "weight"])
    measured = table["measured"].to_numpy()
    tables = {}
    for which, spread in (("prior", 0.4), ("posterior", 0.02)):
        factors = 1.0 + spread * rng.standard_normal((realizations, len(table)))
        tables[f"{which}_observations"] = pandas.DataFrame(
            measured * factors, columns=list(table["name"])
        )
    quantiles = tables["posterior_observations"].quantile([0.5, 0.025, 0.975])
    table["modelled"], table["lower95"], table["upper95"] = quantiles.to_numpy()
    table["residual"] = table["measured"] - table["modelled"]
    table["noise"] = 1.0 / table["weight"]
    phi = pandas.DataFrame(rng.uniform(1.0, 2.0, (3, realizations)) * np.array([[900], [30], [9]]))
    iterations = pandas.DataFrame({"number": [0], "phi": [1.0]})
    return {"observations": table, "phi": phi, "iterations": iterations, **tables}


def list_titles(tables: dict[str, pandas.DataFrame]) -> list[str]:
    figure = draw_results(tables, title="t")
    assert figure is not None
    return [axes.get_title(loc="left") for axes in figure.axes]


def get_axes(tables: dict[str, pandas.DataFrame], title: str) -> Any:
    figure = draw_results(tables, title="t")
    assert figure is not None
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def test_groups_have_axes_of_their_own_and_alike_ones_a_line_of_fit() -> None:
    titles = list_titles(make_tables({"head": (15, 20.0), "flow": (1, 2.0)}))
    assert titles[:2] == ["head (15)", "flow (1)"]
    assert titles[2].startswith("Fit of 16 observations")
    assert titles[3].startswith("Objective function")


def test_unlike_groups_have_weighted_residuals() -> None:
    # A layout that does not fit is a warning, and so an error here.
    titles = list_titles(make_tables(MIXED, realizations=250))
    assert titles[:3] == ["head (1,500)", "flow (12)", "conc (300)"]
    assert titles[3] == "Residuals of the realizations"


@pytest.mark.parametrize("forecasts", [1, 2, 3, 5])
def test_forecasts_have_histograms(forecasts: int) -> None:
    tables = make_tables({"head": (15, 20.0)})
    names = list(tables["prior_observations"].columns[:forecasts])
    tables["forecasts"] = pandas.DataFrame({"name": names, "group": "head", "written": 20.0})
    titles = list_titles(tables)
    assert len(titles) == 2 + min(forecasts, 3)
    axes = get_axes(tables, "Forecasts")
    assert axes.get_xlabel() == names[0]
    heights = [bar.get_height() for bar in axes.patches]
    # Each ensemble makes 100 %; what lies outside the picture is a little of the prior.
    assert 180.0 <= sum(heights) <= 200.0 + 1e-9
    assert [line.get_xdata()[0] for line in axes.lines] == [20.0]


def test_a_forecast_whose_written_value_is_far_away_has_no_line() -> None:
    tables = make_tables({"head": (15, 20.0)})
    tables["forecasts"] = pandas.DataFrame({"name": ["head_0"], "group": "head", "written": -1e9})
    assert not get_axes(tables, "Forecasts").lines


def test_measured_values_have_bars_of_two_standard_deviations() -> None:
    tables = make_tables({"head": (15, 20.0)})
    axes = get_axes(tables, "head")
    (bars,) = axes.containers
    ends = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
    np.testing.assert_allclose(np.diff(ends, axis=1)[:, 0], 4.0 * 20.0 / 50.0)
    np.testing.assert_allclose(ends.mean(axis=1), tables["observations"]["measured"])


def test_after_the_prior_there_is_no_posterior() -> None:
    tables = make_tables({"head": (15, 20.0)})
    both = len(get_axes(tables, "head").lines)
    tables["posterior_observations"] = tables["prior_observations"].copy()
    tables["phi"] = tables["phi"].head(1)
    assert len(get_axes(tables, "head").lines) == both - 20


def test_phi_of_every_realization_and_the_mean_of_those_that_are_left() -> None:
    tables = make_tables({"head": (15, 20.0)})
    tables["phi"].iloc[2, 3] = np.nan
    axes = get_axes(tables, "Objective function")
    assert len(axes.lines) == 21
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), tables["phi"].mean(axis=1))
    assert axes.get_yscale() == "log"
