"""`pestfleet results`: tables and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.elsewhere import fetch_option, on_option, open_fetched
from pestfleet.cli.options import json_option, open_session, session_argument, sessions_option
from pestfleet_worker.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas


@click.command("results", short_help="Show tables of results, and draw them.")
@session_argument
@sessions_option
@json_option
@click.option(
    "--csv",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write all tables as CSV files into FOLDER.",
)
@click.option("--rows", default=30, show_default=True, help="Rows of a table to print at most.")
@on_option
@fetch_option
def command(
    session: str | None,
    sessions: Path | None,
    as_json: bool,
    folder: Path | None,
    rows: int,
    on: str | None,
    fetch: bool,
) -> None:
    """Show the results of SESSION (the newest without one), and draw them.

    The picture is results/fit.png in the session's folder. Works while the session runs, too.
    """
    from pestfleet.cli.tables import make_console, print_tables, shorten_path
    from pestfleet.progress import dump_json

    opened = open_fetched(session, sessions, on) if fetch else open_session(session, sessions)
    tables = opened.results()
    written: list[Path] = []
    if folder is not None:
        try:
            written = write_csv(tables, folder)
        except OSError as error:
            raise ConfigurationError(
                f"--csv {folder} cannot be written: {error.strerror or error}",
                remedy="Check the space and the permissions there, or name another folder.",
            ) from error
    picture = opened.plot()
    if as_json:
        content: dict[str, Any] = {name: to_records(table) for name, table in tables.items()}
        click.echo(dump_json({"session": opened.name, **content, "picture": str(picture)}))
        return
    console = make_console()
    state = opened.status().get("state", "running")
    console.print(f"session {opened.name}, {state}", style="bold", highlight=False)
    print_tables(console, tables, rows=rows)
    for path in [*written, opened.folder.results, picture]:
        label = "picture" if path == picture else "table" if path in written else "files"
        console.print(f"{label:<8} {shorten_path(path)}", highlight=False, soft_wrap=True)


def write_csv(tables: dict[str, pandas.DataFrame], folder: Path) -> list[Path]:
    """One CSV file a table; values come back bit-equal."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        table.to_csv(path, index=table.index.name is not None, lineterminator="\n")
        paths.append(path)
    return paths


def to_records(table: pandas.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON; a named index is a column of its own."""
    if table.index.name is not None:
        table = table.reset_index()
    records: list[dict[str, Any]] = table.astype(object).to_dict("records")
    return records
