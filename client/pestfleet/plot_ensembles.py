"""The picture of an ensemble smoother: observations, forecasts, and phi by iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pestfleet.plot_axes import GREY, PALETTE, draw_phi, set_phi_axes

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Tables = dict[str, "pandas.DataFrame"]

_LINES = 200  # realizations drawn one by one
_POINTS = 600  # observations of a group drawn
_GROUPS = 3  # groups of observations drawn; more would be too narrow to read
_FORECASTS = 3
_ALIKE = 20.0  # groups whose largest values differ more are not drawn on one axis
_BARS = 80  # observations of a group up to which noise is drawn
_COLORS = {"prior": GREY, "posterior": PALETTE[0]}
_MEASURED = PALETTE[1]


def draw_ensembles(figure: Figure, tables: Tables) -> bool:
    """Three panels; the middle one is one-to-one where there are no forecasts."""
    panels: Any = figure.subfigures(1, 3, width_ratios=(1.75, 0.85, 0.95))
    left, middle, right = panels
    _draw_groups(left, tables)
    if "forecasts" in tables:
        _draw_forecasts(middle, tables)
    else:
        shown = _choose_observations(tables)
        sizes = shown["measured"].abs().groupby(shown["group"]).max()
        draw = _draw_one_to_one if sizes.max() <= _ALIKE * sizes.min() else _draw_residuals
        draw(middle.subplots(), shown, tables)
    _draw_phi_of_realizations(right.subplots(), tables)
    return True


def _choose_ensembles(tables: Tables) -> tuple[str, ...]:
    """After the prior's runs, the last ensemble is the first."""
    same = tables["prior_observations"].equals(tables["posterior_observations"])
    return ("prior",) if same else ("prior", "posterior")


def _choose_observations(tables: Tables) -> pandas.DataFrame:
    observations = tables["observations"]
    weighted = observations[observations["weight"] > 0]
    return weighted if len(weighted) else observations


def _draw_groups(figure: SubFigure, tables: Tables) -> None:
    shown = _choose_observations(tables)
    counts = shown.groupby("group", sort=False).size()
    largest = counts.sort_values(ascending=False, kind="stable").index[:_GROUPS]
    groups = [name for name in counts.index if name in set(largest)]
    # A group of one needs a little room too, and one of a thousand leaves some to the others.
    ratios = [max(0.22, min(1.0, (counts[name] / counts.max()) ** 0.5)) for name in groups]
    panels = figure.subplots(1, len(groups), width_ratios=ratios, squeeze=False)[0]
    for axes, name, ratio in zip(panels, groups, ratios, strict=True):
        ticks = max(2, round(8 * ratio / sum(ratios)))
        _draw_group(axes, shown[shown["group"] == name], tables, ticks=ticks)
    panels[0].set_ylabel("value")
    handles = _make_handles(tables, shown)
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=8.0)
    label = "observation, in the file's order"
    if len(counts) > len(groups):
        label += f"; the {len(groups)} largest of {len(counts)} groups"
    if len(shown) > len(groups):
        figure.supxlabel(label, fontsize=9.0)


def _draw_group(axes: Axes, group: pandas.DataFrame, tables: Tables, *, ticks: int) -> None:
    from matplotlib.ticker import MaxNLocator

    title = f"{_shorten(str(group['group'].iloc[0]))} ({len(group):,})"
    thinned = group.iloc[:: -(-len(group) // _POINTS)]
    names = list(thinned["name"])
    single = len(names) == 1
    places = np.linspace(1.0, len(group), len(names)) if not single else np.zeros(1)
    for which in _choose_ensembles(tables):
        ensemble = tables[f"{which}_observations"][names].head(_LINES).to_numpy()
        color, alpha = _COLORS[which], min(0.9, max(0.08, 14.0 / len(ensemble)))
        if single:
            # Side by side, since lines through one point would show nothing.
            middle = -0.55 if which == "prior" else 0.55
            spread = np.linspace(-0.25, 0.25, len(ensemble))
            axes.scatter(middle + spread, ensemble[:, 0], s=9.0, linewidths=0.0, color=color,
                         alpha=max(0.35, alpha), zorder=2)  # fmt: skip
        else:
            axes.plot(places, ensemble.T, color=color, linewidth=0.9, alpha=alpha, zorder=2)
    _draw_measured(axes, places, thinned)
    _limit_to_posterior(axes, names, thinned, tables, room=ticks > 3)
    axes.set_title(title, loc="left", fontsize=9.0)
    if single:
        axes.set(xlim=(-1.1, 1.1), xticks=[])
        axes.set_xlabel(names[0])
    else:
        axes.margins(x=0.03)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True, min_n_ticks=1))


