"""An account at Amazon's for a test: moto, completed, on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# boto3 keeps what it finds there when it is imported first.
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

import docker
import pytest

from amazon_shell import PUBLIC, AmazonShell
from ecs_containers import ContainerHost, run_container_host
from ecs_scheduler import EcsScheduler, run_scheduler
from image_registry import Registry, run_registry
from image_store import lead_to_store
from moto_server import Amazon, run_amazon


@pytest.fixture(scope="session")
def amazon_server() -> Iterator[Amazon]:
    """The servers; `amazon` empties the account for each test."""
    with run_amazon() as made:
        yield made


@pytest.fixture
def amazon(amazon_server: Amazon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Amazon]:
    """An empty account. The environment of this process leads to it; so do programs started."""
    amazon_server.reset()
    for name, value in amazon_server.environment.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    yield amazon_server
    defects = list(amazon_server.defects)
    amazon_server.reset()
    assert not defects, defects


@pytest.fixture
def scheduler(amazon: Amazon) -> Iterator[EcsScheduler]:
    """ECS's scheduler for tasks that only pretend to run."""
    with run_scheduler(amazon) as made:
        yield made


@pytest.fixture(scope="session")
def image_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry for all tests: what is the same in all images is pushed once."""
    with run_registry(tmp_path_factory.mktemp("image-store")) as made:
        yield made


@pytest.fixture(scope="session")
def pushed_images(
    docker_engine: docker.DockerClient,
    image_registry: Registry,
    ensure: Callable[[str], str],
    broker_image: str,
) -> None:
    """What images of all sessions have in common is in the registry: no test waits for that."""
    for role in ("worker", "master", "tunnel", "broker"):
        name = f"{image_registry.address}/pestfleet/all"
        docker_engine.images.get(broker_image if role == "broker" else ensure(role)).tag(name, role)
        for line in docker_engine.images.push(name, role, stream=True, decode=True):
            assert "error" not in line, line
        docker_engine.images.remove(f"{name}:{role}")


@pytest.fixture
def image_store(amazon: Amazon, image_registry: Registry) -> Iterator[Registry]:
    """A registry in ECR's place: images can be pushed to where `repositoryUri` says."""
    with lead_to_store(amazon, image_registry):
        yield image_registry


@pytest.fixture
def container_host(
    amazon: Amazon, image_store: Registry, docker_engine: docker.DockerClient
) -> Iterator[ContainerHost]:
    """Where the tasks of `container_scheduler` run."""
    with run_container_host(amazon, docker_engine) as made:
        yield made


@pytest.fixture
def container_scheduler(amazon: Amazon, container_host: ContainerHost) -> Iterator[EcsScheduler]:
    """ECS's scheduler for tasks whose containers run with the local Docker engine."""
    with run_scheduler(amazon, start_machine=container_host.start_machine) as made:
        yield made


@pytest.fixture
def shell(
    tmp_path: Path,
    amazon: Amazon,
    container_scheduler: EcsScheduler,
    broker_image: str,
    pushed_images: None,
    image_environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[AmazonShell]:
    """The command line of pestfleet, with an account in which tasks run their containers."""
    for name, value in PUBLIC.items():
        monkeypatch.setenv(name, value)
    made = AmazonShell(tmp_path, amazon, container_scheduler)
    try:
        yield made
    finally:
        made.close()
