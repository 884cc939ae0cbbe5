"""The provisioner of volumes of the tests' own cluster: folders of its node.

It does what the provisioner of a cloud does, for the default storage class: a claim gets a volume
when its first pod has a node, and a volume that is no longer claimed is removed with what it holds.
Its volumes are of the type `local`, so the kubelet gives them to the group of the pod; sizes are
promised, not kept.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

STORAGE_CLASS = "pestfleet-test"
PROVISIONER = "pestfleet.test/folders"

_CLAIMS = "/api/v1/persistentvolumeclaims"
_VOLUMES = "/api/v1/persistentvolumes"
_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
_SELECTED = "volume.kubernetes.io/selected-node"
_PROVISIONED = "pv.kubernetes.io/provisioned-by"
_WATCH = 30  # seconds; then all are listed anew
_PAUSE = 0.2  # seconds, after the API server did not answer


@contextlib.contextmanager
def provision_volumes(kubeconfig: Path, folder: Path) -> Iterator[None]:
    """While the block runs, claims get volumes below the folder, which the node sees, too."""
    provisioner = _Provisioner(kubeconfig, folder)
    provisioner.start()
    try:
        yield
    finally:
        provisioner.stop()


class _Api:
    """The API server as the kubeconfig's user (one with a token) sees it; for one thread."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        server = config["clusters"][0]["cluster"]
        authority = base64.b64decode(server["certificate-authority-data"]).decode("ascii")
        self._host = urlsplit(server["server"]).netloc
        self._trusted = ssl.create_default_context(cadata=authority)
        self._headers = {
            "Authorization": f"Bearer {config['users'][0]['user']['token']}",
            "Content-Type": "application/json",
        }
        self._connection = self._connect()

    def ask(self, method: str, place: str, value: object = None) -> tuple[int, Any]:
        """Status and answer."""
        self._send(method, place, value)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def tell(self, method: str, place: str, value: object = None) -> None:
        """A request that must succeed, unless its object is there already, or gone."""
        status, answer = self.ask(method, place, value)
        if status >= 500:
            raise http.client.HTTPException(f"{method} {place}: {answer}")
        assert status < 300 or status in (404, 409), f"{method} {place}: {answer}"

    def watch(self, place: str) -> Iterator[dict[str, Any]]:
        self._send("GET", place)
        for line in self._connection.getresponse():
            yield json.loads(line)

    def close(self) -> None:
        self._connection.close()

    def _connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, timeout=_WATCH + 30, context=self._trusted)

    def _send(self, method: str, place: str, value: object = None) -> None:
        body = None if value is None else json.dumps(value)
        self._connection.request(method, place, body, self._headers)


class _Provisioner:
    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._kubeconfig = kubeconfig
        self._folder = folder
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=what, daemon=True)
            for what in ((_CLAIMS, self._make_volume), (_VOLUMES, self._remove_volume))
        ]

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        api = _Api(self._kubeconfig)
        default = {"storageclass.kubernetes.io/is-default-class": "true"}
        api.tell(
            "POST",
            _CLASSES,
            {
                "metadata": {"name": STORAGE_CLASS, "annotations": default},
                "provisioner": PROVISIONER,
                "reclaimPolicy": "Delete",
                "volumeBindingMode": "WaitForFirstConsumer",
            },
        )
        api.close()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing more. The threads end with their watches, which nobody waits for."""
        self._stopped.set()

    def _follow(self, place: str, see: Callable[[_Api, dict[str, Any]], None]) -> None:
        """Shows each object as it is now, and whenever it changes."""
        while not self._stopped.is_set():
            api = _Api(self._kubeconfig)
            with contextlib.closing(api):
                try:
                    self._follow_once(api, place, see)
                except (http.client.HTTPException, OSError, json.JSONDecodeError):
                    self._stopped.wait(_PAUSE)  # the API server is away

    def _follow_once(
        self, api: _Api, place: str, see: Callable[[_Api, dict[str, Any]], None]
    ) -> None:
        status, found = api.ask("GET", place)
        if status != 200:
            raise http.client.HTTPException(f"{place}: {found}")
        # One connection is busy with the watch.
        with contextlib.closing(_Api(self._kubeconfig)) as other:
            for item in found["items"]:
                see(other, item)
            version = found["metadata"]["resourceVersion"]
            query = f"watch=1&resourceVersion={version}&timeoutSeconds={_WATCH}"
            for event in api.watch(f"{place}?{query}"):
                if self._stopped.is_set() or event["type"] == "ERROR":
                    return  # or it was too slow, and has to list again
                if event["type"] != "DELETED":
                    see(other, event["object"])

    def _make_volume(self, api: _Api, claim: dict[str, Any]) -> None:
        metadata, spec = claim["metadata"], claim["spec"]
        node = metadata.get("annotations", {}).get(_SELECTED)
        if spec.get("storageClassName") != STORAGE_CLASS or spec.get("volumeName") or not node:
            return
        name = f"pvc-{metadata['uid']}"
        path = self._folder / name
        path.mkdir(exist_ok=True)
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
        reference = {name: metadata[name] for name in ("namespace", "name", "uid")}
        volume = {
            "metadata": {"name": name, "annotations": {_PROVISIONED: PROVISIONER}},
            "spec": {
                "storageClassName": STORAGE_CLASS,
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "accessModes": spec["accessModes"],
                "persistentVolumeReclaimPolicy": "Delete",
                "local": {"path": str(path)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference},
            },
        }
        api.tell("POST", _VOLUMES, volume)

    def _remove_volume(self, api: _Api, volume: dict[str, Any]) -> None:
        metadata = volume["metadata"]
        ours = metadata.get("annotations", {}).get(_PROVISIONED) == PROVISIONER
        if ours and volume["status"]["phase"] in ("Released", "Failed"):
            shutil.rmtree(self._folder / metadata["name"], ignore_errors=True)
            api.tell("DELETE", f"{_VOLUMES}/{metadata['name']}")
