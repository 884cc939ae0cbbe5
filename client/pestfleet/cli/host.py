"""`pestfleet host`: a session's master in a container, beside workers that join by themselves."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.options import fleet_options
from pestfleet_worker.errors import ConfigurationError, Interrupted, PestfleetError, SessionError

if TYPE_CHECKING:
    from pestfleet.session import Session

BROKER_PATIENCE = 120.0  # seconds for a broker that starts together with us
RELAY_PORT = 4004
ENDED = "ended"  # file in the session's folder: which launch has ended, and with which exit code


@click.command("host", short_help="Host a session whose workers join by themselves.")
@click.argument("case", type=click.Path(path_type=Path))
@fleet_options
@click.option("--session", "name", metavar="ID", required=True, help="Id of the session.")
@click.option(
    "--launch",
    metavar="TEXT",
    default="1",
    show_default=True,
    help="Name of this launch: a session that has ended goes on only in a launch of another name.",
)
@click.option(
    "--relay-port", default=RELAY_PORT, show_default=True, help="Port of the relay (agent mode)."
)
@click.option(
    "--advertise",
    metavar="NAME",
    default="",
    help="Name by which the workers reach the relay.  [default: this host's name]",
)
def command(
    case: Path, *, name: str, launch: str, relay_port: int, advertise: str, **given: Any
) -> None:
    """Host session ID of CASE; what the image of the master runs.

    The workers are started by something else, and have the case in their image. A session that
    is there already goes on. Events are written as JSON lines on stdout. The broker's URL comes
    from the file that PESTFLEET_BROKER_FILE names, or as for pestfleet run.
    """
    from pestfleet.cli.hosting import create_from_settings, host_session
    from pestfleet.config import read_settings
    from pestfleet.folder import Placement, SessionFolder
    from pestfleet.session import Session
    from pestfleet.targets.base import Site
    from pestfleet.targets.joining import JoiningTarget
    from pestfleet_worker.endpoint import URL_FILE, read_url_file

    settings = read_settings(
        case, given={**given, "broker": given["broker"] or read_url_file() or None}
    )
    if not settings.broker_url:
        raise ConfigurationError(
            "the broker's URL is not given",
            remedy=f"Set {URL_FILE} to a file that holds it, or PESTFLEET_BROKER.",
        )
    folder = SessionFolder(settings.sessions / name)
    if (folder.path / "session.json").exists():
        session = Session(folder)
        _leave_if_ended(session, launch)
    else:
        place = Placement(master="there")
        session = create_from_settings(case, settings, name=name, place=place)
    site = Site(
        JoiningTarget,
        case_in_image=True,
        relay_host="0.0.0.0",
        relay_port=relay_port,
        advertised=advertise or socket.gethostname(),
        broker_patience=BROKER_PATIENCE,
    )
    try:
        host_session(
            session,
            lambda tell: session.make_master(
                broker_url=settings.broker_url, site=site, on_event=tell
            ),
            as_json=True,
        )
    except (Interrupted, SessionError):
        raise  # it goes on when it is started again, or another master has it
    except PestfleetError as error:
        _note_end(session, launch, error.exit_code)
        raise
    _note_end(session, launch, 0)


def _leave_if_ended(session: Session, launch: str) -> None:
    """Restart policies start whatever ended with an error: it must not be run anew for that."""
    try:
        ended, exit_code = (session.path / ENDED).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return
    if ended == launch:
        click.echo(f"session {session.name} has ended already", err=True)
        raise SystemExit(int(exit_code))


def _note_end(session: Session, launch: str, exit_code: int) -> None:
    (session.path / ENDED).write_text(f"{launch} {exit_code}\n", encoding="utf-8")
