"""`pestfleet stop`: asks a session to stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pestfleet.cli.elsewhere import find_session, on_option
from pestfleet.cli.options import session_argument, sessions_option
from pestfleet_worker.errors import SessionError

if TYPE_CHECKING:
    from pestfleet.session import Session


@click.command("stop", short_help="Stop a session; finished runs are kept.")
@session_argument
@sessions_option
@on_option
@click.option(
    "--timeout",
    type=float,
    metavar="SECONDS",
    help="How long to wait.  [default: 30; 300 for a fleet of containers]",
)
def command(
    session: str | None, sessions: Path | None, on: str | None, timeout: float | None
) -> None:
    """Stop SESSION (the newest without one) as Ctrl-C would; finished runs are kept."""
    local, remote = find_session(session, sessions, on)
    if local is not None and (remote is None or local.folder.running):
        _stop_here(local, timeout)
        return
    assert remote is not None
    remote.stop()
    name, target = remote.info.name, remote.info.target
    click.echo(
        f"session {name} has stopped; remove its containers with: "
        f"pestfleet down {name} --on {target}"
    )


def _stop_here(opened: Session, timeout: float | None) -> None:
    if not opened.folder.running:
        click.echo(f"session {opened.name} is not running: {opened.status().get('state')}")
        return
    if not opened.stop(timeout=timeout):
        raise SessionError(
            f"session {opened.name} has been asked to stop, and is not over yet",
            remedy=f"See what it does: pestfleet status {opened.name}",
        )
    click.echo(f"session {opened.name} has stopped; go on with: pestfleet resume {opened.name}")
