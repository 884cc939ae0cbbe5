"""What all pictures share: colours, style, and phi by iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind people can tell apart; without the yellow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#9A9A9A"

STYLE: dict[Any, Any] = {
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


def draw_phi(axes: Axes, iterations: pandas.DataFrame) -> None:
    """`iterations`: columns number and phi; may be empty."""
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
    set_phi_axes(axes, iterations["phi"])


def set_phi_axes(axes: Axes, phi: Any) -> None:
    """Labels and scale for the values `phi` that are drawn: logarithmic if all are positive."""
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
