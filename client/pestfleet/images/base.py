"""The images of our own: worker, master, tunnel. Each is built once for what it is built from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from filelock import FileLock

from pestfleet.images.context import make_context
from pestfleet.images.engine import build_image, connect_engine, explain_errors

if TYPE_CHECKING:
    from docker import DockerClient

ROLE_LABEL = "pestfleet.role"
CONTEXT_LABEL = "pestfleet.context"


class ImageSettings(Protocol):
    """What of the settings' table `[image]` is needed here; see `pestfleet.settings`."""

    @property
    def base(self) -> str: ...
    @property
    def registry(self) -> str: ...
    @property
    def index(self) -> str: ...
    @property
    def ca(self) -> str: ...
    @property
    def network(self) -> str: ...


def name_image(role: str, *, registry: str = "") -> str:
    """`[REGISTRY/]pestfleet-ROLE:VERSION`."""
    prefix = f"{registry.rstrip('/')}/" if registry else ""
    return f"{prefix}pestfleet-{role}:{version('pestfleet').replace('+', '-')}"


def ensure_image(
    role: str,
    settings: ImageSettings,
    *,
    on_line: Callable[[str], None] = lambda line: None,
    engine: DockerClient | None = None,
    folder: Path | None = None,
) -> str:
    """The reference of the image of a role; it is built unless there is one that fits.

    An image fits that was built from the same files and arguments; with a registry one is looked
    for there, too. `on_line` gets lines that tell how far it is. `folder` has the Dockerfile,
    when it is not one of ours. Raises `TargetError` and `ConfigurationError`.
    """
    context = make_context(
        role, base=settings.base, index=settings.index, ca=settings.ca, folder=folder
    )
    name = name_image(role, registry=settings.registry)
    labels = {ROLE_LABEL: role, CONTEXT_LABEL: context.digest}
    engine_there = closing(connect_engine()) if engine is None else nullcontext(engine)
    with _one_at_a_time(), engine_there as client:
        if _find_image(client, name, labels):
            return name
        if settings.registry:
            on_line(f"looking for image {name} in the registry")
            if _pull_image(client, name) and _find_image(client, name, labels):
                return name
        on_line(f"building image {name}")
        old = find_named_images(client, name)
        old_stages = list_stages(client, role)
        build_image(
            client,
            context.pack(),
            tag=name,
            build_args=context.build_args,
            labels=labels,
            network=settings.network,
            on_line=on_line,
        )
        # The builder keeps the stage that an image was made in, which makes the next build fast,
        # until there is a newer one. What has lost its name to the new image goes, too.
        if list_stages(client, role) - old_stages:
            old |= old_stages
        remove_nameless_images(client, old - find_named_images(client, name))
    return name


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """What a build removes after it, another one may be about to use."""
    lock = FileLock(Path(tempfile.gettempdir()) / "pestfleet-build.lock")
    try:
        lock.acquire()
    except OSError:  # another user's: then the engine is hardly the same
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _find_image(engine: DockerClient, name: str, labels: dict[str, str]) -> bool:
    """Is there an image with these labels? It has the name then."""
    filters = {"label": [f"{label}={value}" for label, value in labels.items()]}
    with explain_errors(f"image {name} cannot be looked up"):
        found = engine.images.list(filters=filters)
        if found and not any(name in image.tags for image in found):
            found[0].tag(name)
    return bool(found)


def _pull_image(engine: DockerClient, name: str) -> bool:
    """Pull an image; False when the registry has none, or does not answer the engine."""
    from docker.errors import APIError

    with explain_errors(f"image {name} cannot be pulled"):
        try:
            engine.images.pull(name)
        except APIError:
            return False
    return True


def find_named_images(engine: DockerClient, name: str) -> set[str]:
    """Ids of the images (one, or none) that have a name."""
    with explain_errors("images cannot be listed"):
        return {image["Id"] for image in engine.api.images(name)}


def list_stages(engine: DockerClient, role: str) -> set[str]:
    """Ids of the images, without a name, of the stages that images of a role were made in."""
    filters = {"dangling": True, "label": f"{ROLE_LABEL}={role}-build"}
    with explain_errors("images cannot be listed"):
        # The engine's own list: the SDK's looks at each image again, which may be gone by then.
        return {image["Id"] for image in engine.api.images(filters=filters)}


def remove_nameless_images(engine: DockerClient, ids: set[str]) -> None:
    """Remove images that have no name; the engine refuses for those in use, which is right."""
    from docker.errors import APIError

    for image in ids:
        with explain_errors(f"image {image} cannot be removed"):
            try:
                if not engine.images.get(image).tags:
                    engine.images.remove(image)
            except APIError as error:
                if error.status_code not in (404, 409):
                    raise
