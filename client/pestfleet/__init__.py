"""pestfleet: PEST-style parameter estimation on a fleet of containers.

`Case`, `Session`, `run`, `resume` and `sessions` are what a notebook needs; they are imported
when first used, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pestfleet.case import Case
    from pestfleet.session import Session, resume, run, sessions

__all__ = ["Case", "Session", "resume", "run", "sessions"]

_HOMES = {
    "Case": "pestfleet.case",
    "Session": "pestfleet.session",
    "resume": "pestfleet.session",
    "run": "pestfleet.session",
    "sessions": "pestfleet.session",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
