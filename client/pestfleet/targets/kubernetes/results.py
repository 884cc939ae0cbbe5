"""Brings the files of a session from its volume in a cluster to a folder here."""

from __future__ import annotations

import logging
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pestfleet.targets.kubernetes.access import Refused, Unreachable
from pestfleet.targets.kubernetes.diagnosis import gather
from pestfleet.targets.kubernetes.fleet import GLANCE, KubernetesFleet
from pestfleet.targets.kubernetes.naming import IMAGE, MANAGER, ROLE, SESSION, US, Object
from pestfleet.targets.kubernetes.pods import Pod
from pestfleet.targets.streams import unpack
from pestfleet.targets.troubles import fill
from pestfleet_worker.errors import SessionError, TargetError

logger = logging.getLogger(__name__)

_FETCHED = ("case", "session.json", "state.json", "journal.jsonl", "master.log", "results", "kits")
_KEPT = ("case", "session.json")  # as they were at launch: what is here is not overwritten
# What is there of these names, packed; a word where there is none: an answer that is empty may have
# been lost.
_NOTHING = "nothing"
_PACK = f'cd "$1" 2>/dev/null || {{ echo {_NOTHING}; exit 0; }}; shift; ' \
    f'set -- $(ls -d "$@" 2>/dev/null); [ $# != 0 ] || {{ echo {_NOTHING}; exit 0; }}; ' \
    'exec tar -czf - "$@"'  # fmt: skip
_TRIES = 3
READER = "reader"
READER_LIFE = 900  # seconds, should we not live to remove it
READER_PATIENCE = 120.0  # seconds for its start: an image may have to be pulled
LOGS = 20  # workers whose logs are kept: each takes a request


def fetch(fleet: KubernetesFleet, folder: Path) -> bool:
    """Copy the session's files and workers' logs to `folder`; False when there are none.

    From the master's pod while it runs, else by a pod that reads the claim. Raises `TargetError`.
    """
    fetch_logs(fleet, folder / "logs")
    master = fleet.find("master")
    if master is not None and master.phase == "Running" and not master.leaving:
        try:
            return _fetch_from(fleet, master.name, "master", folder)
        except Unreachable:
            raise
        except TargetError as error:  # it has ended, which its pod does not show yet
            logger.info("not fetched from the master: %s", error)
    claim = fleet.find_claim()
    if claim is None or claim.get("status", {}).get("phase") != "Bound":
        return False
    if master is not None and master.phase == "Pending" and _is_new(fleet, claim):
        return False  # no master has begun yet
    with _run_reader(fleet, claim) as reader:
        for left in reversed(range(_TRIES)):
            try:
                return _fetch_from(fleet, reader.name, READER, folder)
            except TargetError as error:
                if not left:
                    raise
                logger.warning("fetched once more: %s", error)
    raise AssertionError("unreachable")


def _fetch_from(fleet: KubernetesFleet, pod: str, container: str, folder: Path) -> bool:
    names = [name for name in _FETCHED if name not in _KEPT or not (folder / name).exists()]
    command = ["sh", "-c", _PACK, "sh", f"/session/{fleet.session}", *names]
    chunks = fleet.access.execute(pod, container, command)
    first = next(chunks, b"")
    if first.strip() == _NOTHING.encode():
        return False
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return unpack(_chain(first, chunks), folder)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            logger.warning("what pod %s sent cannot be unpacked: %s", pod, error)
    raise TargetError(
        f"pod {pod} did not send the session's files whole",
        remedy=f"They are kept; try again: pestfleet results {fleet.session} --fetch",
    )


def _is_new(fleet: KubernetesFleet, claim: Object) -> bool:
    """Was the claim made with the Job of this launch, whose first master is Pending?"""
    job = fleet.find_job("master")
    if job is None or job.get("status", {}).get("failed"):
        return False
    made = [str(one["metadata"]["creationTimestamp"]) for one in (job, claim)]
    return made[0] <= made[1]


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def fetch_logs(fleet: KubernetesFleet, folder: Path) -> None:
    """Logs of workers: first of those that failed, then of the others."""
    workers = sorted(fleet.pods("worker"), key=lambda pod: pod.phase != "Failed")
    for worker in workers[:LOGS]:
        if worker.phase == "Pending":
            continue
        try:
            text = fleet.read_log(worker)
        except Refused as error:
            logger.info("no log of %s: %s", worker.name, error)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{worker.name}.log").write_text(text, encoding="utf-8")


@contextmanager
def _run_reader(fleet: KubernetesFleet, claim: Object) -> Iterator[Pod]:
    """A pod that has the claim at /session. Its Job removes itself, should we not."""
    image = claim["metadata"].get("annotations", {}).get(IMAGE, "")
    if not image:
        raise SessionError(
            f"the claim {claim['metadata']['name']} does not say which image can read it",
            remedy="It was not made by pestfleet run: mount it in a pod of yours.",
        )
    path = fleet.access.find_path("batch/v1", "jobs")
    body = _make_reader(fleet, claim["metadata"]["name"], image)
    name = body["metadata"]["name"]
    _remove(fleet, f"{path}/{name}")  # of somebody who died while he fetched
    fleet.access.post(path, body)
    try:
        yield _await_reader(fleet)
    finally:
        _remove(fleet, f"{path}/{name}")


def _await_reader(fleet: KubernetesFleet) -> Pod:
    deadline = time.monotonic() + READER_PATIENCE
    while True:
        readers = [pod for pod in fleet.pods(READER) if not pod.leaving]
        if readers and readers[-1].ready:
            return readers[-1]
        if time.monotonic() > deadline:
            troubles = gather(fleet.access, fleet.session, pods=[pod.body for pod in readers])
            why = f": {fill(troubles[0].why, many=False)}" if troubles else ""
            raise TargetError(
                f"the pod that reads the results does not start{why}",
                remedy=f"See kubectl describe pod -l {fleet.selector},{ROLE}={READER}; the results "
                "stay in the cluster until pestfleet down --discard-results.",
            )
        time.sleep(GLANCE)


def _remove(fleet: KubernetesFleet, path: str) -> None:
    try:
        fleet.access.delete(path, body={"propagationPolicy": "Background", "gracePeriodSeconds": 0})
    except Refused as error:
        if error.status != 404:
            raise


def _make_reader(fleet: KubernetesFleet, claim: str, image: str) -> Object:
    labels = {SESSION: fleet.session, ROLE: READER}
    user = 10001
    size = {"cpu": "50m", "memory": "64Mi"}
    container = {
        "name": READER,
        "image": image,
        "command": ["sleep", str(READER_LIFE)],
        "resources": {"requests": size, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "session", "mountPath": "/session", "subPath": "sessions", "readOnly": True}
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "session", "persistentVolumeClaim": {"claimName": claim}}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{fleet.release}-{READER}", "labels": {**labels, MANAGER: US}},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": READER_LIFE,
            "ttlSecondsAfterFinished": 0,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
