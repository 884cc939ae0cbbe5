"""Launches sessions on ECS: images, files, secrets, resources; and who hosts them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pestfleet.bookkeeping import keep_case
from pestfleet.case import Case
from pestfleet.folder import SessionSpec
from pestfleet.host import Host
from pestfleet.session import Session
from pestfleet.settings import ImageSettings
from pestfleet.targets.base import Where
from pestfleet.targets.choices import check_choices, needs_broker
from pestfleet.targets.ecs.access import Cloud, connect
from pestfleet.targets.ecs.checks import check_launch
from pestfleet.targets.ecs.facts import gather_facts
from pestfleet.targets.ecs.fleet import EcsFleet
from pestfleet.targets.ecs.follower import TaskMaster
from pestfleet.targets.ecs.plan import AmazonPlan, Facts, Network, make_plan
from pestfleet.targets.ecs.registry import (
    ARCHITECTURES,
    check_platform,
    ensure_broker,
    find_repository,
    is_elsewhere,
    name_images,
    push_images,
    read_architecture,
    read_images,
    take_images,
)
from pestfleet.targets.ecs.results import forget_end, has_begun
from pestfleet.targets.ecs.secret_files import make_secrets
from pestfleet.targets.ecs.tasks import Images
from pestfleet.targets.images import make_images
from pestfleet_worker.errors import ConfigurationError, SessionError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent
    from pestfleet.targets.images import Say

logger = logging.getLogger(__name__)

# What is made before images and files are sent: it holds these, costs nothing by the hour, or stops
# what does.
_FIRST = ("schedule-group", "schedule", "role", "log-group", "repository", "bucket")
# Where nobody says which account and network it is.
_NOBODY, _NOWHERE, _BLOCK = "0" * 12, "REGION", "10.0.0.0/16"


def make_host(
    session: Session,
    *,
    image: ImageSettings,
    broker_url: str,
    on_event: OnEvent,
    resume: bool,
) -> Host:
    """Who hosts a session on ECS: a follower of its master there, or a master here.

    With `resume` a master there that runs is followed, and what else is left is removed first.
    Raises `TargetError` where Amazon does not answer, and `SessionError` where a new session's id
    is in use.
    """
    spec = session.spec
    check_choices(spec, broker_url, unit="task")
    amazon = spec.place.amazon
    cloud = connect(session.where)
    fleet = EcsFleet(cloud, spec.session, cluster=amazon.cluster, bucket=amazon.bucket)
    runs = resume and spec.place.master == "there" and is_running(fleet)
    if not resume:
        _check_free(fleet)
    elif not runs:
        fleet.down()
    if spec.place.master == "there":
        return TaskMaster(
            session.folder,
            spec,
            fleet,
            launch=_attach if runs else partial(_launch_there, session, image, broker_url, fleet),
            on_event=on_event,
        )
    from pestfleet.targets.ecs.home import make_home_host

    return make_home_host(session, fleet, image=image, broker_url=broker_url, on_event=on_event)


def is_running(fleet: EcsFleet) -> bool:
    """Has it a master that works, and was its launch not cut off?"""
    services = fleet.services()
    # The service of the workers is the last that a launch makes.
    wanted = services.get("master", {}).get("desiredCount")
    return bool(wanted and "worker" in services)


def _attach(say: Say) -> None:
    say("the session runs; following it")


def _check_free(fleet: EcsFleet) -> None:
    """Raises `SessionError` when the id of a new session is in use in this region."""
    name, place = fleet.session, f"in region {fleet.cloud.region}"
    on = f"--on ecs --region {fleet.cloud.region}"
    if fleet.list_parts():
        raise SessionError(
            f"session {name} has resources {place} already",
            remedy=f"Choose another id with --session, or remove them: pestfleet down {name} {on}",
        )
    if fleet.has_files():
        raise SessionError(
            f"the results of another session {name} are kept in {fleet.bucket}",
            remedy="Choose another id with --session, or remove them: "
            f"pestfleet down {name} {on} --discard-results",
        )


# -- what is launched --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a session: what all its steps know."""

    session: Session
    spec: SessionSpec
    image: ImageSettings
    broker_url: str
    fleet: EcsFleet

    @property
    def cloud(self) -> Cloud:
        return self.fleet.cloud

    @property
    def broker(self) -> bool:
        """Is there one beside the workers?"""
        return needs_broker(self.spec, self.broker_url)

    def plan(self, facts: Facts, images: Images) -> AmazonPlan:
        return make_plan(self.spec, images, facts)

    def name_images(self, facts: Facts) -> Images:
        return name_images(self.spec, self.image, facts, broker=self.broker)

    def gather(self) -> Facts:
        """Asks the account; a launch has a name that no other of the session has."""
        return gather_facts(
            self.cloud,
            self.spec,
            folder=str(self.session.path.resolve()),
            broker_url=self.broker_url,
            case_bytes=measure_case(self.session.folder.case / Path(self.spec.control_file).name),
            launch=f"{time.time():.3f}",
        )


