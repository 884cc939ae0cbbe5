"""Targets: where a fleet lives. Each is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pestfleet.targets.base import FleetPlan, RemoteSession, SessionInfo, Target, Where
from pestfleet_worker.errors import ConfigurationError

_MAKERS = {"local": ("pestfleet.targets.local", "LocalTarget")}
# Targets of containers. Each package has `sessions` (found by labels) and `launch`.
_REMOTE = {
    "compose": "pestfleet.targets.compose",
    "kubernetes": "pestfleet.targets.kubernetes",
    "ecs": "pestfleet.targets.ecs",
}
# Packages that come with an extra of the target's name.
_EXTRAS = ("kubernetes", "websocket", "boto3", "botocore")
REMOTE_NAMES = tuple(_REMOTE)
NAMES = (*_MAKERS, *_REMOTE)


def is_remote(name: str) -> bool:
    """Do sessions there outlive the process that launched them?"""
    return name in _REMOTE


def list_remote_sessions(name: str, where: Where | None = None) -> list[SessionInfo]:
    """The sessions of a target of containers, newest first. Raises `TargetError`."""
    found: list[SessionInfo] = _import_remote(name, "sessions").list_sessions(where or Where())
    return found


def open_remote_session(
    name: str, session: str | None, where: Where | None = None
) -> RemoteSession:
    """One of these sessions, or the newest. Raises `SessionError`, `TargetError`."""
    module = _import_remote(name, "sessions")
    opened: RemoteSession = module.open_session(session, where or Where())
    return opened


def load_launch(name: str) -> Any:
    """The module that launches sessions on a target of containers.

    `make_host(session, image=…, broker_url=…, on_event=…, resume=…)`: who hosts a session there,
    see `pestfleet.host.Host`. `describe(spec, folder, image=…, broker_url=…)`: what would be
    launched, as text.
    """
    return _import_remote(name, "launch")


def load_orphans() -> Any:
    """The module that finds what sessions have left in Amazon's cloud."""
    return _import_remote("ecs", "orphans")


def _import_remote(name: str, part: str) -> Any:
    check_name(name)
    try:
        return import_module(f"{_REMOTE[name]}.{part}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRAS:
            raise
        raise ConfigurationError(
            f"the target {name} needs the package {error.name}, which is not installed",
            remedy=f"pip install 'pestfleet[{name}]'",
        ) from error


def check_name(name: str) -> None:
    """Raises `ConfigurationError` when there is no such target."""
    if name not in NAMES:
        raise ConfigurationError(
            f"there is no target {name!r}", remedy=f"Targets: {', '.join(NAMES)}."
        )


def check_elastic(on: str, *, there: bool, workers: int, most: int) -> None:
    """Can workers of that target come and go? `there`: its master is beside them.

    Raises `ConfigurationError`.
    """
    if most < workers:
        raise ConfigurationError(
            f"at most {most} workers are less than at least {workers}",
            remedy="A range of workers is such as --workers 4..50.",
        )
    if on == "compose" and there:
        raise ConfigurationError(
            "a master in a container of the Docker engine cannot start and end workers",
            remedy="Ask for a number of workers and change it with pestfleet scale, or have the "
            "master here: --master here.",
        )


def make_target(name: str, plan: FleetPlan) -> Target:
    """The target of that name. Raises `ConfigurationError` for an unknown one."""
    check_name(name)
    module, maker = _MAKERS[name]
    target: Target = getattr(import_module(module), maker)(plan)
    return target
