"""Names and labels of a session's objects in a cluster."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

# Labels, as the chart's templates write them.
SESSION, ROLE, MANAGER = "pestfleet.session", "pestfleet.role", "app.kubernetes.io/managed-by"
US = "pestfleet"  # what manages the objects of `--on kubernetes`; of a release it is Helm
# Annotations of the owner and of the claim: the session's folder where it was launched, and an
# image that can read the claim.
FOLDER, IMAGE = "pestfleet.folder", "pestfleet.image"
RELEASE = "app.kubernetes.io/instance"

Object = dict[str, Any]

_IRREGULAR = {"NetworkPolicy": "networkpolicies", "PriorityClass": "priorityclasses"}


def name_release(session: str) -> str:
    """The name of a session in the names of its objects: unique, and a DNS label.

    The chart shortens it to 28 characters, so what tells two sessions apart comes early enough.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", session.lower()).strip("-")
    return f"pf-{plain[:14].strip('-')}-{zlib.crc32(session.encode()):08x}"


def name_plural(kind: str) -> str:
    """The name of a kind in paths: Job -> jobs."""
    return _IRREGULAR.get(kind, f"{kind.lower()}s")


def read_role(found: Object) -> str:
    """The part of a session that an object is for; "" for none."""
    role: str = found["metadata"].get("labels", {}).get(ROLE, "")
    return role


def describe(found: Object) -> str:
    """An object in words, such as job pf-first-workers."""
    return f"{found['kind'].lower()} {found['metadata']['name']}"


def add_owner(body: Object, job: Object) -> Object:
    """An object that goes with that Job."""
    reference = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": job["metadata"]["name"],
        "uid": job["metadata"]["uid"],
    }
    metadata = {**body["metadata"], "ownerReferences": [reference]}
    return {**body, "metadata": metadata}


def mark(objects: Sequence[Object], *, annotations: dict[str, str]) -> list[Object]:
    """The objects as ours: not Helm's to remove; with these annotations."""
    marked = []
    for one in objects:
        metadata = dict(one["metadata"])
        metadata["labels"] = {**metadata.get("labels", {}), MANAGER: US}
        metadata["annotations"] = {**metadata.get("annotations", {}), **annotations}
        marked.append({**one, "metadata": metadata})
    return marked
