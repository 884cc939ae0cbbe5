"""What would go wrong with a launch, found before anything is started."""

from __future__ import annotations

import docker
import docker.errors

from pestfleet.case import Case
from pestfleet.images.case import CONTROL_LABEL, hash_control
from pestfleet.targets.compose.fleet import ComposeFleet
from pestfleet_worker.errors import ConfigurationError, SessionError

DIGEST = "PESTFLEET_DIGEST"  # in a case image's environment: the digest of its case


def check_case_image(client: docker.DockerClient, image: str, case: Case, *, whole: bool) -> None:
    """Raises `ConfigurationError` for an image that has not this case in it.

    `whole`: the control file counts in full, for the master takes it from there; the workers do
    with what a run depends on. The image is pulled when it is not there.
    """
    digest = case.digest
    try:
        try:
            found = client.images.get(image)
        except docker.errors.ImageNotFound:
            client.images.pull(image)
            found = client.images.get(image)
    except docker.errors.APIError as error:
        raise ConfigurationError(
            f"the image {image} is not on this Docker engine, and cannot be had: "
            f"{error.explanation or error}",
            remedy="See pestfleet images, or leave --image out: then it is built.",
        ) from error
    variables = dict(line.partition("=")[::2] for line in found.attrs["Config"].get("Env") or ())
    if DIGEST not in variables:
        raise ConfigurationError(
            f"the image {image} is no image of a case",
            remedy=f"Make one: pestfleet build CASE -t {image}; or leave --image out.",
        )
    if variables[DIGEST] != digest:
        raise ConfigurationError(
            f"the image {image} has another case in it, or this one before a change: its digest "
            f"is {variables[DIGEST][:12]}, and that of the case is {digest[:12]}",
            remedy=f"Build it again: pestfleet build CASE -t {image}; or leave --image out.",
        )
    control = found.labels.get(CONTROL_LABEL)
    if whole and control not in (None, hash_control(case)):
        raise ConfigurationError(
            f"the image {image} has this case with another control file, such as other weights or "
            "initial values, and the master would read that one",
            remedy=f"Build it again: pestfleet build CASE -t {image}; or leave --image out; or "
            "keep the master on this machine: --master here.",
        )


def check_free(fleet: ComposeFleet) -> None:
    """Raises `SessionError` when the id of a new session is in use on this Docker engine."""
    if fleet.containers():
        raise SessionError(
            f"session {fleet.session} has containers on this Docker engine already",
            remedy="Choose another id with --session, or remove them: "
            f"pestfleet down {fleet.session} --on compose",
        )
    if fleet.find_volume() is not None:
        raise SessionError(
            f"the results of another session {fleet.session} are kept on this Docker engine",
            remedy="Choose another id with --session, or remove them: "
            f"pestfleet down {fleet.session} --on compose --discard-results",
        )
