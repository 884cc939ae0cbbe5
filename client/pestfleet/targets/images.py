"""The images that a session in containers needs, made where they are not there yet."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pestfleet.case import Case
from pestfleet.settings import ImageSettings
from pestfleet_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from docker import DockerClient

    from pestfleet.session import Session

# Lines of a build that people see; what the builder writes goes into the log.
_NEWS = ("building ", "looking ", "pushing ")

logger = logging.getLogger(__name__)

Say = Callable[[str], None]

DIGEST = "PESTFLEET_DIGEST"  # in a case image's environment: the digest of its case


def make_images(
    session: Session, image: ImageSettings, say: Say, *, master: bool = True
) -> dict[str, str]:
    """Role -> reference, of worker, `master`, and tunnel where the session wants one."""
    from pestfleet.images.base import ensure_image
    from pestfleet.images.program import ensure_master_image

    tell = make_teller(say)
    spec = session.spec
    case = Case.read(session.folder.case / Path(spec.control_file).name)
    made = {"worker": spec.place.image}
    if not made["worker"]:
        from pestfleet.images.case import ensure_case_image

        built = ensure_case_image(
            case,
            image,
            options=spec.options,
            on_line=tell,
            on_problem=lambda problem: say(str(problem)),
        )
        made["worker"] = built.reference
    if master:
        program = session.find_program() if spec.place.master == "there" else None
        made["master"] = ensure_master_image(image, program=program, on_line=tell)
    if spec.place.tunnel:
        made["tunnel"] = ensure_image("tunnel", image, on_line=tell)
    return made


def make_teller(say: Say) -> Say:
    """Who tells how far builds are: all goes into the log, and news to `say`."""

    def tell(line: str) -> None:
        logger.info("%s", line)
        say(line if line.startswith(_NEWS) else "")  # who says may also stop

    return tell


def check_case_image(client: DockerClient, image: str, case: Case, *, whole: bool) -> None:
    """Raises `ConfigurationError` for an image that has not this case in it.

    `whole`: the control file counts in full, for the master takes it from there; the workers do
    with what a run depends on. The image is pulled when it is not there.
    """
    import docker.errors

    from pestfleet.images.case import CONTROL_LABEL, hash_control

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
