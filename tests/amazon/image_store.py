"""A registry of the tests in ECR's place: `repositoryUri` names it, and images can be pushed.

What ECR's API says of images is what the registry has.
"""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from moto.ecr.models import ECRBackend, Image

from image_registry import Registry
from moto_server import Amazon

_REPOSITORIES = "docker/registry/v2/repositories"
_KINDS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@contextmanager
def lead_to_store(amazon: Amazon, registry: Registry) -> Iterator[None]:
    """The account's repositories are in a registry while the block runs; it begins without images.

    Layers of earlier blocks stay, so that they are not pushed again.
    """
    for name in _list_repositories(registry):
        _forget_images(registry, name)
    with ExitStack() as stack:
        for name in ("list_images", "describe_images", "batch_get_image", "batch_delete_image",
                     "delete_repository"):  # fmt: skip
            _look_first(stack, name, registry)
        amazon.registry = registry.address
        try:
            yield
        finally:
            amazon.registry = ""


def _list_repositories(registry: Registry) -> list[str]:
    top = registry.folder / _REPOSITORIES
    return [str(path.parent.relative_to(top)) for path in top.rglob("_manifests")]


def _forget_images(registry: Registry, repository: str) -> None:
    """Its layers stay."""
    folder = registry.folder / _REPOSITORIES / repository / "_manifests"
    shutil.rmtree(folder, ignore_errors=True)


def _look_first(stack: ExitStack, name: str, registry: Registry) -> None:
    """Let a method of moto's see what was pushed since it was called last."""
    method = getattr(ECRBackend, name)

    def look_first(self: Any, *args: Any, **more: Any) -> Any:
        repository = args[0] if args else more["repository_name"]
        known = self.repositories.get(repository)
        if known is not None:
            _read_images(registry, known)
        answer = method(self, *args, **more)
        if name == "delete_repository":
            _forget_images(registry, repository)
        return answer

    stack.enter_context(patch.object(ECRBackend, name, look_first))


def _read_images(registry: Registry, repository: Any) -> None:
    present = {tag: image for image in repository.images for tag in image.image_tags}
    for tag in _ask(registry, f"{repository.name}/tags/list").get("tags") or ():
        manifest, digest = _read_manifest(registry, repository.name, tag)
        if tag in present and present[tag].get_image_digest() == digest:
            continue
        for image in repository.images:
            image.image_tags = [one for one in image.image_tags if one != tag]
        repository.images.append(
            Image(
                account_id=repository.account_id,
                tag=tag,
                manifest=manifest,
                repository=repository.name,
                digest=digest,
            )
        )


def _ask(registry: Registry, path: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://{registry.address}/v2/{path}") as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        if error.code == 404:  # nothing was pushed yet
            return {}
        raise


def _read_manifest(registry: Registry, name: str, tag: str) -> tuple[str, str]:
    """A manifest's text and digest."""
    request = urllib.request.Request(
        f"http://{registry.address}/v2/{name}/manifests/{tag}",
        headers={"Accept": ", ".join(_KINDS)},
    )
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode(), answer.headers["Docker-Content-Digest"]
