"""Why a pod of a session ended before its time."""

from __future__ import annotations

import re

from pestfleet.targets.kubernetes.causes import (
    double_size,
    find_component,
    read_exit,
    read_memory,
)
from pestfleet.targets.kubernetes.quantities import Object, format_bytes, parse_quantity
from pestfleet.targets.kubernetes.surroundings import (
    find_condition,
    find_container,
    list_statuses,
)
from pestfleet.targets.troubles import Cause, Form, shorten

_EMPTY_DIR = re.compile(r'EmptyDir volume "(?P<name>[^"]+)" exceeds the limit "(?P<limit>[^"]+)"')
_STORAGE = re.compile(
    r"(?:ephemeral local storage usage exceeds the total limit of containers"
    r'|exceeded its local ephemeral storage limit) "?(?P<limit>\d[\w.]*\w)'
)
_LOW = re.compile(r"node was low on resource: (?P<what>[\w-]+)")
_PROGRAM = re.compile(r'exec: "(?P<program>[^"]+)"')
# Reasons of a pod's condition DisruptionTarget.
_DISRUPTIONS = {
    "PreemptionByScheduler": ("preempted", "pods of a higher priority took {their} place"),
    "EvictionByEvictionAPI": ("drained", "{their} node is being emptied"),
    "DeletionByTaintManager": ("lost", "{their} node does not answer, or was closed"),
    "DeletionByPodGC": ("lost", "{their} node is gone"),
    "TerminationByKubelet": ("lost", "{their} node was shut down"),
}
_SHUT_DOWN = ("NodeLost", "Terminated", "Shutdown", "NodeShutdown")
_AGAIN = "Kubernetes starts others in the place of lost ones, and their runs are made again."


def read_failure(pod: Object, role: str) -> Cause | None:
    """Why a pod failed; None where that is no trouble."""
    status = pod.get("status") or {}
    reason, message = status.get("reason") or "", status.get("message") or ""
    if reason == "Evicted":
        return _read_eviction(message, role)
    disrupted = find_condition(pod, "DisruptionTarget")
    if disrupted.get("status") == "True" and disrupted.get("reason") in _DISRUPTIONS:
        kind, why = _DISRUPTIONS[disrupted["reason"]]
        return Cause(kind, "ended", why, _AGAIN)
    if reason in _SHUT_DOWN:
        return Cause("lost", "ended", "{their} node was shut down", _AGAIN)
    if reason == "DeadlineExceeded":
        return Cause("deadline", "ended", "{their} time limit is over", hopeless=True)
    if reason:  # such as OutOfcpu, UnexpectedAdmissionError, NodeAffinity
        return Cause(
            "node", "ended", f"{{their}} node refused {{them}}: {shorten(message)}", _AGAIN
        )
    for container in list_statuses(pod):
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            return _read_terminated(pod, container["name"], ended, role)
    return None


def has_failed(pod: Object) -> bool:
    """Has it ended for good, but not well? It may have, and its phase not yet say so."""
    if (pod.get("status") or {}).get("phase") == "Failed":
        return True
    return pod["spec"].get("restartPolicy") == "Never" and any(
        ((container.get("state") or {}).get("terminated") or {}).get("exitCode")
        for container in list_statuses(pod)
    )


def read_oom(pod: Object, name: str, role: str, *, form: Form = "ended") -> Cause:
    """A container used more memory than it may."""
    container = find_container(pod, name)
    limit = ((container.get("resources") or {}).get("limits") or {}).get("memory", "")
    words = list(map(str, container.get("args") or ()))
    slots = int(words[words.index("--slots") + 1]) if "--slots" in words[:-1] else 1
    return read_memory(limit, role, slots=slots, form=form)


def read_start(message: str, form: Form) -> Cause:
    """A container's program cannot be started."""
    match = _PROGRAM.search(message)
    if match and re.search(r"no such file|not found", message):
        why = f"the image has no program {match['program']}"
    elif match:
        why = f"{match['program']} in the image cannot be started: {_find_last(message)}"
    else:
        why = f"the container cannot be started: {_find_last(message)}"
    remedy = "Is it the image of a case, and for the processor of the nodes? See pestfleet build."
    return Cause("start", form, why, remedy, True)


def _find_last(message: str) -> str:
    return shorten(message.removesuffix(": unknown").rpartition(": ")[2])


def _read_terminated(pod: Object, name: str, ended: Object, role: str) -> Cause | None:
    reason = ended.get("reason") or ""
    if reason == "OOMKilled":
        return read_oom(pod, name, role)
    if reason in ("StartError", "ContainerCannotRun"):
        return read_start(ended.get("message") or "", "ended")
    # The codes that we know are those of our own programs, not those of an init container.
    return read_exit(ended["exitCode"], role if name == role else "")


def _read_eviction(message: str, role: str) -> Cause:
    component = find_component(role)
    if match := _EMPTY_DIR.search(message):
        limit = parse_quantity(match["limit"])
        why = f"the folder {match['name']} had more in it than its limit of {format_bytes(limit)}"
        own = role == "worker" and match["name"] in ("scratch", "tmp")
        value = f"workers.{match['name']}.size={double_size(limit)}" if own else "..."
        return Cause("disk", "ended", why, f"Allow more: --set {value}")
    if match := _STORAGE.search(message):
        limit = parse_quantity(match["limit"])
        why = f"{{they}} wrote more to disk than the limit of {format_bytes(limit)}"
        value = f"{component}.resources.limits.ephemeral-storage={double_size(limit)}"
        return Cause("disk", "ended", why, f"Allow more: --set {value}")
    if match := _LOW.search(message):
        what = {"ephemeral-storage": "disk space"}.get(match["what"], match["what"])
        why = f"{{their}} node had too little {what} left, and put {{them}} out"
        return Cause("evicted", "ended", why, "More nodes, or larger ones, help; or fewer workers.")
    return Cause("evicted", "ended", shorten(message) or "put out by {their} node", _AGAIN)
