"""A registry, both docker composes, and a terminal with them; tests/docker_fixtures.py has more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from compose_program import ensure_compose
from compose_shell import Shell, open_shell
from image_registry import Registry, run_registry


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
