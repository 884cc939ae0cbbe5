"""Why one pod of a session does not run: its status, what is said of it in events, the nodes."""

from __future__ import annotations

import re

from pestfleet.targets.kubernetes.causes import find_component, read_pull
from pestfleet.targets.kubernetes.naming import read_role
from pestfleet.targets.kubernetes.placement import describe_selection, find_place, is_ready
from pestfleet.targets.kubernetes.pod_failures import (
    has_failed,
    read_failure,
    read_oom,
    read_start,
)
from pestfleet.targets.kubernetes.quantities import Object, describe_amounts, sum_requests
from pestfleet.targets.kubernetes.surroundings import (
    HOPE,
    SLOW,
    Surroundings,
    find_condition,
    find_container,
    list_statuses,
    name_node,
)
from pestfleet.targets.troubles import Cause, shorten

_LOST = 30.0  # seconds after which a pod that should be gone tells that its node is

_IMAGE = (
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("ImageInspectError", "RegistryUnavailable"),
)
_STARTING = ("ContainerCreating", "PodInitializing", "")
_START = ("RunContainerError", "CreateContainerError", "StartError")
_MOUNT = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
_SANDBOX = ("FailedCreatePodSandBox", "NetworkNotReady")
# Events by which a cluster's autoscaler says that a node is coming, or that none will.
_COMING = ("TriggeredScaleUp", "Nominated")
_NOT_COMING = ("NotTriggerScaleUp",)
_KARPENTER = "karpenter"

_UNREADY = {
    "worker": "{they} cannot reach the broker",
    "broker": "it does not answer on its port",
    "master": "it has not begun with the session",
}


