"""The sessions in a namespace of a cluster, as any shell with the kubeconfig sees them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pestfleet.targets.base import KEPT, SessionInfo, Where
from pestfleet.targets.kubernetes.access import Access, Refused, connect
from pestfleet.targets.kubernetes.fleet import KubernetesFleet
from pestfleet.targets.kubernetes.naming import FOLDER, MANAGER, SESSION, US, Object, read_role
from pestfleet.targets.kubernetes.pods import Pod, find_end
from pestfleet.targets.kubernetes.results import fetch
from pestfleet_worker.errors import SessionError, TargetError

_KINDS = (("batch/v1", "jobs"), ("apps/v1", "statefulsets"), ("v1", "persistentvolumeclaims"))
_SHOWN = 12  # names in a message


def list_sessions(where: Where) -> list[SessionInfo]:
    """All sessions of a namespace, newest first, by a request a kind. Raises `TargetError`."""
    return _list(connect(where.context, where.namespace))


def open_session(name: str | None, where: Where) -> RemoteFleet:
    """A session by its id, or the newest. Raises `SessionError` when there is none."""
    access = connect(where.context, where.namespace)
    sessions = _list(access)
    if name is None and sessions:
        return RemoteFleet(sessions[0], access)
    for session in sessions:
        if session.name == name:
            return RemoteFleet(session, access)
    known = ", ".join(session.name for session in sessions[:5]) or "none"
    raise SessionError(
        f"there is no session {name or ''} in namespace {access.namespace}".replace("  ", " "),
        remedy=f"Sessions there: {known}. --context and --namespace say where to look.",
    )


class RemoteFleet:
    """See `RemoteSession`: one session, by its labels."""

    def __init__(self, info: SessionInfo, access: Access) -> None:
        self.info = info
        self._fleet = KubernetesFleet(access, info.name)

    def read_state(self) -> dict[str, Any]:
        return self._fleet.read_state()

    def scale(self, workers: int) -> list[str]:
        return self._fleet.scale(workers)

    def follow_log(self, worker: str | None, *, lines: int, follow: bool) -> Iterator[str]:
        pod = self._find(worker)
        try:
            yield from self._fleet.follow_log(pod, lines=lines, follow=follow)
        except Refused as error:
            if error.status != 400:
                raise
            raise TargetError(
                f"pod {pod.name} has no log yet: it is starting, or cannot start",
                remedy="Ask again in some seconds, and see what it waits for: "
                f"kubectl describe pod {pod.name} --namespace {self._fleet.access.namespace}",
            ) from error

    def _find(self, worker: str | None) -> Pod:
        """A pod by its name, the end of it, its role, or the worker's name at the desk."""
        wanted = worker or "master"
        pods = self._fleet.pods("" if worker else "master") or self._fleet.pods()
        chosen = [pod for pod in pods if _is_called(pod, wanted)]
        running = [pod for pod in chosen if pod.phase == "Running"]
        if chosen:
            return (running or chosen)[-1]
        names = [pod.name for pod in pods]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise SessionError(
            f"session {self.info.name} has no pod {wanted}",
            remedy=f"There are: {', '.join(names[:_SHOWN]) or 'none'}{more}.",
        )

    def fetch(self, folder: Path) -> bool:
        return fetch(self._fleet, folder)

    def stop(self) -> None:
        self._fleet.stop_master()

    def list_parts(self, *, discard_results: bool) -> list[str]:
        self._refuse_others()
        return self._fleet.list_parts(discard_results=discard_results)

    def down(self, *, discard_results: bool) -> list[str]:
        self._refuse_others()
        return self._fleet.down(discard_results=discard_results)

    def _refuse_others(self) -> None:
        if self.info.parts and self.info.parts[0].startswith("release "):
            raise SessionError(
                f"session {self.info.name} was installed by Helm or kubectl",
                remedy="What installed it removes it: helm uninstall, or kubectl delete -k.",
            )


def _is_called(pod: Pod, wanted: str) -> bool:
    # A worker's name at the desk is that of its host, which is the pod, and a number.
    host = wanted.rpartition("-")[0]
    return wanted in (pod.name, pod.role) or pod.name.endswith(f"-{wanted}") or pod.name == host


def _list(access: Access) -> list[SessionInfo]:
    found: dict[str, list[Object]] = defaultdict(list)
    for version, plural in _KINDS:
        path = access.find_path(version, plural)
        for one in access.find_all(path, labelSelector=SESSION):
            found[one["metadata"]["labels"][SESSION]].append({**one, "plural": plural})
    where = Where(access.context, access.namespace)
    sessions = [_describe(name, objects, where) for name, objects in found.items()]
    return sorted(sessions, key=lambda session: session.began, reverse=True)


def _describe(name: str, objects: list[Object], where: Where) -> SessionInfo:
    jobs = {read_role(one): one for one in objects if one["plural"] == "jobs"}
    leaving = all(one["metadata"].get("deletionTimestamp") for one in objects)
    running = [role for role, job in jobs.items() if not find_end(job)]
    if leaving:
        state = "ending"
    elif "master" in running or ("master" not in jobs and "worker" in running):
        state = "running"
    elif any(one["plural"] == "persistentvolumeclaims" for one in objects):
        state = KEPT
    else:
        state = "ended, its objects are left"
    ours = any(one["metadata"]["labels"].get(MANAGER) == US for one in objects)
    parts = [_describe_part(one) for one in objects]
    if not ours:
        parts.insert(0, "release of Helm or kubectl")
    folders = [one["metadata"].get("annotations", {}).get(FOLDER, "") for one in objects]
    workers = jobs.get("worker", {}).get("status", {}).get("active", 0)
    return SessionInfo(
        name=name,
        target="kubernetes",
        state=state,
        workers=int(workers),
        began=max(_read_time(one["metadata"]["creationTimestamp"]) for one in objects),
        folder=next(filter(None, folders), ""),
        parts=tuple(parts),
        where=where,
    )


def _describe_part(one: Object) -> str:
    name, status = one["metadata"]["name"], one.get("status", {})
    if one["plural"] == "jobs":
        ended = find_end(one)
        if ended:
            return f"job {name}: {ended}"
        active, ready = status.get("active", 0), status.get("ready", 0)
        asked = one["spec"].get("parallelism", 1)
        return f"job {name}: {asked} asked for, {active} there, {ready} ready"
    if one["plural"] == "statefulsets":
        return f"statefulset {name}: {status.get('readyReplicas', 0)} ready"
    return f"claim {name}: {status.get('phase', '')}"


def _read_time(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