def _draw_measured(axes: Axes, places: Any, shown: pandas.DataFrame) -> None:
    few = len(shown) <= _BARS
    errors = 2.0 * shown["noise"].to_numpy() if few and shown["noise"].notna().all() else None
    axes.errorbar(
        places,
        shown["measured"],
        yerr=errors,
        fmt="o",
        color=_MEASURED,
        markersize=3.6 if few else 2.0,
        elinewidth=1.1,
        capsize=0.0,
        zorder=4,
    )


def _make_handles(tables: Tables, shown: pandas.DataFrame) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_COLORS[which], linewidth=1.6,
               label=f"{which} ({len(tables[f'{which}_observations']):,})")
        for which in _choose_ensembles(tables)
    ]  # fmt: skip
    bars = (shown.groupby("group").size() <= _BARS).any() and shown["noise"].notna().all()
    label = "measured, ± 2 sd of its noise" if bars else "measured"
    handles.append(Line2D([], [], color=_MEASURED, marker="o", markersize=3.6,
                          linewidth=1.1 if bars else 0.0, label=label))  # fmt: skip
    return handles


def _limit_to_posterior(
    axes: Axes, names: list[str], shown: pandas.DataFrame, tables: Tables, *, room: bool
) -> None:
    """Let the axis hold all but the wildest prior values: else they flatten the rest."""
    prior, posterior = tables["prior_observations"][names], tables["posterior_observations"][names]
    noise = 2.0 * shown["noise"].fillna(0.0)
    low = min(prior.quantile(0.05).min(), posterior.min().min(), (shown["measured"] - noise).min())
    high = max(prior.quantile(0.95).max(), posterior.max().max(), (shown["measured"] + noise).max())
    margin = 0.05 * (high - low) or 1.0
    outside = int(((prior < low - margin) | (prior > high + margin)).to_numpy().sum())
    axes.set_ylim(low - margin, high + margin)
    if outside and room:
        text = axes.text(
            0.99, 0.985, f"{100 * outside / prior.size:.2g} % of the prior is outside",
            transform=axes.transAxes, ha="right", va="top", fontsize=7.5, color="#6A6A6A",
            zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0},
        )  # fmt: skip
        text.set_in_layout(False)


def _draw_forecasts(figure: SubFigure, tables: Tables) -> None:
    """A histogram each. The dashed line is the control file's value, where it is near."""
    forecasts = tables["forecasts"]
    shown = forecasts.head(_FORECASTS)
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, row in zip(panels, shown.to_dict("records"), strict=True):
        values = {w: tables[f"{w}_observations"][row["name"]].to_numpy()
                  for w in _choose_ensembles(tables)}  # fmt: skip
        low = min(np.quantile(v, 0.02 if w == "prior" else 0.0) for w, v in values.items())
        high = max(np.quantile(v, 0.98 if w == "prior" else 1.0) for w, v in values.items())
        margin = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
        bins = np.linspace(low - margin, high + margin, 22)
        for which, ensemble in values.items():
            # Shares, so that ensembles of different sizes compare.
            weights = np.full(len(ensemble), 100.0 / len(ensemble))
            axes.hist(ensemble, bins=bins, weights=weights, color=_COLORS[which],
                      alpha=0.55 if which == "prior" else 0.75, zorder=2)  # fmt: skip
        if bins[0] <= row["written"] <= bins[-1]:
            axes.axvline(row["written"], color="#000000", linestyle="--", linewidth=1.1, zorder=3)
        axes.set_xlim(bins[0], bins[-1])
        axes.set_xlabel(row["name"], labelpad=1.0)
        axes.set_ylabel("% of realizations" if len(shown) < 3 else "%")
    more = f", {len(shown)} of {len(forecasts)}" if len(forecasts) > len(shown) else ""
    panels[0].set_title(f"Forecasts{more} (dashed: control file)", loc="left", fontsize=9.0)


