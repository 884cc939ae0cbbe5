"""Case images: the worker image with a case's files, built only when something has changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pestfleet.case import Case
from pestfleet.checks.problem import Problem, Problems
from pestfleet.images.base import (
    CONTEXT_LABEL,
    ROLE_LABEL,
    ensure_image,
    find_named_images,
    list_stages,
    remove_nameless_images,
)
from pestfleet.images.contents import ImageContents, read_contents
from pestfleet.images.engine import build_image, connect_engine, explain_errors
from pestfleet.images.inspection import Inspection
from pestfleet.images.layers import Layer, hash_layer, plan_layers, stream_context
from pestfleet.images.model_programs import check_programs
from pestfleet.images.recipe import (
    PACKAGES,
    list_texts,
    read_own_dockerfile,
    write_dockerfile,
    write_tail,
)
from pestfleet.images.references import check_links, check_references
from pestfleet.settings import ImageSettings
from pestfleet_worker.errors import CaseError, ConfigurationError

if TYPE_CHECKING:
    from docker import DockerClient

CASE_LABEL = "pestfleet.case"
DIGEST_LABEL = "pestfleet.case.digest"
CONTROL_LABEL = "pestfleet.case.control"  # hash of what the digest does not count in full
WORKER_LABEL = "pestfleet.worker"  # the image that it was built on
CASE_ROLE = "case"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REGISTRY = r"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?/)?"
_REFERENCE = re.compile(
    rf"{_REGISTRY}{_COMPONENT}(?:/{_COMPONENT})*(?::[A-Za-z0-9_][\w.-]{{0,127}})?"
)
_OCI = "org.opencontainers.image"

Say = Callable[[str], None]


class ImageProblems(CaseError):
    """A case of which no image can be built; `problems` has all of them, warnings too."""

    def __init__(self, problems: list[Problem]) -> None:
        errors = [problem for problem in problems if problem.severity == "error"]
        super().__init__("\n".join(map(str, errors)), remedy="No image was built.")
        self.problems = problems


@dataclass(frozen=True, slots=True)
class CaseImage:
    """An image with a case. `digest`: of the case; `context`: of all that it was built from."""

    reference: str
    id: str
    digest: str
    context: str = ""
    built: bool = False


@dataclass(frozen=True, slots=True)
class CasePlan:
    """What an image of a case is built from, before anything is built.

    `texts`: files of the context beside the layers; `dockerfile`: whole, but for the label that
    has the hash of all this.
    """

    case: Case
    image: ImageSettings
    layers: tuple[Layer, ...]
    texts: Mapping[str, bytes]
    dockerfile: str

    @property
    def has_packages(self) -> bool:
        return bool(self.image.apt or self.image.pip)

    def compute_context(self, worker: str) -> str:
        """Hex sha256 of all that the image is built from; `worker`: id of the worker image."""
        parts: list[tuple[str, str]] = [("worker", worker), ("dockerfile", self.dockerfile)]
        parts.append(("index", self.image.index if self.image.pip else ""))
        parts += [(name, hashlib.sha256(text).hexdigest()) for name, text in self.texts.items()]
        parts += [(layer.archive, hash_layer(layer)) for layer in self.layers]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def hash_control(case: Case) -> str:
    """Hex sha256 of the control file with its external tables.

    A run, and so the case's digest, does not depend on all of it: on weights and measurements it
    does not. A master that reads the case from an image does. Raises `CaseError`.
    """
    digest = hashlib.sha256()
    tables = sorted(file.pest for file in case.control.external_files)
    for path in (case.control.path, *(case.folder / name for name in tables)):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
        digest.update(b"%d\0" % len(content) + content)
    return digest.hexdigest()


def plan_image(
    case: Case, image: ImageSettings, *, options: Mapping[str, str] | None = None
) -> CasePlan:
    """Files and Dockerfile of a case's image. `options`: those of the engine, whose files go along.

    Raises `CaseError` and `ConfigurationError`.
    """
    layers = tuple(plan_layers(case.control, options or {}))
    own = read_own_dockerfile(case.folder, image) if image.dockerfile else ""
    labels = {
        ROLE_LABEL: CASE_ROLE,
        CASE_LABEL: case.name,
        DIGEST_LABEL: case.digest,
        CONTROL_LABEL: hash_control(case),
        f"{_OCI}.title": case.name,
        f"{_OCI}.description": f"The PEST case {case.name}, for workers of pestfleet",
        f"{_OCI}.version": case.digest[:12],
        f"{_OCI}.licenses": "",  # not that of the worker image
    }
    text = write_dockerfile(case.name, layers, image, own=own) + write_tail(labels, case.digest)
    return CasePlan(case, image, layers, list_texts(image) if image.pip else {}, text)


def check_image(
    plan: CasePlan, contents: ImageContents | None, *, whole: bool = True
) -> list[Problem]:
    """All that keeps the case from running in an image. Nothing is written or started.

    `contents`: what the image has without the case, None where there is none yet; `whole`: with
    the packages that `[image]` names.
    """
    case = plan.case
    problems = Problems(case.problems(local=False))
    files = {file.name: file for layer in plan.layers for file in layer.files}
    told = frozenset(problem.place for problem in problems.errors)
    check_programs(case.control, Inspection(files, problems, plan.image, contents, whole, told))
    check_references(case.control, files.values(), problems, contents)
    check_links(case.folder, files.values(), problems)
    return problems


def find_contents(engine: DockerClient, plan: CasePlan) -> tuple[ImageContents | None, bool]:
    """What the image has, as far as it is there already, and whether that is whole.

    For a look at what a build would do.
    """
    from docker.errors import ImageNotFound

    from pestfleet.images.base import name_image

    try:
        with explain_errors("the worker image cannot be looked into"):
            worker = name_image("worker", registry=plan.image.registry)
            contents = read_contents(engine, worker)
    except Exception as error:
        if isinstance(error.__cause__, ImageNotFound):
            return None, False
        raise
    return contents, not plan.has_packages and not plan.image.dockerfile


def ensure_case_image(
    case: Case,
    image: ImageSettings,
    *,
    options: Mapping[str, str] | None = None,
    tag: str = "",
    on_line: Say = lambda line: None,
    on_problem: Callable[[Problem], None] = lambda problem: None,
    engine: DockerClient | None = None,
) -> CaseImage:
    """The image of a case; it is checked and built unless there is one of the same files.

    `tag`: its name, else pestfleet-case-NAME:HASH. `options`: those of the engine. `on_line`
    gets lines that tell how far it is, `on_problem` the warnings. Raises `ImageProblems` with
    errors of the case, `TargetError` where the engine fails, and `ConfigurationError`.
    """
    plan = plan_image(case, image, options=options)
    with closing(connect_engine()) if engine is None else nullcontext(engine) as client:
        worker = ensure_image("worker", image, on_line=on_line, engine=client)
        with explain_errors(f"image {worker} cannot be looked up"):
            worker_id = client.images.get(worker).id or ""
        context = plan.compute_context(worker_id)
        reference = name_case_image(case.name, context, image, tag=tag)
        found = _find_image(client, context, reference)
        if found:
            return CaseImage(reference, found, case.digest, context)
        if not image.dockerfile:
            base = _build_packages(client, plan, worker, on_line)
            with explain_errors("the image with the case's packages cannot be looked into"):
                contents = read_contents(client, base)
            _report(check_image(plan, contents), on_problem)
        built = _build(client, plan, worker, worker_id, context, reference, on_line)
        if image.dockerfile:
            # What it installs is known when it is built.
            with explain_errors(f"image {reference} cannot be looked into"):
                contents = read_contents(client, built)
            try:
                _report(check_image(plan, contents), on_problem)
            except ImageProblems:
                with explain_errors(f"image {reference} cannot be removed"):
                    client.images.remove(reference)
                raise
    return CaseImage(reference, built, case.digest, context, built=True)


def name_case_image(name: str, context: str, image: ImageSettings, *, tag: str = "") -> str:
    """The name of a case's image: `tag`, else one made of the case's name and the hash `context`.

    The registry of the settings goes before a name that has none. Raises `ConfigurationError`.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "case"
    reference = tag or f"pestfleet-case-{plain}:{context[:12]}"
    if image.registry and "/" not in reference:
        reference = f"{image.registry}/{reference}"
    if not _REFERENCE.fullmatch(reference):
        raise ConfigurationError(
            f"{reference!r} is not the name of an image",
            remedy="It has small letters, digits, and . _ - between them, and may have a registry "
            "before and a tag after: registry.example.com/team/my-case:v1.",
        )
    last = reference.rpartition("/")[2]
    return reference if ":" in last else f"{reference}:latest"


