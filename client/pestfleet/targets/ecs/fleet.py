"""One session's services, tasks and logs in ECS, found by their names; and its store."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.naming import ROLES, Names
from pestfleet.targets.ecs.planned import name_bucket
from pestfleet_worker.errors import SessionError, TargetError

if TYPE_CHECKING:
    from pestfleet.store import SessionStore

logger = logging.getLogger(__name__)

Answer = dict[str, Any]

MOST_LINES = 10_000  # of a log that one GetLogEvents gives
DESCRIBED = 100  # tasks that one DescribeTasks tells about, and one ListTasks
GLANCE = 1.0  # seconds between two looks at what changes; longer ones later
LONG_GLANCE = 5.0
LOG_GLANCE, TASK_GLANCE = 3.0, 15.0  # seconds: for more of a log, whether its task still runs
STOP_PATIENCE = 150.0  # seconds for a master that is asked to stop
GONE = ("ClusterNotFoundException", "ServiceNotFoundException", "ServiceNotActiveException",
        "ResourceNotFoundException")  # fmt: skip
_NO_STREAM = ("ResourceNotFoundException",)


@dataclass(frozen=True, slots=True)
class Task:
    """A task as DescribeTasks tells it. `began`: seconds since 1970; `body`: the answer."""

    id: str
    role: str
    status: str  # PROVISIONING … RUNNING … STOPPED
    wanted: str  # RUNNING or STOPPED
    began: float
    body: Answer

    @property
    def running(self) -> bool:
        return self.status == "RUNNING" and self.wanted == "RUNNING"

    @property
    def stream(self) -> str:
        """Of its main container, in the session's log group."""
        return f"{self.role}/{self.role}/{self.id}"

    @property
    def failed(self) -> bool:
        return any(one.get("exitCode") for one in self.body.get("containers") or ())


