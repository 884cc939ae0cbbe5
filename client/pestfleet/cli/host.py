"""`pestfleet host`: a session's master in a container, beside workers that join by themselves."""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.options import fleet_options
from pestfleet_worker.errors import (
    ConfigurationError,
    Interrupted,
    LimitReached,
    PestfleetError,
    SentAway,
    SessionError,
)

if TYPE_CHECKING:
    from pestfleet.config import Settings
    from pestfleet.folder import SessionSpec
    from pestfleet.session import Session
    from pestfleet.targets.base import FleetPlan, Target

logger = logging.getLogger(__name__)

BROKER_PATIENCE = 120.0  # seconds for a broker that starts together with us
RELAY_PORT = 4004
ENDED = "ended"  # file in the session's folder: which launch has ended, and with which exit code
LAUNCHED = "launched"  # file in the session's folder: the last launch, and when it began


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
@click.option(
    "--keep-workers",
    is_flag=True,
    help="A signal ends this process only: the workers wait for the next one (exit code 12).",
)
@click.option(
    "--most", type=int, metavar="N", help="Have up to so many workers, in a Job of Kubernetes."
)
@click.option(
    "--workers-job",
    metavar="NAME",
    default="",
    help="That Job, whose parallelism follows the runs; this pod's account may change it.",
)
def command(
    case: Path,
    *,
    name: str,
    launch: str,
    relay_port: int,
    advertise: str,
    keep_workers: bool,
    workers_job: str,
    **given: Any,
) -> None:
    """Host session ID of CASE; what the image of the master runs.

    The workers are started by something else, and have the case in their image. A session that
    is there already goes on. Events are written as JSON lines on stdout. The broker's URL comes
    from the file that PESTFLEET_BROKER_FILE names, or as for pestfleet run.
    """
    from pestfleet.cli.hosting import create_from_settings, host_session
    from pestfleet.config import read_settings
    from pestfleet.folder import SessionFolder
    from pestfleet.placement import Placement
    from pestfleet.session import Session
    from pestfleet.targets.base import Site
    from pestfleet_worker.endpoint import URL_FILE, read_url_file

    settings = read_settings(
        case, given={**given, "broker": given["broker"] or read_url_file() or None}
    )
    if not settings.broker_url:
        raise ConfigurationError(
            "the broker's URL is not given",
            remedy=f"Set {URL_FILE} to a file that holds it, or PESTFLEET_BROKER.",
        )
    if bool(settings.most) != bool(workers_job):
        raise ConfigurationError(
            "--most and --workers-job belong together: how many workers, and whose number that is"
        )
    folder = SessionFolder(settings.sessions / name)
    if (folder.path / "session.json").exists():
        session = Session(folder)
        _leave_if_ended(session, launch)
        session.spec = _take_limits(session.spec, settings)
    else:
        place = Placement(master="there")
        session = create_from_settings(case, settings, name=name, place=place)

    def make_target(plan: FleetPlan) -> Target:
        if workers_job:
            from pestfleet.targets.cluster_workers import ClusterWorkers

            return ClusterWorkers(plan, job=workers_job)
        from pestfleet.targets.joining import JoiningTarget

        return JoiningTarget(plan)

    site = Site(
        make_target,
        case_in_image=True,
        relay_host="0.0.0.0",
        relay_port=relay_port,
        advertised=advertise or socket.gethostname(),
        broker_patience=BROKER_PATIENCE,
        keep_workers=keep_workers,
        began=_note_launch(session, launch),
    )
    try:
        host_session(
            session,
            lambda tell: session.make_master(
                broker_url=settings.broker_url, site=site, on_event=tell
            ),
            as_json=True,
            keep_workers=keep_workers,
        )
    except (SentAway, SessionError):
        raise  # it goes on when it is started again, or another master has it
    except Interrupted as error:
        # A signal may be meant for this process alone; only `--keep-workers` can tell.
        if keep_workers or isinstance(error, LimitReached):
            _note_end(session, launch, error.exit_code)
        raise
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


def _take_limits(spec: SessionSpec, settings: Settings) -> SessionSpec:
    """A session that goes on has the fleet and the limits of its latest launch."""
    return dataclasses.replace(
        spec,
        workers=settings.workers,
        most=settings.most,
        idle_minutes=settings.idle_minutes or 0.0,
        max_hours=settings.max_hours or 0.0,
    )


def _note_launch(session: Session, launch: str) -> float:
    """When this launch of the session began: hours count on where its master is moved."""
    path = session.path / LAUNCHED
    began = time.time()
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["launch"] == launch:
            return float(known["began"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.debug("this is the session's first master: %s", error)
    path.write_text(json.dumps({"launch": launch, "began": began}), encoding="utf-8")
    return began


def _note_end(session: Session, launch: str, exit_code: int) -> None:
    (session.path / ENDED).write_text(f"{launch} {exit_code}\n", encoding="utf-8")
