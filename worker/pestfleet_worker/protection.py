"""A task of Amazon ECS that makes a run is not one of those that a smaller service ends.

ECS ends any task of a service that becomes smaller, but for those that are protected. The worker
asks the agent beside it for that, when it begins to make runs, again before it expires, and gives
it back when it has had none for a while, or is drained.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from pestfleet_worker.ecs_agent import AGENT, ask_agent

logger = logging.getLogger(__name__)

MINUTES = 15  # for which ECS protects; a worker that hangs must not be paid for longer
RENEWAL = 300.0  # seconds after which that is asked for again
IDLE = 30.0  # seconds without a run, after which it is given back
OFTEN, SPAN = 4, 60.0  # at most so many requests in so many seconds: ECS throttles an account
PAUSE, LONGEST = 15.0, 240.0  # seconds after an answer that is an error, and after more of them


class Protection:
    """Whether ECS may end this task. Requests are made by a thread of its own."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`url`: the agent's; "": there is none, and nothing is done."""
        self._url = f"{url}/task-protection/v1/state" if url else ""
        self._clock = clock
        self._changed = threading.Condition()
        self._busy = self._drained = self._closing = False
        self._worked: float | None = None  # when there was a run the last time
        self._protected: float | None = None  # since when; None: it is not, as far as we know
        self._asked: deque[float] = deque(maxlen=OFTEN)
        self._failures = 0
        self._told = ""
        self._thread: threading.Thread | None = None

    @classmethod
    def find(cls) -> Protection:
        """By the environment that ECS gives to a container."""
        return cls(os.environ.get(AGENT, ""))

    def update(self, *, busy: bool, drained: bool) -> None:
        """Say whether there is a run in hand; `drained`: there is none, and no more will come."""
        if not self._url:
            return
        with self._changed:
            if busy:
                self._worked = self._clock()
            if (busy, drained) == (self._busy, self._drained):
                return
            self._busy, self._drained = busy, drained
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="protection", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """No more requests. A task that ends needs none."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def _keep(self) -> None:
        with self._changed:
            while not self._closing:
                wanted = self._is_wanted()
                pause = self._find_pause(wanted)
                if pause is None or pause > 0:
                    self._changed.wait(pause)
                    continue
                self._asked.append(self._clock())
                self._changed.release()  # `update` must never wait for the agent
                try:
                    problem = self._ask(wanted)
                finally:
                    self._changed.acquire()
                self._note(wanted, problem)

    def _is_wanted(self) -> bool:
        if self._busy:
            return True
        return self._worked is not None and not self._drained and self._idle < IDLE

    @property
    def _idle(self) -> float:
        """Seconds without a run."""
        return 0.0 if self._worked is None else self._clock() - self._worked

    def _find_pause(self, wanted: bool) -> float | None:
        """Seconds until something is to be asked for; None: nothing, as it is."""
        now = self._clock()
        if wanted and self._protected is not None:
            due = self._protected + RENEWAL
        elif wanted or self._protected is not None:
            due = now
        else:
            return None
        if self._failures:
            due = max(due, self._asked[-1] + min(PAUSE * 2 ** (self._failures - 1), LONGEST))
        if len(self._asked) == OFTEN:
            due = max(due, self._asked[0] + SPAN)
        if wanted and not self._busy:
            due = min(due, now + max(0.1, IDLE - self._idle))  # then it is wanted no more
        return max(0.0, due - now)

    def _ask(self, wanted: bool) -> str:
        """Ask the agent; returns what is wrong."""
        body = {"ProtectionEnabled": True, "ExpiresInMinutes": MINUTES}
        try:
            answer = ask_agent("PUT", self._url, body if wanted else {"ProtectionEnabled": False})
        except (OSError, ValueError) as error:
            return str(error)
        if isinstance(answer, dict) and answer.get("protection"):
            return ""
        return str(answer)

    def _note(self, wanted: bool, problem: str) -> None:
        if problem:
            self._failures += 1
            if problem != self._told:
                logger.warning("ECS does not change this task's protection: %s", problem)
            self._told = problem
            return
        self._failures, self._told = 0, ""
        if wanted != (self._protected is not None):
            logger.info("this task is %s", "protected" if wanted else "not protected any more")
        self._protected = self._clock() if wanted else None
