"""The chart's values for a session."""

from __future__ import annotations

import re
import shlex
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pestfleet.folder import SessionSpec
from pestfleet.targets.addresses import CA, find_place, pack_url
from pestfleet.targets.kubernetes.chart import Values
from pestfleet.targets.kubernetes.naming import name_release

HOURS = 72.0  # the longest life of a session that names no other
KEEP_SECONDS = 120  # for which the end of a session can be looked at, before all of it goes
MEMORY, CPUS = "2Gi", 1.0  # of a slot that names no other: machines are chosen by them


@dataclass(frozen=True, slots=True)
class Images:
    """References of the images. `worker` has the case in it; `master` "" for one at home."""

    worker: str
    broker: str
    master: str = ""
    tunnel: str = ""


def make_values(spec: SessionSpec, images: Images, *, broker: bool, broker_url: str = "") -> Values:
    """Values of the chart; `broker`: one of the session's own, in the cluster.

    `broker_url`: of one that there is already; its secrets are in the Secret RELEASE-broker.
    """
    place, there = spec.place, spec.place.master == "there"
    release = name_release(spec.session)
    values: Values = {
        "fullnameOverride": release,
        "session": {
            "id": spec.session,
            "launch": uuid.uuid4().hex[:8],
            "hours": spec.max_hours or HOURS,
            "idleMinutes": spec.idle_minutes,
            "keepSeconds": KEEP_SECONDS,
        },
        "case": {"file": Path(spec.control_file).name, "image": split_image(images.worker)},
        "engine": {
            "name": spec.engine,
            "mode": spec.mode,
            "options": dict(spec.options),
            "args": shlex.join(spec.arguments),
            "timeLimit": spec.seconds,
            "threads": spec.threads,
            "deliveries": spec.deliveries,
            "cache": spec.cache if spec.cache.startswith("s3://") else "",
        },
        # A Job that is replaced has another name there: ours are made once.
        "jobs": {"hashedNames": False},
        "credentials": {"existingSecret": f"{release}-credentials"},
        # What a broker loses with its pod the master asks for again.
        "broker": {"image": split_image(images.broker), "volume": {"enabled": False}},
        "master": {"enabled": there},
        "workers": {
            "count": spec.workers,
            "slots": spec.slots,
            "resources": _make_resources(spec),
        },
    }
    if spec.most:
        values["elastic"] = {"most": spec.most}
    if there:
        values["master"]["image"] = split_image(images.master)
    if not broker:
        external: Values = {"enabled": True, "existingSecret": f"{release}-broker"}
        if broker_url:
            external["port"] = find_place(broker_url)[1]
            external["caKey"] = CA if CA in pack_url(broker_url) else ""
        values["broker"]["external"] = external
    if place.tunnel:
        values["tunnel"] = {
            "enabled": True,
            "image": split_image(images.tunnel),
            "existingSecret": f"{release}-tunnel",
            "service": {"type": "ClusterIP"},
        }
    return values


def split_image(reference: str) -> dict[str, str]:
    """NAME:TAG or NAME@DIGEST as the chart wants it."""
    name, _, digest = reference.partition("@")
    before, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon was that of a port
        before, tag = name, "" if digest else "latest"
    return {"repository": before, "tag": tag, "digest": digest}


def _make_resources(spec: SessionSpec) -> dict[str, Any]:
    """Limits of a worker, asked for in full: so run times can be compared."""
    place = spec.place
    size = {
        "cpu": f"{(place.cpus or CPUS) * spec.slots:g}",
        "memory": multiply(place.memory or MEMORY, spec.slots),
    }
    return {"requests": size, "limits": dict(size)}


def multiply(size: str, slots: int) -> str:
    """A size in docker's form (2g: of 1024 bytes) or Kubernetes' (2Gi), so many times."""
    match = re.fullmatch(r"([\d.]+)([bkmgt]?)i?b?", size.lower())
    assert match is not None, size
    unit = {"": "", "b": ""}.get(match[2], f"{match[2].upper() if match[2] != 'k' else 'K'}i")
    number = float(match[1]) * slots
    if number == int(number):
        return f"{int(number)}{unit}"
    return str(round(number * 1024 ** "bkmgt".index(match[2] or "b")))
