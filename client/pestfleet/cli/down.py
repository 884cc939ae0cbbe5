"""`pestfleet down`: removes what sessions have on a target, whoever launched them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pestfleet.cli.commands import say, show_error
from pestfleet.cli.elsewhere import find_session, on_option, read_where
from pestfleet.cli.options import session_argument, sessions_option
from pestfleet_worker.errors import ConfigurationError, PestfleetError

if TYPE_CHECKING:
    from pestfleet.session import Session
    from pestfleet.targets.base import RemoteSession, SessionInfo


@click.command("down", short_help="Remove what a session has on its target.")
@session_argument
@sessions_option
@on_option
@click.option("--all", "everything", is_flag=True, help="All sessions of the target.")
@click.option("--discard-results", is_flag=True, help="Remove the volume with the results, too.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def command(
    session: str | None,
    sessions: Path | None,
    on: str | None,
    *,
    everything: bool,
    discard_results: bool,
    dry_run: bool,
) -> None:
    """Remove containers, networks and secrets of SESSION (the newest without one).

    Works from any shell, also after the launching process was killed. The volume with the
    session's folder stays: pestfleet results SESSION --fetch copies it here, pestfleet resume
    SESSION goes on with it.
    """
    if everything and session is not None:
        raise click.UsageError("Name a session, or say --all: not both.")
    pairs = _find_all(sessions, on) if everything else [find_session(session, sessions, on)]
    if not pairs:
        click.echo("there is nothing to remove")
    failure: PestfleetError | None = None
    for local, remote in pairs:
        if remote is None:
            assert local is not None
            click.echo(f"session {local.name} has nothing on {local.spec.target}")
            continue
        name = remote.info.name
        if dry_run:
            for part in remote.info.parts:
                click.echo(f"{name}: would remove {part}")
            continue
        try:
            removed = _remove(local, remote, discard_results=discard_results)
        except PestfleetError as error:
            if not everything:
                raise
            show_error(error)  # the others are paid for, too
            failure = error
            continue
        for part in removed:
            click.echo(f"{name}: removed {part}")
        if not removed:
            click.echo(f"{name}: there was nothing to remove")
    if failure is not None:
        click.get_current_context().exit(failure.exit_code)


def _remove(local: Session | None, remote: RemoteSession, *, discard_results: bool) -> list[str]:
    if local is not None and local.folder.running:
        name = local.name
        click.echo(f"session {name} is followed by a process here, which is asked to end it")
        local.stop(timeout=90.0)
    return remote.down(discard_results=discard_results)


def _find_all(
    sessions: Path | None, on: str | None
) -> list[tuple[Session | None, RemoteSession | None]]:
    from pestfleet import targets
    from pestfleet.config import read_settings

    target = on or read_settings().on
    names = [target] if targets.is_remote(target) else targets.REMOTE_NAMES
    if on is not None and not targets.is_remote(on):
        raise ConfigurationError(
            f"sessions on {on} end with their master: there is nothing to remove",
            remedy=f"Targets of containers: {', '.join(targets.REMOTE_NAMES)}.",
        )
    return [
        find_session(info.name, sessions, info.target)
        for name in names
        for info in _list_there(name, needed=on is not None)
    ]


def _list_there(target: str, *, needed: bool) -> list[SessionInfo]:
    """Sessions of a target; none where it is not in use here, unless it is `needed`."""
    from pestfleet import targets

    try:
        return targets.list_remote_sessions(target, read_where())
    except PestfleetError as error:
        if needed:
            raise
        if not isinstance(error, ConfigurationError):  # as where there is no kubeconfig
            say(f"{target} cannot be asked: {error.message}")
        return []
