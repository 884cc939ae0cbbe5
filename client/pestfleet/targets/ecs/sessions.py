"""The sessions of an account, as any shell with its credentials sees them: by tags."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pestfleet.targets.base import KEPT, SessionInfo, Where
from pestfleet.targets.ecs.access import Cloud, Refused, connect
from pestfleet.targets.ecs.fleet import Answer, EcsFleet, Task, read_time
from pestfleet.targets.ecs.naming import CLUSTER, FOLDER, ROLE, ROLES, Names, as_dict
from pestfleet.targets.ecs.planned import name_bucket
from pestfleet.targets.ecs.resources import Found, find_tagged
from pestfleet.targets.ecs.results import fetch, open_store
from pestfleet_worker.ecs_agent import name_worker
from pestfleet_worker.errors import PestfleetError, SessionError

logger = logging.getLogger(__name__)

HALF = "half made, its parts are left"
LEFT = "ended, its parts are left"
_AT_ONCE = 10  # services that one DescribeServices tells about
_THREADS = 8
_SHOWN = 12  # names in a message


def list_sessions(where: Where) -> list[SessionInfo]:
    """All sessions of an account, newest first, in one region or in several: `a,b`.

    A region takes a request for each hundred resources, ten services, and thousand kept sessions.
    Raises `TargetError`.
    """
    found = [info for cloud in open_regions(where) for info in _list(cloud, where)]
    return sorted(found, key=lambda info: info.began, reverse=True)


def open_session(name: str | None, where: Where) -> RemoteFleet:
    """A session by its id, or the newest. Raises `SessionError` when there is none."""
    clouds = open_regions(where)
    if name is not None:
        for cloud in clouds:
            if (remote := _open(cloud, name, where)) is not None:
                return remote
    sessions = [info for cloud in clouds for info in _list(cloud, where)]
    sessions.sort(key=lambda info: info.began, reverse=True)
    if name is None and sessions:
        newest = sessions[0]
        cloud = next(one for one in clouds if one.region == newest.where.region)
        return RemoteFleet(newest, _make_fleet(cloud, newest.name))
    for info in sessions:
        if info.name == name:  # half made
            cloud = next(one for one in clouds if one.region == info.where.region)
            return RemoteFleet(info, _make_fleet(cloud, info.name))
    known = ", ".join(info.name for info in sessions[:5]) or "none"
    regions = ", ".join(cloud.region for cloud in clouds)
    raise SessionError(
        f"there is no session {name or ''} in region {regions}".replace("  ", " "),
        remedy=f"Sessions there: {known}. --region and --profile say where to look.",
    )


def open_regions(where: Where) -> list[Cloud]:
    """The account in each of these regions (`a,b`), or in the usual one."""
    names = [name.strip() for name in where.region.split(",") if name.strip()]
    first = connect(Where(region=names[0] if names else "", profile=where.profile))
    return [first, *(first.elsewhere(name) for name in names[1:])]


class RemoteFleet:
    """See `RemoteSession`: one session, by its tags."""

    def __init__(self, info: SessionInfo, fleet: EcsFleet) -> None:
        self.info = info
        self._fleet = fleet

    def read_state(self) -> dict[str, Any]:
        from pestfleet.store.errors import NoBucket

        try:
            return self._fleet.store.read_state()
        except NoBucket:
            return {}

    def scale(self, workers: int) -> list[str]:
        return self._fleet.scale(workers, elastic=bool(self._read_spec().get("most")))

    def _read_spec(self) -> dict[str, Any]:
        """What the session was asked to do; {} where its files are elsewhere."""
        from pestfleet.store.errors import NoBucket

        store = self._fleet.store
        try:
            content = store.store.read(f"{store.prefix}files/session.json")
            spec = json.loads(content.data) if content else {}
        except (NoBucket, ValueError) as error:
            logger.info("no spec of session %s: %s", self.info.name, error)
            return {}
        return spec if isinstance(spec, dict) else {}

    def follow_log(self, worker: str | None, *, lines: int, follow: bool) -> Iterator[str]:
        task = self._find(worker)
        if task is None:  # tasks are known for an hour after their end
            yield from self._read_kept_log(lines)
            return
        last, token = self._fleet.read_tail(task.stream, lines=lines)
        yield from last
        if follow:
            yield from self._fleet.follow_log(task, token=token)

    def _read_kept_log(self, lines: int) -> list[str]:
        store = self._fleet.store
        content = store.store.read(f"{store.prefix}files/master.log")
        text = content.data.decode(errors="replace") if content else ""
        return text.splitlines()[-lines:] if lines else []

    def _find(self, worker: str | None) -> Task | None:
        """A task by its id, the beginning or end of it, its role, or its worker's name.

        None for a master that has gone. Raises `SessionError`.
        """
        wanted = worker or "master"
        if wanted in ROLES:
            task = self._fleet.find(wanted)
            if task is not None:
                return task
            if worker is None and self._fleet.has_files():
                return None
        tasks = [task for role in ("worker", *ROLES[:2]) for task in self._fleet.tasks(role)]
        tasks += self._fleet.tasks("worker", stopped=True)
        for task in tasks:
            if is_called(task, wanted):
                return task
        names = [f"{task.role} {task.id}" for task in tasks]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise SessionError(
            f"session {self.info.name} has no task {wanted}",
            remedy=f"There are: {', '.join(names[:_SHOWN]) or 'none'}{more}.",
        )

    def fetch(self, folder: Path) -> bool:
        return fetch(self._fleet, folder)

    def stop(self) -> None:
        self._fleet.stop_master()

    def list_parts(self, *, discard_results: bool) -> list[str]:
        return self._fleet.list_parts(discard_results=discard_results)

    def down(self, *, discard_results: bool) -> list[str]:
        return self._fleet.down(discard_results=discard_results)


def is_called(task: Task, wanted: str) -> bool:
    if wanted in (task.id, name_worker(task.id)):
        return True
    return len(wanted) >= 4 and (task.id.startswith(wanted) or task.id.endswith(wanted))


# -- listing -----------------------------------------------------------------------------------


def _open(cloud: Cloud, name: str, where: Where) -> RemoteFleet | None:
    """A session that was launched, or of which files are kept; by three requests at most."""
    fleet = _make_fleet(cloud, name)
    services = fleet.services(tags=True)
    if services:
        parts = [_describe_service(role, one) for role, one in services.items()]
        folder = next((as_dict(one.get("tags")).get(FOLDER, "") for one in services.values()), "")
        return RemoteFleet(_describe(cloud, name, where, services, parts, folder), fleet)
    if fleet.has_files() and not fleet.list_parts():
        return RemoteFleet(_describe_kept(cloud, name, where), fleet)
    return None


def _make_fleet(cloud: Cloud, name: str) -> EcsFleet:
    from pestfleet.config import read_settings
    from pestfleet.targets.ecs.resources.kinds import open_search

    search = open_search(cloud, name)
    cluster = search.cluster if search.shared else ""
    return EcsFleet(cloud, name, cluster=cluster, bucket=read_settings().amazon.bucket)


def _list(cloud: Cloud, where: Where) -> list[SessionInfo]:
    tagged = find_tagged(cloud)
    services = describe_services(cloud, tagged)
    infos = []
    for name, found in tagged.items():
        own = services.get(name, {})
        others = [str(one) for one in found if one.kind != "service"]
        parts = [*(_describe_service(role, one) for role, one in own.items()), *others]
        folder = next((one.tags[FOLDER] for one in found if FOLDER in one.tags), "")
        infos.append(_describe(cloud, name, where, own, parts, folder))
    kept = [name for name in list_kept(cloud) if name not in tagged]
    with ThreadPoolExecutor(_THREADS) as pool:
        infos += pool.map(lambda name: _describe_kept(cloud, name, where), kept)
    return infos


def describe_services(
    cloud: Cloud, tagged: Mapping[str, Sequence[Found]]
) -> dict[str, dict[str, Answer]]:
    """Session -> role -> its service, of all sessions; ten services a request."""
    owners: dict[tuple[str, str], tuple[str, str]] = {}  # cluster and name -> session and role
    clusters: dict[str, list[str]] = defaultdict(list)
    for name, found in tagged.items():
        for one in found:
            if one.kind != "service":
                continue
            cluster = one.tags.get(CLUSTER) or Names(name).cluster
            owners[cluster, one.name] = (name, one.tags.get(ROLE, ""))
            clusters[cluster].append(one.name)

    def ask(batch: tuple[str, list[str]]) -> tuple[str, list[Answer]]:
        cluster, names = batch
        try:
            answer = cloud.call("ecs", "describe_services", cluster=cluster, services=names)
        except Refused as error:  # the cluster has gone since it was listed
            logger.info("services of %s: %s", cluster, error)
            return cluster, []
        return cluster, list(answer.get("services") or ())

    batches = [
        (cluster, names[start : start + _AT_ONCE])
        for cluster, names in clusters.items()
        for start in range(0, len(names), _AT_ONCE)
    ]
    services: dict[str, dict[str, Answer]] = defaultdict(dict)
    with ThreadPoolExecutor(_THREADS) as pool:
        for cluster, answers in pool.map(ask, batches):
            for service in answers:
                if service.get("status") == "ACTIVE":
                    name, role = owners[cluster, service["serviceName"]]
                    services[name][role] = service
    return services


def list_kept(cloud: Cloud) -> list[str]:
    """The ids of sessions with files in the account's bucket, or in that of the settings."""
    from pestfleet.config import read_settings
    from pestfleet.store import list_sessions as list_stored

    bucket = read_settings().amazon.bucket or name_bucket(cloud.account, cloud.region)
    try:
        return list_stored(open_store(cloud, bucket, "").store)
    except PestfleetError as error:  # there is none, or it is not to be looked at
        logger.info("no kept sessions: %s", error)
        return []


