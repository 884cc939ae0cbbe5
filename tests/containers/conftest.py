"""A Docker engine for the tests, with the base image, our images, and both docker composes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest

from base_image import CERTIFICATES, ensure_base
from compose_program import ensure_compose
from compose_shell import Shell, open_shell
from docker_engine import VARIABLE, DockerEngine
from image_registry import Registry, run_registry
from pestfleet.images.base import ensure_image
from pestfleet.images.context import FILES
from pestfleet.settings import ImageSettings

ROOT = Path(__file__).resolve().parents[2]
BROKER = "pestfleet-test-broker"

_STATES = {"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"}


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[docker.DockerClient]:
    """An engine for all tests, ours or the one of PESTFLEET_TEST_DOCKER; DOCKER_HOST names it."""
    url = os.environ.get(VARIABLE, "")
    own = None if url else DockerEngine()
    before = {name: os.environ.pop(name) for name in _STATES if name in os.environ}
    try:
        if own is not None:
            own.start()
            url = own.url
        os.environ["DOCKER_HOST"] = url
        with closing(docker.DockerClient(base_url=url)) as client:
            yield client
    finally:
        os.environ.pop("DOCKER_HOST", None)
        os.environ.update(before)
        if own is not None:
            own.stop()


@pytest.fixture(scope="session")
def image_settings(docker_engine: docker.DockerClient) -> ImageSettings:
    """The settings of `[image]` that builds need here; the base image is there."""
    return ImageSettings(
        base=ensure_base(docker_engine), network="host", ca=str(CERTIFICATES), broker=BROKER
    )


@pytest.fixture(scope="session")
def ensure(
    docker_engine: docker.DockerClient, image_settings: ImageSettings
) -> Callable[[str], str]:
    """Builds the image of a role with pestfleet's own code, and returns its name."""

    def build(role: str) -> str:
        folder = ROOT / "images" / role if role == "broker" else None
        return ensure_image(role, image_settings, engine=docker_engine, folder=folder)

    return build


@pytest.fixture(scope="session")
def worker_image(ensure: Callable[[str], str]) -> str:
    return ensure("worker")


@pytest.fixture(scope="session")
def master_image(ensure: Callable[[str], str]) -> str:
    return ensure("master")


@pytest.fixture(scope="session")
def tunnel_image(ensure: Callable[[str], str]) -> str:
    assert (FILES / "tunnel" / "Dockerfile").is_file()
    return ensure("tunnel")


@pytest.fixture(scope="session")
def broker_image(docker_engine: docker.DockerClient, ensure: Callable[[str], str]) -> str:
    docker_engine.images.get(ensure("broker")).tag(BROKER)
    return BROKER


@pytest.fixture
def image_environment(
    image_settings: ImageSettings,
    _no_settings_of_the_user: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commands of pestfleet build and run here as the tests do."""
    for name in ("base", "network", "ca", "broker"):
        monkeypatch.setenv(f"PESTFLEET_IMAGE__{name.upper()}", getattr(image_settings, name))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry of the test's own."""
    with run_registry(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def compose_plugin() -> Path:
    """The folder for DOCKER_CONFIG that has docker compose version 2."""
    return ensure_compose()


@pytest.fixture
def compose_v2(compose_plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker compose` is version 2."""
    monkeypatch.setenv("DOCKER_CONFIG", str(compose_plugin))


@pytest.fixture
def compose_v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no `docker compose`, only Debian's docker-compose 1.29."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-plugins"))


@pytest.fixture(
    params=[pytest.param("compose_v2", marks=pytest.mark.compose_v2), "compose_v1"],
)
def each_compose(request: pytest.FixtureRequest) -> str:
    """Both docker composes, one after the other."""
    name: str = request.param
    request.getfixturevalue(name)
    return name


@pytest.fixture
def shell(
    tmp_path: Path, docker_engine: docker.DockerClient, broker_image: str, image_environment: None
) -> Iterator[Shell]:
    """The command line of pestfleet, with the engine; of its sessions nothing stays."""
    with open_shell(tmp_path, docker_engine) as made:
        yield made
