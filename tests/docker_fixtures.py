"""Fixtures with a Docker engine: the base image, our images built on it, what commands need.

A plugin of tests/conftest.py. What builds images is imported when one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from docker_engine import run_engine

if TYPE_CHECKING:
    import docker

    from pestfleet.settings import ImageSettings

ROOT = Path(__file__).resolve().parents[1]
BROKER = "pestfleet-test-broker"


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[docker.DockerClient]:
    """An engine for all tests, ours or the one of PESTFLEET_TEST_DOCKER; DOCKER_HOST names it."""
    with run_engine() as client:
        yield client


@pytest.fixture(scope="session")
def image_settings(docker_engine: docker.DockerClient) -> ImageSettings:
    """The settings of `[image]` that builds need here; the base image is there."""
    from base_image import CERTIFICATES, ensure_base
    from pestfleet.settings import ImageSettings

    return ImageSettings(
        base=ensure_base(docker_engine), network="host", ca=str(CERTIFICATES), broker=BROKER
    )


@pytest.fixture(scope="session")
def ensure(
    docker_engine: docker.DockerClient, image_settings: ImageSettings
) -> Callable[[str], str]:
    """Builds the image of a role with pestfleet's own code, and returns its name."""
    from pestfleet.images.base import ensure_image

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
