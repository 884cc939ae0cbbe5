"""Tasks of ECS with their containers run by the local Docker engine, as they are registered.

What differs from the real one: containers have cores and memory of this machine, up to the task's;
AWS_ENDPOINT_URL leads them to the stand-in of Amazon, whose keys they find in the environment;
names of Cloud Map are aliases in the network; security groups hold nothing back.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.types import Mount, Ulimit

import task_setup
from base_image import ensure_base
from ecs_agent import EcsAgent, run_agent
from ecs_state import Task
from moto_server import Amazon
from task_setup import TaskFailure, read_depth

LABEL = "pestfleet.test.amazon"
LOOK = 0.1  # seconds between two looks at a task's containers
STOP = 30  # seconds: stopTimeout where none is given
FILES = 65535  # open files of a process on Fargate


class ContainerHost:
    """The place of all tasks of an account: a network without a way out, and an agent."""

    def __init__(
        self, amazon: Amazon, engine: docker.DockerClient, agent: EcsAgent, network: Any, label: str
    ) -> None:
        self.amazon = amazon
        self.engine = engine
        self.agent = agent
        self.network = network
        self.label = label
        self.url = ""  # of Amazon, for containers
        self.base = ensure_base(engine)
        self._machines: list[TaskMachine] = []

    def start_machine(self, task: Task) -> TaskMachine:
        """Start a task's containers; for `EcsScheduler`."""
        machine = TaskMachine(self, task)
        self._machines.append(machine)
        self.agent.add(task)
        machine.thread.start()
        return machine

    def find_containers(self, task: Task) -> dict[str, Container]:
        """The containers of a task that there are, by their names in its definition."""
        wanted = {"label": [f"{LABEL}={self.label}", f"{LABEL}.task={task.id}"]}
        found = self.engine.containers.list(all=True, filters=wanted)
        return {one.labels[f"{LABEL}.name"]: one for one in found if f"{LABEL}.name" in one.labels}

    def close(self) -> None:
        """End all tasks, and remove all that was made for them."""
        for machine in self._machines:
            machine.kill()
        for machine in self._machines:
            machine.thread.join()
        remove_all(self.engine, self.label)
        if self.amazon.registry:
            self._remove_images(self.amazon.registry)

    def _remove_images(self, registry: str) -> None:
        for image in self.engine.images.list():
            for name in (*image.tags, *(image.attrs["RepoDigests"] or ())):
                if name.startswith(f"{registry}/"):
                    with contextlib.suppress(ImageNotFound):
                        self.engine.images.remove(name)


