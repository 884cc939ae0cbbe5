"""Sessions that live on a target of containers, for commands of any shell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pestfleet.cli.commands import say
from pestfleet_worker.errors import SessionError, TargetError

if TYPE_CHECKING:
    from pestfleet.session import Session
    from pestfleet.targets.base import RemoteSession

on_option = click.option(
    "--on",
    metavar="TARGET",
    help="Look there, by labels, for a session that was launched elsewhere.  "
    "[default: the target in the session's folder]",
)
fetch_option = click.option(
    "--fetch", is_flag=True, help="First copy the session's files from its target."
)


def find_session(
    name: str | None, sessions: Path | None, on: str | None, *, needed: bool = True
) -> tuple[Session | None, RemoteSession | None]:
    """A session's folder here, and the session on its target, where it has something there.

    Not both are None. Not `needed`: a target that does not answer is told, and counts as empty
    when there is a folder here. Raises `SessionError` when there is neither, and `TargetError`.
    """
    from pestfleet import targets
    from pestfleet.config import read_settings
    from pestfleet.session import Session

    settings = read_settings(given={"sessions": sessions, "on": on})
    local: Session | None = None
    missing: SessionError | None = None
    try:
        local = Session.open(name, root=settings.sessions)
    except SessionError as error:
        missing = error
    if name is None and on is not None and (local is None or local.spec.target != on):
        local = None  # the newest one there is meant, not the newest here
    target = on or (local.spec.target if local is not None else settings.on)
    if not targets.is_remote(target):
        targets.check_name(target)
        if missing is not None:
            raise missing
        return local, None
    try:
        remote = targets.open_remote_session(target, local.name if local is not None else name)
    except SessionError:
        if local is None:
            raise
        return local, None
    except TargetError as error:
        if local is None or needed:
            raise
        say(f"{target} cannot be asked: {error.message}")
        return local, None
    if local is not None and local.name != remote.info.name:
        local = None
    return local, remote


def open_fetched(name: str | None, sessions: Path | None, on: str | None) -> Session:
    """A session whose files have been copied here from its target just now."""
    from pestfleet.config import read_settings
    from pestfleet.session import Session

    local, remote = find_session(name, sessions, on)
    if remote is None or (local is not None and local.spec.place.master == "here"):
        assert local is not None  # its files are here already
        return local
    root = read_settings(given={"sessions": sessions}).sessions
    folder = local.path if local is not None else root / remote.info.name
    if not remote.fetch(folder):
        raise SessionError(
            f"session {remote.info.name} has no files on {remote.info.target}",
            remedy="Its master has not begun yet, or works on the machine that launched it.",
        )
    return Session.open(remote.info.name, root=folder.parent)
