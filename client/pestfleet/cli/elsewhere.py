"""Sessions that live on a target of containers, for commands of any shell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pestfleet.cli.commands import say
from pestfleet.cli.options import Function
from pestfleet_worker.errors import ConfigurationError, SessionError, TargetError

if TYPE_CHECKING:
    from pestfleet.session import Session
    from pestfleet.targets.base import RemoteSession, Where

_PLACES = ("context", "namespace", "region")  # where a session is; a profile is who we are
_WHERE = "pestfleet.where"  # what --context, --namespace, --region said, in the command's context


def _note_where(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    ctx.meta.setdefault(_WHERE, {})[parameter.name] = value


_ELSEWHERE = (
    click.option(
        "--on",
        metavar="TARGET",
        help="Look there, by labels, for a session that was launched elsewhere.  "
        "[default: the target in the session's folder]",
    ),
    click.option(
        "--context",
        metavar="NAME",
        expose_value=False,
        callback=_note_where,
        help="Context of the kubeconfig.  [default: the session's, or the current one]",
    ),
    click.option(
        "--namespace",
        metavar="NAME",
        expose_value=False,
        callback=_note_where,
        help="Namespace of Kubernetes.  [default: the session's, or the context's]",
    ),
    click.option(
        "--region",
        metavar="NAME",
        expose_value=False,
        callback=_note_where,
        help="Region of Amazon.  [default: the session's, or that of your AWS configuration]",
    ),
    click.option(
        "--profile",
        metavar="NAME",
        expose_value=False,
        callback=_note_where,
        help="Profile of your AWS configuration.  [default: the session's, or the current one]",
    ),
)


def on_option(function: Function) -> Function:
    """Where a session may be that has no folder here."""
    return reduce(lambda wrapped, option: option(wrapped), reversed(_ELSEWHERE), function)


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
    there = on is not None and (local is None or local.spec.target != on)
    if name is None and (there or _find_given()):
        local = None  # the newest one there is meant, not the newest here
    target = on or (local.spec.target if local is not None else settings.on)
    if not targets.is_remote(target):
        targets.check_name(target)
        if missing is not None:
            raise missing
        return local, None
    where = read_where(local)
    try:
        remote = targets.open_remote_session(
            target, local.name if local is not None else name, where
        )
    except SessionError:
        if local is None:
            raise
        return local, None
    except (TargetError, ConfigurationError) as error:
        if local is None or needed:
            raise
        say(f"{target} cannot be asked: {error.message}")
        return local, None
    if local is not None and (local.name != remote.info.name or is_elsewhere(local, where)):
        local = None
    return local, remote


def is_elsewhere(local: Session, where: Where) -> bool:
    """Is that another place than the one of the session of this name that has its folder here?"""
    places = ((getattr(local.where, name), getattr(where, name)) for name in _PLACES)
    return any(own and other and own != other for own, other in places)


def _find_given() -> dict[str, str]:
    """What --context, --namespace, --region and --profile say, where they are given."""
    context = click.get_current_context(silent=True)
    said = context.meta.get(_WHERE, {}) if context is not None else {}
    return {name: value for name, value in said.items() if value}


def keep_where(given: Mapping[str, str | None]) -> None:
    """For a command whose own options are `context`, `namespace`, `region` and `profile`."""
    click.get_current_context().meta[_WHERE] = dict(given)


def read_where(local: Session | None = None) -> Where:
    """Which of a target's places is meant: by the command line, the session, or the settings."""
    from pestfleet.config import read_settings
    from pestfleet.targets.base import Where

    given = _find_given()
    settings = read_settings()
    own = (
        local.where
        if local is not None
        else Where(settings.context, settings.namespace, settings.region, settings.profile)
    )
    return replace(own, **given)


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
