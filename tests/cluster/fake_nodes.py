"""Nodes that are not there: their pods run, and succeed, without running.

For tests with a thousand pods. A pod goes there by its node selector and toleration
(`SELECTOR`, `TOLERATION`). It runs until it is deleted; or it succeeds after as many seconds as its
annotation `SECONDS` says.
"""

from __future__ import annotations

import contextlib
import heapq
import http.client
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SELECTOR = {"pestfleet.test/node": "fake"}
TOLERATION = {"key": "pestfleet.test/fake", "operator": "Exists", "effect": "NoSchedule"}
SECONDS = "pestfleet.test/seconds"

_TAINT = {"key": TOLERATION["key"], "effect": TOLERATION["effect"]}
_SIZE = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "1000"}
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_RENEWAL = 5.0  # seconds; the node is lost after 40
_WATCH = 30  # seconds; then the pods are listed anew
_THREADS = 4

_JSON = "application/json"
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"  # lists are merged by their keys


@contextlib.contextmanager
def run_fake_nodes(kubectl: Path, kubeconfig: Path, *, count: int) -> Iterator[list[str]]:
    """The names of the nodes, which are there while the block runs."""
    # kubectl knows every way to identify oneself; it ends when the tests are killed.
    proxy = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "TERM", str(kubectl), f"--kubeconfig={kubeconfig}"),
            *("proxy", "--port=0"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert proxy.stdout is not None
    line = proxy.stdout.readline()  # "Starting to serve on HOST:PORT"; nothing if it failed
    assert line, "kubectl proxy did not start; its errors are above"
    kubelet = _Kubelet(line.split()[-1])
    try:
        yield kubelet.start([f"fake-{number}" for number in range(count)])
        kubelet.remove_nodes()
    finally:
        kubelet.end()
        proxy.terminate()
        proxy.communicate()
        kubelet.join()


class _Connection:
    """Requests to the API server, each from one thread only."""

    def __init__(self, address: str) -> None:
        self._http = http.client.HTTPConnection(address, timeout=_WATCH + 30)

    def ask(
        self, method: str, place: str, value: object = None, kind: str = _JSON
    ) -> tuple[int, Any]:
        """Status and answer."""
        body = None if value is None else json.dumps(value)
        self._http.request(method, place, body, {"Content-Type": kind})
        answer = self._http.getresponse()
        text = answer.read()
        if answer.status >= 500:  # the API server is away, or its storage
            raise http.client.HTTPException(f"{method} {place}: {answer.status} {text!r}")
        return answer.status, json.loads(text)

    def tell(self, method: str, place: str, value: object = None, kind: str = _JSON) -> None:
        """A request that must succeed, unless its object has gone or is there already."""
        status, answer = self.ask(method, place, value, kind)
        assert status < 300 or status in (404, 409), f"{method} {place}: {answer}"

    def watch(self, place: str) -> Iterator[dict[str, Any]]:
        self._http.request("GET", place)
        for line in self._http.getresponse():
            yield json.loads(line)

    def close(self) -> None:
        self._http.close()


class _Agenda:
    """What is to be done, and when."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Callable[[_Connection], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._ended = False

    def add(self, action: Callable[[_Connection], None], *, after: float = 0.0) -> None:
        with self._changed:
            entry = (time.monotonic() + after, next(self._numbers), action)
            heapq.heappush(self._entries, entry)
            self._changed.notify()

    def take(self) -> Callable[[_Connection], None] | None:
        """The next that is due; it waits for one. None: there will be no more."""
        with self._changed:
            while not self._ended:
                left = self._entries[0][0] - time.monotonic() if self._entries else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._entries)[2]
                self._changed.wait(left)
        return None

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class _Kubelet:
    """Does for all the fake nodes what a kubelet does for its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._nodes: list[str] = []
        self._agenda = _Agenda()
        self._ended = threading.Event()
        self._seen: set[str] = set()
        self._threads = [threading.Thread(target=self._work) for _ in range(_THREADS)]
        self._threads += [
            threading.Thread(target=work) for work in (self._follow_pods, self._keep_nodes)
        ]

    def start(self, names: list[str]) -> list[str]:
        self._nodes = names
        with contextlib.closing(_Connection(self._address)) as api:
            for name in names:
                _make_node(api, name)
        for thread in self._threads:
            thread.daemon = True
            thread.start()
        return names

    def end(self) -> None:
        """Begin nothing more; what it waits for must end before `join`."""
        self._ended.set()
        self._agenda.end()

    def join(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def remove_nodes(self) -> None:
        with contextlib.closing(_Connection(self._address)) as api:
            for name in self._nodes:
                api.tell("DELETE", f"/api/v1/nodes/{name}")
                api.tell("DELETE", f"{_LEASES}/{name}")

    def _work(self) -> None:
        with contextlib.closing(_Connection(self._address)) as api:
            while (action := self._agenda.take()) is not None:
                try:
                    action(api)
                except (http.client.HTTPException, OSError):  # the API server is away
                    api.close()
                    self._agenda.add(action, after=0.5)

    def _keep_nodes(self) -> None:
        """Not one of the tasks: behind those of a thousand pods it would come too late."""
        with contextlib.closing(_Connection(self._address)) as api:
            while not self._ended.wait(_RENEWAL):
                try:
                    self._renew_leases(api)
                except (http.client.HTTPException, OSError):  # the API server is away
                    api.close()

    def _renew_leases(self, api: _Connection) -> None:
        for name in self._nodes:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            api.tell("PATCH", f"{_LEASES}/{name}", {"spec": {"renewTime": now}}, _MERGE)
            # Should it have been taken for lost meanwhile.
            status = {"conditions": [_make_ready_condition()]}
            api.tell("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, _STRATEGIC)

    def _follow_pods(self) -> None:
        while not self._ended.is_set():
            with contextlib.closing(_Connection(self._address)) as api:
                try:
                    self._follow_once(api)
                except (http.client.HTTPException, OSError, json.JSONDecodeError):
                    # The API server is away; it may have gone in the middle of a line.
                    self._ended.wait(0.5)

    def _follow_once(self, api: _Connection) -> None:
        status, pods = api.ask("GET", "/api/v1/pods")
        if status != 200:
            self._ended.wait(0.5)
            return
        for pod in pods["items"]:
            self._see(pod)
        version = pods["metadata"]["resourceVersion"]
        query = f"watch=1&resourceVersion={version}&timeoutSeconds={_WATCH}"
        for event in api.watch(f"/api/v1/pods?{query}"):
            if event["type"] == "ERROR":  # it was too slow, and has to list again
                return
            if event["type"] != "DELETED":
                self._see(event["object"])

    def _see(self, pod: dict[str, Any]) -> None:
        identity = pod["metadata"]["uid"]
        if pod["spec"].get("nodeName") not in self._nodes:
            return
        if pod["metadata"].get("deletionTimestamp"):
            if (gone := f"{identity} gone") not in self._seen:
                self._seen.add(gone)
                self._agenda.add(lambda api: _remove(api, pod))
        elif pod["status"]["phase"] == "Pending" and identity not in self._seen:
            self._seen.add(identity)
            self._agenda.add(lambda api: self._run(api, pod))

    def _run(self, api: _Connection, pod: dict[str, Any]) -> None:
        _set_phase(api, pod, "Running", {"running": {"startedAt": _now()}})
        seconds = pod["metadata"].get("annotations", {}).get(SECONDS)
        if seconds is not None:
            self._agenda.add(lambda api: _succeed(api, pod), after=float(seconds))


def _make_node(api: _Connection, name: str) -> None:
    place = f"/api/v1/nodes/{name}"
    labels = {**SELECTOR, "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    api.tell("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
    holder = {"holderIdentity": name, "leaseDurationSeconds": 40}
    api.tell("POST", _LEASES, {"metadata": {"name": name}, "spec": holder})
    status = {"capacity": _SIZE, "allocatable": _SIZE, "conditions": [_make_ready_condition()]}
    api.tell("PATCH", f"{place}/status", {"status": status}, _MERGE)
    # It takes the place of the taint that says that a new node is not ready.
    api.tell("PATCH", place, {"spec": {"taints": [_TAINT]}}, _MERGE)


def _make_ready_condition() -> dict[str, str]:
    return {
        "type": "Ready",
        "status": "True",
        "reason": "Fake",
        "message": "",
        "lastHeartbeatTime": _now(),
        "lastTransitionTime": _now(),
    }


def _succeed(api: _Connection, pod: dict[str, Any]) -> None:
    began, ended = pod["metadata"]["creationTimestamp"], _now()
    state = {"exitCode": 0, "reason": "Completed", "startedAt": began, "finishedAt": ended}
    _set_phase(api, pod, "Succeeded", {"terminated": state})


def _set_phase(
    api: _Connection, pod: dict[str, Any], phase: str, state: dict[str, dict[str, Any]]
) -> None:
    runs = phase == "Running"
    status = {
        "phase": phase,
        "startTime": pod["metadata"]["creationTimestamp"],
        "conditions": [
            {"type": name, "status": str(runs), "lastTransitionTime": _now()}
            for name in ("Ready", "ContainersReady")
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": runs,
                "started": runs,
                "restartCount": 0,
                "state": state,
            }
            for container in pod["spec"]["containers"]
        ],
    }
    api.tell("PATCH", f"{_place(pod)}/status", {"status": status}, _STRATEGIC)


def _remove(api: _Connection, pod: dict[str, Any]) -> None:
    api.tell("DELETE", f"{_place(pod)}?gracePeriodSeconds=0")


def _place(pod: dict[str, Any]) -> str:
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