class TaskMachine:
    """One task's containers, in a thread. What becomes of them is written into the task."""

    def __init__(self, host: ContainerHost, task: Task) -> None:
        self.address = ""
        self.thread = threading.Thread(target=self._run, name=f"task {task.id}", daemon=True)
        self._host = host
        self._task = task
        self._stopping = threading.Event()
        self._killed = threading.Event()
        self._labels = {LABEL: host.label, f"{LABEL}.task": task.id}
        self._containers: dict[str, Container] = {}
        self._followers: list[threading.Thread] = []
        self._volumes: dict[str, str] = {}

    def stop(self) -> None:
        """Begin to end the containers: SIGTERM, and SIGKILL when `stopTimeout` is over."""
        self._stopping.set()

    def kill(self) -> None:
        """End them now."""
        self._killed.set()
        self._stopping.set()

    def has_ended(self) -> bool:
        return not self.thread.is_alive()

    # ---- in the thread

    def _run(self) -> None:
        task, lock = self._task, self._host.amazon.lock
        try:
            self._prepare()
            self._start_all()
            with lock:
                if task.wanted:
                    task.enter("RUNNING", startedAt=time.time())
            while not self._stopping.wait(LOOK):
                self._look()
        except TaskFailure as failure:
            with lock:
                task.want_stop(failure.code, failure.reason)
        except Exception as error:
            with lock:
                self._host.amazon.defects.append(f"task {task.id}: {error!r}")
                task.want_stop("TaskFailedToStart", f"DefectOfTheBench: {error!r}")
        finally:
            self._finish()

    def _prepare(self) -> None:
        amazon, task = self._host.amazon, self._task
        with amazon.lock:
            task_setup.check_roles(amazon, task)
            aliases = task_setup.find_names(amazon, task)
        engine, network = self._host.engine, self._host.network
        # As on Fargate, a container that does nothing has the network of all others.
        pause = engine.containers.create(
            self._host.base,
            ["sleep", "infinity"],
            init=True,
            hostname=f"ip-{task.id[:8]}",
            network=network.name,
            networking_config={network.name: engine.api.create_endpoint_config(aliases=aliases)},
            labels=self._labels,
        )
        self._containers[""] = pause
        pause.start()
        pause.reload()
        self.address = pause.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
        with amazon.lock:
            task_setup.write_address(amazon, task, self.address)
        for volume in task.definition.volumes:
            name = f"{LABEL}-{task.id}-{volume['name']}"
            self._volumes[volume["name"]] = engine.volumes.create(name, labels=self._labels).name

    def _start_all(self) -> None:
        """Each container when those are ready that it depends on."""
        waiting = list(self._task.definition.container_definitions)
        while waiting and not self._stopping.wait(LOOK):
            for one in list(waiting):
                if all(self._is_met(wait) for wait in one.get("dependsOn") or ()):
                    self._start(one)
                    waiting.remove(one)
            self._look()

    def _is_met(self, wait: dict[str, str]) -> bool:
        container = self._containers.get(wait["containerName"])
        if container is None:
            return False
        container.reload()
        state = container.attrs["State"]
        ended = state["Status"] == "exited"
        condition = wait["condition"]
        if condition == "START":
            return True
        if condition == "HEALTHY":
            return bool(state.get("Health", {}).get("Status") == "healthy")
        if condition == "SUCCESS" and ended and state["ExitCode"] != 0:
            self._look()
            raise TaskFailure(
                "Task failed to start: dependent container did not complete successfully "
                f"({wait['containerName']} exited with {state['ExitCode']})"
            )
        return ended

    def _start(self, one: dict[str, Any]) -> None:
        host, task = self._host, self._task
        with host.amazon.lock:
            secrets = task_setup.read_secrets(host.amazon, task, one)
            stream = task_setup.open_log(host.amazon, task, one)
            keys = task_setup.make_keys(host.amazon, task, host.url)
        given = {pair["name"]: pair["value"] for pair in one.get("environment") or ()}
        own = host.agent.make_environment(task, one["name"])
        environment = {**keys, **own, **given, **secrets}
        image = task_setup.pull(host.engine, host.amazon, task, one["image"])
        try:
            container = self._create(one, image, environment)
            self._containers[one["name"]] = container
            container.start()
        except APIError as error:
            raise TaskFailure(f"CannotStartContainerError: {error.explanation}") from error
        if stream is not None:
            follower = threading.Thread(target=self._follow, args=(container, stream), daemon=True)
            follower.start()
            self._followers.append(follower)

    def _create(self, one: dict[str, Any], image: Any, environment: dict[str, str]) -> Container:
        task = self._task
        linux = one.get("linuxParameters") or {}
        powers = linux.get("capabilities") or {}
        cores, memory = task_setup.find_size(task, one)
        files = {"name": "nofile", "softLimit": FILES, "hardLimit": FILES}
        limits = {limit["name"]: limit for limit in [files, *(one.get("ulimits") or ())]}
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # the engine's are no higher
        ulimits = [
            Ulimit(
                name=name, soft=min(limit["softLimit"], most), hard=min(limit["hardLimit"], most)
            )
            for name, limit in limits.items()
        ]
        declared = image.attrs["Config"].get("Volumes") or {}
        mounts = [
            Mount(
                mount["containerPath"],
                self._volumes[mount["sourceVolume"]],
                read_only=bool(mount.get("readOnly")),
                # ECS takes owner and mode of the folder only where the image declares a volume.
                no_copy=mount["containerPath"] not in declared,
            )
            for mount in one.get("mountPoints") or ()
        ]
        more: dict[str, Any] = {}
        if one.get("command"):
            more["command"] = one["command"]
        if one.get("entryPoint"):
            more["entrypoint"] = one["entryPoint"]
        if one.get("user"):
            more["user"] = one["user"]
        if one.get("workingDirectory"):
            more["working_dir"] = one["workingDirectory"]
        if one.get("healthCheck"):
            more["healthcheck"] = task_setup.write_health_check(one["healthCheck"])
        else:
            # ECS does not look at the health checks of images.
            more["healthcheck"] = {"test": ["NONE"]}
        return self._host.engine.containers.create(
            image.id,
            environment=environment,
            network_mode=f"container:{self._containers[''].id}",
            read_only=bool(one.get("readonlyRootFilesystem")),
            init=bool(linux.get("initProcessEnabled")),
            cap_add=powers.get("add"),
            cap_drop=powers.get("drop"),
            ulimits=ulimits,
            nano_cpus=min(int(cores * 1e9), (os.cpu_count() or 1) * 10**9) or None,
            mem_limit=f"{memory}m" if memory else None,
            memswap_limit=f"{memory}m" if memory else None,
            mounts=mounts,
            labels={
                **(one.get("dockerLabels") or {}),
                **self._labels,
                f"{LABEL}.name": one["name"],
            },
            **more,
        )

    def _look(self) -> None:
        """See what the containers do. The end of an essential one is the task's."""
        task = self._task
        known = {one["name"]: one for one in task.answer["containers"]}
        for one in task.definition.container_definitions:
            container = self._containers.get(one["name"])
            if container is None or known[one["name"]]["lastStatus"] == "STOPPED":
                continue
            container.reload()
            state = container.attrs["State"]
            with self._host.amazon.lock:
                if task_setup.write_state(known[one["name"]], container, state) and one.get(
                    "essential", True
                ):
                    reason = "Essential container in task exited"
                    task.want_stop("EssentialContainerExited", reason)
                    self._stopping.set()
                elif known[one["name"]]["healthStatus"] == "UNHEALTHY" and one["essential"]:
                    reason = "Task failed container health checks"
                    task.want_stop("ServiceSchedulerInitiated", reason)
                task.answer["healthStatus"] = task_setup.find_health(task)

    def _follow(self, container: Container, stream: task_setup.LogStream) -> None:
        rest = b""
        with contextlib.suppress(DockerException, OSError):
            for chunk in container.logs(stream=True, follow=True):
                *lines, rest = (rest + chunk).split(b"\n")
                self._write_log(stream, lines)
        self._write_log(stream, [rest] if rest else [])

    def _write_log(self, stream: task_setup.LogStream, lines: list[bytes]) -> None:
        with self._host.amazon.lock:
            task_setup.write_log(self._host.amazon, stream, lines)

    def _finish(self) -> None:
        """Stop what runs, those first that others do not depend on; keep logs; remove all."""
        task = self._task
        definitions = {one["name"]: one for one in task.definition.container_definitions}
        order = sorted(definitions, key=lambda name: read_depth(definitions, name), reverse=True)
        for name in order:
            if name in self._containers:
                self._stop_one(self._containers[name], definitions[name].get("stopTimeout", STOP))
        self._look_at_end()
        for follower in self._followers:
            follower.join(120)
        for container in self._containers.values():
            with contextlib.suppress(NotFound):
                container.remove(force=True, v=True)
        for name in self._volumes.values():
            with contextlib.suppress(NotFound):
                self._host.engine.volumes.get(name).remove(force=True)

    def _look_at_end(self) -> None:
        with contextlib.suppress(NotFound):
            self._look()

    def _stop_one(self, container: Container, seconds: int) -> None:
        with contextlib.suppress(NotFound, APIError):
            if self._killed.is_set():
                container.kill()
                return
            container.kill("SIGTERM")
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not self._killed.wait(LOOK):
                container.reload()
                if container.status != "running":
                    return
            container.kill()


