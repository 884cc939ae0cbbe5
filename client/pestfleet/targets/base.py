"""What a target does: it hosts the workers of one session's fleet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The fleet that a session wants. `source`: the case's folder as the master sees it.

    `on_end(worker, reason)` is told by a target that sees a worker end before its time.
    """

    session: str
    folder: Path
    source: Path
    broker_url: str
    workers: int
    slots: int
    scratch: Path
    on_end: Callable[[str, str], None] = lambda worker, reason: None


class Target(Protocol):
    """The verbs of a target. A verb that changes something is safe to repeat."""

    def launch(self) -> None:
        """Start the workers. Raises `TargetError`; what was started is torn down by `teardown`."""
        ...

    def check(self) -> None:
        """Raises `TargetError` when workers cannot come, with the reason."""
        ...

    def scale(self, workers: int) -> None:
        """Have that many workers."""
        ...

    def replace(self, worker: str) -> None:
        """A worker is lost: make sure that it is gone and start another."""
        ...

    def describe(self) -> list[str]:
        """What `launch` would do, one line a step, without secrets."""
        ...

    def logs(self, worker: str) -> Path | None:
        """The log of a worker, if there is one."""
        ...

    def teardown(self) -> None:
        """End all workers and remove what `launch` made. Never raises for what is gone already."""
        ...
