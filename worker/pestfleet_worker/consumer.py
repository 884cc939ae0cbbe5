"""Celery's consumer with the parts that a worker of ours needs, and no others.

Left out are Celery's own gossip, events and remote control (the desk has their place), and the
native delayed delivery that Celery sets up for quorum queues: 28 exchanges and queues on the
broker, for delayed tasks that we never send.

A worker declares no queue of the session. One that is not there, since the master has not made
it yet or the broker has lost it, is an error of the AMQP channel: then it connects anew, until
the queue is there.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

PAUSE = 0.5  # seconds after an error that a new connection alone does not mend
GLANCE = 0.02  # seconds between two looks at what is not acknowledged


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


def end_loop(controller: Any, exit_code: int | None, *, patience: float) -> None:
    """End Celery's loop, from another thread, when it has acknowledged what is done with.

    Celery ends its loop before what is due in it: a run that has just arrived, been finished or
    been given back would be handed out again, as if its worker had died.

    `controller`: Celery's worker, None where it has not started yet. `patience`: seconds for
    runs to be answered and acknowledged.
    """
    hub = None if controller is None else controller.hub
    if hub is not None and patience:
        _settle(hub, time.monotonic() + patience)
    state.should_stop = exit_code  # also where Celery starts only now
    if hub is not None:
        hub.call_soon(lambda: None)  # wakes the loop


def _settle(hub: Any, end: float) -> None:
    _await_turn(hub, end)  # what it was asked to do before is done: it takes no new runs
    open_runs: set[Any] = set()
    while time.monotonic() < end:
        with suppress(RuntimeError):  # the set changes while it is read
            open_runs.update(state.reserved_requests)
            open_runs = {run for run in open_runs if not run.acknowledged}
            if not open_runs:
                break
        time.sleep(GLANCE)
    _await_turn(hub, end)  # "acknowledged" is said when the loop is asked to do it


def _await_turn(hub: Any, end: float) -> None:
    turned = threading.Event()
    hub.call_soon(turned.set)
    turned.wait(max(0.0, end - time.monotonic()))
