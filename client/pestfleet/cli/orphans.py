"""`pestfleet orphans`: what sessions have left in an account of Amazon's."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from pestfleet.cli.commands import say
from pestfleet.cli.options import json_option
from pestfleet_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from pestfleet.targets.base import Where
    from pestfleet.targets.ecs.orphans import Orphan


@click.command("orphans", short_help="Find what sessions have left in Amazon's cloud.")
@click.option(
    "--region",
    metavar="NAME[,NAME]",
    help="Regions to look in, with commas between.  [default: that of your AWS configuration]",
)
@click.option("--all-regions", is_flag=True, help="Look in all regions that the account has.")
@click.option("--profile", metavar="NAME", help="Profile of your AWS configuration.")
@json_option
def command(region: str | None, profile: str | None, *, all_regions: bool, as_json: bool) -> None:
    """Find all that has the tag of a session, whoever launched it; half-made things, too.

    It says what of it costs money, how old it is, whose it is, and whether its session still
    runs; and for each session the command that removes it.
    """
    from pestfleet.progress import dump_json
    from pestfleet.targets import load_orphans

    if region and all_regions:
        raise ConfigurationError("--region and --all-regions do not go together")
    found, problems = load_orphans().find_orphans(
        _read_where(region, profile), everywhere=all_regions
    )
    for name, problem in problems.items():
        say(f"warning: region {name} is not looked at: {problem.message}")
    if as_json:
        rows = [{**asdict(orphan), "remedy": orphan.remedy} for orphan in found]
        click.echo(dump_json(rows))
        return
    if not found:
        click.echo("nothing has the tag of a session there")
        return
    _print(found)


def _read_where(region: str | None, profile: str | None) -> Where:
    from pestfleet.config import read_settings
    from pestfleet.targets.base import Where

    settings = read_settings()
    return Where(region=region or settings.region, profile=profile or settings.profile)


def _print(found: list[Orphan]) -> None:
    from pestfleet.cli.tables import make_console, make_table
    from pestfleet.narration import format_duration

    table = make_table()
    for column in ("session", "region", "state", "age", "owner", "costs money", "parts"):
        table.add_column(column, justify="right" if column in ("age", "parts") else "left")
    now = time.time()
    for orphan in found:
        table.add_row(
            orphan.session,
            orphan.region,
            orphan.state + (", over its time" if 0 < orphan.expires < now else ""),
            format_duration(now - orphan.began) if orphan.began else "",
            orphan.owner,
            list_parts(orphan.costs) or "nothing",
            str(sum(orphan.parts.values())),
        )
    console = make_console()
    console.print(table)
    left = [orphan for orphan in found if not orphan.runs]
    if left:
        click.echo("What no session uses any more is removed with:")
    for orphan in left:
        click.echo(f"  {orphan.remedy}")


def list_parts(parts: dict[str, int]) -> str:
    """`2 secrets, 1 log group`."""
    words = []
    for kind, count in sorted(parts.items()):
        name = kind.replace("-", " ")
        plural = f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
        words.append(f"{count} {name if count == 1 else plural}")
    return ", ".join(words)
