"""Fills a Secret of Kubernetes from within a pod whose service account may get and patch it.

The Secret is there, and empty; it is filled once. The API is spoken to directly (kubernetes.io,
"Accessing the API from a Pod"), so the image needs no client of Kubernetes.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pestfleet.credentials.parts import COMPLETE
from pestfleet_worker.errors import ConfigurationError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE = 60.0  # seconds: a cluster's network may come up together with the pod
PAUSE = 1.0
_CONFLICT = 409


@dataclass(frozen=True, slots=True)
class ClusterApi:
    """The API server as the pod's service account sees it."""

    url: str
    namespace: str
    token: str
    context: ssl.SSLContext | None
    patience: float = PATIENCE

    @classmethod
    def find(cls, account: Path = ACCOUNT) -> ClusterApi:
        """Raises `ConfigurationError` outside of a pod with a service account."""
        host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        try:
            token = (account / "token").read_text(encoding="ascii").strip()
            namespace = (account / "namespace").read_text(encoding="ascii").strip()
            context = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except OSError as error:
            raise ConfigurationError(
                f"this is no pod with a service account: {error}",
                remedy="A Secret can be filled from within the cluster only; elsewhere use "
                "kubectl create secret generic --from-file.",
            ) from error
        if not host:
            raise ConfigurationError("KUBERNETES_SERVICE_HOST is not set: this is no pod")
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}", namespace, token, context)

    def get_secret(self, name: str) -> dict[str, Any]:
        """The Secret, as Kubernetes writes it in JSON."""
        return self._ask("GET", name)

    def patch_secret(self, name: str, change: dict[str, Any]) -> bool:
        """Merge a change into it; False where it has another resourceVersion by now."""
        try:
            self._ask("PATCH", name, json.dumps(change).encode())
        except urllib.error.HTTPError as error:
            if error.code != _CONFLICT:
                raise
            return False
        return True

    def _ask(self, method: str, name: str, body: bytes | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/api/v1/namespaces/{self.namespace}/secrets/{name}",
            data=body,
            method=method,
            headers={
                "Authorization": f"Bearer {self.token}",
                "Accept": "application/json",
                "Content-Type": "application/merge-patch+json",
            },
        )
        # The API server is near: no proxy of the environment's leads to it.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.context)
        )
        deadline = time.monotonic() + self.patience
        while True:
            try:
                with opener.open(request, timeout=10) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except urllib.error.HTTPError as error:
                if error.code < 500 or time.monotonic() > deadline:
                    raise
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE)


def fill_secret(api: ClusterApi, name: str, folder: Path, *, parts: Collection[str]) -> bool:
    """Put the files of these parts into the Secret, each with the key PART.FILE.

    What it has already is kept: then False. Raises `ConfigurationError` when it cannot be read or
    filled, and when what it has was made for other choices (session, broker) than these files.
    """
    data = {
        f"{part}.{path.name}": base64.b64encode(path.read_bytes()).decode("ascii")
        for part in parts
        for path in sorted((folder / part).iterdir())
        if not path.name.startswith(".")
    }
    try:
        while True:
            secret = api.get_secret(name)
            there = secret.get("data") or {}
            if there:
                _check_fit(name, there, data)
                return False
            version = secret["metadata"]["resourceVersion"]
            if api.patch_secret(name, {"metadata": {"resourceVersion": version}, "data": data}):
                return True
    except urllib.error.HTTPError as error:
        raise ConfigurationError(
            f"Secret {name} in namespace {api.namespace}: the API server says {error.code} "
            f"{error.reason}",
            remedy="The chart makes the Secret, empty, and gives this pod's service account the "
            "right to get and patch it.",
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the API server at {api.url} cannot be reached: {error}"
        ) from error


def _check_fit(name: str, there: dict[str, str], made: dict[str, str]) -> None:
    for key, text in made.items():
        if not key.endswith(f".{COMPLETE}"):
            continue
        kept, new = (base64.b64decode(one).split()[1:] for one in (there.get(key, ""), text))
        if kept != new:
            raise ConfigurationError(
                f"Secret {name} has credentials of another session or broker "
                f"({key.partition('.')[0]})",
                remedy="Remove what it has, and they are made anew: "
                f"kubectl patch secret {name} --type merge -p '{{\"data\":null}}'",
            )
