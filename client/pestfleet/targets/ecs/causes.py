"""What Amazon's messages about tasks mean: of services' events and of stopped tasks.

The wordings are those of the ECS developer guide ("Stopped tasks error codes", "Service event
messages") and of its container agent. All here is pure: it reads answers of DescribeServices and
DescribeTasks.
"""

from __future__ import annotations

import re
from typing import Any

from pestfleet.targets.ecs.naming import Names
from pestfleet.targets.troubles import Cause, shorten

Answer = dict[str, Any]

_NETWORK = (
    "Do their subnets have a NAT gateway or endpoints? Say --network make, or name other subnets "
    "([amazon] subnets), or allow public addresses ([amazon] public = true)."
)
_RIGHTS = "pestfleet down, then run again, makes its roles anew; else ask your administrator."
_ELSEWHERE = "try another size (--cpus, --memory) or region (--region), or --capacity ondemand"
_SPOT_ELSEWHERE = f"It is asked for again by itself; {_ELSEWHERE}."
_DEMAND_ELSEWHERE = "It is asked for again by itself; try another size or region."

# What a quota of Fargate is called: ECS developer guide, "Fargate service quotas".
SPOT_QUOTA, DEMAND_QUOTA = "L-36FBB829", "L-3032A538"

# Pattern in what the agent says -> kind, what it is, what to do, is it for good. The first counts.
_START = (
    (
        r"does not contain descriptor matching platform|exec format error|no match for platform",
        "image",
        "the image is not for the processor of the machines (linux/amd64)",
        "Build it for that platform: docker's DOCKER_DEFAULT_PLATFORM=linux/amd64.",
        True,
    ),
    (
        r"toomanyrequests|rate limit|429 Too Many",
        "image",
        "the registry gives out no more for now",
        "Have the images in ECR (leave registry in [image] out), or wait.",
        False,
    ),
    (
        r"no space left|exceeded the storage limit",
        "disk",
        "the image does not fit on the task's disk",
        "Make the image smaller: leave large files out of the case.",
        True,
    ),
    (
        r"AccessDenied|not authorized to perform|403 Forbidden|no basic auth|"
        r"pull access denied|authorization failed|denied: User|is not authorized|unauthorized|"
        r"access denied to this resource|status code: 400.*AccessDenied",
        "rights",
        "",  # below: which right
        _RIGHTS,
        True,
    ),
    (
        r"i/o timeout|context deadline exceeded|RequestCanceled|connection timed out|"
        r"send request failed|RequestError|no such host|network is unreachable|"
        r"check your (task )?network configuration|Please check your network|"
        r"signal: killed|There is a connection issue|Client\.Timeout|EOF",
        "network",
        "",  # below: what is out of reach
        _NETWORK,
        True,
    ),
    (
        r"manifest unknown|not found|name unknown|does not exist|MANIFEST_UNKNOWN",
        "image",
        "the registry has no such image",
        "Run again: images are pushed anew. Or check registry in [image], or --image.",
        True,
    ),
    (
        r"ResourceNotFoundException|can't find the specified secret|does not exist",
        "secret",
        "one of the session's secrets is gone",
        "Somebody has removed it; end the session with pestfleet down, and resume it.",
        True,
    ),
)


def read_stop(task: Answer, names: Names, role: str) -> Cause | None:
    """Why a task stopped; None where that is no trouble."""
    code, reason = str(task.get("stopCode", "")), str(task.get("stoppedReason", ""))
    if code == "SpotInterruption" or "Spot Task was interrupted" in reason:
        why = "Amazon took {their} spot capacity back; runs in hand are made again"
        return Cause("spot", "ended", why, "More of them stay with --capacity mixed:20.")
    if code == "TerminationNotice" or ("host EC2" in reason and "terminated" in reason):
        return Cause("spot", "ended", "Amazon took {their} machine back; runs are made again")
    container = _find_failed(task, role)
    said = str(container.get("reason") or "") if container else ""
    if "OutOfMemory" in said or "OutOfMemory" in reason:
        return _read_memory(task, role)
    words = f"{reason} {said}"
    for mark in ("CannotPull", "ResourceInitializationError", "CannotStart", "CannotCreate"):
        if mark in words:
            return read_start(words, role)
    if "assume the role" in words:
        return _read_assume(words)
    if "health checks" in reason:
        return Cause("health", "ended", "{they} did not answer the health check", _logs(names))
    if code in ("UserInitiated", "ServiceSchedulerInitiated") and not _has_died(container):
        return None  # asked for: somebody scales, or ends the session
    if container is not None and container.get("exitCode") is not None:
        return read_exit(int(container["exitCode"]), role, names, str(container["name"]))
    if code == "TaskFailedToStart" or words.strip():
        return Cause("start", "ended", shorten(words), _logs(names))
    return None


