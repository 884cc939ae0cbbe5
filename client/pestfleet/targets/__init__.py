"""Targets: where a fleet lives. Each is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pestfleet.targets.base import FleetPlan, RemoteSession, SessionInfo, Target
from pestfleet_worker.errors import ConfigurationError

_MAKERS = {"local": ("pestfleet.targets.local", "LocalTarget")}
# Targets of containers. Each package has `sessions` (found by labels) and `launch`.
_REMOTE = {"compose": "pestfleet.targets.compose"}
REMOTE_NAMES = tuple(_REMOTE)
NAMES = (*_MAKERS, *_REMOTE)


def is_remote(name: str) -> bool:
    """Do sessions there outlive the process that launched them?"""
    return name in _REMOTE


def list_remote_sessions(name: str) -> list[SessionInfo]:
    """The sessions of a target of containers, newest first. Raises `TargetError`."""
    found: list[SessionInfo] = _import_remote(name, "sessions").list_sessions()
    return found


def open_remote_session(name: str, session: str | None) -> RemoteSession:
    """One of these sessions, or the newest. Raises `SessionError`, `TargetError`."""
    opened: RemoteSession = _import_remote(name, "sessions").open_session(session)
    return opened


def load_launch(name: str) -> Any:
    """The module that launches sessions on a target of containers.

    `make_host(session, image=…, broker_url=…, on_event=…, resume=…)`: who hosts a session there,
    see `pestfleet.host.Host`. `describe(spec, folder, image=…, broker_url=…)`: what would be
    launched, as text.
    """
    return _import_remote(name, "launch")


def _import_remote(name: str, part: str) -> Any:
    check_name(name)
    return import_module(f"{_REMOTE[name]}.{part}")


def check_name(name: str) -> None:
    """Raises `ConfigurationError` when there is no such target."""
    if name not in NAMES:
        raise ConfigurationError(
            f"there is no target {name!r}", remedy=f"Targets: {', '.join(NAMES)}."
        )


def make_target(name: str, plan: FleetPlan) -> Target:
    """The target of that name. Raises `ConfigurationError` for an unknown one."""
    check_name(name)
    module, maker = _MAKERS[name]
    target: Target = getattr(import_module(module), maker)(plan)
    return target
