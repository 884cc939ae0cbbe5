"""Launches sessions on a Docker engine: images, secrets, containers; and who hosts them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pestfleet.bookkeeping import keep_case
from pestfleet.case import Case
from pestfleet.folder import SessionSpec
from pestfleet.images.engine import LOOPBACK, connect_engine, find_engine_host
from pestfleet.session import Session
from pestfleet.settings import ImageSettings
from pestfleet.targets import choices
from pestfleet.targets.addresses import find_free_port, pack_url
from pestfleet.targets.choices import needs_broker
from pestfleet.targets.compose.checks import check_free
from pestfleet.targets.compose.document import (
    INPUT,
    RELAY_PORT,
    ComposePlan,
    Document,
    Images,
    dump_document,
    make_document,
)
from pestfleet.targets.compose.fleet import ComposeFleet, tell_trouble
from pestfleet.targets.compose.follower import ContainerMaster
from pestfleet.targets.compose.home import ComposeHome
from pestfleet.targets.compose.program import find_compose
from pestfleet.targets.images import check_case_image, make_images
from pestfleet_worker.errors import ConfigurationError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent

USER = "10001:10001"  # of the containers, where the caller is root or has no such number

Say = Callable[[str], None]


def make_host(
    session: Session,
    *,
    image: ImageSettings,
    broker_url: str,
    on_event: OnEvent,
    resume: bool,
) -> ContainerMaster | ComposeHome:
    """Who hosts a session on compose: a follower of its master there, or a master here.

    With `resume` a master there that runs is followed, and what else is left is removed first.
    Raises `TargetError` where no Docker engine or no docker compose answers, and `SessionError`
    where a new session has containers already.
    """
    check_choices(session.spec, broker_url)
    find_compose()
    with tell_trouble():
        client = connect_engine()
        fleet = ComposeFleet(client, session.name)
        master = fleet.find("master")
        runs = resume and master is not None and master.state == "running"
        if not resume:
            check_free(fleet)
        elif not runs:
            fleet.down()
        if session.spec.place.image and not runs:
            # A session that resumes has the case as it was at launch.
            copy = session.folder.case / Path(session.spec.control_file).name
            case = Case.read(copy if copy.exists() else session.spec.control_file)
            there = session.spec.place.master == "there"
            check_case_image(client, session.spec.place.image, case, whole=there)
    if session.spec.place.master == "there":
        return ContainerMaster(
            session.folder,
            session.spec,
            fleet,
            launch=_attach if runs else partial(_launch_there, session, image, broker_url, fleet),
            on_event=on_event,
        )
    return ComposeHome(
        session,
        fleet,
        make_plan=lambda say: make_plan(session, image, broker_url, say),
        broker_url=broker_url,
        on_event=on_event,
    )


def _attach(say: Say) -> None:
    say("the session runs; following it")


def make_plan(session: Session, image: ImageSettings, broker_url: str, say: Say) -> ComposePlan:
    """The plan of a session; its images are made, where they are not there yet."""
    images = _make_images(session, image, say)
    plan = _plan(session.spec, images, broker_url, folder=session.path)
    return replace(plan, broker_port=find_free_port(), tunnel_port=find_free_port())


def _plan(spec: SessionSpec, images: Images, broker_url: str, *, folder: Path) -> ComposePlan:
    return ComposePlan(
        session=spec.session,
        images=images,
        workers=spec.workers,
        slots=spec.slots,
        place=spec.place,
        user=_find_user(),
        host=_write_host_words(spec),
        address=_find_address(),
        broker=needs_broker(spec, broker_url),
        folder=str(folder.resolve()),
    )


def describe(spec: SessionSpec, folder: Path, *, image: ImageSettings, broker_url: str) -> str:
    """The compose file of a session, without making anything. Raises `ConfigurationError`."""
    check_choices(spec, broker_url)
    plan = _plan(spec, _name_images(spec, image), broker_url, folder=folder)
    return dump_document(make_document(plan), whole=False)


def check_choices(spec: SessionSpec, broker_url: str) -> None:
    """Raises `ConfigurationError` for a placement that cannot work."""
    choices.check_choices(spec, broker_url, unit="container")
    if spec.place.master == "there" and spec.cache.startswith("s3://"):
        raise ConfigurationError(
            f"a master in a container cannot reach the run cache {spec.cache}",
            remedy="Say --master here, or --no-cache.",
        )


def _launch_there(
    session: Session, image: ImageSettings, broker_url: str, fleet: ComposeFleet, say: Say
) -> None:
    keep_case(session.folder, session.spec)
    plan = make_plan(session, image, broker_url, say)
    compose, document = find_compose(), make_document(plan)
    say("starting the containers")
    if broker_url:
        _hand_out_url(plan, document, fleet, broker_url)
    try:
        compose.up(plan.project, document, workers=plan.workers)
    except TargetError as error:
        raise fleet.explain(error) from None


def _hand_out_url(
    plan: ComposePlan, document: Document, fleet: ComposeFleet, broker_url: str
) -> None:
    """Give a broker of the user's to master and workers, as files."""
    find_compose().up(plan.project, document, ["credentials"])
    fleet.wait("credentials")
    for part in ("master", "worker"):
        fleet.put_files("credentials", f"/secrets/{part}", pack_url(broker_url), user=plan.user)


def _make_images(session: Session, image: ImageSettings, say: Say) -> Images:
    made = make_images(session, image, say)
    return Images(
        worker=made["worker"],
        master=made["master"],
        broker=image.broker,
        tunnel=made.get("tunnel", ""),
    )


def _name_images(spec: SessionSpec, image: ImageSettings) -> Images:
    """What the images are called, for a look at the plan."""
    from pestfleet.images.base import name_image

    case = Path(spec.control_file).stem
    return Images(
        worker=spec.place.image or f"pestfleet-case-{case.lower()}:{spec.digest[:12]}",
        master=name_image("master", registry=image.registry),
        broker=image.broker,
        tunnel=name_image("tunnel", registry=image.registry) if spec.place.tunnel else "",
    )


def _write_host_words(spec: SessionSpec) -> tuple[str, ...]:
    """The words of `pestfleet host` for this session."""
    words = [
        f"{INPUT}/case/{Path(spec.control_file).name}",
        "--session", spec.session,
        "--launch", uuid.uuid4().hex[:8],
        "--on", spec.target,
        "--engine", spec.engine,
        "--mode", spec.mode,
        "--workers", str(spec.workers),
        "--slots", str(spec.slots),
        "--threads", str(spec.threads),
        "--deliveries", str(spec.deliveries),
        "--time-limit", str(spec.seconds),
        "--idle-minutes", str(spec.idle_minutes),
        "--max-hours", str(spec.max_hours),
        "--relay-port", str(RELAY_PORT),
        "--advertise", "master",
        # A folder of the user's is not there, and finished runs are in the session's journal.
        "--no-cache",
    ]  # fmt: skip
    for name, value in spec.options.items():
        words += ["--option", f"{name}={value}"]
    if spec.arguments:
        import shlex

        words += ["--engine-args", shlex.join(spec.arguments)]
    return tuple(words)


def _find_user() -> str:
    """The caller's uid:gid, so that nobody else can read the secrets; never root."""
    if hasattr(os, "getuid") and os.getuid():
        return f"{os.getuid()}:{os.getgid()}"
    return USER


def _find_address() -> str:
    """Where ports are published: on loopback, unless the engine is on another machine."""
    return LOOPBACK if find_engine_host() == LOOPBACK else "0.0.0.0"
