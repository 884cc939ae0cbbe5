"""Pictures of a session's results. Figures are made without pyplot: no state, any thread."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart; without the yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#9A9A9A"
LEGEND_GROUPS = 7  # more groups get no legend: it would cover the picture
LINES = 200  # realizations drawn one by one
POINTS = 1000  # observations of an ensemble drawn

_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
}


def draw_results(tables: dict[str, pandas.DataFrame], *, title: str) -> Figure | None:
    """Whatever fits the tables of `read_results`; None when there is nothing to draw."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        width = 7.0 if "sweep" in tables else 11.0
        figure = Figure(figsize=(width, 4.2), layout="constrained")
        if "sweep" in tables:
            drawn = _draw_sweep(figure, tables["sweep"])
        elif "posterior_observations" in tables:
            drawn = _draw_ensembles(figure, tables)
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
        _draw_phi(figure.subplots(), iterations)
        return True
    fit, residuals, phi = figure.subplots(1, 3, width_ratios=(1.15, 1.0, 1.0))
    weighted = observations[observations["weight"] > 0]
    shown = weighted if len(weighted) else observations
    _draw_one_to_one(fit, shown)
    _draw_residuals(residuals, shown)
    _draw_phi(phi, iterations)
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
    if observations["group"].nunique() <= LEGEND_GROUPS:
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


def _draw_phi(axes: Axes, iterations: pandas.DataFrame) -> None:
    if len(iterations):
        axes.plot(
            iterations["number"], iterations["phi"], color=PALETTE[0], marker="o", markersize=4.0
        )
        last = iterations.iloc[-1]
        axes.annotate(
            f"{last['phi']:.5g}",
            (last["number"], last["phi"]),
            textcoords="offset points",
            xytext=(4, 7),
            ha="right",
            fontsize=8.0,
        )
    _set_phi_axes(axes, iterations["phi"])


def _set_phi_axes(axes: Axes, phi: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set(xlabel="iteration", ylabel="phi")
    axes.set_title("Objective function", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.08, y=0.12)
    positive = [float(value) for value in phi if value > 0]
    if not positive or len(positive) < len(phi):
        return
    axes.set_yscale("log")
    if max(positive) / min(positive) < 1000:
        # Decades alone would be too few ticks, or none.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_ensembles(figure: Figure, tables: dict[str, pandas.DataFrame]) -> bool:
    fit, phi = figure.subplots(1, 2, width_ratios=(1.7, 1.0))
    observations = tables["observations"]
    weighted = observations[observations["weight"] > 0]
    shown = weighted if len(weighted) else observations
    count = len(shown)
    shown = shown.iloc[:: -(-count // POINTS)].reset_index(drop=True)
    # Lines end where a group does: from one to the next they would mean nothing.
    starts = [0, *shown.index[shown["group"] != shown["group"].shift()][1:], len(shown)]
    for which, color in (("prior", GREY), ("posterior", PALETTE[0])):
        ensemble = tables[f"{which}_observations"][list(shown["name"])].head(LINES).to_numpy()
        alpha = min(0.9, max(0.06, 8.0 / len(ensemble)))
        label = f"{which} ensemble ({len(tables[f'{which}_observations'])})"
        for start, end in pairwise(starts):
            lines = fit.plot(
                range(start + 1, end + 1),
                ensemble[:, start:end].T,
                color=color,
                linewidth=0.8,
                marker="_" if end - start == 1 else "",
                alpha=alpha,
                zorder=2,
            )
            lines[0].set_label(label if not start else "_")
    fit.scatter(
        shown.index + 1, shown["measured"], s=10.0, color=PALETTE[1], zorder=3, label="measured"
    )
    _limit_to_posterior(fit, shown, tables)
    every = "" if count == len(shown) else f", {len(shown):,} of them drawn"
    fit.set(xlabel=f"observation, in the order of the control file{every}", ylabel="value")
    fit.set_title(f"Prior and posterior of {count:,} observations", loc="left", pad=22.0)
    legend = fit.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, borderaxespad=0.1)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    _draw_phi_of_realizations(phi, tables)
    return True


def _limit_to_posterior(
    axes: Axes, shown: pandas.DataFrame, tables: dict[str, pandas.DataFrame]
) -> None:
    """Let the axis hold all but the wildest prior values: else they flatten the rest."""
    names = list(shown["name"])
    prior, posterior = tables["prior_observations"][names], tables["posterior_observations"][names]
    low = min(prior.quantile(0.05).min(), posterior.min().min(), shown["measured"].min())
    high = max(prior.quantile(0.95).max(), posterior.max().max(), shown["measured"].max())
    margin = 0.05 * (high - low) or 1.0
    outside = int(((prior < low - margin) | (prior > high + margin)).to_numpy().sum())
    axes.set_ylim(low - margin, high + margin)
    if outside:
        share = 100 * outside / prior.size
        axes.text(
            0.995,
            0.985,
            f"{share:.2g} % of the prior values are outside the picture",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=7.5,
            color="#6A6A6A",
        )


def _draw_phi_of_realizations(axes: Axes, tables: dict[str, pandas.DataFrame]) -> None:
    phi = tables.get("phi")
    if phi is None:
        _draw_phi(axes, tables["iterations"])
        return
    some = phi[phi.columns[:LINES]]
    alpha = min(0.9, max(0.08, 8.0 / max(1, some.shape[1])))
    lines = axes.plot(phi.index, some.to_numpy(), color=PALETTE[0], linewidth=0.8, alpha=alpha)
    lines[0].set_label("realizations")
    axes.plot(
        phi.index, phi.mean(axis=1), color=PALETTE[1], marker="o", markersize=4.0, label="mean"
    )
    _set_phi_axes(axes, phi.stack())
    for handle in axes.legend(loc="upper right").legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)


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
