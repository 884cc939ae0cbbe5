"""What would go wrong with a launch, found before anything is started."""

from __future__ import annotations

from pestfleet.targets.compose.fleet import ComposeFleet
from pestfleet_worker.errors import SessionError


def check_free(fleet: ComposeFleet) -> None:
    """Raises `SessionError` when the id of a new session is in use on this Docker engine."""
    if fleet.containers():
        raise SessionError(
            f"session {fleet.session} has containers on this Docker engine already",
            remedy="Choose another id with --session, or remove them: "
            f"pestfleet down {fleet.session} --on compose",
        )
    if fleet.find_volume() is not None:
        raise SessionError(
            f"the results of another session {fleet.session} are kept on this Docker engine",
            remedy="Choose another id with --session, or remove them: "
            f"pestfleet down {fleet.session} --on compose --discard-results",
        )
