"""Fills a Secret of Kubernetes from within a pod whose service account may get and patch it.

The Secret is there, and empty; it is filled once.
"""

from __future__ import annotations

import base64
import urllib.error
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pestfleet.cluster_api import ClusterApi
from pestfleet.credentials.parts import COMPLETE
from pestfleet_worker.errors import ConfigurationError

_CONFLICT = 409


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
    path = f"/api/v1/namespaces/{api.namespace}/secrets/{name}"
    try:
        while True:
            secret = api.get(path)
            there = secret.get("data") or {}
            if there:
                _check_fit(name, there, data)
                return False
            version = secret["metadata"]["resourceVersion"]
            if _patch(api, path, {"metadata": {"resourceVersion": version}, "data": data}):
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


def _patch(api: ClusterApi, path: str, change: dict[str, Any]) -> bool:
    """False where the Secret has another resourceVersion by now."""
    try:
        api.patch(path, change)
    except urllib.error.HTTPError as error:
        if error.code != _CONFLICT:
            raise
        return False
    return True


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
