"""Our images: small, for any user, without rights, secrets or traces of their making."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest
from docker.models.containers import Container

from cases import make_case
from image_registry import Registry
from pestfleet.images.base import ensure_image
from pestfleet.images.context import make_context
from pestfleet.settings import ImageSettings
from pestfleet_worker.errors import TargetError

pytestmark = pytest.mark.docker

MEGABYTE = 1_000_000
SENT_AWAY = 12  # docs/exit-codes.md
SOME_UID = "4711:4711"
LOCKED = {
    "user": SOME_UID,
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}
BROKER_CONFIGURATION = "listeners.tcp.default = 5672\nloopback_users = none\n"
WRITABLE = {name: value for name, value in LOCKED.items() if name != "read_only"}


@contextmanager
def run_container(
    engine: docker.DockerClient, image: str, command: list[str] | None = None, **how: Any
) -> Iterator[Container]:
    """A container while the block runs; it is removed afterwards."""
    container = engine.containers.run(
        image, command, detach=True, name=f"pestfleet-test-{uuid4().hex[:8]}", **how
    )
    try:
        yield container
    finally:
        container.remove(force=True, v=True)


def wait_for(condition: Callable[[], Any], container: Container, timeout: float = 300.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, container.logs().decode()
        time.sleep(0.1)


def finish(container: Container) -> str:
    """What it wrote, after it has ended with exit code 0."""
    code = container.wait(timeout=600)["StatusCode"]
    text: str = container.logs().decode()
    assert code == 0, text
    return text


def execute(container: Container, *command: str) -> tuple[int, str]:
    code, output = container.exec_run(list(command))
    return code, output.decode()


@pytest.fixture(scope="module")
def network(docker_engine: docker.DockerClient) -> Iterator[str]:
    made = docker_engine.networks.create(f"pestfleet-test-{uuid4().hex[:8]}")
    yield made.name
    made.remove()


@pytest.fixture(scope="module")
def broker(
    docker_engine: docker.DockerClient,
    broker_image: str,
    network: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Container]:
    """A broker without TLS; the network knows it by its name."""
    secrets = tmp_path_factory.mktemp("secrets")
    (secrets / "rabbitmq.conf").write_text(BROKER_CONFIGURATION)
    secrets.chmod(0o755)
    (secrets / "rabbitmq.conf").chmod(0o644)
    with run_container(
        docker_engine,
        broker_image,
        hostname="broker",
        network=network,
        volumes={str(secrets): {"bind": "/secrets", "mode": "ro"}},
        environment={"RABBITMQ_CONFIG_FILE": "/secrets/rabbitmq.conf"},
        tmpfs={"/tmp": "", "/var/log/rabbitmq": "mode=1777", "/var/lib/rabbitmq": "mode=1777"},
        **LOCKED,
    ) as container:
        wait_for(lambda: b"Server startup complete" in container.logs(), container)
        yield container


@pytest.fixture
def url_file(broker: Container, tmp_path: Path) -> Path:
    path = tmp_path / "broker-url"
    path.write_text(f"amqp://guest:guest@{broker.name}:5672//")
    path.chmod(0o644)
    return path


@pytest.fixture(params=["worker", "master"])
def image(request: pytest.FixtureRequest) -> str:
    name: str = request.getfixturevalue(f"{request.param}_image")
    return name


def test_sizes(
    docker_engine: docker.DockerClient,
    image_settings: ImageSettings,
    worker_image: str,
    master_image: str,
    record_property: Callable[[str, object], None],
) -> None:
    base = docker_engine.images.get(image_settings.base).attrs["Size"]
    above = {
        name: (docker_engine.images.get(name).attrs["Size"] - base) / MEGABYTE
        for name in (worker_image, master_image)
    }
    for name, size in above.items():
        record_property(f"{name} above its base, MB", round(size))
    assert above[worker_image] <= 100
    assert above[master_image] <= 500


def test_labels(
    docker_engine: docker.DockerClient, image_settings: ImageSettings, image: str
) -> None:
    found = docker_engine.images.get(image)
    role = image.partition(":")[0].removeprefix("pestfleet-")
    context = make_context(role, base=image_settings.base, ca=image_settings.ca)

    assert image == f"pestfleet-{role}:{version('pestfleet')}"
    assert found.labels["pestfleet.role"] == role
    assert found.labels["pestfleet.context"] == context.digest
    assert found.labels["org.opencontainers.image.title"] == f"pestfleet-{role}"
    assert found.labels["org.opencontainers.image.version"] == version("pestfleet")
    assert found.labels["org.opencontainers.image.base.name"] == image_settings.base
    assert found.labels["org.opencontainers.image.licenses"] == "BSD-3-Clause"
    assert found.attrs["Config"]["User"] == "10001:10001"


def test_a_second_build_builds_nothing(
    docker_engine: docker.DockerClient, image_settings: ImageSettings, image: str
) -> None:
    role = image.partition(":")[0].removeprefix("pestfleet-")
    before = docker_engine.images.get(image).id
    lines: list[str] = []

    name = ensure_image(role, image_settings, engine=docker_engine, on_line=lines.append)

    assert (name, lines) == (image, [])
    assert docker_engine.images.get(image).id == before


def test_an_image_of_other_files_is_built_anew_and_replaces_the_old_one(
    docker_engine: docker.DockerClient, image_settings: ImageSettings, tmp_path: Path
) -> None:
    role = f"test-{uuid4().hex[:8]}"
    ids = []
    try:
        for text in ("one", "two"):
            (tmp_path / "Dockerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nENV TEXT={text}\n")
            name = ensure_image(role, image_settings, engine=docker_engine, folder=tmp_path)
            ids.append(docker_engine.images.get(name).id)
            assert f"TEXT={text}" in docker_engine.images.get(name).attrs["Config"]["Env"]
        assert [
            image.id
            for image in docker_engine.images.list(filters={"label": f"pestfleet.role={role}"})
        ] == [ids[1]]
    finally:
        docker_engine.images.remove(name)


def test_an_image_that_a_registry_has_is_pulled_and_not_built(
    docker_engine: docker.DockerClient,
    image_settings: ImageSettings,
    registry: Registry,
    tmp_path: Path,
) -> None:
    (tmp_path / "files").mkdir()
    dockerfile = tmp_path / "files" / "Dockerfile"
    settings = image_settings.model_copy(update={"registry": registry.address})
    role = f"test-{uuid4().hex[:8]}"

    def ensure(text: str) -> tuple[str, bool]:
        """The image's name, and was it built?"""
        lines: list[str] = []
        dockerfile.write_text(f"ARG BASE\nFROM ${{BASE}}\nENV TEXT={text}\n")
        name = ensure_image(
            role, settings, engine=docker_engine, folder=dockerfile.parent, on_line=lines.append
        )
        return name, f"building image {name}" in lines

    name, built = ensure("one")
    try:
        assert built
        assert name.startswith(f"{registry.address}/pestfleet-{role}:")
        docker_engine.images.push(name)
        docker_engine.images.remove(name)

        assert ensure("one") == (name, False)
        # What the registry has is of other files.
        assert ensure("two") == (name, True)
    finally:
        docker_engine.images.remove(name)


