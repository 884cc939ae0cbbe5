"""Our images in the registry that a test's Kubernetes pulls from."""

from __future__ import annotations

from dataclasses import dataclass

import docker

from pestfleet.images.catalog import push_image

ROLES = ("worker", "master", "tunnel", "broker")


@dataclass(frozen=True, slots=True)
class PushedImage:
    """An image as the registry has it. `name`: with the registry, without a tag."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def reference(self) -> str:
        """By its tag."""
        return f"{self.name}:{self.tag}"

    @property
    def exact(self) -> str:
        """By its digest."""
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True, slots=True)
class ClusterImages:
    """The images of a session, but for that of its case."""

    registry: str
    worker: PushedImage
    master: PushedImage
    tunnel: PushedImage
    broker: PushedImage


def push(engine: docker.DockerClient, image: str, registry: str) -> PushedImage:
    """Push an image of the engine, which has no name for that registry afterwards."""
    repository, _, tag = image.rpartition("/")[2].partition(":")
    there = f"{registry}/{repository}:{tag or 'latest'}"
    engine.images.get(image).tag(there)
    try:
        digest = push_image(engine, there).partition("@")[2]
    finally:
        engine.images.remove(there)
    return PushedImage(registry, repository, tag or "latest", digest)


def list_tags(engine: docker.DockerClient, registry: str) -> set[str]:
    """The engine's names of images in a registry."""
    tags = {tag for image in engine.api.images() for tag in image.get("RepoTags") or ()}
    return {tag for tag in tags if tag.startswith(f"{registry}/")}