def prepare(launch: Launch, say: Say) -> tuple[AmazonPlan, dict[str, str]]:
    """The plan, checked, and its images: role -> reference on the engine here. Safe to repeat.

    Nothing is made in the account. Raises as `check_launch`.
    """
    say(f"looking at account {launch.cloud.account}, region {launch.cloud.region}")
    facts = launch.gather()
    # Before images are made, which takes minutes: what cannot be is told at once.
    plan = launch.plan(facts, launch.name_images(facts))
    for warning in check_launch(launch.cloud, plan):
        say(f"warning: {warning}")
    note_prices(launch, plan)
    made = _make_images(launch, plan, say)
    if launch.image.registry:  # what they are called there is known when they are made
        plan = launch.plan(facts, _take_names(launch.name_images(facts), made))
    return plan, made


def make_all(
    launch: Launch,
    plan: AmazonPlan,
    made: Mapping[str, str],
    secrets: Mapping[str, str],
    say: Say,
) -> AmazonPlan:
    """Make the plan, with images and files in it: as it was made then. Safe to repeat.

    Raises `TargetError`.
    """
    from pestfleet.targets.ecs.resources import apply

    def tell(line: str) -> None:
        logger.info("%s", line)
        say("")  # which looks for a stop

    say(f"making what the session needs in region {plan.region}")
    first = replace(plan, resources=[one for one in plan.resources if one.kind in _FIRST])
    apply(launch.cloud, first, {}, tell)
    named = read_images(plan)
    place = find_repository(launch.cloud, plan)
    if place:  # as ECR itself says where it is
        named |= {role: f"{place}:{role}" for role in made}
    pushed = push_images(launch.cloud, made, named, say, ours=bool(place))
    _send_files(launch, say)
    plan = take_images(plan, pushed)
    say(f"starting the tasks in region {plan.region}")
    apply(launch.cloud, plan, secrets, tell)
    return plan


def _launch_there(
    session: Session, image: ImageSettings, broker_url: str, fleet: EcsFleet, say: Say
) -> None:
    keep_case(session.folder, session.spec)
    launch = Launch(session, session.spec, image, broker_url, fleet)
    plan, made = prepare(launch, say)
    make_all(launch, plan, made, make_secrets(plan, broker_url), say)


def _make_images(launch: Launch, plan: AmazonPlan, say: Say) -> dict[str, str]:
    """Role -> reference on the engine here, of what is to be pushed."""
    spec = launch.spec
    given = spec.place.image
    if given:
        _check_image(launch, say)
    made = make_images(launch.session, launch.image, say, master=spec.place.master == "there")
    if launch.broker:
        made["broker"] = ensure_broker(launch.image.broker, say)
    kind, wanted = check_platform(made), read_architecture(plan)
    if kind != wanted:
        platform = next(name for name, known in ARCHITECTURES.items() if known == wanted)
        raise ConfigurationError(
            f"the images are for {kind}, and the tasks run on {wanted}",
            remedy=f"Build them for that: set DOCKER_DEFAULT_PLATFORM=linux/{platform}.",
        )
    if is_elsewhere(given):
        made.pop("worker", None)  # it is there
    return made


def _check_image(launch: Launch, say: Say) -> None:
    """Has the image that the user has named this case in it? And can it be had?"""
    from contextlib import closing

    from pestfleet.images.engine import connect_engine
    from pestfleet.targets.images import check_case_image

    spec = launch.spec
    case = Case.read(launch.session.folder.case / Path(spec.control_file).name)
    with closing(connect_engine()) as engine:
        check_case_image(engine, spec.place.image, case, whole=spec.place.master == "there")


def _take_names(named: Images, made: Mapping[str, str]) -> Images:
    """In the user's registry the images that we build have their names already."""
    own = {role: made[role] for role in made if role != "broker" and is_elsewhere(made[role])}
    return Images(**{**asdict(named), **own})


