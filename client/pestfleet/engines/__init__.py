"""Engines: what asks for runs. Each is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pestfleet_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from pestfleet.engines.base import Engine

_MODULES = {
    "sweep": "pestfleet.engines.sweep",
    "glm": "pestfleet.engines.glm",
    "ies": "pestfleet.engines.ies",
}
NAMES = tuple(_MODULES)


def check_name(name: str) -> None:
    """Raises `ConfigurationError` when there is no such engine."""
    if name not in _MODULES:
        raise ConfigurationError(
            f"there is no engine {name!r}", remedy=f"Engines: {', '.join(NAMES)}."
        )


def load_engine(name: str) -> Engine:
    """The engine of that name. Raises `ConfigurationError` for an unknown one."""
    check_name(name)
    engine: Engine = import_module(_MODULES[name]).run
    return engine