def _draw_one_to_one(axes: Axes, shown: pandas.DataFrame, tables: Tables) -> None:
    """Medians of the last ensemble with their 95 % range, against measured values."""
    measured, median = shown["measured"].to_numpy(), shown["modelled"].to_numpy()
    ends = shown[["lower95", "upper95"]].to_numpy()
    low, high = (float(f([f(measured), f(ends)])) for f in (np.min, np.max))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=GREY, linewidth=1.0, zorder=1)
    axes.vlines(measured, ends[:, 0], ends[:, 1], color=_COLORS["posterior"], alpha=0.5,
                linewidth=1.0, zorder=2)  # fmt: skip
    axes.scatter(measured, median, s=12.0 if len(shown) <= 500 else 5.0, linewidths=0.0,
                 color=_COLORS["posterior"], zorder=3, rasterized=len(shown) > 5000)  # fmt: skip
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="measured",
             ylabel="modelled: median and 95 % range")  # fmt: skip
    axes.set_title(f"Fit of {len(shown):,} observations", loc="left", fontsize=9.0)


def _draw_residuals(axes: Axes, shown: pandas.DataFrame, tables: Tables) -> None:
    """Weighted residuals of all realizations: for groups too different for one axis."""
    names, weights = list(shown["name"]), shown["weight"].to_numpy()
    residuals = {
        which: ((shown["measured"].to_numpy() - tables[f"{which}_observations"][names].to_numpy())
                * weights).ravel()
        for which in _choose_ensembles(tables)
    }  # fmt: skip
    # The posterior is what counts; most of the prior lies far outside.
    reach = 2.0 * float(np.quantile(np.abs(list(residuals.values())[-1]), 0.98)) or 1.0
    bins: Any = np.linspace(-reach, reach, 42)
    for which, values in residuals.items():
        axes.hist(values, bins=bins, weights=np.full(len(values), 100.0 / len(values)),
                  color=_COLORS[which], alpha=0.55 if which == "prior" else 0.75)  # fmt: skip
    axes.axvline(0.0, color="#000000", linewidth=0.8)
    axes.set(xlabel="weighted residual (measured − modelled)", ylabel="% of all")
    axes.set_title("Residuals of the realizations", loc="left", fontsize=9.0)


def _draw_phi_of_realizations(axes: Axes, tables: Tables) -> None:
    phi = tables.get("phi")
    if phi is None or phi.empty:
        draw_phi(axes, tables["iterations"])
        return
    some = phi[phi.columns[:_LINES]]
    alpha = min(0.9, max(0.1, 14.0 / max(1, some.shape[1])))
    few = "o" if len(phi) == 1 else ""
    lines = axes.plot(phi.index, some.to_numpy(), color=_COLORS["posterior"], linewidth=0.9,
                      marker=few, markersize=3.0, alpha=alpha)  # fmt: skip
    lines[0].set_label("realizations")
    mean = phi.mean(axis=1)
    label = f"mean: {mean.iloc[-1]:.4g} at the end"
    axes.plot(
        phi.index, mean, color="#000000", linewidth=1.6, marker="o", markersize=4.0, label=label
    )
    set_phi_axes(axes, phi.stack())
    axes.set_title("Objective function, by realization", loc="left", fontsize=9.0)
    legend = axes.legend(loc="upper right", borderaxespad=0.1)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)


def _shorten(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"
