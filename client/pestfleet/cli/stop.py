"""`pestfleet stop`: asks a session to stop."""

from __future__ import annotations

from pathlib import Path

import click

from pestfleet.cli.options import open_session, session_argument, sessions_option
from pestfleet_worker.errors import SessionError


@click.command("stop", short_help="Stop a session; finished runs are kept.")
@session_argument
@sessions_option
@click.option(
    "--timeout", default=30.0, show_default=True, metavar="SECONDS", help="How long to wait."
)
def command(session: str | None, sessions: Path | None, timeout: float) -> None:
    """Stop SESSION (the newest without one) as Ctrl-C would; finished runs are kept."""
    opened = open_session(session, sessions)
    if not opened.folder.running:
        click.echo(f"session {opened.name} is not running: {opened.status().get('state')}")
        return
    if not opened.stop(timeout=timeout):
        raise SessionError(
            f"session {opened.name} has not stopped within {timeout:g} s",
            remedy=f"See what it does: pestfleet status {opened.name}",
        )
    click.echo(f"session {opened.name} has stopped; go on with: pestfleet resume {opened.name}")
