"""`pestfleet config`: the settings, and where each value came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pestfleet.cli.options import fleet_options, json_option

# What a setting that is empty or 0 means.
_NOTHING = {
    "scratch": "(in the session's folder)",
    "time_limit": "(no limit)",
    "mode": "(what suits the engine)",
    "cache": "(in your user's cache folder)",
    "engine_args": "(none)",
    "broker": "(one of its own)",
    "context": "(the current one)",
    "namespace": "(the context's)",
    "memory": "(no limit)",
    "cpus": "(no limit)",
    "tunnel": "no",
    "image.base": "(Debian, slim)",
    "image.dockerfile": "(ours)",
    "image.registry": "(none)",
}


@click.command("config", short_help="Show the settings, and where each value came from.")
@click.argument("case", type=click.Path(path_type=Path), required=False)
@fleet_options
@json_option
def command(case: Path | None, as_json: bool, **given: Any) -> None:
    """Show each setting and where its value came from: for CASE, or for the current folder.

    Command line > environment (PESTFLEET_…) > pestfleet.toml > default. Passwords are not shown.
    """
    from pestfleet.cli.tables import make_console, make_table
    from pestfleet.config import read_configuration
    from pestfleet.progress import dump_json

    described = read_configuration(case, given=given).describe()
    if as_json:
        rows = {
            name: {"value": value, "from": origin} for name, (value, origin) in described.items()
        }
        click.echo(dump_json(rows))
        return
    table = make_table()
    for column in ("setting", "value", "from"):
        table.add_column(column, overflow="fold")
    for name, (value, origin) in described.items():
        text = ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(name, text if value else _NOTHING.get(name, ""), origin)
    make_console().print(table)