def find_cause(pod: Object, around: Surroundings) -> Cause | None:
    """Why a pod does not run; None for one that runs, has done its work, or is on its way."""
    status, metadata = pod.get("status") or {}, pod["metadata"]
    if gone := metadata.get("deletionTimestamp"):
        # The node should have removed it by then.
        return _tell_lost(pod) if around.measure(gone) > _LOST else None
    if status.get("phase") == "Succeeded":
        return None
    if has_failed(pod):
        return read_failure(pod, read_role(pod))
    age = around.measure(metadata["creationTimestamp"])
    if age < around.dwell:
        return None
    scheduled = find_condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _read_unscheduled(pod, scheduled, around)
    for container in list_statuses(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting and (cause := _read_waiting(pod, container, waiting, around)):
            return cause
    if status.get("phase") == "Running":
        return _read_running(pod, around)
    for event in _find_events(pod, around):
        if event["reason"] in _MOUNT:
            return _read_mount(event["message"], age)
        if event["reason"] in _SANDBOX:
            why = f"node {name_node(pod)} cannot start {{them}}: {shorten(event['message'])}"
            return Cause("sandbox", "wait", why, "The node tries again by itself.")
    return _read_slow(pod) if age > SLOW else None


def is_unscheduled(pod: Object, around: Surroundings) -> bool:
    """Has it found no node after a while?"""
    young = around.measure(pod["metadata"]["creationTimestamp"]) < around.dwell
    return not young and find_condition(pod, "PodScheduled").get("reason") == "Unschedulable"


def is_silent(pod: Object, around: Surroundings) -> bool:
    """Does it run without being ready for so long that its node may be lost?"""
    if (pod.get("status") or {}).get("phase") != "Running":
        return False
    ready = find_condition(pod, "Ready")
    silence = around.measure(ready.get("lastTransitionTime"))
    return ready.get("status") == "False" and silence > HOPE


def _find_events(pod: Object, around: Surroundings) -> list[Object]:
    metadata = pod["metadata"]
    return around.find_events(metadata.get("uid", ""), metadata["name"])


# -- no node -----------------------------------------------------------------------------------


def _read_unscheduled(pod: Object, scheduled: Object, around: Surroundings) -> Cause:
    if scheduled.get("reason") == "SchedulingGated":
        why = (
            f"a queue of the cluster holds {{them}} back ({shorten(scheduled.get('message', ''))})"
        )
        return Cause("gate", "wait", why)
    message = _find_reason(scheduled.get("message") or "")
    if "persistentvolume" in message.lower() or "volume" in message.lower():
        return _read_claim(pod, message, around)
    news = _find_news(pod, around)
    if news == "coming":
        why = "the cluster's autoscaler is adding nodes for {them}"
        return Cause("scaling", "wait", why, "That takes some minutes.")
    # Pods of one Job ask for the same; a thousand of them need one look at the nodes.
    owner = next(iter(pod["metadata"].get("ownerReferences") or ()), pod["metadata"])
    key = f"{owner.get('uid', owner['name'])} {message if around.nodes is None else ''}"
    if key not in around.places:
        around.places[key] = _find_obstacle(pod["spec"], message, around)
    cause = around.places[key]
    if cause.kind not in ("size", "selector", "taint"):
        return cause
    if news == "not coming":
        return Cause(
            cause.kind,
            "wait",
            f"{cause.why}; the cluster's autoscaler has none to add for {{them}}",
            cause.remedy,
            True,
        )
    waited = around.measure(scheduled.get("lastTransitionTime"))
    hopeless = waited > HOPE if around.autoscaler is None else not around.autoscaler
    return Cause(cause.kind, "wait", cause.why, cause.remedy, hopeless)


def _find_news(pod: Object, around: Surroundings) -> str:
    """What the cluster's autoscaler said of a pod last: `coming`, `not coming` or nothing."""
    for event in _find_events(pod, around):
        source = (event.get("source") or {}).get("component") or event.get("reportingComponent")
        if event["reason"] in _COMING:
            return "coming"
        if event["reason"] in _NOT_COMING or (
            source == _KARPENTER and event["reason"] == "FailedScheduling"
        ):
            return "not coming"
    return ""


def _find_reason(message: str) -> str:
    """Of a scheduler's message what is about the pod, without what is about preemption."""
    plain = re.sub(r"\s*preemption: .*|\s*no new claims to deallocate,?", "", message, flags=re.S)
    return re.sub(r"^\d+/\d+ nodes are available: ", "", plain).strip(" .,")


def _find_obstacle(spec: Object, message: str, around: Surroundings) -> Cause:
    wanted = describe_amounts(sum_requests(spec)) or "nothing"
    smaller = "Ask for less (--cpus, --memory), or have larger nodes."
    if around.nodes is not None:
        place = find_place(spec, around.nodes)
        kind, why = place.kind, place.why
    elif "Insufficient" in message:
        kind, why = "fits", ""
    elif "affinity/selector" in message:
        kind, why = "selector", f"no node has {describe_selection(spec)}"
    elif match := re.search(r"untolerated taints?(?:\(s\))? ?(\{[^}]*\})?", message):
        kind, why = "taint", f"all nodes for {{them}} have a taint {match[1] or ''}".strip()
    else:
        kind, why = "fits", ""
    if kind == "size":
        return Cause("size", "wait", why, smaller)
    if kind == "selector":
        remedy = "Choose others (--set workers.nodeSelector...), or add such nodes."
        return Cause("selector", "wait", why, remedy)
    if kind == "taint":
        remedy = "Tolerate it (workers.tolerations in --values), or choose other nodes."
        return Cause("taint", "wait", why, remedy)
    if kind == "away":
        return Cause("away", "wait", why, "See kubectl get nodes.")
    if "Insufficient" in message or "Too many pods" in message:
        known = around.nodes is not None
        free = "the nodes have no room left" if known else "no node has that much free"
        why = f"{free}, and {{each}} asks for {wanted}"
        return Cause("full", "wait", why, "They start when other pods end; or ask for less.")
    return Cause("placement", "wait", f"no node takes {{them}}: {shorten(message)}")


# -- volumes -----------------------------------------------------------------------------------


def _read_claim(pod: Object, message: str, around: Surroundings) -> Cause:
    role = read_role(pod)
    if match := re.search(r'persistentvolumeclaim "[^"]+" not found', message):
        return _tell_missing(match[0], around.measure(pod["metadata"]["creationTimestamp"]))
    volumes = pod["spec"].get("volumes") or ()
    claims = [
        v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v
    ]
    choose = (
        f"Name one: --set {find_component(role)}.volume.storageClass=NAME (see kubectl get "
        "storageclass)."
    )
    for claim in claims:
        for event in around.find_events("", claim):
            said = event["message"]
            if "no storage class is set" in said:
                why = f"the volume {claim} names no storage class, and the cluster has no default"
                return Cause("volume", "wait", why, choose, True)
            if match := re.search(r'storageclass\.storage\.k8s\.io "([^"]+)" not found', said):
                why = f"the cluster has no storage class {match[1]}, which the volume {claim} names"
                return Cause("volume", "wait", why, choose, True)
            if event["reason"] == "ProvisioningFailed":
                why = f"the volume {claim} cannot be made: {shorten(said)}"
                return Cause("volume", "wait", why, "Ask who runs the cluster.")
    if "affinity conflict" in message:
        why = "the volume is in a zone where no node takes {them}"
        return Cause("volume", "wait", why, "Have nodes in that zone.")
    named = " and ".join(claims) or "that it mounts"
    why = f"the volume {named} is not there yet"
    return Cause("volume", "wait", why, "See kubectl describe persistentvolumeclaim.")


def _read_mount(message: str, age: float) -> Cause:
    if match := re.search(r'(?:secret|configmap|persistentvolumeclaim) "[^"]+" not found', message):
        return _tell_missing(match[0], age)
    if match := re.search(r"references non-existent (secret|config) key: (\S+)", message):
        kind = "secret" if match[1] == "secret" else "configmap"
        return Cause(
            "missing", "wait", f"a {kind} to mount has no entry {match[2]}", "Add it.", age > HOPE
        )
    if "Multi-Attach" in message:
        why = "the volume is still in use on another node"
        return Cause("volume", "wait", why, "It comes free some minutes after that node is gone.")
    plain = re.sub(r'^MountVolume\.\w+ failed for volume "[^"]*" : ', "", message)
    why = f"a volume cannot be mounted: {shorten(plain)}"
    return Cause("volume", "wait", why, "Ask who runs the cluster.")


def _tell_missing(what: str, age: float) -> Cause:
    kind, name = re.findall(r'^(\w+) "([^"]+)"', what)[0]
    why = f"the namespace has no {kind} {name}"
    return Cause("missing", "wait", why, "Make it, or name another in --values.", age > HOPE)


# -- on a node ---------------------------------------------------------------------------------


def _read_waiting(
    pod: Object, container: Object, waiting: Object, around: Surroundings
) -> Cause | None:
    reason, message = waiting.get("reason") or "", waiting.get("message") or ""
    if reason in _STARTING:
        return None
    if reason in _IMAGE:
        image = str(find_container(pod, container["name"]).get("image", container["image"]))
        # Older clusters say only in an event why they wait before they try again.
        if message == f'Back-off pulling image "{image}"':
            events = _find_events(pod, around)
            told = [e["message"] for e in events if e["message"].startswith("Failed to pull image")]
            message = told[0] if told else message
        return read_pull(message, image)
    if reason == "CrashLoopBackOff":
        return _read_crash(pod, container)
    if reason in _START:
        return read_start(message, "wait")
    if "runAsNonRoot" in message:
        why = "the image wants to run as root, which is not allowed there"
        return Cause("config", "wait", why, "Set a user: --set security.user=10001", True)
    age = around.measure(pod["metadata"]["creationTimestamp"])
    if match := re.search(r'(?:secret|configmap) "[^"]+" not found', message):
        return _tell_missing(match[0], age)
    return Cause("config", "wait", shorten(message) or reason, hopeless=age > HOPE)


def _read_crash(pod: Object, container: Object) -> Cause:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        return read_oom(pod, container["name"], read_role(pod), form="wait")
    why = f"{{they}} ended with exit code {ended.get('exitCode', '?')}, again and again"
    return Cause("crash", "wait", why, "See pestfleet logs SESSION --on kubernetes")


def _read_running(pod: Object, around: Surroundings) -> Cause | None:
    ready = find_condition(pod, "Ready")
    if ready.get("status") != "False":
        return None
    own = name_node(pod)
    nodes = [node for node in around.nodes or () if node["metadata"]["name"] == own]
    if around.nodes is not None and not (nodes and is_ready(nodes[0])):
        return _tell_lost(pod)
    if around.measure(ready.get("lastTransitionTime")) < SLOW:
        return None
    why = _UNREADY.get(read_role(pod), "the check of health fails")
    return Cause("unready", "running", why, "Does the network let them? See pestfleet logs.")


def _tell_lost(pod: Object) -> Cause:
    remedy = "Kubernetes starts others elsewhere after some minutes; their runs are made again."
    return Cause("lost", "lost", f"node {name_node(pod)} does not answer", remedy)


def _read_slow(pod: Object) -> Cause:
    if not name_node(pod):
        why = "the cluster has not looked for a node for {them} yet"
        return Cause("slow", "wait", why, "Ask who runs the cluster: is its scheduler up?")
    images = ", ".join(sorted({container["image"] for container in pod["spec"]["containers"]}))
    return Cause("slow", "wait", f"{{their}} node is still fetching {images}", "Is it large?")
