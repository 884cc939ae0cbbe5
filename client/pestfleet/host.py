"""Who hosts a session: what that is asked to do, and how the session ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pestfleet.folder import SessionFolder
from pestfleet_worker.errors import PestfleetError

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended. `error` is set when the engine could not finish."""

    folder: SessionFolder
    summary: dict[str, Any]
    error: PestfleetError | None = None


class Host(Protocol):
    """What brings a session to its end: a `Master`, or what follows one elsewhere."""

    def host(self) -> Outcome:
        """Run the session. Raises only for what keeps it from starting at all."""
        ...

    def interrupt(self) -> None:
        """Ask it to stop, from any thread."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """How far the session is; see `Master.snapshot`."""
        ...
