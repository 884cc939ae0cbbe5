"""`pestfleet runs`: the runs of a session, and why they failed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from pestfleet.cli.elsewhere import fetch_option, on_option, open_fetched
from pestfleet.cli.options import json_option, open_session, session_argument, sessions_option

if TYPE_CHECKING:
    import pandas
    from rich.console import Console

LOG_LINES = 8  # of a failed run's log


@click.command("runs", short_help="List a session's runs, and why some failed.")
@session_argument
@sessions_option
@json_option
@click.option("--failed", is_flag=True, help="Only the runs that failed, with their logs' tails.")
@click.option("--rows", default=50, show_default=True, help="Rows to print at most: the last ones.")
@on_option
@fetch_option
def command(
    session: str | None,
    sessions: Path | None,
    as_json: bool,
    failed: bool,
    rows: int,
    on: str | None,
    fetch: bool,
) -> None:
    """List the finished runs of SESSION (the newest without one)."""
    from pestfleet.cli.results import to_records
    from pestfleet.cli.tables import make_console
    from pestfleet.progress import dump_json

    opened = open_fetched(session, sessions, on) if fetch else open_session(session, sessions)
    runs = opened.runs(failed=True if failed else None)
    if as_json:
        click.echo(dump_json(to_records(runs)))
        return
    console = make_console()
    if runs.empty:
        click.echo(f"session {opened.name}: no {'failed' if failed else 'finished'} runs")
        return
    shown_runs = runs.tail(rows)
    _print_runs(console, shown_runs, detailed=failed)
    count = int(runs["failed"].sum())
    shown = f", the last {rows} shown" if len(runs) > rows else ""
    click.echo(f"{len(runs):,} runs, {count:,} failed{shown}")
    if count and not failed:
        click.echo(f"Why: pestfleet runs {opened.folder.words} --failed")
    with_kit = shown_runs[shown_runs["kit"]]
    if failed and not with_kit.empty:
        click.echo(
            f"A run's inputs, outputs and log: pestfleet fetch {with_kit['id'].iloc[-1]} "
            f"{opened.folder.words}"
        )


def _print_runs(console: Console, runs: pandas.DataFrame, *, detailed: bool) -> None:
    """One line a run; for failed runs, `detailed`, also whether there is a kit, and the log."""
    from pestfleet.cli.tables import make_table

    table = make_table()
    named = bool(runs["name"].any())
    extra = (*(("name",) if named else ()), *(("kit",) if detailed else ()))
    for column in ("run", *extra, "worker", "seconds", "purpose", "outcome"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for run in runs.to_dict("records"):
        outcome = describe_failure(run) if run["failed"] else "ok"
        cells = [run["worker"], f"{run['seconds']:.3f}", run["purpose"], escape(outcome)]
        if detailed:
            cells.insert(0, "yes" if run["kit"] else "")
        if named:
            cells.insert(0, escape(run["name"]))
        table.add_row(str(run["id"]), *cells)
        if detailed and run["log"]:
            lines = run["log"].rstrip().splitlines()[-LOG_LINES:]
            table.add_row(*[""] * len(cells), escape("\n".join(lines)), style="dim")
    console.print(table)


def describe_failure(run: dict[str, Any]) -> str:
    """Why a run failed: the kind of failure, the place, and the message."""
    place = f"{run['file']}:{run['line']:.0f}: " if run["line"] else ""
    place = place or (f"{run['file']}: " if run["file"] else "")
    return f"{run['reason']}: {place}{run['message']}"