def remove_all(engine: docker.DockerClient, label: str) -> None:
    """All that a host has made."""
    wanted = {"label": f"{LABEL}={label}"}
    for container in engine.containers.list(all=True, filters=wanted, ignore_removed=True):
        container.remove(force=True, v=True)
    for volume in engine.volumes.list(filters=wanted):
        volume.remove(force=True)
    for network in engine.networks.list(filters=wanted):
        network.remove()


def remove_old(engine: docker.DockerClient) -> None:
    """What hosts have left whose processes were killed."""
    for network in engine.networks.list(filters={"label": LABEL}):
        label = network.attrs["Labels"][LABEL]
        process = label.partition("-")[0]
        if process.isdecimal() and not Path("/proc", process).exists():
            remove_all(engine, label)


@contextmanager
def run_container_host(amazon: Amazon, engine: docker.DockerClient) -> Iterator[ContainerHost]:
    """A place for tasks while the block runs; nothing of it stays."""
    remove_old(engine)
    label = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    network = engine.networks.create(
        f"{LABEL}-{label}", driver="bridge", internal=True, labels={LABEL: label}
    )
    network.reload()
    gateway = network.attrs["IPAM"]["Config"][0]["Gateway"].split("/")[0]
    with run_agent(amazon, gateway) as agent:
        host = ContainerHost(amazon, engine, agent, network, label)
        host.url = amazon.listen(gateway)
        try:
            yield host
        finally:
            host.close()
            amazon.hush(host.url)
