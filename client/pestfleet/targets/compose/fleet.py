"""One session's containers on a Docker engine, found by their labels and by nothing else."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import docker
import docker.errors
import requests

from pestfleet.targets.compose.archives import pack_files, read_file, unpack
from pestfleet.targets.compose.document import DOCUMENT, IMAGE, ROLE, SESSION, Document, read_label
from pestfleet.targets.compose.program import find_compose
from pestfleet_worker.errors import SessionError, TargetError

# How the Docker engine says no, or does not answer.
TROUBLE = (docker.errors.APIError, requests.exceptions.RequestException)
STOP_GRACE = {"worker": 30, "master": 60, "broker": 20}  # seconds
REMOVAL_PATIENCE = 60.0  # seconds for what is still in use
SESSION_VOLUME = "session"
_FETCHED = ("case", "session.json", "state.json", "journal.jsonl", "master.log", "results", "kits")
_KEPT = ("case", "session.json")  # as they were at launch: what is here is not overwritten
_TAIL = 5  # lines of a log in a message
RESTARTING = "restarting"  # state of a container that the engine starts again by itself
_NUMBER = "com.docker.compose.container-number"


@dataclass(frozen=True, slots=True)
class Container:
    """A container as the engine lists it.

    `exit_code`: None while it runs; while the engine waits before it starts it again, too, it is
    that of its last end.
    """

    id: str
    role: str
    number: int
    state: str  # created | running | paused | restarting | exited | dead | removing
    status: str  # in words
    exit_code: int | None
    labels: dict[str, str]
    created: float

    @property
    def name(self) -> str:
        return f"{self.role}-{self.number}" if self.role == "worker" else self.role


class ComposeFleet:
    """The containers, volumes and network that carry a session's label."""

    def __init__(self, client: docker.DockerClient, session: str) -> None:
        self.client = client
        self.session = session
        self._filter = {"label": [f"{SESSION}={session}"]}

    # -- looking -------------------------------------------------------------------------------

    def containers(self, role: str = "") -> list[Container]:
        """The session's containers (of one role), workers in the order of their numbers."""
        found = list_containers(self.client, self._filter)
        return [container for container in found if not role or container.role == role]

    def find(self, role: str) -> Container | None:
        return next(iter(self.containers(role)), None)

    def read_document(self) -> Document:
        """The compose file that the session was started with. Raises `SessionError`."""
        for network in self.client.networks.list(filters=self._filter):
            text = network.attrs["Labels"].get(DOCUMENT)
            if text:
                return read_label(text)
            raise SessionError(
                f"session {self.session} was not launched by pestfleet run",
                remedy="Use what launched it, such as docker compose up --scale worker=N.",
            )
        raise SessionError(
            f"session {self.session} has no network on this Docker engine",
            remedy="It is not running. Sessions that are: pestfleet sessions --on compose",
        )

    def read_file(self, role: str, path: str) -> bytes | None:
        """A file in the container of a role, running or not; None where there is none."""
        container = self.find(role)
        if container is None:
            return None
        try:
            return read_file(self.client, container.id, path)
        except docker.errors.NotFound:
            return None

    def read_state(self) -> dict[str, Any]:
        """The last state that the master wrote; {} when there is none yet."""
        content = self.read_file("master", f"/session/{self.session}/state.json")
        state: dict[str, Any] = json.loads(content) if content else {}
        return state

    def find_port(self, role: str, port: int) -> int:
        """Where the engine's machine publishes a port of a role. Raises `TargetError`."""
        container = self.find(role)
        if container is not None:
            attributes = self.client.api.inspect_container(container.id)
            for published in attributes["NetworkSettings"]["Ports"].get(f"{port}/tcp") or ():
                return int(published["HostPort"])
        raise TargetError(f"the port {port} of the {role} is not published: it does not run")

    def read_log(self, container: Container, *, lines: int | Literal["all"] = "all") -> str:
        content: bytes = self.client.api.logs(container.id, tail=lines)
        return content.decode("utf-8", "replace")

    def follow_log(self, container: Container, *, lines: int, follow: bool) -> Iterator[str]:
        """The end of a log, line by line; with `follow` also what comes, until it ends."""
        chunks = self.client.api.logs(container.id, stream=True, follow=follow, tail=lines)
        yield from split_lines(chunks)

    def read_life(self, container: Container) -> tuple[str, float]:
        """When a container was last started, and for how many seconds it ran (0: it still does)."""
        state = self.client.api.inspect_container(container.id)["State"]
        began, ended = (datetime.fromisoformat(state[name]) for name in ("StartedAt", "FinishedAt"))
        return state["StartedAt"], max(0.0, (ended - began).total_seconds())

    def describe_end(self, container: Container) -> str:
        """How a container ended, with the last lines of its log."""
        tail = self.read_log(container, lines=_TAIL).strip() or "(no log)"
        indented = "\n    ".join(tail.splitlines())
        return f"{container.name} ended with exit code {container.exit_code}:\n    {indented}"

    def explain(self, error: TargetError) -> TargetError:
        """The error of a launch, with the log of a container that failed, if one did."""
        failed = [container for container in self.containers() if container.exit_code]
        if not failed:
            return error
        return TargetError(self.describe_end(failed[0]), remedy=error.remedy)

    # -- changing ------------------------------------------------------------------------------

    def put_files(self, role: str, folder: str, files: dict[str, bytes], *, user: str) -> None:
        """Write files (mode 0400, of `user` uid:gid) into a volume of a role's container."""
        container = self.find(role)
        if container is None:
            raise TargetError(f"the container {role} of session {self.session} is gone")
        self.client.api.put_archive(container.id, folder, pack_files(files, user=user))

    def wait(self, role: str) -> None:
        """Wait for the end of a one-shot container. Raises `TargetError` if it fails."""
        container = self.find(role)
        if container is None:
            raise TargetError(f"the container {role} of session {self.session} is gone")
        self.client.api.wait(container.id)
        ended = self.find(role)
        if ended is None or ended.exit_code:
            raise TargetError(
                self.describe_end(ended) if ended else f"the container {role} is gone",
                remedy="Were the images made by another version? Then remove them: "
                "pestfleet images --all",
            )

    def start(self, container: Container) -> None:
        self.client.api.start(container.id)

    def stop(self, containers: list[Container]) -> None:
        """SIGTERM, and SIGKILL after the role's grace; all at the same time."""

        def end(container: Container) -> None:
            grace = STOP_GRACE.get(container.role, 5)
            with suppress(docker.errors.NotFound):
                # The answer comes when it has ended: the request may take longer than usual.
                self.client.api.stop(container.id, timeout=grace)

        _do_at_once(end, containers)

    def stop_master(self) -> None:
        """Have the master end the session, and wait for it."""
        self.stop(self.containers("master"))

    def remove(self, containers: list[Container]) -> None:
        """Remove containers with their anonymous volumes, running or not."""

        def remove(container: Container) -> None:
            _remove(lambda: self.client.api.remove_container(container.id, v=True, force=True))

        _do_at_once(remove, containers)

    def dismiss(self, container: Container) -> None:
        """End a container in good order, and remove it."""
        self.stop([container])
        self.remove([container])

    def scale(self, workers: int) -> list[str]:
        """Have that many workers; says what was done, a line each.

        Surplus workers, the newest first, give their runs back before they go.
        """
        before = self.containers("worker")
        if workers > len(before) or any(container.state == "exited" for container in before):
            document = self.read_document()
            project = document["networks"]["default"]["name"]
            wanted = max(workers, len(before))
            find_compose().up(project, document, ["--no-deps", "worker"], workers=wanted)
        # Each goes as soon as it has ended: nobody may take it for one that died.
        _do_at_once(self.dismiss, self.containers("worker")[workers:])
        after = {container.name for container in self.containers("worker")}
        old = {container.name for container in before}
        done = [f"{name} is started" for name in _order(after - old)]
        done += [f"{name} gave back its runs and is gone" for name in _order(old - after)]
        return done or [f"there are {workers} workers already"]

    def down(self, *, discard_results: bool = False) -> list[str]:
        """Remove all that has the session's label; says what was removed.

        The volume with the session's folder stays, unless `discard_results`.
        """
        containers = self.containers()
        shared = self._find_shared(discard_results=discard_results)
        # The master ends the session in good order. Nobody needs that of the others.
        self.stop([c for c in containers if c.role == "master" and c.state == "running"])
        self.remove(containers)
        removed = [f"container {container.name}" for container in containers]
        return removed + [name for name, one in shared.items() if _remove(one.remove)]

    def list_parts(self, *, discard_results: bool = False) -> list[str]:
        """What `down` would remove."""
        shared = self._find_shared(discard_results=discard_results)
        return [*(f"container {container.name}" for container in self.containers()), *shared]

    def _find_shared(self, *, discard_results: bool) -> dict[str, Any]:
        """Networks and volumes, by what they are called in messages."""
        networks = self.client.networks.list(filters=self._filter)
        volumes = self.client.volumes.list(filters=self._filter)
        if not discard_results:
            volumes = [one for one in volumes if one.attrs["Labels"].get(ROLE) != SESSION_VOLUME]
        found = {f"network {one.name}": one for one in networks}
        return found | {f"volume {one.name}": one for one in volumes}

    # -- results -------------------------------------------------------------------------------

    def fetch(self, folder: Path) -> bool:
        """Copy the session's files and its workers' logs to `folder`; False when there are none.

        Raises `SessionError` where the volume is there, and no image that can read it.
        """
        master = self.find("master")
        if master is not None:
            return self._fetch_from(master.id, folder)
        volume = self.find_volume()
        if volume is None:
            return False
        image = volume.attrs["Labels"].get(IMAGE, "")
        try:
            reader = self.client.api.create_container(
                image,
                labels={SESSION: self.session, ROLE: "reader"},
                volumes=["/session"],
                host_config=self.client.api.create_host_config(
                    binds={volume.name: {"bind": "/session", "mode": "ro"}}, network_mode="none"
                ),
            )
        except docker.errors.NotFound:
            raise SessionError(
                f"the image {image}, which can read the volume {volume.name}, is gone",
                remedy="pestfleet resume makes it again.",
            ) from None
        try:
            return self._fetch_from(reader["Id"], folder)
        finally:
            self.client.api.remove_container(reader["Id"], v=True, force=True)

    def find_volume(self) -> Any:
        """The volume with the session's folder; None when it is gone."""
        filters = {"label": [f"{SESSION}={self.session}", f"{ROLE}={SESSION_VOLUME}"]}
        return next(iter(self.client.volumes.list(filters=filters)), None)

    def _fetch_from(self, container: str, folder: Path) -> bool:
        found = False
        for name in _FETCHED:
            if name in _KEPT and (folder / name).exists():
                continue
            path = PurePosixPath("/session", self.session, name)
            try:
                unpack(self.client, container, str(path), folder)
                found = True
            except docker.errors.NotFound:
                continue  # the session has not come so far
        logs = folder / "logs"
        for worker in self.containers("worker"):
            logs.mkdir(parents=True, exist_ok=True)
            (logs / f"{worker.name}.log").write_text(self.read_log(worker), encoding="utf-8")
        return found


