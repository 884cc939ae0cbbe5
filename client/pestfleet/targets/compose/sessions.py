"""The sessions on a Docker engine, as any shell sees them: by labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pestfleet.images.engine import connect_engine
from pestfleet.targets.base import KEPT, SessionInfo, Where
from pestfleet.targets.compose.document import FOLDER, ROLE, SESSION
from pestfleet.targets.compose.fleet import (
    SESSION_VOLUME,
    ComposeFleet,
    Container,
    list_containers,
    tell_trouble,
)
from pestfleet_worker.errors import SessionError


def list_sessions(where: Where) -> list[SessionInfo]:
    """All sessions that have something on the engine, newest first. Raises `TargetError`.

    `where` is of no meaning here: DOCKER_HOST says which engine.
    """
    with tell_trouble():
        client = connect_engine()
        found: dict[str, list[Container]] = defaultdict(list)
        for container in list_containers(client, {"label": [SESSION]}):
            found[container.labels[SESSION]].append(container)
        kept = {
            volume.attrs["Labels"][SESSION]
            for volume in client.volumes.list(filters={"label": [SESSION]})
            if volume.attrs["Labels"].get(ROLE) == SESSION_VOLUME
        }
        left = {
            network.attrs["Labels"][SESSION]
            for network in client.networks.list(filters={"label": [SESSION]})
        }
    names = {*found, *kept, *left}
    sessions = [_describe(name, found[name], kept=name in kept) for name in names]
    return sorted(sessions, key=lambda session: session.began, reverse=True)


class RemoteFleet:
    """See `RemoteSession`: one session, by its labels."""

    def __init__(self, info: SessionInfo) -> None:
        self.info = info
        self._fleet = ComposeFleet(connect_engine(), info.name)

    def read_state(self) -> dict[str, Any]:
        with tell_trouble():
            return self._fleet.read_state()

    def scale(self, workers: int) -> list[str]:
        with tell_trouble():
            return self._fleet.scale(workers)

    def follow_log(self, worker: str | None, *, lines: int, follow: bool) -> Iterator[str]:
        with tell_trouble():
            container = self._find(worker)
            yield from self._fleet.follow_log(container, lines=lines, follow=follow)

    def _find(self, worker: str | None) -> Container:
        """A container by its name (worker-2, broker), number, or the worker's name at the desk."""
        containers = self._fleet.containers()
        wanted = worker or "master"
        host = wanted.rpartition("-")[0]
        for container in containers:
            if wanted in (container.name, str(container.number) * (container.role == "worker")):
                return container
            if len(host) >= 8 and container.id.startswith(host):
                return container
        names = ", ".join(container.name for container in containers) or "none"
        raise SessionError(
            f"session {self.info.name} has no container {wanted}", remedy=f"There are: {names}."
        )

    def fetch(self, folder: Path) -> bool:
        with tell_trouble():
            return self._fleet.fetch(folder)

    def stop(self) -> None:
        with tell_trouble():
            self._fleet.stop_master()

    def list_parts(self, *, discard_results: bool) -> list[str]:
        with tell_trouble():
            return self._fleet.list_parts(discard_results=discard_results)

    def down(self, *, discard_results: bool) -> list[str]:
        with tell_trouble():
            return self._fleet.down(discard_results=discard_results)


def open_session(name: str | None, where: Where) -> RemoteFleet:
    """A session by its id, or the newest. Raises `SessionError` when there is none."""
    sessions = list_sessions(where)
    if name is None and sessions:
        return RemoteFleet(sessions[0])
    for session in sessions:
        if session.name == name:
            return RemoteFleet(session)
    known = ", ".join(session.name for session in sessions[:5]) or "none"
    raise SessionError(
        f"there is no session {name or ''} on this Docker engine".replace("  ", " "),
        remedy=f"Sessions there: {known}.",
    )


def _describe(name: str, containers: list[Container], *, kept: bool) -> SessionInfo:
    running = [container for container in containers if container.state != "exited"]
    roles = {container.role for container in running}
    state = "running" if roles & {"master", "worker", "broker"} else KEPT
    if not running and not kept:
        state = "ended"
    elif roles and "master" not in roles and any(c.role == "master" for c in containers):
        state = "ended, its containers are left"
    return SessionInfo(
        name=name,
        target="compose",
        state=state,
        workers=sum(container.role == "worker" for container in running),
        began=min((container.created for container in containers), default=0.0),
        folder=next((c.labels[FOLDER] for c in containers if FOLDER in c.labels), ""),
        parts=tuple(f"{container.name}: {container.status}" for container in containers),
    )
