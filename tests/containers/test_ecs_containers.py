"""Containers of a task of ECS, as they are registered, with volumes of a Docker engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import docker
import pytest
from docker.models.containers import Container

from pestfleet.credentials.parts import Choices, make_credentials
from pestfleet.folder import SessionSpec
from pestfleet.placement import Placement
from pestfleet.targets.ecs.tasks import INIT, SECRET_FILES, Images, TaskPlan, make_tasks

SECRET = "s3cr3t-0123"


class Volumes:
    """The volumes of one task, and its containers; all are removed at the end."""

    def __init__(self, engine: docker.DockerClient, task: dict[str, Any]) -> None:
        self._engine = engine
        self._name = f"pestfleet-test-task-{uuid4().hex[:8]}"
        self._made: list[Container] = []
        self._task = task

    def run(self, name: str, **changes: Any) -> Container:
        """Start a container of the task; `changes` are the engine's words."""
        (given,) = [one for one in self._task["containerDefinitions"] if one["name"] == name]
        mounts = {
            f"{self._name}-{mount['sourceVolume']}": {
                "bind": mount["containerPath"],
                "mode": "ro" if mount.get("readOnly") else "rw",
            }
            for mount in given["mountPoints"]
        }
        variables = {one["name"]: one["value"] for one in given.get("environment", ())}
        words: dict[str, Any] = {
            "entrypoint": given.get("entryPoint"),
            "command": given.get("command"),
            "environment": variables | changes.pop("variables", {}),
            "user": given["user"],
            "read_only": given["readonlyRootFilesystem"],
            "cap_drop": given["linuxParameters"]["capabilities"]["drop"],
            "volumes": mounts,
            "network_mode": "none",
            "detach": True,
            "labels": {"pestfleet.session": self._name},
        }
        container = self._engine.containers.run(given["image"], **(words | changes))
        self._made.append(container)
        return container

    def unpack(self, files: dict[str, str]) -> None:
        container = self.run(INIT, variables={SECRET_FILES: json.dumps(files)})
        code = container.wait()["StatusCode"]
        log = container.logs().decode()
        assert code == 0, log
        assert not any(text in log for text in files.values())

    def run_shell(self, name: str, script: str) -> tuple[int, str]:
        """Exit code and output of a script in the place of a container's own program."""
        in_order = f"exec 2>&1; {script}"  # two streams come in any order
        container = self.run(name, entrypoint=["sh", "-c", in_order], command=[])
        return container.wait()["StatusCode"], container.logs().decode()

    def remove(self) -> None:
        for container in self._made:
            container.remove(force=True, v=True)
        for volume in self._engine.volumes.list():
            if volume.name.startswith(self._name):
                volume.remove()


@pytest.fixture
def tasks(worker_image: str, master_image: str, broker_image: str) -> dict[str, Any]:
    spec = SessionSpec(
        "s1", "/a.pst", "d", "glm", "ecs", workers=1, slots=1, place=Placement(master="there")
    )
    images = Images(worker_image, broker_image, master_image)
    return make_tasks(TaskPlan(spec, images, account="1", region="eu-central-1", bucket="b"))


@pytest.fixture
def open_task(
    docker_engine: docker.DockerClient, tasks: dict[str, Any]
) -> Iterator[Callable[[str], Volumes]]:
    opened: list[Volumes] = []

    def open_one(role: str) -> Volumes:
        opened.append(Volumes(docker_engine, tasks[role]))
        return opened[-1]

    before = {volume.name for volume in docker_engine.volumes.list()}
    yield open_one
    for task in opened:
        task.remove()
    left = {volume.name for volume in docker_engine.volumes.list()} - before
    labels = {f"{task._name}" for task in opened}
    assert not [name for name in left if any(name.startswith(label) for label in labels)]


@pytest.mark.parametrize(
    ("role", "written"), [("worker", ("/scratch", "/tmp")), ("master", ("/session", "/tmp"))]
)
def test_a_user_without_rights_reads_the_secrets_and_writes_to_the_volumes(
    role: str, written: tuple[str, ...], open_task: Callable[[str], Volumes]
) -> None:
    task = open_task(role)
    task.unpack({"broker-url": SECRET, "ca.pem": f"{SECRET} of the authority"})
    script = "id -u; find /secrets -type f -printf '%m %U %p\\n' | sort; "
    script += "cat /secrets/broker-url; env; echo; "
    script += "".join(f"touch {folder}/a && echo wrote {folder};" for folder in written)
    script += "touch /secrets/a || echo secrets stay; touch /opt/a || echo root stays"
    code, text = task.run_shell(role, script)
    assert code == 0, text
    lines = text.splitlines()
    assert lines[:3] == ["10001", "400 10001 /secrets/broker-url", "400 10001 /secrets/ca.pem"]
    assert text.count(SECRET) == 1, "it is in the file, and not in the environment"
    assert all(f"wrote {folder}" in lines for folder in written)
    assert "secrets stay" in lines and "root stays" in lines


def test_secrets_that_cannot_be_unpacked_keep_the_task_from_starting(
    open_task: Callable[[str], Volumes],
) -> None:
    task = open_task("worker")
    container = task.run(INIT, variables={SECRET_FILES: f"{{{SECRET}"})
    assert container.wait()["StatusCode"] == 4
    log = container.logs().decode()
    assert "is not JSON" in log and SECRET not in log and "Traceback" not in log


def test_the_broker_runs_as_it_is_registered(open_task: Callable[[str], Volumes]) -> None:
    task = open_task("broker")
    task.unpack(make_credentials(Choices("s1"), parts=["broker"])["broker"])
    broker = task.run("broker")
    deadline = time.monotonic() + 400
    # The port is open a moment before the broker says that its start is complete.
    while b"completed with 0 plugins" not in broker.logs():
        broker.reload()
        assert broker.status == "running", broker.logs().decode()
        assert time.monotonic() < deadline, broker.logs().decode()
        time.sleep(0.5)
    assert not broker.exec_run(["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5671"]).exit_code
