"""Waiting by a clock that goes on while the machine sleeps."""

from __future__ import annotations

import time
from threading import Event

GLANCE = 1.0  # seconds between two looks at the clock


def wait_awake(over: Event, seconds: float) -> bool:
    """Wait for `over`, so many seconds at most; is it set?

    `Event.wait` counts by the monotonic clock, which stands still while a laptop sleeps: what is
    due by the time of day would come late. Of that clock and the time of day, which may be set
    back, the first that has gone on so far ends the wait.
    """
    by_day, awake = time.time() + seconds, time.monotonic() + seconds
    while (left := min(by_day - time.time(), awake - time.monotonic())) > 0:
        if over.wait(min(left, GLANCE)):
            return True
    return over.is_set()
