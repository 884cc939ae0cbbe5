"""Runs an engine in a thread of its own, so that one that computes for hours, or hangs, does not
keep its master from looking after the session, nor the session from its end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from pestfleet.engines.base import Engine, Job

logger = logging.getLogger(__name__)

INTERVAL = 0.2  # seconds between two looks
GRACE = 20.0  # seconds for an engine to notice that the session ends


def run_engine(
    engine: Engine,
    job: Job,
    *,
    look: Callable[[], None],
    end: Callable[[BaseException], None],
) -> dict[str, Any]:
    """The engine's summary. `look` is called again and again meanwhile, in this thread.

    What `look` raises is passed to `end`, which has the engine end; one that has not within GRACE
    seconds is left behind. Raises what the engine or `look` raised.
    """
    thread = _EngineThread(engine, job)
    thread.start()
    try:
        while not thread.over.wait(INTERVAL):
            look()
    except BaseException as error:
        end(error)
        if not thread.over.wait(GRACE):
            logger.warning("the engine has not ended within %.0f s; it is left behind", GRACE)
        if thread.summary is not None:  # it was faster
            return thread.summary
        raise
    if thread.error is not None:
        raise thread.error
    assert thread.summary is not None
    return thread.summary


class _EngineThread(threading.Thread):
    def __init__(self, engine: Engine, job: Job) -> None:
        super().__init__(name="engine", daemon=True)
        self._engine = engine
        self._job = job
        self.summary: dict[str, Any] | None = None
        self.error: BaseException | None = None
        self.over = threading.Event()

    def run(self) -> None:
        try:
            self.summary = self._engine(self._job)
        except BaseException as error:  # it is raised in the master's thread
            self.error = error
        finally:
            self.over.set()
