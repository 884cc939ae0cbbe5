"""`pestfleet runs`: the runs of a session, and why they failed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

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
def command(
    session: str | None, sessions: Path | None, as_json: bool, failed: bool, rows: int
) -> None:
    """List the finished runs of SESSION (the newest without one)."""
    from pestfleet.cli.results import to_records
    from pestfleet.cli.tables import make_console
    from pestfleet.progress import dump_json

    opened = open_session(session, sessions)
    runs = opened.runs(failed=True if failed else None)
    if as_json:
        click.echo(dump_json(to_records(runs)))
        return
    console = make_console()
    if runs.empty:
        click.echo(f"session {opened.name}: no {'failed' if failed else 'finished'} runs")
        return
    _print_runs(console, runs.tail(rows), with_log=failed)
    count = int(runs["failed"].sum())
    shown = f", the last {rows} shown" if len(runs) > rows else ""
    click.echo(f"{len(runs):,} runs, {count:,} failed{shown}")
    if count and not failed:
        click.echo(f"Why: pestfleet runs {opened.folder.words} --failed")


def _print_runs(console: Console, runs: pandas.DataFrame, *, with_log: bool) -> None:
    from pestfleet.cli.tables import make_table

    table = make_table()
    for column in ("run", "worker", "seconds", "purpose", "outcome"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for run in runs.to_dict("records"):
        outcome = describe_failure(run) if run["failed"] else "ok"
        table.add_row(
            str(run["id"]), run["worker"], f"{run['seconds']:.3f}", run["purpose"], escape(outcome)
        )
        if with_log and run["log"]:
            lines = run["log"].rstrip().splitlines()[-LOG_LINES:]
            table.add_row("", "", "", "", escape("\n".join(lines)), style="dim")
    console.print(table)


def describe_failure(run: dict[str, Any]) -> str:
    """Why a run failed: the kind of failure, the place, and the message."""
    place = f"{run['file']}:{run['line']:.0f}: " if run["line"] else ""
    place = place or (f"{run['file']}: " if run["file"] else "")
    return f"{run['reason']}: {place}{run['message']}"
