"""Targets: where a fleet lives. Each is imported when it is used."""

from __future__ import annotations

from importlib import import_module

from pestfleet.targets.base import FleetPlan, Target
from pestfleet_worker.errors import ConfigurationError

_MAKERS = {"local": ("pestfleet.targets.local", "LocalTarget")}
NAMES = tuple(_MAKERS)


def check_name(name: str) -> None:
    """Raises `ConfigurationError` when there is no such target."""
    if name not in _MAKERS:
        raise ConfigurationError(
            f"there is no target {name!r}", remedy=f"Targets: {', '.join(NAMES)}."
        )


def make_target(name: str, plan: FleetPlan) -> Target:
    """The target of that name. Raises `ConfigurationError` for an unknown one."""
    check_name(name)
    module, maker = _MAKERS[name]
    target: Target = getattr(import_module(module), maker)(plan)
    return target
