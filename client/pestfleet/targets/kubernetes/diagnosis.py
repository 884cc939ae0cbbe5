"""Why is it not running: what keeps a session's pods from their work, in a few sentences.

`explain` is pure: it reads objects as the API server sends them. `gather` asks for these, with as
few requests as possible: none for each pod.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from pestfleet.targets.kubernetes.access import Access, Refused
from pestfleet.targets.kubernetes.causes import read_exit, read_refusal
from pestfleet.targets.kubernetes.naming import SESSION, Object, read_role
from pestfleet.targets.kubernetes.pod_causes import find_cause, is_silent, is_unscheduled
from pestfleet.targets.kubernetes.pod_failures import has_failed
from pestfleet.targets.kubernetes.quantities import Amounts, sum_usage
from pestfleet.targets.kubernetes.surroundings import (
    DWELL,
    Surroundings,
    find_condition,
    find_failed_end,
    index_events,
    list_statuses,
)
from pestfleet.targets.troubles import Cause, Trouble, fill, shorten, tell

ReadTail = Callable[[Object], str]

_TAIL = 10  # lines of a log
_TAILS = 3  # logs that are looked at
_WITH_LOG = ("refused", "exit", "crash")
_LOG = "; its log ends with: "
# Reasons of events that tell of no trouble, or what the pods' status tells anyway.
_NOISE = (
    *("Scheduled", "Pulling", "Pulled", "Created", "Started", "Killing", "SuccessfulCreate"),
    *("SuccessfulDelete", "Unhealthy", "FailedScheduling", "BackOff"),
)
# Groups of an API that come with an autoscaler, and where the usual one says what it does.
_AUTOSCALERS = ("karpenter.sh", "autoscaling.gke.io", "autoscaling.openshift.io")
_STATUS = "/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status"

logger = logging.getLogger(__name__)


def explain(
    pods: Sequence[Object],
    *,
    events: Iterable[Object] = (),
    nodes: Sequence[Object] | None = None,
    jobs: Sequence[Object] = (),
    now: float,
    dwell: float = DWELL,
    autoscaler: bool | None = None,
    read_tail: ReadTail | None = None,
) -> list[Trouble]:
    """What keeps a session's pods from running: first what is for good, and what all depend on.

    `jobs`: what makes the pods, also other kinds with `replicas`. `nodes`: None where they may not
    be listed. `autoscaler`: does the cluster add nodes by itself; None for who knows. `now`: in
    seconds since 1970; a pod that waits for less than `dwell` seconds is no trouble. `read_tail`
    reads the end of a pod's log, of few pods.
    """
    around = Surroundings(
        now=now, dwell=dwell, nodes=nodes, autoscaler=autoscaler, events=index_events(events)
    )
    groups: dict[tuple[str, Cause], list[Object]] = {}
    for pod in pods:
        if cause := find_cause(pod, around):
            groups.setdefault((read_role(pod), cause), []).append(pod)
    tails = 0
    troubles = []
    for (role, cause), found in groups.items():
        tail: list[str] = []
        if cause.kind in _WITH_LOG and read_tail and tails < _TAILS:
            tails += 1
            tail = (_find_last_words(found[-1]) or read_tail(found[-1])).strip().splitlines()
        troubles.append(_make_trouble(cause, role, found, len(found), tail))
    for job in jobs:
        role = read_role(job)
        _add_end(troubles, job, role)
        missing = _count_missing(job, around)
        if missing and (refused := _read_refused(job, role, pods, around)):
            wanted = int(job["spec"].get("parallelism", 1))
            troubles.append(_make_trouble(refused, role, (), missing, of=wanted))
    return sorted(_fill_session(troubles, [*pods, *jobs]), key=_rank)


def _rank(trouble: Trouble) -> tuple[bool, bool, int]:
    return not trouble.hopeless, trouble.role == "worker", -trouble.count


def gather(
    access: Access, session: str, *, pods: Sequence[Object] | None = None, dwell: float = DWELL
) -> list[Trouble]:
    """What keeps a session's pods from running. Says less where less may be looked at.

    `pods`: if they have been listed already. Raises `Unreachable`.
    """
    now = time.time()
    selector = f"{SESSION}={session}"
    if pods is None:
        pods = access.find_all(access.find_path("v1", "pods"), labelSelector=selector)
    jobs = _try_list(access, access.find_path("batch/v1", "jobs"), labelSelector=selector) or []
    early = Surroundings(now=now, dwell=dwell)
    homeless = any(is_unscheduled(pod, early) for pod in pods)
    silent = any(is_silent(pod, early) for pod in pods)
    waiting = (
        homeless
        or any(_is_pending(pod, early) for pod in pods)
        or any(_count_missing(job, early) for job in jobs)
    )
    if not (waiting or silent) and not explain(pods, jobs=jobs, now=now, dwell=dwell):
        return []
    events: list[Object] = []
    if waiting:
        events += _list_events(access, ",".join(f"reason!={reason}" for reason in _NOISE))
        jobs += _list_others(access, selector, events)
    nodes, autoscaler = None, None
    if homeless or silent:
        nodes = _try_list(access, "/api/v1/nodes")
    if homeless:
        autoscaler = find_autoscaler(access)
        if autoscaler is not False:
            events += _list_events(access, "source=karpenter")
    return explain(
        pods,
        events=events,
        nodes=nodes,
        jobs=jobs,
        now=now,
        dwell=dwell,
        autoscaler=autoscaler,
        read_tail=_make_reader(access),
    )


def find_autoscaler(access: Access) -> bool | None:
    """Does the cluster add nodes when pods wait for them? None where that cannot be seen."""
    try:
        groups = access.get("/apis").get("groups") or ()
        if not any(group["name"].endswith(_AUTOSCALERS) for group in groups):
            access.get(_STATUS)
        return True
    except Refused as error:
        return False if error.status == 404 else None


def _is_pending(pod: Object, around: Surroundings) -> bool:
    """Has it not started, or not again, after a while?"""
    if around.measure(pod["metadata"]["creationTimestamp"]) < around.dwell or has_failed(pod):
        return False
    return (pod.get("status") or {}).get("phase") not in ("Running", "Succeeded")


# -- asking ------------------------------------------------------------------------------------


def _try_list(access: Access, path: str, **query: Any) -> list[Object] | None:
    """A list; None where we may not look at it."""
    try:
        return access.find_all(path, **query)
    except Refused as error:
        logger.info("not looked at: %s", error.message)
        return None


def _list_events(access: Access, fields: str) -> list[Object]:
    path = access.find_path("v1", "events")
    return _try_list(access, path, fieldSelector=fields) or []


def _list_others(access: Access, selector: str, events: list[Object]) -> list[Object]:
    """What makes pods besides Jobs, where it fails to."""
    kinds = {e["involvedObject"].get("kind") for e in events if e["reason"] == "FailedCreate"}
    found: list[Object] = []
    for kind, plural in (("StatefulSet", "statefulsets"), ("ReplicaSet", "replicasets")):
        if kind in kinds:
            path = access.find_path("apps/v1", plural)
            found += _try_list(access, path, labelSelector=selector) or []
    return found


def _make_reader(access: Access) -> ReadTail:
    def read(pod: Object) -> str:
        path = f"{access.find_path('v1', 'pods', pod['metadata']['name'])}/log"
        # An init container may be what failed.
        failed = [one for one in list_statuses(pod) if find_failed_end(one)]
        name = failed[0]["name"] if failed else read_role(pod)
        again = bool(failed) and "terminated" not in (failed[0].get("state") or {})
        try:
            return access.read_text(path, container=name, tailLines=_TAIL, previous=again)
        except Refused as error:  # it is gone, or we may not
            logger.info("no log: %s", error.message)
            return ""

    return read


# -- telling -----------------------------------------------------------------------------------


def _make_trouble(
    cause: Cause,
    role: str,
    pods: Sequence[Object],
    count: int,
    tail: Sequence[str] = (),
    *,
    plural: bool = False,
    of: int = 0,
) -> Trouble:
    message = tell(cause, role, count, of=of)
    if plural:
        message = f"the workers ended: {fill(cause.why, True)}"
    if tail:
        message += f"{_LOG}{shorten(tail[-1])}"
    return Trouble(
        kind=cause.kind,
        count=count,
        message=message,
        remedy=cause.remedy,
        hopeless=cause.hopeless,
        pods=tuple(pod["metadata"]["name"] for pod in pods),
        role=role,
        why=cause.why,
        tail=tuple(tail),
        form=cause.form,
    )


def _add_end(troubles: list[Trouble], job: Object, role: str) -> None:
    """That a Job failed as a whole: with its pods' own trouble, if they tell one."""
    cause = _read_end(job, role)
    if cause is None:
        return
    own = [t for t in troubles if t.role == role and t.form == "ended"]
    if own and cause.kind != "deadline":
        worst = max(own, key=lambda trouble: trouble.count)
        said, mark, log = worst.message.partition(_LOG)
        more = "" if worst.kind == "refused" else "; no more are started"
        troubles[troubles.index(worst)] = replace(
            worst, message=f"{said}{more}{mark}{log}", hopeless=True, final=True
        )
        return
    trouble = _make_trouble(cause, role, (), 1, plural=role == "worker")
    troubles.append(replace(trouble, final=True))


