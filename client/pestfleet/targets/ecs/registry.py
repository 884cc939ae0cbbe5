"""Brings a session's images to the registry that its tasks pull from: ECR, or one of the user's."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pestfleet.settings import ImageSettings
from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.planned import AmazonPlan, Facts
from pestfleet.targets.ecs.tasks import Images
from pestfleet.targets.images import make_teller
from pestfleet_worker.errors import ConfigurationError, TargetError

if TYPE_CHECKING:
    from docker import DockerClient

    from pestfleet.folder import SessionSpec
    from pestfleet.targets.images import Say

logger = logging.getLogger(__name__)

# How Docker calls the processors, and how Amazon does.
ARCHITECTURES = {"amd64": "X86_64", "arm64": "ARM64"}


def list_roles(spec: SessionSpec, *, broker: bool) -> list[str]:
    """The images that a session's tasks have. `broker`: is one of them its broker?"""
    wanted = {
        "worker": True,
        "broker": broker,
        "master": spec.place.master == "there",
        "tunnel": spec.place.tunnel,
    }
    return [role for role, is_wanted in wanted.items() if is_wanted]


def name_images(spec: SessionSpec, image: ImageSettings, facts: Facts, *, broker: bool) -> Images:
    """What the images are called where tasks pull them; before they are made."""
    from pestfleet.targets.ecs.plan import name_images as name_in_ecr

    roles = list_roles(spec, broker=broker)
    if not image.registry:
        named = asdict(name_in_ecr(spec, facts, roles))
    else:
        named = {role: name_in_registry(role, spec, image) for role in roles}
    if is_elsewhere(spec.place.image):
        named["worker"] = spec.place.image
    return Images(**{role: named[role] for role in roles})


def name_in_registry(role: str, spec: SessionSpec, image: ImageSettings) -> str:
    """An image in the user's registry."""
    from pathlib import Path

    from pestfleet.images.base import name_image

    if role == "worker":
        case = Path(spec.control_file).stem.lower()
        return spec.place.image or f"{image.registry}/pestfleet-case-{case}:{spec.digest[:12]}"
    if role == "broker":
        name = image.broker.rpartition("/")[2]
        tag = name if ":" in name else f"{name}:latest"
        own = image.broker.startswith(f"{image.registry}/")
        return image.broker if own else f"{image.registry}/{tag}"
    return name_image(role, registry=image.registry)


def is_elsewhere(reference: str) -> bool:
    """Does this name of an image say in which registry it is?"""
    host, slash, _ = reference.partition("/")
    return bool(slash) and ("." in host or ":" in host)


def check_platform(made: Mapping[str, str]) -> str:
    """The processor that these images on the engine here are for, as Amazon calls it.

    Raises `ConfigurationError` where they are not all for one.
    """
    from pestfleet.images.engine import connect_engine, explain_errors

    found: dict[str, str] = {}
    with closing(connect_engine()) as engine:
        for role, reference in made.items():
            with explain_errors(f"image {reference} cannot be looked at"):
                found[role] = str(engine.images.get(reference).attrs.get("Architecture", ""))
    kinds = sorted(set(found.values()))
    if len(kinds) > 1 or (kinds and kinds[0] not in ARCHITECTURES):
        text = ", ".join(f"{role} {kind}" for role, kind in found.items())
        raise ConfigurationError(
            f"the images are for processors that tasks cannot mix, or do not have: {text}",
            remedy="Build all of them for linux/amd64: set DOCKER_DEFAULT_PLATFORM=linux/amd64.",
        )
    return ARCHITECTURES[kinds[0]] if kinds else "X86_64"


def push_images(
    cloud: Cloud, made: Mapping[str, str], named: Mapping[str, str], say: Say, *, ours: bool
) -> dict[str, str]:
    """Push images of the engine here to where tasks pull them; both: role -> reference.

    The answer has them by their digests. `ours`: into a repository of ECR, which is there; else
    the registry's login is in Docker's own configuration. Raises `TargetError`.
    """
    from pestfleet.images.catalog import push_image
    from pestfleet.images.engine import connect_engine, explain_errors

    tell = make_teller(say)
    pushed: dict[str, str] = {}
    login = find_login(cloud) if ours and made else None
    with closing(connect_engine()) as engine:
        for role, reference in made.items():
            target = named[role]
            with explain_errors(f"image {reference} cannot be named {target}"):
                engine.images.get(reference).tag(*target.rsplit(":", 1))
            tell(f"pushing image {target}")
            try:
                pushed[role] = push_image(engine, target, tell, login=login)
            finally:
                if target != reference:
                    _forget(engine, target)
    return pushed


def _forget(engine: DockerClient, name: str) -> None:
    """Take a name of an image away again; the image stays."""
    from docker.errors import DockerException

    try:
        engine.images.remove(name, noprune=True)
    except DockerException as error:
        logger.info("the name %s stays on the Docker engine: %s", name, error)


def find_login(cloud: Cloud) -> dict[str, str]:
    """A name and a password of twelve hours for the account's registry of ECR."""
    answer = cloud.call("ecr", "get_authorization_token")
    try:
        token = answer["authorizationData"][0]["authorizationToken"]
        user, _, password = base64.b64decode(token).decode().partition(":")
    except (KeyError, IndexError, ValueError) as error:
        raise TargetError(f"ECR of region {cloud.region} gave no login") from error
    return {"username": user, "password": password}


def ensure_broker(image: str, say: Say) -> str:
    """The broker's image, on the engine here."""
    import docker.errors

    from pestfleet.images.engine import connect_engine, explain_errors

    with closing(connect_engine()) as engine, explain_errors(f"image {image} cannot be had"):
        try:
            engine.images.get(image)
        except docker.errors.ImageNotFound:
            say(f"pulling image {image}")
            engine.images.pull(image)
    return image


# -- of a plan ---------------------------------------------------------------------------------


def read_images(plan: AmazonPlan) -> dict[str, str]:
    """Role -> the image of its tasks."""
    return {
        task.role: str(container["image"])
        for task in plan.find("task-definition")
        for container in task.body["containerDefinitions"]
        if container["name"] == task.role
    }


def read_architecture(plan: AmazonPlan) -> str:
    """The processor of the tasks, as Amazon calls it."""
    task = next(iter(plan.find("task-definition")))
    return str(task.body["runtimePlatform"]["cpuArchitecture"])


def find_repository(cloud: Cloud, plan: AmazonPlan) -> str:
    """Where images are pushed to, and pulled from, of the session's repository; "": it has none."""
    for one in plan.find("repository"):
        answer = cloud.call("ecr", "describe_repositories", repositoryNames=[one.name])
        return str(answer["repositories"][0]["repositoryUri"])
    return ""


def take_images(plan: AmazonPlan, pushed: Mapping[str, str]) -> AmazonPlan:
    """The plan with the images, by role, that were pushed: those very ones, by their digests."""
    before = {name: pushed[role] for role, name in read_images(plan).items() if role in pushed}

    def renew(body: dict[str, Any]) -> dict[str, Any]:
        containers = [
            {**one, "image": before.get(one["image"], one["image"])}
            for one in body["containerDefinitions"]
        ]
        return {**body, "containerDefinitions": containers}

    resources = [
        replace(one, body=renew(one.body)) if one.kind == "task-definition" else one
        for one in plan.resources
    ]
    return replace(plan, resources=resources)
