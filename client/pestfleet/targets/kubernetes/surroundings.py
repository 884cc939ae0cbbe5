"""What is known about a session's pods besides themselves: events, nodes, time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pestfleet.targets.kubernetes.quantities import Object
from pestfleet.targets.troubles import Cause

DWELL = 5.0  # seconds in which a pod may be on its way
HOPE = 30.0  # for which something missing may still come: a Secret, an autoscaler's answer
SLOW = 60.0  # after which it is worth a word that a pod still starts


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else there is to know about pods.

    `now`, `dwell`: seconds (since 1970). `nodes`: None where they may not be listed.
    `autoscaler`: does the cluster make nodes when pods wait for them; None for who knows.
    `events`: as `index_events` has them.
    """

    now: float
    dwell: float = DWELL
    nodes: Sequence[Object] | None = None
    autoscaler: bool | None = None
    events: dict[str, list[Object]] = field(default_factory=dict)
    places: dict[str, Cause] = field(default_factory=dict)  # found once for all pods of a Job

    def find_events(self, uid: str, name: str) -> list[Object]:
        """What is said of an object, the newest first; by its name where the uid is not known.

        One of the same name may have been there before.
        """
        return self.events.get(uid or name, [])

    def measure(self, time: str | None) -> float:
        """Seconds since a time as the API server writes it."""
        return self.now - read_time(time) if time else 0.0


def read_time(text: str) -> float:
    """A time as the API server writes it, in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def index_events(events: Iterable[Object]) -> dict[str, list[Object]]:
    """By uid and by name of what they are about, the newest first."""
    index: dict[str, list[Object]] = {}
    for event in sorted(events, key=date_event, reverse=True):
        about = event.get("involvedObject") or {}
        for key in {str(about[name]) for name in ("uid", "name") if about.get(name)}:
            index.setdefault(key, []).append(event)
    return index


def date_event(event: Object) -> float:
    """When it was last seen, in seconds since 1970."""
    series = event.get("series") or {}
    for time in (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
    ):
        if time:
            return read_time(time)
    return read_time(event["metadata"]["creationTimestamp"])


def find_condition(found: Object, kind: str) -> Object:
    """A condition in an object's status; {} for none."""
    conditions = (found.get("status") or {}).get("conditions") or ()
    return next((one for one in conditions if one["type"] == kind), {})


def list_statuses(pod: Object) -> list[Object]:
    """Of its containers, in the order of their start."""
    status = pod.get("status") or {}
    first = status.get("initContainerStatuses") or ()
    return [*first, *(status.get("containerStatuses") or ())]


def find_failed_end(container: Object) -> Object:
    """How a container (of a pod's status) ended last, if not well; else {}."""
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        ended: Object = state.get("terminated") or {}
        if ended.get("exitCode"):
            return ended
    return {}


def find_container(pod: Object, name: str) -> Object:
    """A container in a pod's spec; {} for none."""
    spec = pod["spec"]
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    return next((one for one in containers if one["name"] == name), {})


def name_node(pod: Object) -> str:
    """The node that a pod is on; "" for none."""
    node: str = pod["spec"].get("nodeName") or ""
    return node
