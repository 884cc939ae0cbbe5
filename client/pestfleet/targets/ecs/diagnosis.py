"""Why is it not running: what keeps a session's tasks from their work, in a few sentences.

`explain` is pure: it reads what DescribeServices and DescribeTasks answer. `gather` asks for that,
with few requests, whatever the number of tasks.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pestfleet.placement import Placement
from pestfleet.targets.ecs.causes import read_event, read_stop
from pestfleet.targets.ecs.fleet import EcsFleet, Task, read_time
from pestfleet.targets.ecs.naming import ROLES, Names
from pestfleet.targets.troubles import Cause, Trouble, shorten, tell

logger = logging.getLogger(__name__)

Answer = dict[str, Any]
ReadTail = Callable[[Task], str]

DWELL = 45.0  # seconds that a service may need to start its tasks before that is a trouble
SETTLE = 60.0  # seconds after which a role of IAM is known everywhere
LOOKED_AT = 300  # tasks that ended, of a role
_TAIL = 10  # lines of a log
_TAILS = 3  # logs that are looked at
_WITH_LOG = ("refused", "exit", "health")
# Kinds of troubles that keep tasks from starting: those are over when all run.
_STARTS = ("image", "rights", "network", "secret", "disk", "start")


def explain(
    services: Mapping[str, Answer],
    stopped: Sequence[Task],
    *,
    names: Names,
    place: Placement,
    now: float,
    dwell: float = DWELL,
    since: float = 0.0,
    read_tail: ReadTail | None = None,
) -> list[Trouble]:
    """What keeps a session's tasks from running: first what is for good, and what all depend on.

    `services`: role -> its service; `stopped`: tasks that ended after `since`, seconds since 1970.
    `dwell`: seconds that a service may take to start. `read_tail` reads the end of a task's log.
    """
    lacks = {role: _count_lack(service) for role, service in services.items()}
    groups: dict[tuple[str, Cause], list[Task]] = {}
    for task in stopped:
        if task.role not in services or task.began < since:
            continue
        cause = read_stop(task.body, names, task.role)
        if cause is None or (cause.kind in _STARTS and not lacks[task.role]):
            continue
        cause = _soften(cause, task, services[task.role])
        groups.setdefault((task.role, cause), []).append(task)
    troubles, tails = [], 0
    for (role, cause), tasks in groups.items():
        tail: list[str] = []
        if cause.kind in _WITH_LOG and read_tail is not None and tails < _TAILS:
            tails += 1
            tail = read_tail(tasks[-1]).strip().splitlines()
        count = len(tasks)
        if cause.hopeless and role == "worker":
            count = min(count, lacks[role])
        if count:
            troubles.append(_make_trouble(cause, role, tasks, count, tail))
    told = {trouble.role for trouble in troubles if trouble.kind in _STARTS}
    for role, service in services.items():
        lack = lacks[role] - int(service.get("pendingCount", 0))
        if lack <= 0 or now - read_time(service.get("createdAt")) < dwell:
            continue
        found = _find_event(service, role, place)
        if found is not None and not (found.kind in _STARTS and role in told):
            wanted = int(service["desiredCount"])
            troubles.append(_make_trouble(found, role, (), lack, of=wanted))
    return sorted(troubles, key=_rank)


def gather(
    fleet: EcsFleet, place: Placement, *, since: float = 0.0, dwell: float = DWELL
) -> list[Trouble]:
    """What keeps a session's tasks from running. Raises `Refused`, `Unreachable`."""
    services = fleet.services()
    stopped: list[Task] = []
    for role in ROLES:
        if role in services:
            stopped += fleet.tasks(role, stopped=True, most=LOOKED_AT)

    def read_tail(task: Task) -> str:
        return "\n".join(fleet.read_tail(task.stream, lines=_TAIL)[0])

    return explain(
        services,
        stopped,
        names=fleet.names,
        place=place,
        now=time.time(),
        dwell=dwell,
        since=since,
        read_tail=read_tail,
    )


def _rank(trouble: Trouble) -> tuple[bool, bool, int]:
    return not trouble.hopeless, trouble.role == "worker", -trouble.count


def _count_lack(service: Answer) -> int:
    return max(0, int(service.get("desiredCount", 0)) - int(service.get("runningCount", 0)))


def _soften(cause: Cause, task: Task, service: Answer) -> Cause:
    """IAM is slow: what a new role is refused at first, it is allowed a little later."""
    ended = read_time(task.body.get("stoppedAt")) or task.began
    if cause.kind == "rights" and ended - read_time(service.get("createdAt")) < SETTLE:
        remedy = "A new role works after some seconds: ECS tries again by itself."
        return Cause(cause.kind, cause.form, cause.why, remedy)
    return cause


def _find_event(service: Answer, role: str, place: Placement) -> Cause | None:
    """What a service last said of what it cannot do, since it last had all that it wants."""
    spot = role == "worker" and place.amazon.capacity != "ondemand"
    instances = place.amazon.instances if role == "worker" else ""
    fallback: Cause | None = None
    for event in service.get("events") or ():  # the newest is the first
        message = str(event["message"])
        if "has reached a steady state" in message:
            break
        cause = read_event(message, spot=spot, instances=instances)
        if cause is not None and "unable to consistently" not in message:
            return cause
        fallback = fallback or cause
    return fallback


def _make_trouble(
    cause: Cause,
    role: str,
    tasks: Sequence[Task],
    count: int,
    tail: Sequence[str] = (),
    *,
    of: int = 0,
) -> Trouble:
    message = tell(cause, role, count, of=of)
    shown = [shorten(_read_text(line)) for line in tail]
    if shown:
        message += f"; its log ends with: {shown[-1]}"
    return Trouble(
        kind=cause.kind,
        count=count,
        message=message,
        remedy=cause.remedy,
        hopeless=cause.hopeless,
        pods=tuple(task.id for task in tasks),
        role=role,
        why=cause.why,
        tail=tuple(shown),
        form=cause.form,
    )


def _read_text(line: str) -> str:
    """A line of a log; of a master's events what they say. Never a control character."""
    match = re.search(r'"(?:error|text)": ?"((?:[^"\\]|\\.)*)"', line)
    text = match[1] if match else line
    return "".join(c if c.isprintable() else " " for c in text)
