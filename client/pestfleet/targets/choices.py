"""What a session's placement in containers allows, whatever runs these."""

from __future__ import annotations

from pestfleet.folder import SessionSpec
from pestfleet.targets.addresses import find_place
from pestfleet_worker.errors import ConfigurationError

_LOCAL = ("localhost", "127.0.0.1", "::1")


def check_choices(spec: SessionSpec, broker_url: str, *, unit: str) -> None:
    """Raises `ConfigurationError` for a placement that cannot work. `unit`: container or pod."""
    place = spec.place
    if place.tunnel and place.master == "there":
        raise ConfigurationError(
            "a tunnel is for a master on this machine",
            remedy="Say --master here too, or leave --tunnel out.",
        )
    if broker_url and not place.tunnel and find_place(broker_url)[0] in _LOCAL:
        raise ConfigurationError(
            f"the broker is at an address of this machine alone, which no {unit} reaches",
            remedy="Name it in --broker as others reach it, or leave --broker out.",
        )
    if spec.mode == "agent" and place.master == "here" and not place.tunnel:
        raise ConfigurationError(
            f"the agents of {spec.engine} in {unit}s do not reach a master on this machine",
            remedy="Say --tunnel too, or --master there.",
        )


def needs_broker(spec: SessionSpec, broker_url: str) -> bool:
    """Is one beside the workers wanted? Not where the one at home comes through the tunnel."""
    return not broker_url and not (spec.place.tunnel and spec.mode == "queue")
