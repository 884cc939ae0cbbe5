"""Keeps a session's containers going: starts again what ended before its time."""

from __future__ import annotations

import time

from pestfleet.targets.compose.fleet import RESTARTING, ComposeFleet, Container
from pestfleet.targets.following import INTERVAL
from pestfleet_worker.errors import TargetError

OVER, REFUSED, SENT_AWAY = 0, 10, 12  # exit codes of a worker, docs/exit-codes.md
EARLY = 10.0  # seconds; what ends so soon after each start has never worked
EARLY_ENDS = 4  # so many in a row and we give up
WORKER_EARLY_ENDS = 10  # of a worker: runs that kill it must come to their last delivery
REMOVAL = 15.0  # seconds for the removal of a worker that was sent away
KEPT = ("broker", "tunnel", "worker")


class Keeper:
    """Looks after one session's containers; `check` as often as you like.

    The Docker engine restarts what fails by itself, but not what was killed by its own command
    or was on a machine that was switched off.
    """

    def __init__(self, fleet: ComposeFleet) -> None:
        self._fleet = fleet
        self._ends: dict[str, tuple[str, int]] = {}  # container -> last start, early ends in a row
        self._sent_away: dict[str, float] = {}  # worker's container -> when that was seen
        self._looked = 0.0

    def check(self) -> list[str]:
        """What was started again, a line each. Raises `TargetError` when there is no point."""
        now = time.monotonic()
        if now - self._looked < INTERVAL:
            return []
        self._looked = now
        ended = [c for c in self._fleet.containers() if c.exit_code is not None]
        lines = [self.restart(container) for container in ended if self._is_missed(container)]
        return [line for line in lines if line]

    def _is_missed(self, container: Container) -> bool:
        if container.role == "worker" and container.exit_code == REFUSED:
            raise TargetError(
                self._fleet.describe_end(container),
                remedy="A worker ends with this code when it does not fit the session.",
            )
        over = container.role == "worker" and container.exit_code == OVER
        return container.role in KEPT and not over and not self._is_leaving(container)

    def _is_leaving(self, container: Container) -> bool:
        """A worker that was sent away is about to be removed: by somebody who scales the fleet."""
        if container.role != "worker" or container.exit_code != SENT_AWAY:
            self._sent_away.pop(container.id, None)
            return False
        now = time.monotonic()
        return now - self._sent_away.setdefault(container.id, now) < REMOVAL

    def restart(self, container: Container) -> str:
        """Start an ended container, unless the engine does; says so ("" for the engine).

        Raises `TargetError` for one that never works.
        """
        last, early = self._ends.get(container.id, ("", 0))
        began, lasted = self._fleet.read_life(container)
        if began != last:
            early = early + 1 if lasted < EARLY else 0
            self._ends[container.id] = (began, early)
        if early >= (WORKER_EARLY_ENDS if container.role == "worker" else EARLY_ENDS):
            raise TargetError(
                self._fleet.describe_end(container),
                remedy="It was started again and again, and ended each time at once.",
            )
        if container.state == RESTARTING:
            return ""
        self._fleet.start(container)
        return f"{container.name} had ended (exit code {container.exit_code}) and is started again"