def list_containers(client: docker.DockerClient, filters: dict[str, Any]) -> list[Container]:
    """Containers by labels, in one request whatever their number."""
    found = [
        Container(
            id=row["Id"],
            role=row["Labels"].get(ROLE, ""),
            number=int(row["Labels"].get(_NUMBER, 1)),
            state=row["State"],
            status=row["Status"],
            exit_code=_find_exit_code(row["Status"]),
            labels=row["Labels"],
            created=float(row["Created"]),
        )
        for row in client.api.containers(all=True, filters=filters)
    ]
    return sorted(found, key=lambda container: (container.role, container.number))


def split_lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """The lines of a log that comes in pieces."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)
    if rest:
        yield rest.decode("utf-8", "replace")


@contextmanager
def tell_trouble() -> Iterator[None]:
    """What the engine refuses becomes a `TargetError`."""
    try:
        yield
    except TROUBLE as trouble:
        raise TargetError(
            f"the Docker engine failed: {trouble}", remedy="See docker info, and try again."
        ) from trouble


def _find_exit_code(status: str) -> int | None:
    match = re.match(r"(?:Exited|Restarting) \((\d+)\)", status)
    return int(match[1]) if match else None


def _remove(action: Callable[[], object]) -> bool:
    """Remove something; False when it is gone. Another shell may be at it, too."""
    deadline = time.monotonic() + REMOVAL_PATIENCE
    while True:
        try:
            action()
            return True
        except docker.errors.NotFound:
            return False
        except docker.errors.APIError as error:
            if error.status_code not in (403, 409) or time.monotonic() > deadline:
                raise
        time.sleep(0.2)  # the engine has no event for a name that nobody uses any more


def _order(names: set[str]) -> list[str]:
    return sorted(names, key=lambda name: (len(name), name))


def _do_at_once(action: Callable[[Container], None], containers: list[Container]) -> None:
    if containers:
        with ThreadPoolExecutor(min(16, len(containers))) as pool:
            list(pool.map(action, containers))