def _describe(
    cloud: Cloud,
    name: str,
    where: Where,
    services: Mapping[str, Answer],
    parts: Iterable[str],
    folder: str,
) -> SessionInfo:
    began = [read_time(one.get("createdAt")) for one in services.values()]
    worker = services.get("worker", {})
    return SessionInfo(
        name=name,
        target="ecs",
        state=find_state(services),
        workers=int(worker.get("runningCount", 0)),
        began=min((time for time in began if time), default=0.0),
        folder=folder,
        parts=tuple(parts),
        where=Where(region=cloud.region, profile=where.profile),
    )


def find_state(services: Mapping[str, Answer]) -> str:
    """Does a session run, by what its services are asked for?"""
    if "worker" not in services:  # the last that a launch makes
        return HALF
    # The master of a session without a service for it is at home.
    leader = services.get("master", services["worker"])
    return "running" if leader.get("desiredCount") else LEFT


def _describe_kept(cloud: Cloud, name: str, where: Where) -> SessionInfo:
    fleet = EcsFleet(cloud, name, bucket=_find_bucket())
    began = 0.0
    try:
        head = fleet.store.store.head(f"{fleet.store.prefix}files/session.json")
        began = head.modified if head else 0.0
    except PestfleetError as error:
        logger.info("the files of %s are not looked at: %s", name, error)
    return SessionInfo(
        name=name,
        target="ecs",
        state=KEPT,
        workers=0,
        began=began,
        parts=(f"files in s3://{fleet.bucket}/{fleet.store.prefix}",),
        where=Where(region=cloud.region, profile=where.profile),
    )


def _find_bucket() -> str:
    from pestfleet.config import read_settings

    return read_settings().amazon.bucket


def _describe_service(role: str, service: Answer) -> str:
    asked, there = service.get("desiredCount", 0), service.get("runningCount", 0)
    more = service.get("pendingCount", 0)
    starting = f", {more} starting" if more else ""
    return f"service {role}: {asked} asked for, {there} running{starting}"
