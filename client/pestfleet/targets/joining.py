"""No target of the master's: workers that something else starts, and that join by themselves.

So it is for a master in a container, beside workers of the same compose project or chart.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pestfleet.targets.base import FleetPlan


class JoiningTarget:
    """Waits for workers; whoever started them replaces and removes them."""

    def __init__(self, plan: FleetPlan) -> None:
        self._plan = plan

    def describe(self) -> list[str]:
        return [f"{self._plan.workers} workers join by themselves"]

    def launch(self) -> None: ...

    def check(self) -> None: ...

    def scale(self, workers: int, surplus: Collection[str] = ()) -> None: ...

    def replace(self, worker: str) -> None: ...

    def logs(self, worker: str) -> Path | None:
        return None

    def teardown(self) -> None: ...