def _send_files(launch: Launch, say: Say) -> None:
    """The session's folder as its master there needs it; what it had before, too."""
    if launch.spec.place.master == "here":
        return
    fleet, folder = launch.fleet, launch.session.folder
    say(f"sending the case to s3://{fleet.bucket}")
    store = fleet.store
    store.clear_requests()
    store.put_case(folder)
    # Finished runs that are there count; those that are only here are sent.
    known = has_begun(store)
    store.push(folder, ["session.json", *([] if known else _FINISHED)])
    forget_end(store)


_FINISHED = ("journal.jsonl", "results", "kits")


def note_prices(launch: Launch, plan: AmazonPlan) -> None:
    """Let the master know what an hour costs, for the session's budget."""
    from pestfleet.costs.plan import make_session_prices
    from pestfleet.costs.prices import find_prices

    items = [charge.item for charge in plan.charges]
    found = find_prices(launch.cloud.region, items, launch.cloud)
    session = launch.session
    session.spec = replace(session.spec, prices=make_session_prices(plan.charges, found))
    session.folder.write_spec(session.spec)


def measure_case(control_file: Path) -> int:
    """Bytes of the case's files."""
    return sum(file.size for file in Case.read(control_file).files())


# -- looking only ------------------------------------------------------------------------------


def describe(spec: SessionSpec, folder: Path, *, image: ImageSettings, broker_url: str) -> str:
    """The plan of a session as JSON: resources, permissions, charges. Nothing is made.

    Asks the account where there are credentials, with reading requests only; else account and
    network are placeholders, and `note` says so. Raises `ConfigurationError`.
    """
    plan, note = plan_ahead(spec, folder, image=image, broker_url=broker_url)
    shown: dict[str, Any] = plan.to_json()
    if note:
        shown = {"note": note, **shown}
    return json.dumps(shown, indent=2) + "\n"


def plan_ahead(
    spec: SessionSpec,
    folder: Path,
    *,
    image: ImageSettings,
    broker_url: str,
    placeholders: bool = True,
) -> tuple[AmazonPlan, str]:
    """The plan of a session, and a note where account and network in it are placeholders.

    See `describe`. Without `placeholders` it raises `TargetError` where the account says no.
    """
    check_choices(spec, broker_url, unit="task")
    spec, facts, note = _look(spec, folder, broker_url, placeholders=placeholders)
    images = name_images(spec, image, facts, broker=needs_broker(spec, broker_url))
    return make_plan(spec, images, facts), note


def _look(
    spec: SessionSpec, folder: Path, broker_url: str, *, placeholders: bool
) -> tuple[SessionSpec, Facts, str]:
    amazon = spec.place.amazon
    size = measure_case(Path(spec.control_file))
    cloud = None
    try:
        cloud = connect(Where(region=amazon.region, profile=amazon.profile))
        if spec.place.master == "here":
            from pestfleet.targets.ecs.reach import choose_block

            spec = choose_block(spec, broker_url)
        facts = gather_facts(
            cloud, spec, folder=str(folder.resolve()), broker_url=broker_url, case_bytes=size
        )
        return spec, facts, ""
    except (ConfigurationError, TargetError) as error:
        if amazon.instances:
            raise  # nobody else knows what a machine of that type has
        if not placeholders and isinstance(error, TargetError):
            raise
        made = amazon.network == "make"
        region = cloud.region if cloud else amazon.region or _NOWHERE
        # Who has answered that already: only the network is not known then.
        known = cloud if cloud and "identity" in vars(cloud) else None
        account = known.account if known else _NOBODY
        network = Network(
            "" if made else "VPC",
            () if made else amazon.subnets or ("SUBNET",),
            amazon.public,
            made,
            (_BLOCK,),
            (f"{region}a", f"{region}b") if made else (),
        )
        if spec.place.master == "here" and not amazon.allow_from:
            nobody = replace(amazon, allow_from="192.0.2.1/32")
            spec = replace(spec, place=replace(spec.place, amazon=nobody))
        facts = Facts(
            account, region, known.partition if known else "aws", network,
            folder=str(folder.resolve()), launched=time.time(), case_bytes=size,
        )  # fmt: skip
        what = "the network is a placeholder" if known else "account and network are placeholders"
        note = f"{what}: {error.message}"
        return spec, facts, note