class EcsFleet:
    """A session's services and tasks."""

    def __init__(self, cloud: Cloud, session: str, *, cluster: str = "", bucket: str = "") -> None:
        """`cluster`: a shared one, "" for the session's own; `bucket`: "" for the account's."""
        self.cloud = cloud
        self.session = session
        self.names = Names(session)
        self.cluster = cluster or self.names.cluster
        self._bucket = bucket

    @cached_property
    def bucket(self) -> str:
        """The bucket with the session's files."""
        return self._bucket or name_bucket(self.cloud.account, self.cloud.region)

    @cached_property
    def store(self) -> SessionStore:
        """The session's files in S3."""
        from pestfleet.targets.ecs.results import open_store

        return open_store(self.cloud, self.bucket, self.session)

    # -- looking -------------------------------------------------------------------------------

    def services(self, roles: Sequence[str] = ROLES, *, tags: bool = False) -> dict[str, Answer]:
        """Role -> its service as it is, where there is one; by one request."""
        wanted = {self.names.service(role): role for role in roles}
        try:
            answer = self.cloud.call(
                "ecs",
                "describe_services",
                cluster=self.cluster,
                services=list(wanted),
                include=["TAGS"] if tags else [],
            )
        except Refused as error:
            if error.code in GONE:
                return {}
            raise
        return {
            wanted[one["serviceName"]]: one
            for one in answer.get("services") or ()
            if one.get("status") == "ACTIVE"
        }

    def tasks(self, role: str, *, stopped: bool = False, most: int = 0) -> list[Task]:
        """Tasks of a role, the oldest first, no more than `most` (0: all) of them.

        `stopped`: those that ended in the last hour.
        """
        listed = self.cloud.find_all(
            "ecs",
            "list_tasks",
            "taskArns",
            cluster=self.cluster,
            serviceName=self.names.service(role),
            desiredStatus="STOPPED" if stopped else "RUNNING",
        )
        try:
            found = list(islice(listed, most or None))
        except Refused as error:
            if error.code in GONE:
                return []
            raise
        return sorted(self._describe(found, role), key=lambda task: (task.began, task.id))

    def _describe(self, arns: Sequence[str], role: str) -> Iterator[Task]:
        for start in range(0, len(arns), DESCRIBED):
            some = list(arns[start : start + DESCRIBED])
            answer = self.cloud.call("ecs", "describe_tasks", cluster=self.cluster, tasks=some)
            for body in answer.get("tasks") or ():
                yield read_task(body, role)

    def find(self, role: str) -> Task | None:
        """The newest task of a role that runs, or else the newest one that starts or ended."""
        alive = self.tasks(role)
        running = [task for task in alive if task.running]
        if running or alive:
            return (running or alive)[-1]
        ended = self.tasks(role, stopped=True)
        return ended[-1] if ended else None

    # -- logs ----------------------------------------------------------------------------------

    def read_tail(self, stream: str, *, lines: int) -> tuple[list[str], str]:
        """The last lines of a log, and the token for what comes after them."""
        limit = min(max(lines, 1), MOST_LINES)
        answer = self._read_events(stream, startFromHead=False, limit=limit)
        last = [str(one["message"]) for one in answer.get("events") or ()]
        return last if lines else [], str(answer.get("nextForwardToken", ""))

    def read_log(
        self, stream: str, *, since: float = 0.0, token: str = ""
    ) -> Generator[str, None, str]:
        """A log from its beginning, `since` or `token`, as it is now.

        Returns the token for what comes after it.
        """
        begin: Answer = {"startTime": int(since * 1000)} if since else {}
        while True:
            last = {"nextToken": token} if token else {}
            answer = self._read_events(stream, startFromHead=True, **begin, **last)
            for event in answer.get("events") or ():
                yield str(event["message"])
            following = str(answer.get("nextForwardToken", ""))
            if following in ("", token):
                return following
            token = following

    def follow_log(self, task: Task, *, since: float = 0.0, token: str = "") -> Iterator[str]:
        """As `read_log`, and what is written until the task ends."""
        looked = time.monotonic()
        ended = task.status == "STOPPED"
        while True:
            token = yield from self.read_log(task.stream, since=since, token=token)
            if ended:
                return
            time.sleep(LOG_GLANCE)  # CloudWatch has nothing to wait for
            if time.monotonic() - looked > TASK_GLANCE:
                looked = time.monotonic()
                arn = task.body["taskArn"]
                now = list(self._describe([arn], task.role))
                ended = not now or now[0].status == "STOPPED"

    def _read_events(self, stream: str, **parameters: Any) -> Answer:
        try:
            return self.cloud.call(
                "logs",
                "get_log_events",
                logGroupName=self.names.logs,
                logStreamName=stream,
                **parameters,
            )
        except Refused as error:
            if error.code in _NO_STREAM:  # it has written nothing yet
                return {}
            raise

    # -- changing ------------------------------------------------------------------------------

    def set_desired(self, role: str, number: int) -> None:
        """Have that many tasks of a role. Raises `Refused` where there is no service."""
        self.cloud.call(
            "ecs",
            "update_service",
            cluster=self.cluster,
            service=self.names.service(role),
            desiredCount=number,
        )

    def end_task(self, task: str, reason: str) -> None:
        """End a task; its service starts another. One that is gone already is no trouble."""
        try:
            self.cloud.call(
                "ecs", "stop_task", cluster=self.cluster, task=task, reason=reason[:255]
            )
        except Refused as error:
            if error.code not in (*GONE, "InvalidParameterException"):
                raise

    def scale(self, workers: int, *, elastic: bool = False) -> list[str]:
        """Have that many workers; says what was done, a line each.

        `elastic`: the master decides how many; it is asked, and drains those that are too many.
        """
        services = self.services(("master", "worker"))
        if "worker" not in services:
            raise SessionError(
                f"session {self.session} has no workers in region {self.cloud.region}",
                remedy="It is not running. Sessions that are: pestfleet sessions --on ecs",
            )
        led = bool(services.get("master", {}).get("runningCount"))
        if elastic:
            if not led:
                raise SessionError(f"the master of session {self.session} does not run just now")
            self.store.request_workers(workers)
            return [
                f"the master is asked for {workers} workers, and drains those that are too many"
            ]
        before = int(services["worker"]["desiredCount"])
        if before == workers:
            return [f"there are {workers} workers already"]
        self.set_desired("worker", workers)
        if led:  # ECS ends nobody who has runs: the master drains those that are too many
            self.store.request_workers(workers)
        change = workers - before
        if change > 0:
            return [f"{change} more workers are asked for: {before} -> {workers}"]
        return [f"{-change} workers go when they have no run in hand: {before} -> {workers}"]

    def stop_master(self, *, patience: float = STOP_PATIENCE) -> None:
        """Have the master end the session, as Ctrl-C would, and wait for its end."""
        if not self._wants_master():
            return
        self.store.request_stop()
        deadline, pause = time.monotonic() + patience, GLANCE
        while time.monotonic() < deadline:
            if self.store.read_ended() or not self._wants_master():
                return
            time.sleep(pause)
            pause = min(1.5 * pause, LONG_GLANCE)
        raise TargetError(
            f"the master of session {self.session} has not stopped after {patience:.0f} s",
            remedy=f"Remove it all the same: pestfleet down {self.session} --on ecs "
            f"--region {self.cloud.region}",
        )

    # -- removing ------------------------------------------------------------------------------

    def list_parts(self, *, discard_results: bool = False) -> list[str]:
        """What `down` would remove, also half-made things; some forty requests."""
        from pestfleet.targets.ecs.resources import find_all

        parts = [str(found) for found in find_all(self.cloud, self.session)]
        if discard_results and self.has_files():
            parts.append(f"files in s3://{self.bucket}/{self.store.prefix}")
        return parts

    def has_files(self) -> bool:
        """Are there files of the session in its bucket?"""
        from pestfleet.store.errors import NoBucket

        try:
            return self.store.exists()
        except NoBucket:
            return False

    def down(self, *, discard_results: bool = False) -> list[str]:
        """Remove all of the session; says what was removed. Its files stay, unless discarded.

        The account's bucket goes, too, when no session has files in it.

        Raises `TargetError` that names what is left.
        """
        from pestfleet.targets.ecs.resources import remove_all, remove_bucket

        removed = remove_all(self.cloud, self.session)
        removed += self._remove_machines(removed)
        if discard_results and self.has_files():
            count = self.store.remove()
            place = f"s3://{self.bucket}/{self.store.prefix}"
            removed.append(f"{count:,} object{'s'[: count != 1]} of {place}")
        # Of all sessions; it stays where there are files, and where it is the user's.
        if not self._bucket and not self.has_files() and remove_bucket(self.cloud):
            removed.append(f"bucket {self.bucket}")
        return removed

    def _remove_machines(self, removed: Sequence[str]) -> list[str]:
        """What machines had that were started by hand, where there were such ones."""
        from pestfleet.capacity.machines import MACHINE
        from pestfleet.capacity.removal import remove_leftovers

        own = self.names.group(MACHINE)
        kept = any(line.startswith("auto scaling group ") for line in removed)  # by that
        machines = not kept and any(line.startswith("instance ") for line in removed)
        if not machines and not any(own in line for line in removed):
            return []
        return remove_leftovers(self.cloud, self.session)

    def _wants_master(self) -> bool:
        """Is there a master, or one that starts?"""
        return bool(self.services(("master",)).get("master", {}).get("desiredCount"))


def read_task(body: Answer, role: str = "") -> Task:
    """A task of an answer of DescribeTasks. `role`: of its service, where that is known."""
    if not role:
        role = str(body.get("group", "")).rpartition("-")[2]
    return Task(
        id=str(body["taskArn"]).rpartition("/")[2],
        role=role,
        status=str(body.get("lastStatus", "")),
        wanted=str(body.get("desiredStatus", "")),
        began=read_time(body.get("createdAt")),
        body=body,
    )


def read_time(value: object) -> float:
    """Seconds since 1970 of a time in an answer; 0 where there is none."""
    return value.timestamp() if isinstance(value, datetime) else 0.0
