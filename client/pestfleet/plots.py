"""Pictures of a session's results. Figures are made without pyplot: no state, any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pestfleet.plot_axes import GREY, MARKERS, PALETTE, STYLE, draw_phi
from pestfleet.plot_ensembles import draw_ensembles

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND_GROUPS = 7  # more groups get no legend: it would cover the picture
_BARS = 20  # parameters of a sensitivity analysis with a bar
_NAMED = 10  # and with a name at their point


def draw_results(tables: dict[str, pandas.DataFrame], *, title: str) -> Figure | None:
    """Whatever fits the tables of `read_results`; None when there is nothing to draw."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        width = 7.0 if "sweep" in tables else 11.0
        figure = Figure(figsize=(width, 4.2), layout="constrained")
        if "sweep" in tables:
            drawn = _draw_sweep(figure, tables["sweep"])
        elif "sensitivities" in tables:
            drawn = _draw_sensitivities(figure, tables["sensitivities"])
        elif "posterior_observations" in tables:
            drawn = draw_ensembles(figure, tables)
        else:
            drawn = _draw_fit(figure, tables)
        if not drawn:
            return None
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.0, fontweight="bold")
        # Ticks take their style when they are drawn first.
        figure.draw_without_rendering()
    return figure


def _draw_fit(figure: Figure, tables: dict[str, pandas.DataFrame]) -> bool:
    observations, iterations = tables.get("observations"), tables["iterations"]
    if observations is None and iterations.empty:
        return False
    if observations is None:
        draw_phi(figure.subplots(), iterations)
        return True
    fit, residuals, phi = figure.subplots(1, 3, width_ratios=(1.15, 1.0, 1.0))
    weighted = observations[observations["weight"] > 0]
    shown = weighted if len(weighted) else observations
    _draw_one_to_one(fit, shown)
    _draw_residuals(residuals, shown)
    draw_phi(phi, iterations)
    return True


def _draw_one_to_one(axes: Axes, observations: pandas.DataFrame) -> None:
    low = float(observations[["measured", "modelled"]].min().min())
    high = float(observations[["measured", "modelled"]].max().max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=GREY, linewidth=1.0, zorder=1)
    _scatter_groups(axes, observations, "measured", "modelled")
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="measured", ylabel="modelled")
    axes.set_title(f"Fit of {len(observations):,} observations", loc="left")
    if observations["group"].nunique() <= _LEGEND_GROUPS:
        axes.legend(loc="upper left", handletextpad=0.2, borderaxespad=0.2)


def _draw_residuals(axes: Axes, observations: pandas.DataFrame) -> None:
    weighted = observations.assign(weighted=observations["residual"] * observations["weight"])
    axes.axhline(0.0, color=GREY, linewidth=1.0, zorder=1)
    _scatter_groups(axes, weighted, "modelled", "weighted")
    axes.set(xlabel="modelled", ylabel="weighted residual (measured − modelled)")
    axes.set_title("Residuals", loc="left")


def _scatter_groups(axes: Axes, table: pandas.DataFrame, x: str, y: str) -> None:
    size = 22.0 if len(table) <= 500 else 8.0
    for number, (name, group) in enumerate(table.groupby("group", sort=False)):
        axes.scatter(
            group[x],
            group[y],
            s=size,
            color=PALETTE[number % len(PALETTE)],
            marker=MARKERS[number % len(MARKERS)],
            alpha=0.8,
            linewidths=0.0,
            label=str(name),
            zorder=2,
            rasterized=len(table) > 5000,
        )


def _draw_sweep(figure: Figure, table: pandas.DataFrame) -> bool:
    import numpy as np

    phi = table["phi"].dropna().to_numpy(dtype=float)
    if not len(phi):
        return False
    axes = figure.subplots()
    logarithmic = phi.min() > 0 and phi.max() / phi.min() > 50
    count = int(min(60, max(8, 2 * len(phi) ** (1 / 3))))
    bins: Any = np.geomspace(phi.min(), phi.max(), count + 1) if logarithmic else count
    axes.hist(phi, bins=bins, color=PALETTE[0], edgecolor="white", linewidth=0.6)
    if logarithmic:
        axes.set_xscale("log")
    axes.set(xlabel="phi", ylabel="runs")
    failed = len(table) - len(phi)
    title = f"Objective function of {len(phi):,} runs"
    axes.set_title(f"{title}, {failed:,} failed" if failed else title, loc="left")
    return True


def _draw_sensitivities(figure: Figure, table: pandas.DataFrame) -> bool:
    """The most sensitive parameters; by Morris, also how far the effect of each varies."""
    top = table.head(_BARS)[::-1]
    if top.empty:
        return False
    morris = "mean_absolute" in table
    panels = figure.subplots(1, 2 if morris else 1, squeeze=False)[0]
    bars = panels[0]
    places = range(len(top))
    if morris:
        bars.barh(places, top["mean_absolute"], height=0.6, color=PALETTE[0])
        bars.set(xlabel="mean absolute elementary effect on phi")
        spread = panels[1]
        spread.scatter(table["mean_absolute"], table["standard_deviation"], s=20.0,
                       color=PALETTE[0], linewidths=0.0, alpha=0.8)  # fmt: skip
        for row in table.head(_NAMED).to_dict("records"):
            spread.annotate(row["name"], (row["mean_absolute"], row["standard_deviation"]),
                            xytext=(4, 3), textcoords="offset points", fontsize=8.0)  # fmt: skip
        spread.set(xlabel="mean absolute elementary effect", ylabel="standard deviation")
        spread.set_title("High: nonlinear, or depends on others", loc="left")
        spread.margins(0.12)
        spread.set(xlim=(0.0, None), ylim=(0.0, None))
    else:
        bars.barh([p + 0.2 for p in places], top["first_order"], height=0.38, color=PALETTE[4],
                  label="first order")  # fmt: skip
        bars.barh([p - 0.2 for p in places], top["total"], height=0.38, color=PALETTE[0],
                  label="total")  # fmt: skip
        bars.set(xlabel="Sobol index of phi")
        bars.legend(loc="lower right")
    bars.set_yticks(places, list(top["name"]))
    bars.grid(visible=False, axis="y")
    which = f"{len(top)} most sensitive of {len(table):,} parameters"
    bars.set_title(f"Sensitivity: {which}" if len(table) > len(top) else "Sensitivity", loc="left")
    return True
