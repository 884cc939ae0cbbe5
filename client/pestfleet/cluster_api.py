"""The API server of Kubernetes, from within a pod with a service account.

It is spoken to directly (kubernetes.io, "Accessing the API from a Pod"), so that the images need no
client of Kubernetes.
"""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pestfleet_worker.errors import ConfigurationError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE = 60.0  # seconds: a cluster's network may come up together with the pod
PAUSE = 1.0
TIMEOUT = 10.0  # seconds for one answer


@dataclass(frozen=True, slots=True)
class ClusterApi:
    """The API server as the pod's service account sees it.

    `token`: file that has it; Kubernetes renews it there. `patience`: seconds for which a server
    that is not there, or not ready, is asked again.
    """

    url: str
    namespace: str
    token: Path
    context: ssl.SSLContext | None
    patience: float = PATIENCE

    @classmethod
    def find(cls, account: Path | None = None, *, patience: float = PATIENCE) -> ClusterApi:
        """Raises `ConfigurationError` outside of a pod with a service account."""
        account = account or ACCOUNT
        host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        token = account / "token"
        try:
            token.read_bytes()
            namespace = (account / "namespace").read_text(encoding="ascii").strip()
            context = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except OSError as error:
            raise ConfigurationError(
                f"this is no pod with a service account: {error}",
                remedy="Outside of the cluster use kubectl, or the target: --on kubernetes.",
            ) from error
        if not host:
            raise ConfigurationError("KUBERNETES_SERVICE_HOST is not set: this is no pod")
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}", namespace, token, context, patience)

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """An object, or a list of them, as Kubernetes writes it in JSON. Raises `OSError`."""
        words = urllib.parse.urlencode(query)
        return self._ask("GET", f"{path}?{words}" if words else path)

    def patch(self, path: str, change: dict[str, Any]) -> dict[str, Any]:
        """Merge a change into an object; returns all of it. Raises `OSError`."""
        return self._ask("PATCH", path, json.dumps(change).encode())

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path,
            data=body,
            method=method,
            headers={
                "Authorization": f"Bearer {self.token.read_text(encoding='ascii').strip()}",
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
                with opener.open(request, timeout=TIMEOUT) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except urllib.error.HTTPError as error:
                if error.code < 500 or time.monotonic() > deadline:
                    raise
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE)
