"""Launches sessions in a cluster: images, secrets, objects; and who hosts them."""

from __future__ import annotations

import base64
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pestfleet.bookkeeping import keep_case
from pestfleet.case import Case
from pestfleet.credentials.parts import Choices, make_credentials
from pestfleet.folder import SessionSpec
from pestfleet.host import Host
from pestfleet.session import Session
from pestfleet.settings import ImageSettings
from pestfleet.targets.addresses import pack_url
from pestfleet.targets.choices import check_choices, needs_broker
from pestfleet.targets.images import check_case_image, make_images, make_teller
from pestfleet.targets.kubernetes.access import Access, connect
from pestfleet.targets.kubernetes.chart import VERSION, Overrides, Values, dump, render
from pestfleet.targets.kubernetes.checks import check_launch, list_permissions
from pestfleet.targets.kubernetes.fleet import KubernetesFleet
from pestfleet.targets.kubernetes.follower import PodMaster
from pestfleet.targets.kubernetes.naming import (
    FOLDER,
    IMAGE,
    MANAGER,
    ROLE,
    SESSION,
    US,
    Object,
    mark,
    name_release,
)
from pestfleet.targets.kubernetes.pods import find_end
from pestfleet.targets.kubernetes.values import Images, make_values
from pestfleet_worker.errors import ConfigurationError, SessionError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent
    from pestfleet.targets.images import Say

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KubernetesPlan:
    """What a session wants in a cluster. `objects`: all but the secrets."""

    spec: SessionSpec
    images: Images
    values: Values
    objects: list[Object]

    @property
    def release(self) -> str:
        return name_release(self.spec.session)

    @property
    def owner(self) -> str:
        """The role of the Job whose end is the end of all."""
        return "master" if self.spec.place.master == "there" else "worker"


def make_host(
    session: Session,
    *,
    image: ImageSettings,
    broker_url: str,
    on_event: OnEvent,
    resume: bool,
) -> Host:
    """Who hosts a session on Kubernetes: a follower of its master there, or a master here.

    With `resume` a master there that runs is followed, and what else is left is removed first.
    Raises `TargetError` where the cluster does not answer, and `SessionError` where a new session
    has objects already.
    """
    spec = session.spec
    check_choices(spec, broker_url, unit="pod")
    fleet = KubernetesFleet(connect(spec.place.context, spec.place.namespace), spec.session)
    job = fleet.find_job("master")
    runs = resume and job is not None and not find_end(job) and _is_launched(fleet, job)
    if not resume:
        _check_free(fleet)
    elif not runs:
        fleet.down()
    if spec.place.master == "there":
        return PodMaster(
            session.folder,
            spec,
            fleet,
            launch=_attach if runs else partial(_launch_there, session, image, broker_url, fleet),
            on_event=on_event,
        )
    from pestfleet.targets.kubernetes.home import make_home_host

    return make_home_host(
        session,
        fleet,
        make_plan=lambda say: make_plan(session, image, broker_url, fleet.access, say),
        broker_url=broker_url,
        on_event=on_event,
    )


def _check_image(session: Session, say: Say) -> None:
    """Has the image that the user has named this case in it? And can it be had?"""
    from contextlib import closing

    from pestfleet.images.engine import connect_engine

    spec = session.spec
    case = Case.read(session.folder.case / Path(spec.control_file).name)
    try:
        engine = connect_engine()
    except TargetError as error:
        say(f"warning: the image {spec.place.image} is not looked at: {error.message}")
        return
    with closing(engine):
        check_case_image(engine, spec.place.image, case, whole=spec.place.master == "there")


def _is_launched(fleet: KubernetesFleet, master: Object) -> bool:
    """Was its launch not cut off? See `KubernetesFleet.apply`."""
    workers = fleet.find_job("worker")
    return workers is not None and all(job["spec"]["parallelism"] for job in (master, workers))


def _attach(say: Say) -> None:
    say("the session runs; following it")


def make_plan(
    session: Session, image: ImageSettings, broker_url: str, access: Access, say: Say
) -> KubernetesPlan:
    """The plan of a session, checked; its images are made and pushed. Raises as `check_launch`."""
    if session.spec.place.image:
        _check_image(session, say)
    plan_with = partial(
        _plan,
        session.spec,
        broker_url=broker_url,
        namespace=access.namespace,
        folder=session.path,
        version=access.get("/version")["gitVersion"],
    )
    # Before images are made, which takes minutes: what cannot be is told at once.
    objects = plan_with(images=name_images(session.spec, image)).objects
    for warning in check_launch(access, objects, least=session.spec.place.least):
        say(f"warning: {warning}")
    place = session.spec.place
    if not image.registry and not (place.image and place.master == "here"):
        say(
            "warning: no registry is set, so the images stay in the Docker engine here, and pods "
            "start only on nodes that have them; set registry in [image] of pestfleet.toml"
        )
    return plan_with(images=_make_images(session, image, say))