def _report(problems: list[Problem], on_problem: Callable[[Problem], None]) -> None:
    if any(problem.severity == "error" for problem in problems):
        raise ImageProblems(problems)
    for problem in problems:
        on_problem(problem)


def _find_image(engine: DockerClient, context: str, reference: str) -> str:
    """The id of the image that was built from the same; it has the name then. "": none."""
    filters = {"label": [f"{ROLE_LABEL}={CASE_ROLE}", f"{CONTEXT_LABEL}={context}"]}
    with explain_errors(f"image {reference} cannot be looked up"):
        found = engine.api.images(filters=filters)
        if not found:
            return ""
        image = str(found[0]["Id"])
        if not any(reference in (one.get("RepoTags") or ()) for one in found):
            engine.api.tag(image, reference.rpartition(":")[0], reference.rpartition(":")[2])
    return image


def _build_packages(engine: DockerClient, plan: CasePlan, worker: str, on_line: Say) -> str:
    """The image that the case's files are put on."""
    if not plan.has_packages:
        return worker
    on_line("installing the packages of [image] apt and pip")
    texts = {"Dockerfile": plan.dockerfile.encode(), **plan.texts}
    return build_image(
        engine,
        stream_context(texts, ()),
        tag="with the case's packages",
        target=PACKAGES,
        build_args=_list_arguments(plan, worker),
        network=plan.image.network,
        on_line=on_line,
    )


def _build(
    engine: DockerClient,
    plan: CasePlan,
    worker: str,
    worker_id: str,
    context: str,
    reference: str,
    on_line: Say,
) -> str:
    on_line(f"building image {reference}")
    labels = {CONTEXT_LABEL: context, WORKER_LABEL: worker_id}
    old = find_named_images(engine, reference)
    old_stages = list_stages(engine, CASE_ROLE)
    texts = {"Dockerfile": plan.dockerfile.encode(), **plan.texts}
    built = build_image(
        engine,
        stream_context(texts, plan.layers),
        tag=reference,
        build_args=_list_arguments(plan, worker),
        labels=labels,
        network=plan.image.network,
        on_line=on_line,
    )
    # The stage in which pip installs is kept for the next build, until there is a newer one.
    if list_stages(engine, CASE_ROLE) - old_stages:
        old |= old_stages
    remove_nameless_images(engine, old - {built})
    return built


def _list_arguments(plan: CasePlan, worker: str) -> dict[str, str]:
    index = {"INDEX": plan.image.index} if plan.image.index and plan.image.pip else {}
    return {"WORKER": worker, **index}
