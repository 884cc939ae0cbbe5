"""Results as tables in a terminal."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich import box
from rich.console import Console
from rich.table import Table

from pestfleet.narration import format_change, format_phi
from pestfleet.quiet import QuietStream

if TYPE_CHECKING:
    import pandas

    from pestfleet.session import Session


_WRITE_ALL = "pestfleet results --csv FOLDER writes all"


def make_console() -> Console:
    """Stdout; where it is no terminal as wide as COLUMNS says, else wide enough for whole lines."""
    console = Console(file=cast(TextIO, QuietStream(sys.stdout)))
    if console.is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return console
    console.width = 200
    return console


def make_table(title: str | None = None) -> Table:
    """An empty table in the house's style."""
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def format_number(value: Any) -> str:
    """Five significant digits; "" for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)


def shorten_path(path: Path) -> str:
    """The path as seen from the current folder, where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def print_summary(console: Console, session: Session, summary: dict[str, Any]) -> None:
    """What a finished session gave, in a few lines."""
    console.print()
    if "phi" in summary:
        change = format_change(summary["phi"], summary.get("phi_initial"))
        than = f", {change} than at first" if change else ""
        name = "mean phi" if summary.get("engine") == "ies" else "phi"
        if "phi_regularization" in summary:
            name = "measurement phi"
            than += f"; regularization phi {format_phi(summary['phi_regularization'])}"
        console.print(f"{name} {format_phi(summary['phi'])}{than}", style="bold", highlight=False)
    print_tables(console, session.results(), rows=20, only=("parameters",))
    failed = summary.get("failed_runs", 0)
    if "runs" in summary:
        text = f"{summary['runs']:,} runs" + (f", {failed:,} failed" if failed else "")
        known = session.status().get("runs", {}).get("known", 0)
        text += f", {known:,} of them known from before" if known else ""
        console.print(text, highlight=False)
    where = shorten_path(session.folder.results)
    console.print(f"files    {where}", highlight=False, soft_wrap=True)
    more = f"results  pestfleet results {session.folder.words}"
    console.print(more, highlight=False, soft_wrap=True)


def print_tables(
    console: Console,
    tables: dict[str, pandas.DataFrame],
    *,
    rows: int,
    only: tuple[str, ...] = ("parameters", "groups", "iterations", "sweep"),
) -> None:
    """The tables that people read, at most `rows` rows of each."""
    ensemble = "posterior_observations" in tables
    if "parameters" in only and "parameters" in tables:
        _print_parameters(console, tables["parameters"], rows)
    if "groups" in only and "observations" in tables:
        print_frame(console, summarize_groups(tables["observations"]), "Observations", rows)
        if ensemble:
            console.print("phi and residual: of the medians of the last ensemble", highlight=False)
    if "sweep" in only and "sweep" in tables:
        sweep = tables["sweep"]
        best = sweep[["input_run_id", "phi"]].dropna().sort_values("phi", kind="stable")
        print_frame(console, best.rename(columns={"input_run_id": "run"}), "Lowest phi", rows)
    elif "iterations" in only and len(tables.get("iterations", ())):
        print_frame(console, tables["iterations"], "Iterations", rows, last=True)
        if ensemble:
            console.print("phi: mean of the realizations", highlight=False)


def summarize_groups(observations: pandas.DataFrame) -> pandas.DataFrame:
    """For each group: observations with a weight, phi, and the root of the mean squared residual.

    Columns: group, observations, without_weight (where there is one; they count nowhere), phi,
    rms_residual (in the observations' own unit).
    """
    import pandas

    rows = []
    for name, group in observations.groupby("group", sort=False):
        used = group[group["weight"] > 0]
        squares = used["residual"] ** 2
        phi = float((squares * used["weight"] ** 2).sum())
        rows.append((name, len(used), len(group) - len(used), phi, float(squares.mean() ** 0.5)))
    names = ["group", "observations", "without_weight", "phi", "rms_residual"]
    table = pandas.DataFrame(rows, columns=names)
    return table if table["without_weight"].any() else table.drop(columns="without_weight")


def print_frame(
    console: Console, frame: pandas.DataFrame, title: str, rows: int, *, last: bool = False
) -> None:
    """A data frame, its first (or last) `rows` rows; columns with nothing in them are left out."""
    shown = (frame.tail(rows) if last else frame.head(rows)).dropna(axis="columns", how="all")
    table = make_table(title)
    for column in shown.columns:
        numeric = shown[column].dtype.kind in "if"
        table.add_column(str(column).replace("_", " "), justify="right" if numeric else "left")
    for _, row in shown.iterrows():
        table.add_row(*(_format_cell(row[column], frame[column]) for column in shown.columns))
    console.print(table)
    _print_rest(console, len(frame) - len(shown))


def _format_cell(value: Any, column: pandas.Series) -> str:
    # A row of whole and other numbers together has them all as float.
    return f"{int(value)}" if column.dtype.kind == "i" else format_number(value)


def _print_parameters(console: Console, parameters: pandas.DataFrame, rows: int) -> None:
    adjustable = parameters[~parameters["transform"].isin(["fixed", "tied"])]
    shown = (adjustable if len(adjustable) else parameters).head(rows)
    limits = shown[["lower95", "upper95"]].notna().any(axis=None)
    table = make_table("Parameters")
    table.add_column("name")
    for column in ("initial", "value", *(("95 % limits",) if limits else ())):
        table.add_column(column, justify="right")
    table.add_column("")
    for _, row in shown.iterrows():
        cells = [row["name"], format_number(row["initial"]), format_number(row["value"])]
        if limits:
            low, high = format_number(row["lower95"]), format_number(row["upper95"])
            cells.append(f"{low} … {high}" if low else "")
        table.add_row(*cells, _describe_bound(row))
    console.print(table)
    others = len(parameters) - len(adjustable) if len(adjustable) else 0
    _print_rest(console, len(parameters) - others - len(shown), "parameters")
    if others:
        console.print(f"and {others:,} tied or fixed; {_WRITE_ALL}", highlight=False)


def _describe_bound(row: pandas.Series) -> str:
    for bound in ("lower_bound", "upper_bound"):
        if math.isclose(row["value"], row[bound], rel_tol=1e-9):
            return f"at its {bound.replace('_', ' ')}"
    return ""


def _print_rest(console: Console, more: int, what: str = "rows") -> None:
    if more > 0:
        console.print(f"and {more:,} more {what}; {_WRITE_ALL}", highlight=False)