def read_start(said: str, role: str = "") -> Cause:
    """Why a task could not be started, by what the agent says."""
    if re.search(r"exec: |executable file not found|CannotStartContainerError", said):
        why = f"the container cannot be started: {_find_last(said)}"
        return Cause("start", "ended", why, "Is it the image of a case? See pestfleet build.", True)
    for pattern, kind, why, remedy, hopeless in _START:
        if re.search(pattern, said, re.IGNORECASE):
            form = why or _name_lack(said, kind)
            return Cause(kind, "ended", form, remedy, hopeless)
    return Cause("start", "ended", shorten(said), "ECS tries again by itself.")


def _name_lack(said: str, kind: str) -> str:
    """What a task does not reach, or may not use."""
    # What all such messages begin with says nothing of this one.
    lowered = said.lower().replace("unable to pull secrets or registry auth", "")
    what = "what they need"
    if "secret" in lowered or "asm" in lowered:
        what = "the session's secrets (Secrets Manager)"
    if "logger" in lowered or "log stream" in lowered or "cloudwatch" in lowered:
        what = "the session's log group (CloudWatch Logs)"
    if "ecr registry auth" in lowered or "ecr:GetAuthorizationToken" in said:
        what = "the image registry (ECR)"
    if "cannotpull" in lowered:
        what = "the image registry"
        if "httpreadseeker" in lowered:  # ECR's layers are in S3
            what = "the images' layers in S3"
    if kind == "rights":
        match = re.search(r"not authorized to perform:? ([\w-]+:\w+)", said)
        return f"{{their}} role may not use {what}" + (f" ({match[1]})" if match else "")
    return f"no way from {{their}} subnet to {what}"


def _read_assume(said: str) -> Cause:
    match = re.search(r"arn:[\w:/.+=,@-]+role/[\w/+=,.@-]+", said)
    name = f" {match[0].rpartition('/')[2]}" if match else ""
    why = f"ECS cannot take {{their}} role{name}"
    return Cause("rights", "absent", why, "A new role works after some seconds; else, " + _RIGHTS)


def _read_memory(task: Answer, role: str) -> Cause:
    mebibytes = _read_int(task.get("memory"))
    for one in task.get("overrides", {}).get("containerOverrides") or ():
        mebibytes = _read_int(one.get("memory")) or mebibytes
    limit = f": more than the limit of {_format_memory(mebibytes)}" if mebibytes else ""
    more = f", such as --memory {_format_memory(2 * mebibytes, '')}" if mebibytes else ": --memory"
    remedy = f"Allow more for a slot{more}" if role == "worker" else "See its log."
    return Cause("memory", "ended", f"out of memory{limit}", remedy)


def _format_memory(mebibytes: int, unit: str = "B") -> str:
    if mebibytes % 1024:
        return f"{mebibytes} M{unit}" if unit else f"{mebibytes}m"
    return f"{mebibytes // 1024} G{unit}" if unit else f"{mebibytes // 1024}g"


def _read_int(text: object) -> int:
    return int(str(text)) if str(text or "").isdecimal() else 0


# -- exits -------------------------------------------------------------------------------------

# docs/exit-codes.md has them all.
_MASTER_CODES = {
    2: "usage",
    3: "the case",
    4: "configuration",
    5: "runs failed",
    6: "the broker",
    7: "the target",
    8: "the session",
}
SENT_AWAY, INTERRUPTED = 12, 130
_KILLED = 137


def read_exit(code: int, role: str, names: Names, container: str = "") -> Cause | None:
    """What an exit code says; None for one that is no trouble."""
    logs = _logs(names)
    if code in (0, SENT_AWAY) or (role == "master" and code == INTERRUPTED):
        return None
    if container == "secrets":
        why = f"{{their}} secrets could not be unpacked (exit code {code})"
        return Cause("start", "ended", why, logs, True)
    if role == "worker" and code == 10:
        return Cause("refused", "ended", "{they} refused the session (exit code 10)", logs, True)
    if role == "worker" and code == 11:
        why = "{they} heard nothing from the master (exit code 11)"
        remedy = f"Does the master run? See pestfleet status {names.session} --on ecs"
        return Cause("exit", "ended", why, remedy)
    if role == "master" and code in _MASTER_CODES:
        why = f"exit code {code} ({_MASTER_CODES[code]})"
        return Cause("exit", "ended", why, logs, code != 8)
    if code == _KILLED:
        why = "killed (exit code 137): out of memory, or too slow to end"
        return Cause("exit", "ended", why, "More memory may help: --memory.")
    if code > 128:
        why = f"killed by signal {code - 128} (exit code {code})"
        return Cause("exit", "ended", why, logs)
    return Cause("exit", "ended", f"exit code {code}", logs)