def test_an_image_with_a_name_of_the_users_stays(
    docker_engine: docker.DockerClient, image_settings: ImageSettings, tmp_path: Path
) -> None:
    role = f"test-{uuid4().hex[:8]}"
    for text in ("one", "two"):
        (tmp_path / "Dockerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nENV TEXT={text}\n")
        name = ensure_image(role, image_settings, engine=docker_engine, folder=tmp_path)
        if text == "one":
            docker_engine.images.get(name).tag(role, "kept")
    docker_engine.images.remove(name)

    assert "TEXT=one" in docker_engine.images.get(f"{role}:kept").attrs["Config"]["Env"]

    docker_engine.images.remove(f"{role}:kept")


def test_a_base_that_cannot_be_had(
    docker_engine: docker.DockerClient, image_settings: ImageSettings
) -> None:
    settings = image_settings.model_copy(update={"base": "localhost:1/pestfleet-test/nothing:1"})

    with pytest.raises(TargetError, match="cannot be built") as caught:
        ensure_image("worker", settings, engine=docker_engine)

    assert "PESTFLEET_IMAGE__BASE" in caught.value.remedy


def test_nothing_of_the_making_is_left(docker_engine: docker.DockerClient, image: str) -> None:
    find = (
        "find / -xdev \\( -path /proc -o -path /sys \\) -prune -o \\( "
        "-perm /6000 -type f -o -name 'pip' -o -name 'pip-*' -o -name '*.whl' -o -name ca.pem "
        "-o -name 'gcc*' -type f -perm /111 -o -name '.cache' -o -name '*.opt-?.pyc' "
        "-o -path '/var/lib/apt/lists/*' -type f -o -path '/var/cache/apt/*.bin' \\) -print"
    )
    with run_container(
        docker_engine, image, ["-c", find], entrypoint="sh", user="0:0"
    ) as container:
        assert finish(container) == ""


def test_nothing_of_the_making_is_told(docker_engine: docker.DockerClient, image: str) -> None:
    """The package index may have a password: it belongs to the stage that is thrown away."""
    found = docker_engine.images.get(image)
    base = found.labels["org.opencontainers.image.base.name"]
    layers = len(docker_engine.images.get(base).history())
    told = [entry["CreatedBy"] for entry in found.history()[:-layers]]

    assert any("COPY" in text for text in told)
    assert not [text for text in told if "INDEX" in text or "ca.pem" in text or "pip" in text]
    assert not [text for text in found.attrs["Config"]["Env"] if "PIP" in text]


def test_runs_as_anybody_without_rights(docker_engine: docker.DockerClient, image: str) -> None:
    with run_container(docker_engine, image, ["--help"], **LOCKED) as container:
        assert "usage" in finish(container).lower()


