"""Workers whose number is an entry of a platform's object, which the master changes.

It is followed in a thread of its own, so that a platform that does not answer never holds up runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from pathlib import Path

from pestfleet.targets.base import FleetPlan
from pestfleet_worker.errors import TargetError

logger = logging.getLogger(__name__)

INTERVAL, LONGEST = 1.0, 8.0  # seconds between two looks at what is not as wanted


class NumberedWorkers:
    """Workers that join by themselves; a class of it says how their number is changed."""

    def __init__(self, plan: FleetPlan, *, words: str) -> None:
        """`words`: what the platform's object is called, such as "Job workers"."""
        self._plan = plan
        self._words = words
        self._wanted = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="scaling", daemon=True)

    def _follow(self, workers: int) -> bool:
        """Bring the platform nearer to what is wanted; True when it is there.

        Raises `TargetError`, `OSError`, `ValueError`, `KeyError`, `TypeError` for what may be right
        the next time: of the network, of the platform, or in its answer.
        """
        raise NotImplementedError

    def describe(self) -> list[str]:
        return [f"{self._plan.workers} workers of {self._words} join by themselves"]

    def launch(self) -> None:
        self._thread.start()

    def check(self) -> None: ...

    def scale(self, workers: int, surplus: Collection[str] = ()) -> None:
        """The drained ones need no name here: the platform knows which they are."""
        with self._changed:
            self._wanted = workers
            self._changed.notify()

    def replace(self, worker: str) -> None: ...

    def logs(self, worker: str) -> Path | None:
        return None

    def teardown(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(2 * INTERVAL)

    def _serve(self) -> None:
        done, pause = 0, INTERVAL
        while True:
            with self._changed:
                wanted = self._wanted
                if self._closing:
                    return
            if wanted != done and self._try(wanted):
                done = wanted
            with self._changed:
                if self._closing or self._wanted != wanted:
                    pause = INTERVAL
                    continue
                self._changed.wait(None if wanted == done else pause)
                pause = min(1.5 * pause, LONGEST)

    def _try(self, workers: int) -> bool:
        try:
            return self._follow(workers)
        except (TargetError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be scaled, trying again: %s", self._words, error)
            return False
