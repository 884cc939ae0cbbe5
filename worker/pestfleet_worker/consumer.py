"""Celery's consumer with the parts that a worker of ours needs, and no others.

Left out are Celery's own gossip, events and remote control (the desk has their place), and the
native delayed delivery that Celery sets up for quorum queues: 28 exchanges and queues on the
broker, for delayed tasks that we never send.
"""

from __future__ import annotations

from celery.worker.consumer import Consumer


class RunConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Connects, consumes runs, and loops."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        default_steps = (
            "celery.worker.consumer.connection:Connection",
            "celery.worker.consumer.tasks:Tasks",
            "celery.worker.consumer.consumer:Evloop",
        )