def _plan(
    spec: SessionSpec,
    images: Images,
    broker_url: str,
    namespace: str,
    *,
    folder: Path,
    version: str = VERSION,
) -> KubernetesPlan:
    values = make_values(spec, images, broker=needs_broker(spec, broker_url), broker_url=broker_url)
    objects = render(
        values,
        release=name_release(spec.session),
        namespace=namespace,
        version=version,
        overrides=Overrides(spec.place.values, spec.place.sets),
    )
    if any(one["kind"] == "PriorityClass" for one in objects):
        raise ConfigurationError(
            "a priority class is for all of a cluster, and would outlive the session",
            remedy="Have an administrator make one, and name it: --set "
            "workers.priorityClassName=NAME.",
        )
    annotations = {FOLDER: str(folder.resolve()), IMAGE: images.master}
    return KubernetesPlan(spec, images, values, mark(objects, annotations=annotations))


def describe(spec: SessionSpec, folder: Path, *, image: ImageSettings, broker_url: str) -> str:
    """The objects of a session as YAML, and as comments the permissions that the launch needs.

    Nothing is made, and no cluster is asked. Raises `ConfigurationError`.
    """
    check_choices(spec, broker_url, unit="pod")
    namespace = spec.place.namespace or "default"
    plan = _plan(spec, name_images(spec, image), broker_url, namespace, folder=folder)
    needed = [f"#   {line}" for line in list_permissions(plan.objects)]
    heading = f"# In namespace {namespace}, the launch needs these permissions:"
    return "\n".join([heading, *needed, dump(plan.objects)])


def _check_free(fleet: KubernetesFleet) -> None:
    """Raises `SessionError` when the id of a new session is in use in this namespace."""
    name, place = fleet.session, f"in namespace {fleet.access.namespace}"
    if fleet.find_job("master") or fleet.find_job("worker"):
        raise SessionError(
            f"session {name} has Jobs {place} already",
            remedy="Choose another id with --session, or remove them: "
            f"pestfleet down {name} --on kubernetes",
        )
    if fleet.find_claim():
        raise SessionError(
            f"the results of another session {name} are kept {place}",
            remedy="Choose another id with --session, or remove them: "
            f"pestfleet down {name} --on kubernetes --discard-results",
        )


def _launch_there(
    session: Session, image: ImageSettings, broker_url: str, fleet: KubernetesFleet, say: Say
) -> None:
    keep_case(session.folder, session.spec)
    plan = make_plan(session, image, broker_url, fleet.access, say)
    say(f"starting the pods in namespace {fleet.access.namespace}")
    fleet.apply([*plan.objects, *make_secrets(plan, broker_url)], owner=plan.owner)


def make_secrets(plan: KubernetesPlan, broker_url: str) -> list[Object]:
    """The Secrets of a session whose master is there; made here, and in the cluster only."""
    if broker_url:
        return [make_secret(plan, f"{plan.release}-broker", pack_url(broker_url))]
    choices = Choices(plan.spec.session, broker_host=f"{plan.release}-broker")
    made = make_credentials(choices, parts=("broker", "master", "worker"))
    files = {f"{part}.{name}": text.encode() for part in made for name, text in made[part].items()}
    return [make_secret(plan, f"{plan.release}-credentials", files)]


def make_secret(plan: KubernetesPlan, name: str, files: dict[str, bytes]) -> Object:
    """A Secret of the session; file name -> content."""
    labels = {SESSION: plan.spec.session, ROLE: "credentials", MANAGER: US}
    data = {name: base64.b64encode(content).decode("ascii") for name, content in files.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": labels},
        "type": "Opaque",
        "data": data,
    }


def _make_images(session: Session, image: ImageSettings, say: Say) -> Images:
    made = make_images(session, image, say, master=session.spec.place.master == "there")
    if image.registry:
        made = _push(made, given=session.spec.place.image, say=say)
    return Images(
        worker=made["worker"],
        master=made.get("master", ""),
        broker=image.broker,
        tunnel=made.get("tunnel", ""),
    )


def _push(made: dict[str, str], *, given: str, say: Say) -> dict[str, str]:
    """The images by their digests, in the registry. One that the user has named is there."""
    from contextlib import closing

    from pestfleet.images.catalog import push_image
    from pestfleet.images.engine import connect_engine

    tell = make_teller(say)
    pushed = dict(made)
    with closing(connect_engine()) as engine:
        for role, reference in made.items():
            if reference == given:
                continue
            tell(f"pushing image {reference}")
            pushed[role] = push_image(engine, reference, tell)
    return pushed


def name_images(spec: SessionSpec, image: ImageSettings) -> Images:
    """What the images are called, for a look at the plan."""
    from pestfleet.images.base import name_image

    case = Path(spec.control_file).stem.lower()
    prefix = f"{image.registry}/" if image.registry else ""
    return Images(
        worker=spec.place.image or f"{prefix}pestfleet-case-{case}:{spec.digest[:12]}",
        master=name_image("master", registry=image.registry),
        broker=image.broker,
        tunnel=name_image("tunnel", registry=image.registry) if spec.place.tunnel else "",
    )
