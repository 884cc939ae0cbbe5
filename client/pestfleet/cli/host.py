"""`pestfleet host`: a session's master in a container, beside workers that join by themselves."""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    from pestfleet.folder import SessionFolder, SessionSpec
    from pestfleet.host import Host, OnEvent
    from pestfleet.session import Session
    from pestfleet.targets.base import FleetPlan, Target
    from pestfleet.targets.ecs.master_task import MasterTask

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
@click.option(
    "--store",
    metavar="URL",
    default="",
    help="Take the session from there, and keep it there: s3://BUCKET; with --ecs and --lease.",
)
@click.option(
    "--ecs",
    metavar="CLUSTER",
    default="",
    help="This is a task of that ECS cluster, whose service of workers follows the runs.",
)
@click.option(
    "--lease",
    metavar="GROUP",
    default="",
    help="Group of the schedules that end the session when this process does not move them on.",
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
    store: str,
    ecs: str,
    lease: str,
    **given: Any,
) -> None:
    """Host session ID of CASE; what the image of the master runs.

    The workers are started by something else, and have the case in their image. A session that
    is there already goes on. Events are written as JSON lines on stdout. The broker's URL comes
    from the file that PESTFLEET_BROKER_FILE names, or as for pestfleet run.
    """
    from pestfleet.cli.hosting import host_session
    from pestfleet.config import read_settings
    from pestfleet.folder import SessionFolder
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
    _check_choices(settings, workers_job=workers_job, store=store, ecs=ecs, lease=lease)
    folder = SessionFolder(settings.sessions / name)
    with _open_task(folder, store, ecs, lease) as task:
        session = _open_session(case, settings, folder)
        current = _Launch(session, launch, task)
        current.leave_if_ended()
        session.spec = _take_limits(session.spec, settings)
        site = Site(
            _choose_target(workers_job, task),
            case_in_image=True,
            relay_host="0.0.0.0",
            relay_port=relay_port,
            advertised=advertise or socket.gethostname(),
            broker_patience=BROKER_PATIENCE,
            keep_workers=keep_workers,
            began=current.begin(),
        )

        def make_host(tell: OnEvent) -> Host:
            host = session.make_master(broker_url=settings.broker_url, site=site, on_event=tell)
            if task is not None:
                task.watch(host)
            return host

        with current.noting_end(keep_workers=keep_workers):
            host_session(session, make_host, as_json=True, keep_workers=keep_workers)


def _check_choices(
    settings: Settings, *, workers_job: str, store: str, ecs: str, lease: str
) -> None:
    if not bool(store) == bool(ecs) == bool(lease):
        raise ConfigurationError("--store, --ecs and --lease belong together: they are for a task")
    if ecs and workers_job:
        raise ConfigurationError("workers are in a Job of Kubernetes, or in a service of ECS")
    if not ecs and bool(settings.most) != bool(workers_job):
        raise ConfigurationError(
            "--most and --workers-job belong together: how many workers, and whose number that is"
        )


def _open_task(
    folder: SessionFolder, store: str, cluster: str, group: str
) -> AbstractContextManager[MasterTask | None]:
    """Where this is a task of ECS: its session's folder comes from the store."""
    if not store:
        return nullcontext()
    from pestfleet.targets.ecs.master_task import MasterTask

    return MasterTask(folder, store=store, cluster=cluster, group=group)


def _open_session(case: Path, settings: Settings, folder: SessionFolder) -> Session:
    from pestfleet.cli.hosting import create_from_settings
    from pestfleet.placement import Placement
    from pestfleet.session import Session

    if (folder.path / "session.json").exists():
        return Session(folder)
    return create_from_settings(case, settings, name=folder.name, place=Placement(master="there"))


def _choose_target(workers_job: str, task: MasterTask | None) -> Callable[[FleetPlan], Target]:
    if task is not None:
        return task.make_target

    def make_target(plan: FleetPlan) -> Target:
        if workers_job:
            from pestfleet.targets.cluster_workers import ClusterWorkers

            return ClusterWorkers(plan, job=workers_job)
        from pestfleet.targets.joining import JoiningTarget

        return JoiningTarget(plan)

    return make_target


def _take_limits(spec: SessionSpec, settings: Settings) -> SessionSpec:
    """A session that goes on has the fleet, the limits and the cache of its latest launch."""
    return dataclasses.replace(
        spec,
        workers=settings.workers,
        most=settings.most,
        idle_minutes=settings.idle_minutes or 0.0,
        max_hours=settings.max_hours or 0.0,
        budget=settings.budget,
        cache=settings.cache,
    )


class _Launch:
    """One launch of a session, which may have several masters; noted in the session's folder."""

    def __init__(self, session: Session, name: str, task: MasterTask | None) -> None:
        self._session = session
        self._name = name
        self._task = task

    def leave_if_ended(self) -> None:
        """Restart policies start whatever ended: it must not be run anew for that."""
        try:
            text = (self._session.path / ENDED).read_text(encoding="utf-8")
            ended, exit_code = text.split()
        except (OSError, ValueError):
            return
        if ended == self._name:
            click.echo(f"session {self._session.name} has ended already", err=True)
            if self._task is not None:
                self._task.end()
            raise SystemExit(int(exit_code))

    def begin(self) -> float:
        """When it began: hours count on where its master is moved."""
        began = self._note_begin()
        if self._task is not None:
            try:
                self._task.count_start()
            except SessionError as error:
                self._note_end(error.exit_code)
                raise
            self._task.start_lease(self._session.spec, began=began)
        return began

    @contextmanager
    def noting_end(self, *, keep_workers: bool) -> Iterator[None]:
        """Around the master's work. What ends the master, and not the launch, is not noted."""
        try:
            yield
        except (SentAway, SessionError) as error:
            # It goes on when it is started again, or another master has it.
            if self._task is not None and isinstance(error, SentAway):
                self._task.forgive_start()
            raise
        except Interrupted as error:
            # A signal may be meant for this process alone; only `--keep-workers` can tell.
            if keep_workers or isinstance(error, LimitReached):
                self._note_end(error.exit_code)
            raise
        except PestfleetError as error:
            self._note_end(error.exit_code)
            raise
        self._note_end(0)

    def _note_begin(self) -> float:
        path = self._session.path / LAUNCHED
        began = time.time()
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["launch"] == self._name:
                return float(known["began"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("this is the session's first master: %s", error)
        path.write_text(json.dumps({"launch": self._name, "began": began}), encoding="utf-8")
        return began

    def _note_end(self, exit_code: int) -> None:
        text = f"{self._name} {exit_code}\n"
        (self._session.path / ENDED).write_text(text, encoding="utf-8")
        if self._task is not None:
            self._task.end()
