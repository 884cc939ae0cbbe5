"""Celery's consumer with the parts that a worker of ours needs, and no others.

Left out are Celery's own gossip, events and remote control (the desk has their place), and the
native delayed delivery that Celery sets up for quorum queues: 28 exchanges and queues on the
broker, for delayed tasks that we never send.

A worker declares no queue of the session. One that is not there, since the master has not made
it yet or the broker has lost it, is an error of the AMQP channel: then it connects anew, until
the queue is there.
"""

from __future__ import annotations

import time

from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

PAUSE = 0.5  # seconds after an error that a new connection alone does not mend


class RunConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Connects, consumes runs, and loops."""

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        super().on_connection_error_before_connected(exc)
        _pause()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        super().on_connection_error_after_connected(exc)
        if isinstance(exc, self.channel_errors):
            _pause()

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        default_steps = (
            "celery.worker.consumer.connection:Connection",
            "celery.worker.consumer.tasks:Tasks",
            "celery.worker.consumer.consumer:Evloop",
        )


def _pause() -> None:
    """Raises what ends Celery's loop when the worker leaves meanwhile."""
    end = time.monotonic() + PAUSE
    while time.monotonic() < end:
        maybe_shutdown()
        time.sleep(PAUSE / 10)
