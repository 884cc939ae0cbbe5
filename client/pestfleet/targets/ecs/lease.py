"""A fleet that lives only as long as its master renews it.

Each service of a session has a schedule of EventBridge Scheduler that sets its number of tasks to
0 at a time. The master, wherever it is, moves that time on for as long as it lives. When it has
died, or its machine is cut off for longer than the term, Amazon ends the tasks, and nobody of ours
has to live for that.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from pestfleet.targets.clocks import wait_awake
from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet_worker.errors import PestfleetError

logger = logging.getLogger(__name__)

TERM = 1200.0  # seconds from a renewal to the end, where no other comes
PAUSE = 300.0  # seconds between two renewals
RETRY = 15.0  # seconds after one that failed
GONE = "ResourceNotFoundException"

# What UpdateSchedule takes of what GetSchedule gives; what is left out is put back to its default.
_KEPT = ("ActionAfterCompletion", "Description", "EndDate", "FlexibleTimeWindow", "GroupName",
         "KmsKeyArn", "Name", "StartDate", "State", "Target")  # fmt: skip


class Lease:
    """Renewed by a thread of its own from `start` to `stop`."""

    def __init__(
        self,
        cloud: Cloud,
        group: str,
        schedules: Sequence[str],
        *,
        term: float = TERM,
        latest: Callable[[], float] = lambda: math.inf,
        alive: Callable[[], bool] = lambda: True,
        on_trouble: Callable[[str], None] = lambda text: None,
        on_lapse: Callable[[], None] = lambda: None,
    ) -> None:
        """`schedules`: names, in the group. `latest`: the end that no renewal goes beyond, in
        seconds since 1970. `alive`: while it says no, nothing is renewed.

        `on_trouble` gets what went wrong, in words; `on_lapse` is told when the time was over
        before it was renewed, so that the services have no tasks now. Both are called by the
        lease's thread.
        """
        self._cloud = cloud
        self._group = group
        self._schedules = tuple(schedules)
        self._term = term
        self._latest = latest
        self._alive = alive
        self._on_trouble = on_trouble
        self._on_lapse = on_lapse
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def start(self) -> None:
        """Renew it now and from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Renew it no more; what was started of it is waited for a moment."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(RETRY)

    def renew(self) -> None:
        """Move all schedules on, to the same time. Raises the first of the errors of Amazon's."""
        # Not the monotonic clock, which stands still while a laptop sleeps.
        now = time.time()
        end = min(now + self._term, self._latest())
        if end <= now:
            return  # it ends, as it is to
        errors: list[PestfleetError] = []
        lapsed = False
        for name in self._schedules:
            try:
                lapsed |= self._move(name, now, end)
            except PestfleetError as error:
                errors.append(error)
        if lapsed:
            self._on_lapse()
        if errors:
            raise errors[0]

    def _move(self, name: str, now: float, end: float) -> bool:
        """Move one schedule on; True where its time was over."""
        try:
            found = self._cloud.call("scheduler", "get_schedule", GroupName=self._group, Name=name)
        except Refused as error:
            if error.code == GONE:
                return False  # of a service that this session does not have
            raise
        request: dict[str, Any] = {key: found[key] for key in _KEPT if found.get(key) is not None}
        self._cloud.call(
            "scheduler",
            "update_schedule",
            **request,
            ScheduleExpression=write_time(end),
            ScheduleExpressionTimezone="UTC",
        )
        return read_time(str(found.get("ScheduleExpression", ""))) <= now

    def _keep(self) -> None:
        pause = 0.0
        while not wait_awake(self._over, pause):
            pause = PAUSE
            if not self._alive():
                self._say("the session does not move: its lease is not renewed")
                continue
            try:
                self.renew()
            except PestfleetError as error:
                self._say(f"the fleet's lease could not be renewed: {error}")
                pause = RETRY

    def _say(self, text: str) -> None:
        logger.warning("%s", text)
        self._on_trouble(text)


def write_time(moment: float) -> str:
    """An expression of EventBridge Scheduler: once, at that time (seconds since 1970) in UTC."""
    return f"at({datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%S})"


def read_time(expression: str) -> float:
    """The time of such an expression in UTC; infinity for any other."""
    try:
        return datetime.strptime(f"{expression}+0000", "at(%Y-%m-%dT%H:%M:%S)%z").timestamp()
    except ValueError:
        return math.inf