def _fill_session(troubles: list[Trouble], found: Sequence[Object]) -> list[Trouble]:
    """The session's name in commands."""
    names = [one["metadata"].get("labels", {}).get(SESSION) for one in found[:1]]
    if not names or not names[0]:
        return troubles
    return [
        replace(trouble, remedy=trouble.remedy.replace("SESSION", names[0])) for trouble in troubles
    ]


def _find_last_words(pod: Object) -> str:
    """What a container left as its message, where it leaves one."""
    for container in list_statuses(pod):
        if said := find_failed_end(container).get("message"):
            return str(said)
    return ""


# -- what makes pods ---------------------------------------------------------------------------


def _count_missing(job: Object, around: Surroundings) -> int:
    """How many pods could not be made, after a while."""
    spec, status = job["spec"], job.get("status") or {}
    young = around.measure(job["metadata"]["creationTimestamp"]) < around.dwell
    if young or job["metadata"].get("deletionTimestamp") or _find_end(job) or spec.get("suspend"):
        return 0
    if "replicas" in spec:
        return max(0, int(spec["replicas"]) - int(status.get("replicas", 0)))
    if status.get("succeeded"):  # workers end, and none takes their place
        return 0
    # One that is on its way out is replaced when it has gone.
    there = int(status.get("active", 0)) + int(status.get("terminating", 0))
    return max(0, int(spec.get("parallelism", 1)) - there)


