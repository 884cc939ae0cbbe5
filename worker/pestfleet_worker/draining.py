"""How a worker that is not needed any more is emptied: it takes no new run and finishes its own.

Then it waits to be ended by its target. Where more runs come before that, it works on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds for the target to end a worker that has nothing to do


class Drainage:
    """Whether this worker takes runs. `active`: it does not."""

    def __init__(self, queue: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`queue`: name of the one with the runs."""
        self._queue = queue
        self._clock = clock
        self._since: float | None = None  # when it was empty
        self.active = False

    @property
    def drained(self) -> bool:
        """It takes no run and has none."""
        return self._since is not None

    @property
    def forgotten(self) -> bool:
        """It has been drained for so long that nobody will end it."""
        return self._since is not None and self._clock() - self._since > PATIENCE

    def switch(self, active: bool, consumer: Any) -> None:
        """Take no more runs, or take them again. `consumer`: Celery's."""
        if active == self.active:
            return
        self.active = active
        if not active:
            self._since = None
        consumer.call_soon(self._follow, consumer)
        logger.info("%s", "draining: no new runs" if active else "taking runs again")

    def update(self, busy: bool) -> bool:
        """Note whether it has runs in hand; True when it has just become drained."""
        if not self.active or busy or self._since is not None:
            return False
        self._since = self._clock()
        logger.info("drained")
        return True

    def _follow(self, consumer: Any) -> None:
        # Celery calls back in any order: what counts is what is wanted now. A connection that is
        # lost meanwhile comes back with the queue, or without it.
        if self.active:
            consumer.cancel_task_queue(self._queue)
        else:
            consumer.add_task_queue(self._queue)
