"""`pestfleet down`: removes what sessions have on a target, whoever launched them."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pestfleet.cli.commands import say, show_error
from pestfleet.cli.elsewhere import find_session, is_elsewhere, on_option, read_where
from pestfleet.cli.options import session_argument, sessions_option
from pestfleet.cli.quantities import parse_time
from pestfleet_worker.errors import ConfigurationError, PestfleetError, SessionError

if TYPE_CHECKING:
    from pestfleet.session import Session
    from pestfleet.targets.base import RemoteSession, SessionInfo


@click.command("down", short_help="Remove what a session has on its target.")
@session_argument
@sessions_option
@on_option
@click.option("--all", "everything", is_flag=True, help="All sessions of the target.")
@click.option(
    "--older-than",
    metavar="TIME",
    help="With --all: only those launched longer ago than that, such as 12h or 3d.",
)
@click.option("--discard-results", is_flag=True, help="Remove what is kept of the results, too.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def command(
    session: str | None,
    sessions: Path | None,
    on: str | None,
    *,
    everything: bool,
    older_than: str | None,
    discard_results: bool,
    dry_run: bool,
) -> None:
    """Remove containers, networks and secrets of SESSION (the newest without one).

    Works from any shell, also after the launching process was killed. The volume (on Amazon: the
    objects in S3) with the session's folder stays: pestfleet results SESSION --fetch copies it
    here, pestfleet resume SESSION goes on with it.
    """
    if everything and session is not None:
        raise click.UsageError("Name a session, or say --all: not both.")
    if older_than is not None and not everything:
        raise click.UsageError("--older-than belongs to --all.")
    before = time.time() - parse_time(older_than) if older_than else 0.0
    if everything:
        found = _find_all(on, before)
        if dry_run:  # as they are listed: to look at each would take long
            _show({info.name: list(info.parts) for info in found})
            return
        pairs = [pair for info in found if (pair := _open_pair(info, sessions))]
        if not pairs:
            click.echo("there is nothing to remove")
    else:
        pairs = [find_session(session, sessions, on)]
    failure: PestfleetError | None = None
    for local, remote in pairs:
        if remote is None:
            assert local is not None
            click.echo(f"session {local.name} has nothing on {local.spec.target}")
            continue
        name = remote.info.name
        if dry_run:
            _show({name: remote.list_parts(discard_results=discard_results)})
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


def _show(parts: dict[str, list[str]]) -> None:
    """What would be removed of each session."""
    for name, there in parts.items():
        for part in there or ["nothing"]:
            click.echo(f"{name}: would remove {part}")
    if not parts:
        click.echo("there is nothing to remove")


def _remove(local: Session | None, remote: RemoteSession, *, discard_results: bool) -> list[str]:
    if local is not None and local.folder.running:
        name = local.name
        click.echo(f"session {name} is followed by a process here, which is asked to end it")
        local.stop(timeout=90.0)  # without it, what it made is removed all the same
    return remote.down(discard_results=discard_results)


def _find_all(on: str | None, before: float) -> list[SessionInfo]:
    """`before`: only sessions that began before that time; 0: all."""
    from pestfleet import targets
    from pestfleet.config import read_settings

    target = on or read_settings().on
    names = [target] if targets.is_remote(target) else targets.REMOTE_NAMES
    if on is not None and not targets.is_remote(on):
        raise ConfigurationError(
            f"sessions on {on} end with their master: there is nothing to remove",
            remedy=f"Targets of containers: {', '.join(targets.REMOTE_NAMES)}.",
        )
    found = [info for name in names for info in _list_there(name, needed=on is not None)]
    if not before:
        return found
    for info in found:
        if not info.began:
            say(f"{info.name}: it is not known how old it is; left as it is")
    return [info for info in found if 0 < info.began < before]


def _open_pair(
    info: SessionInfo, sessions: Path | None
) -> tuple[Session | None, RemoteSession | None] | None:
    """A session there and its folder here, if that is here; None for one that has just gone."""
    from pestfleet import targets
    from pestfleet.config import read_settings
    from pestfleet.session import Session

    local: Session | None = None
    with suppress(SessionError):  # most were launched elsewhere
        local = Session.open(info.name, root=read_settings(given={"sessions": sessions}).sessions)
        if local.spec.target != info.target or is_elsewhere(local, info.where):
            local = None
    try:
        return local, targets.open_remote_session(info.target, info.name, info.where)
    except SessionError:
        return None


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