def test_the_worker_finds_what_a_model_may_need(
    docker_engine: docker.DockerClient, worker_image: str
) -> None:
    """Its own Python is not the model's."""
    script = "import sys; print(sys.prefix, sys.version_info >= (3, 11))"
    for name in ("python", "python3"):
        with run_container(
            docker_engine, worker_image, ["-c", script], entrypoint=name, **LOCKED
        ) as container:
            assert finish(container) == "/usr True\n"


@pytest.mark.parametrize(
    ("role", "path"), [("worker", "/scratch/alive"), ("master", "/session/some-id/state.json")]
)
def test_health(
    docker_engine: docker.DockerClient, request: pytest.FixtureRequest, role: str, path: str
) -> None:
    image = request.getfixturevalue(f"{role}_image")
    check = docker_engine.images.get(image).attrs["Config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    with run_container(
        docker_engine, image, ["--", "sleep", "600"], entrypoint="tini", **WRITABLE
    ) as container:
        assert execute(container, *check[1:])[0] == 1
        for age, code in (("now", 0), ("2 minutes ago", 1)):
            mend = f"mkdir -p {Path(path).parent} && touch -d '{age}' {path}"
            assert execute(container, "sh", "-c", mend) == (0, "")
            assert execute(container, *check[1:])[0] == code


def test_init_reaps_orphans(docker_engine: docker.DockerClient, image: str) -> None:
    orphan = "sleep 0.1 & echo $!"
    with run_container(
        docker_engine, image, ["--", "sleep", "600"], entrypoint="tini", **LOCKED
    ) as container:
        assert docker_engine.images.get(image).attrs["Config"]["Entrypoint"][:2] == ["tini", "--"]
        code, pid = execute(container, "sh", "-c", orphan)
        assert code == 0
        wait_for(lambda: execute(container, "test", "-e", f"/proc/{pid.strip()}")[0], container, 10)


def test_a_worker_is_healthy_at_a_broker_and_leaves_when_told(
    docker_engine: docker.DockerClient,
    worker_image: str,
    network: str,
    url_file: Path,
) -> None:
    check = docker_engine.images.get(worker_image).attrs["Config"]["Healthcheck"]["Test"][1:]
    with run_container(
        docker_engine,
        worker_image,
        ["--session", "nobody-hosts-it"],
        network=network,
        tmpfs={"/tmp": "", "/scratch": "exec,mode=1777"},
        volumes={str(url_file): {"bind": "/secrets/broker-url", "mode": "ro"}},
        environment={"PESTFLEET_BROKER_FILE": "/secrets/broker-url"},
        **LOCKED,
    ) as container:
        wait_for(lambda: execute(container, *check)[0] == 0, container)

        container.stop(timeout=120)

        assert container.wait()["StatusCode"] == SENT_AWAY, container.logs().decode()


def test_three_containers_without_rights_make_a_session(
    docker_engine: docker.DockerClient,
    worker_image: str,
    master_image: str,
    network: str,
    url_file: Path,
    tmp_path: Path,
) -> None:
    case = make_case(tmp_path / "case")
    for path in [tmp_path, *case.parent.rglob("*"), case.parent]:
        path.chmod(path.stat().st_mode | 0o555)
    session = f"test-{uuid4().hex[:8]}"
    shared = {
        "network": network,
        "environment": {"PESTFLEET_BROKER_FILE": "/secrets/broker-url"},
        "volumes": {
            str(url_file): {"bind": "/secrets/broker-url", "mode": "ro"},
            str(case.parent): {"bind": "/case", "mode": "ro"},
        },
        **LOCKED,
    }
    host = ["host", f"/case/{case.name}", "--session", session, "--engine", "glm"]
    with (
        run_container(
            docker_engine,
            master_image,
            host,
            tmpfs={"/tmp": "", "/session": "mode=1777"},
            **shared,
        ) as master,
        run_container(
            docker_engine,
            worker_image,
            ["--session", session, "--slots", "2"],
            tmpfs={"/tmp": "", "/scratch": "exec,mode=1777"},
            **shared,
        ) as worker,
    ):
        code = master.wait(timeout=600)["StatusCode"]
        assert code == 0, f"{master.logs().decode()}\n{worker.logs().decode()}"
        # The worker's code says that the session is over.
        finish(worker)


def test_the_master_image_has_what_the_engines_need(
    docker_engine: docker.DockerClient, master_image: str
) -> None:
    script = (
        "import pestfleet.engines.glm, pestfleet.engines.ies, pestfleet.plots, scipy.linalg\n"
        "import iterative_ensemble_smoother, docker, cryptography, matplotlib.pyplot, pandas\n"
    )
    with run_container(
        docker_engine,
        master_image,
        ["-c", script],
        entrypoint="/opt/pestfleet/bin/python",
        tmpfs={"/tmp": ""},
        **LOCKED,
    ) as container:
        assert finish(container) == ""
