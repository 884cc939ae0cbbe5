"""One session's objects in a cluster, found by their labels and by nothing else."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pestfleet.journal import parse_event
from pestfleet.targets.base import Taken
from pestfleet.targets.kubernetes.access import Access, Refused, Unreachable
from pestfleet.targets.kubernetes.naming import (
    ROLE,
    SESSION,
    Object,
    add_owner,
    describe,
    name_plural,
    name_release,
    read_role,
)
from pestfleet.targets.kubernetes.pods import Pod, find_end, read_pod
from pestfleet_worker.errors import SessionError, TargetError

logger = logging.getLogger(__name__)

# What a session can have, in the order in which it is removed: first what makes pods.
KINDS = (
    ("batch/v1", "Job"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("v1", "ServiceAccount"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("v1", "PersistentVolumeClaim"),
)
CLAIM = "PersistentVolumeClaim"
GONE = 404
EXISTS = 409
REMOVAL_PATIENCE = 120.0  # seconds; a pod has its grace
GLANCE = 0.25  # seconds between two looks at what is being removed; longer ones later
LONG_GLANCE = 2.0
_TAIL = 5  # lines of a log in a message


class KubernetesFleet:
    """The objects in a namespace that carry a session's label."""

    def __init__(self, access: Access, session: str) -> None:
        self.access = access
        self.session = session
        self.release = name_release(session)
        self.selector = f"{SESSION}={session}"

    # -- looking -------------------------------------------------------------------------------

    def pods(self, role: str = "") -> list[Pod]:
        """The session's pods (of one role), the oldest first."""
        selector = f"{self.selector},{ROLE}={role}" if role else self.selector
        found = self.access.find_all(self.access.find_path("v1", "pods"), labelSelector=selector)
        pods = [read_pod(body) for body in found]
        return sorted(pods, key=_age)

    def find(self, role: str) -> Pod | None:
        """The pod of a role that runs, or else the newest one."""
        pods = self.pods(role)
        alive = [pod for pod in pods if pod.phase == "Running" and not pod.leaving]
        return next(iter(alive), pods[-1] if pods else None)

    def find_servers(self) -> dict[str, Pod]:
        """Role -> its pod as `find` has it, of master, broker and tunnel; by one request."""
        selector = f"{self.selector},{ROLE} in (master,broker,tunnel)"
        path = self.access.find_path("v1", "pods")
        pods = [read_pod(body) for body in self.access.find_all(path, labelSelector=selector)]
        pods.sort(key=_age)
        # The last one counts: one that runs, or else the newest.
        pods.sort(key=lambda pod: pod.phase == "Running" and not pod.leaving)
        return {pod.role: pod for pod in pods}

    def find_job(self, role: str) -> Object | None:
        """The Job of master or workers; None when there is none (any more)."""
        selector = f"{self.selector},{ROLE}={role}"
        jobs = self.access.find_all(
            self.access.find_path("batch/v1", "jobs"), labelSelector=selector
        )
        kept = [job for job in jobs if not job["metadata"].get("deletionTimestamp")]
        return kept[-1] if kept else None

    def find_claim(self) -> Object | None:
        """The claim with the session's folder; None when there is none."""
        selector = f"{self.selector},{ROLE}=master"
        path = self.access.find_path("v1", "persistentvolumeclaims")
        found = self.access.find_all(path, labelSelector=selector)
        kept = [claim for claim in found if not claim["metadata"].get("deletionTimestamp")]
        return kept[0] if kept else None

    def read_state(self) -> dict[str, Any]:
        """The last state that the master wrote; {} when there is no master to ask.

        Of a master that has ended: `state` and `summary`, as the last event in its log has them.
        """
        master = self.find("master")
        if master is None or master.phase == "Pending":
            return {}
        if master.phase == "Running":
            return self.read_state_of(master)
        return self._read_end(master)

    def _read_end(self, master: Pod) -> dict[str, Any]:
        for line in reversed(self.read_log(master, lines=_TAIL).splitlines()):
            event = parse_event(line)
            if event is not None and event["event"] == "end":
                return {name: event[name] for name in ("state", "summary") if name in event}
        return {}

    def read_state_of(self, master: Pod) -> dict[str, Any]:
        """The state by a master's pod that runs; {} when it has none yet."""
        path = f"/session/{self.session}/state.json"
        try:
            content = self.access.execute_all(master.name, "master", ["cat", path])
        except (Refused, TargetError) as error:
            if isinstance(error, Unreachable):
                raise
            logger.info("no state of the master: %s", error)
            return {}
        try:
            state: dict[str, Any] = json.loads(content)
        except ValueError:  # it has ended in the middle
            return {}
        return state

    def read_log(self, pod: Pod, *, lines: int | None = None) -> str:
        """The log of a pod's main container; "" where it has not begun."""
        path = f"{self.access.find_path('v1', 'pods', pod.name)}/log"
        try:
            return self.access.read_text(path, container=pod.role, tailLines=lines)
        except Refused as error:
            if error.status in (400, GONE):
                return ""
            raise

    def follow_log(self, pod: Pod, *, lines: int | None, follow: bool) -> Iterator[str]:
        """The end of a log, line by line; with `follow` also what comes, until it ends."""
        path = f"{self.access.find_path('v1', 'pods', pod.name)}/log"
        yield from self.access.stream(path, container=pod.role, tailLines=lines, follow=follow)

    def describe_end(self, pod: Pod) -> str:
        """How a pod ended, with the last lines of its log."""
        tail = self.read_log(pod, lines=_TAIL).strip() or "(no log)"
        indented = "\n    ".join(tail.splitlines())
        return f"{pod.name} ended with exit code {pod.exit_code}:\n    {indented}"

    # -- changing ------------------------------------------------------------------------------

    def apply(self, objects: Sequence[Object], *, owner: str) -> None:
        """Make these objects: first the Job of that role, whose end is the end of all others.

        Jobs have no pods until all is made: nodes are slow to look again for what a pod mounts,
        and nothing has begun when something is refused. The owner's time runs all the same, so that
        a launch that was cut off goes by itself. The claim with the results has no owner; one that
        is there is used again. Raises `SessionError` for another object that is there already.
        """
        job = next(o for o in objects if o["kind"] == "Job" and read_role(o) == owner)
        try:
            made = self._make(_set_pods(job, 0))
        except SessionError as error:  # launched meanwhile, from another machine
            raise Taken(error.message, remedy=error.remedy) from error
        # Pods wait for what they mount: it comes before what makes them.
        order = [kind for _, kind in reversed(KINDS)]
        rest = sorted((o for o in objects if o is not job), key=lambda o: order.index(o["kind"]))
        jobs = [one for one in rest if one["kind"] == "Job"]
        for one in rest:
            results = one["kind"] == CLAIM and read_role(one) == "master"
            body = _set_pods(one, 0) if one in jobs else one
            self._make(body if results else add_owner(body, made), there=results)
        for one in (job, *jobs):  # the owner first: where there is too little room, workers wait
            path = self.access.find_path("batch/v1", "jobs", one["metadata"]["name"])
            self.access.patch(path, {"spec": {"parallelism": one["spec"].get("parallelism", 1)}})

    def add(self, body: Object, *, owner: str) -> None:
        """Make one object more, that goes with the Job of that role."""
        job = self.find_job(owner)
        if job is None:
            raise SessionError(f"session {self.session} has no Job of its {owner} any more")
        self._make(add_owner(body, job))

    def dismiss(self, pod: str, *, grace: int | None = None) -> None:
        """End a pod, if it is there. `grace`: seconds, if not those of the pod itself."""
        try:
            path = self.access.find_path("v1", "pods", pod)
            self.access.delete(path, body={"gracePeriodSeconds": grace})
        except Refused as error:
            if error.status != GONE:
                raise

    def _make(self, body: Object, *, there: bool = False) -> Object:
        path = self.access.find_path(body["apiVersion"], name_plural(body["kind"]))
        try:
            return self.access.post(path, body)
        except Refused as error:
            if error.status != EXISTS:
                raise Refused(
                    error.status,
                    error.reason,
                    f"the cluster does not make {describe(body)}: {error.message}",
                    remedy=_find_remedy(error),
                ) from error
            if there:
                return self.access.get(f"{path}/{body['metadata']['name']}")
            raise SessionError(
                f"session {self.session} has a {describe(body)} in namespace "
                f"{self.access.namespace} already",
                remedy="Choose another id with --session, or remove it: "
                f"pestfleet down {self.session} --on kubernetes",
            ) from error

    def scale(self, workers: int) -> list[str]:
        """Have that many workers, by one request; says what was done, a line each."""
        job = self.find_job("worker")
        if job is None:
            raise SessionError(
                f"session {self.session} has no workers in namespace {self.access.namespace}",
                remedy="It is not running. Sessions that are: pestfleet sessions --on kubernetes",
            )
        if self._ask_master(workers):
            return [
                f"the master is asked for {workers} workers, and drains those that are too many"
            ]
        before = int(job["spec"].get("parallelism", 1))
        if before == workers:
            return [f"there are {workers} workers already"]
        path = self.access.find_path("batch/v1", "jobs", job["metadata"]["name"])
        self.access.patch(path, {"spec": {"parallelism": workers}})
        change = workers - before
        if change > 0:
            return [f"{change} more workers are asked for: {before} -> {workers}"]
        return [f"{-change} workers give back their runs and go: {before} -> {workers}"]

    def _ask_master(self, workers: int) -> bool:
        """Of an elastic fleet the master decides how many: it is told, as by pestfleet scale."""
        job = self.find_job("master")
        if job is None or "--most" not in job["spec"]["template"]["spec"]["containers"][0]["args"]:
            return False
        master = self.find("master")
        if master is None or master.phase != "Running":
            raise SessionError(f"the master of session {self.session} does not run just now")
        place = f"/session/{self.session}/scale"
        request = (
            f"echo '{json.dumps({'workers': workers})}' >{place}.tmp && mv {place}.tmp {place}"
        )
        self.access.execute_all(master.name, "master", ["sh", "-c", request])
        return True

    def stop_master(self, *, patience: float = 90.0) -> None:
        """Have the master end the session, as Ctrl-C would, and wait for its end."""
        master = self.find("master")
        if master is None or master.phase != "Running":
            job = self.find_job("master")
            if job is None or find_end(job):
                return
            raise TargetError(
                f"the master of session {self.session} does not run just now and cannot be asked",
                remedy=f"Try again, or remove all: pestfleet down {self.session} --on kubernetes",
            )
        self.access.execute_all(master.name, "master", ["touch", f"/session/{self.session}/stop"])
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            job = self.find_job("master")
            if job is None or find_end(job):
                return
            time.sleep(GLANCE)
        raise TargetError(
            f"the master of session {self.session} has not stopped after {patience:.0f} s",
            remedy=f"Remove it all the same: pestfleet down {self.session} --on kubernetes",
        )

    def down(self, *, discard_results: bool = False) -> list[str]:
        """Remove all that has the session's label; says what was removed.

        The claim with the session's folder stays, unless `discard_results`.
        """
        removed = self.list_parts(discard_results=discard_results)
        for version, kind in KINDS:
            path = self.access.find_path(version, name_plural(kind))
            if kind == "Pod":
                self._dismiss_strays(path)
            else:
                self._remove_all(path, kind, keep_results=not discard_results)
        self._await_removal()
        return removed

    def list_parts(self, *, discard_results: bool = False) -> list[str]:
        """What `down` would remove; pods go with what has made them."""
        return [
            describe({**found, "kind": kind})
            for version, kind in KINDS
            if kind != "Pod"
            for found in self._list(self.access.find_path(version, name_plural(kind)))
            if discard_results or kind != CLAIM or read_role(found) != "master"
        ]

    def _dismiss_strays(self, path: str) -> None:
        """Pods that nothing has made. All others go with their makers, many at a time.

        The API server removes a collection one after the other: a minute for a thousand.
        """
        for pod in self._list(path):
            if not pod["metadata"].get("ownerReferences"):
                self.dismiss(pod["metadata"]["name"])

    def _list(self, path: str) -> list[Object]:
        try:
            return self.access.find_all(path, labelSelector=self.selector, brief=True)
        except Refused as error:
            if error.status == 403:  # then we have not made one
                return []
            raise

    def _remove_all(self, path: str, kind: str, *, keep_results: bool) -> None:
        selector = self.selector
        if kind == CLAIM and keep_results:
            selector += f",{ROLE}!=master"
        try:
            self.access.delete(
                path, labelSelector=selector, body={"propagationPolicy": "Background"}
            )
        except Refused as error:
            if error.status not in (403, GONE):
                raise

    def _await_removal(self) -> None:
        path = self.access.find_path("v1", "pods")
        deadline = time.monotonic() + REMOVAL_PATIENCE
        pause = GLANCE
        while self.access.get(path, labelSelector=self.selector, limit=1).get("items"):
            if time.monotonic() > deadline:
                logger.warning("pods of session %s are still on their way out", self.session)
                return
            time.sleep(pause)
            pause = min(1.5 * pause, LONG_GLANCE)


def _set_pods(job: Object, number: int) -> Object:
    return {**job, "spec": {**job["spec"], "parallelism": number}}


def _find_remedy(error: Refused) -> str:
    if "exceeded quota" in error.message:
        return "End other sessions there, or have the quota raised (kubectl describe quota)."
    if error.status == 422:
        return "Look at --values and --set; --dry-run shows the objects."
    return error.remedy or "Try again; if it stays, ask who runs the cluster."


def _age(pod: Pod) -> tuple[str, str]:
    return str(pod.body["metadata"]["creationTimestamp"]), pod.name
