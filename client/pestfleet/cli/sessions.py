"""`pestfleet sessions`: what sessions there are."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.commands import say
from pestfleet.cli.elsewhere import on_option, read_where
from pestfleet.cli.options import json_option, sessions_option
from pestfleet_worker.errors import ConfigurationError, TargetError

if TYPE_CHECKING:
    from pestfleet.session import Session


@click.command("sessions", short_help="List the sessions, newest first.")
@sessions_option
@json_option
@on_option
def command(sessions: Path | None, as_json: bool, on: str | None) -> None:
    """List the sessions, newest first.

    With --on those that have something on that target, by labels, whoever launched them. On
    Amazon --region may name several regions, with commas between.
    """
    if on is not None:
        _list_remote(on, as_json=as_json)
        return
    from pestfleet.cli.tables import make_console, make_table, shorten_path
    from pestfleet.config import read_settings
    from pestfleet.narration import format_phi
    from pestfleet.progress import dump_json
    from pestfleet.session import sessions as list_sessions

    root = read_settings(given={"sessions": sessions}).sessions
    found = [(session, session.status()) for session in list_sessions(root)]
    _ask_targets(found)
    if as_json:
        rows = [
            {
                **status,
                "state": status.get("state", "running"),
                "path": str(session.path),
                "workers": len(status.get("workers", ())),
            }
            for session, status in found
        ]
        click.echo(dump_json(rows))
        return
    if not found:
        click.echo(f"there is no session in {shorten_path(root)}")
        return
    table = make_table()
    for column in ("session", "state", "engine", "on", "iteration", "phi", "runs", "began"):
        table.add_column(column, justify="right" if column in ("phi", "runs") else "left")
    for session, status in found:
        began, runs = status.get("began"), status.get("runs", {})
        table.add_row(
            session.name,
            status.get("state", "running"),
            session.spec.engine,
            session.spec.target,
            str(status.get("iteration", "")),
            format_phi(status["phi"]) if "phi" in status else "",
            f"{runs.get('made', 0) + runs.get('known', 0):,}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(began)) if began else "",
        )
    make_console().print(table)


def _ask_targets(found: list[tuple[Session, dict[str, Any]]]) -> None:
    """A session that nobody follows here may run on all the same: its target knows."""
    from pestfleet import targets

    orphans = [
        (session.name, (session.spec.target, session.where), status)
        for session, status in found
        if status.get("state") == "died" and session.spec.place.master == "there"
    ]
    for place in {place for _, place, _ in orphans}:
        try:
            there = {info.name: info.state for info in targets.list_remote_sessions(*place)}
        except (TargetError, ConfigurationError) as error:
            say(f"{place[0]} cannot be asked: {error.message}")
            continue
        for name, one, status in orphans:
            if one == place and there.get(name) == "running":
                status["state"] = "running there"


def _list_remote(on: str, *, as_json: bool) -> None:
    from pestfleet import targets
    from pestfleet.cli.tables import make_console, make_table
    from pestfleet.progress import dump_json

    if not targets.is_remote(on):
        targets.check_name(on)
        raise ConfigurationError(
            f"sessions on {on} have no labels: they are where their folder is",
            remedy=f"Leave --on out, or say one of: {', '.join(targets.REMOTE_NAMES)}.",
        )
    found = targets.list_remote_sessions(on, read_where())
    if as_json:
        click.echo(dump_json([asdict(info) for info in found]))
        return
    if not found:
        click.echo(f"there is no session on {on}")
        return
    table = make_table()
    regions = len({info.where.region for info in found}) > 1
    for column in ("session", "state", "workers", "began", *["region"] * regions, "folder"):
        table.add_column(column)
    for info in found:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.began)) if info.began else ""
        region = [info.where.region] if regions else []
        table.add_row(info.name, info.state, str(info.workers), began, *region, info.folder)
    make_console().print(table)