def _find_failed(task: Answer, role: str) -> Answer | None:
    """The container whose end says most: one that says why, that failed, else the main one."""
    containers = list(task.get("containers") or ())
    for one in containers:
        if one.get("reason"):
            return dict(one)
    failed = [one for one in containers if one.get("exitCode")]
    main = [one for one in containers if one.get("name") == role]
    return next((dict(one) for one in (*failed, *main, *containers)), None)


def _has_died(container: Answer | None) -> bool:
    """Did it end before it was asked to? One that is asked to ends with 0, 12, 130 or by force."""
    code = (container or {}).get("exitCode")
    return code is not None and code not in (0, SENT_AWAY, INTERRUPTED, _KILLED, 143)


# -- what services say -------------------------------------------------------------------------


def read_event(message: str, *, spot: bool, instances: str = "") -> Cause | None:
    """Why a service cannot start tasks, by one of its events; None for one of no trouble.

    `spot`: is that what is asked for? `instances`: the type of EC2 machines, "" for Fargate.
    """
    if "has reached a steady state" in message or "has started" in message:
        return None
    said = message.partition("Reason: ")[2] or message
    if "assume the role" in message:
        return _read_assume(message)
    if re.search(r"CannotPull|ResourceInitialization|CannotStart", said):
        return read_start(said)
    if re.search(r"limit on the number of (vCPUs|tasks)", said):
        return _read_quota(spot)
    if match := re.search(r"requested (CPU|MEMORY) configuration is above your limit", said):
        what = {"CPU": "cores", "MEMORY": "memory"}[match[1]]
        why = f"the account's quota allows no task with so much {what}"
        return Cause("quota", "absent", why, _ask_quota(spot), True)
    if re.search(r"Capacity is unavailable|RESOURCE:FARGATE", said):
        kind = "Fargate Spot" if spot else "Fargate"
        remedy = _SPOT_ELSEWHERE if spot else _DEMAND_ELSEWHERE
        return Cause("capacity", "absent", f"{kind} has no capacity in these zones now", remedy)
    if re.search(r"No Container Instances|no container instance|RESOURCE:", said):
        return _read_placement(said, instances)
    if "operations are being throttled" in message:
        return Cause("throttled", "absent", "Amazon slows down the start of tasks")
    if re.search(r"free (IP )?addresses|insufficient.*(IP|address)|RESOURCE:ENI", said, re.I):
        why = "the subnets have no free addresses left"
        return Cause("network", "absent", why, "Name larger ones ([amazon] subnets).", True)
    if "was unable to place a task" in message:
        if "Internal error" in said:
            why = "Amazon failed, or a subnet is in a zone without Fargate"
            return Cause("zone", "absent", why, "Name other subnets ([amazon] subnets).")
        return Cause("placement", "absent", shorten(said), "ECS tries again by itself.")
    if "unable to consistently start tasks" in message:
        return Cause("start", "absent", "{they} failed to start several times")
    return None


def _read_quota(spot: bool) -> Cause:
    kind = "Fargate Spot" if spot else "Fargate"
    why = f"the account's quota of vCPUs of {kind} is used up"
    return Cause("quota", "absent", why, _ask_quota(spot), True)


def _ask_quota(spot: bool) -> str:
    code = SPOT_QUOTA if spot else DEMAND_QUOTA
    other = "ondemand" if spot else "spot"
    return (
        f"Ask for fewer or smaller workers, say --capacity {other}, which has a quota of its own, "
        "or ask for more: aws service-quotas request-service-quota-increase --service-code fargate "
        f"--quota-code {code} --desired-value N"
    )


def _read_placement(said: str, instances: str) -> Cause:
    """No EC2 machine has room. Managed scaling adds some, where Amazon has them."""
    machine = f" {instances}" if instances else ""
    # RESOURCE:CPU as RunTask says it, "insufficient CPU units" as a service does.
    match = re.search(r"RESOURCE:(\w+)|insufficient (CPU|memory)|enough (CPU|memory)", said, re.I)
    what = next(filter(None, match.groups()), "").upper() if match else ""
    if what == "ENI":
        why = f"the machines{machine} have no network interface left"
        return Cause("machine", "absent", why, "A larger type has more: --instances.")
    lack = {"CPU": " with so many cores free", "MEMORY": " with so much memory free"}.get(what, "")
    remedy = "Machines are added by themselves within minutes; if none comes, " + _ELSEWHERE
    return Cause(
        "machine", "absent", f"there is no machine{machine}{lack} yet", remedy + ", or --instances."
    )


def _find_last(said: str) -> str:
    return shorten(said.strip().removesuffix(": unknown").rpartition(": ")[2])


def _logs(names: Names) -> str:
    return f"See pestfleet logs {names.session} --on ecs"
