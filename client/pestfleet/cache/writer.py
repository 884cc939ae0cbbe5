"""Writes to a slow place behind the caller's back, in bounded memory."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

THREADS = 4
MAX_WAITING = 10_000
MAX_BYTES = 64_000_000


class BackgroundWriter:
    """Calls what is submitted, in threads of its own, in about the order of submission."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[int, Callable[[], object]] | None] = (
            queue.SimpleQueue()
        )
        self._idle = threading.Condition()
        self._waiting = 0
        self._bytes = 0
        self._abandoned = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"cache-writer-{number}", daemon=True)
            for number in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, size: int, write: Callable[[], object]) -> bool:
        """False, and nothing will be written, where too much is waiting. `size` in bytes."""
        with self._idle:
            full = self._waiting >= MAX_WAITING or self._bytes + size > MAX_BYTES
            if self._abandoned or (full and self._waiting):
                return False
            self._waiting += 1
            self._bytes += size
        self._queue.put((size, write))
        return True

    def close(self, *, timeout: float) -> int:
        """Wait for so many seconds, then give up; returns how many writes were given up."""
        deadline = time.monotonic() + timeout
        with self._idle:
            self._idle.wait_for(lambda: not self._waiting, timeout)
            left, self._abandoned = self._waiting, True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return left

    def _serve(self) -> None:
        while (task := self._queue.get()) is not None:
            size, write = task
            try:
                if not self._abandoned:
                    write()
            except Exception:
                logger.exception("a write to the run cache failed by a defect")
            finally:
                with self._idle:
                    self._waiting -= 1
                    self._bytes -= size
                    if not self._waiting:
                        self._idle.notify_all()