def _read_refused(
    job: Object, role: str, pods: Sequence[Object], around: Surroundings
) -> Cause | None:
    metadata = job["metadata"]
    for event in around.find_events(metadata.get("uid", ""), metadata["name"]):
        if event["reason"] == "FailedCreate":
            return read_refusal(event["message"], role, _sum_own(pods))
    return None


def _sum_own(pods: Sequence[Object]) -> Amounts:
    """What the session's pods use of quotas."""
    total: Amounts = {}
    cache: dict[str, Amounts] = {}
    for pod in pods:
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        key = json.dumps([c.get("resources") for c in pod["spec"]["containers"]])
        cache.setdefault(key, sum_usage(pod["spec"]))
        for name, amount in cache[key].items():
            total[name] = total.get(name, Fraction(0)) + amount
    return total


def _find_end(job: Object) -> str:
    """The reason for which a Job ended; "" while it goes on."""
    for kind in ("Failed", "FailureTarget", "Complete"):
        condition = find_condition(job, kind)
        if condition.get("status") == "True":
            return str(condition.get("reason") or kind)
    return ""


def _read_end(job: Object, role: str) -> Cause | None:
    """Why a Job failed as a whole."""
    reason = _find_end(job)
    if reason == "DeadlineExceeded":
        seconds = int(job["spec"].get("activeDeadlineSeconds", 0))
        limit = f"{seconds / 3600:.3g} hours" if seconds >= 3600 else f"{seconds} s"
        why = f"the session's limit of {limit} is over"
        remedy = "Finished runs are kept: pestfleet resume goes on; --max-hours gives more."
        return Cause("deadline", "ended", why, remedy, True)
    if reason == "BackoffLimitExceeded":
        why = f"more than {job['spec'].get('backoffLimit', 6)} of {{them}} failed"
        return Cause("failed", "ended", why, "See pestfleet logs SESSION --on kubernetes", True)
    if reason == "PodFailurePolicy":
        message = find_condition(job, "Failed").get("message") or ""
        match = re.search(r"failed with exit code (\d+)", message)
        return read_exit(int(match[1]), role) if match else None
    return None
