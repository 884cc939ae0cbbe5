"""Pods and Jobs of a session, as the API server describes them."""

from __future__ import annotations

from dataclasses import dataclass

from pestfleet.targets.kubernetes.naming import Object, read_role


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a session. `exit_code`: of its main container, None while it has not ended."""

    name: str
    role: str
    phase: str  # Pending | Running | Succeeded | Failed | Unknown
    ready: bool
    exit_code: int | None
    body: Object

    @property
    def leaving(self) -> bool:
        """Is it being removed?"""
        return bool(self.body["metadata"].get("deletionTimestamp"))


def read_pod(body: Object) -> Pod:
    """A pod as the API server lists it."""
    status = body.get("status", {})
    role = read_role(body)
    main: Object = next((c for c in status.get("containerStatuses") or () if c["name"] == role), {})
    ended = main.get("state", {}).get("terminated")
    ready = any(
        c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ()
    )
    return Pod(
        name=body["metadata"]["name"],
        role=role,
        phase=status.get("phase", "Pending"),
        ready=ready,
        exit_code=ended.get("exitCode") if ended else None,
        body=body,
    )


def find_end(job: Object) -> str:
    """How a Job ended: "" not yet, Complete, or the reason of its failure."""
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            return "Complete" if condition["type"] == "Complete" else condition["reason"]
    return ""
