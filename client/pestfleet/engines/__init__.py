"""Engines: what asks for runs. Each is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pestfleet_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from pestfleet.engines.base import Engine

_MODULES = {
    "sweep": "pestfleet.engines.sweep",
    "glm": "pestfleet.engines.glm",
    "ies": "pestfleet.engines.ies",
    **{
        f"pestpp-{kind}": "pestfleet.engines.pestpp"
        for kind in ("glm", "ies", "swp", "sen", "opt", "da", "mou", "sqp")
    },
    "beopest": "pestfleet.engines.classic",
    "pest_hp": "pestfleet.engines.classic",
}
_AGENTS_ONLY = ("beopest", "pest_hp")
NAMES = tuple(_MODULES)


def check_name(name: str) -> None:
    """Raises `ConfigurationError` when there is no such engine."""
    if name not in _MODULES:
        raise ConfigurationError(
            f"there is no engine {name!r}", remedy=f"Engines: {', '.join(NAMES)}."
        )


def choose_mode(name: str, mode: str) -> str:
    """The mode for an engine: `mode`, or what suits it where that is "".

    Raises `ConfigurationError` for a mode that the engine does not have.
    """
    modes: tuple[str, ...] = ("agent",) if name in _AGENTS_ONLY else ("queue",)
    if name.startswith("pestpp-"):
        modes = ("queue", "agent")
    if mode and mode not in modes:
        raise ConfigurationError(
            f"engine {name} does not run in mode {mode!r}", remedy=f"It has: {', '.join(modes)}."
        )
    return mode or modes[0]


def is_program(name: str) -> bool:
    """Is that engine an external program?"""
    return name.startswith("pestpp-") or name in _AGENTS_ONLY


def find_program(name: str, case: Path) -> Path | None:
    """Where the program of an external engine is; None for an engine that is none.

    `case`: the case's folder, where the user may have put it. Raises `ConfigurationError` when
    it is not on this machine.
    """
    if name.startswith("pestpp-"):
        from pestfleet.engines.pestpp.programs import find_program

        return find_program(name, case=case)
    if name in _AGENTS_ONLY:
        from pestfleet.engines import classic, programs

        program = classic.PROGRAMS[name]
        return programs.find_program(program.masters, case=case, install=program.install)
    return None


def load_engine(name: str) -> Engine:
    """The engine of that name. Raises `ConfigurationError` for an unknown one."""
    check_name(name)
    engine: Engine = import_module(_MODULES[name]).run
    return engine
