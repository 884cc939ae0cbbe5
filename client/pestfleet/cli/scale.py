"""`pestfleet scale`: more or fewer workers for a session that runs."""

from __future__ import annotations

from pathlib import Path

import click

from pestfleet.cli.elsewhere import find_session, on_option
from pestfleet.cli.options import session_argument, sessions_option
from pestfleet_worker.errors import SessionError


@click.command("scale", short_help="Change the number of a session's workers.")
@click.argument("workers", type=click.IntRange(min=1))
@session_argument
@sessions_option
@on_option
def command(workers: int, session: str | None, sessions: Path | None, on: str | None) -> None:
    """Have that many WORKERS in SESSION (the newest without one), which runs.

    A worker that is too many gives its runs back before it goes: none is lost.
    """
    local, remote = find_session(session, sessions, on)
    if remote is not None:
        for line in remote.scale(workers):
            click.echo(line)
        return
    assert local is not None
    if not local.folder.running:
        raise SessionError(
            f"session {local.name} is not running: {local.status().get('state')}",
            remedy=f"Go on with it: pestfleet resume {local.folder.words}",
        )
    local.folder.request_workers(workers)
    click.echo(f"session {local.name} is asked to have {workers} workers")
