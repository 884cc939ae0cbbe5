"""The worker's ear: run configs, cancellations and stops from the master."""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from amqp.exceptions import NotFound
from celery.bootsteps import ConsumerStep
from kombu import Connection, Consumer

from pestfleet_worker.channel import CONTENT_TYPE, HEARTBEAT, Queues
from pestfleet_worker.endpoint import connect, explain, make_connection
from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.messages import (
    Announce,
    MessageError,
    Refusal,
    RunConfig,
    Stop,
    decode,
)

logger = logging.getLogger(__name__)

ANNOUNCE_FIRST, ANNOUNCE_LAST = 0.3, 5.0  # seconds to wait for the desk's answer
BROKER_PAUSE = 1.0  # seconds between looks for a broker that is not there
SESSION_PAUSE = 0.2  # at first, for a session that its master has not opened yet


def make_announcement(name: str, *, slots: int, digest: str) -> Announce:
    """What this process says of itself. `digest`: of the case in its image, or ""."""
    return Announce(
        worker=name,
        host=platform.node(),
        process=os.getpid(),
        slots=slots,
        platform=f"{platform.system().lower()}/{platform.machine()}",
        versions={
            "pestfleet-worker": version("pestfleet-worker"),
            "python": platform.python_version(),
        },
        digest=digest,
    )


def _make_consumer(
    channel: Any, queues: Queues, name: str, on_message: Callable[[Any], None]
) -> Consumer:
    def receive(message: Any) -> None:
        message.ack()
        try:
            decoded = decode(message.body)
        except MessageError as error:
            logger.error("a control message was ignored: %s", error)
            return
        on_message(decoded)

    return Consumer(
        channel, [queues.make_worker_queue(name)], accept=[CONTENT_TYPE], on_message=receive
    )


def await_run_config(
    url: str,
    queues: Queues,
    *,
    name: str,
    announce: Callable[[], None],
    leaving: threading.Event,
) -> RunConfig | Stop | None:
    """Announce ourselves until the desk answers; survives a broker that is not there yet.

    Returns None when `leaving` is set meanwhile. Raises `ConfigurationError` on a refusal.
    """
    answers: list[RunConfig | Stop] = []

    def on_message(message: Any) -> None:
        if isinstance(message, Refusal):
            raise ConfigurationError(f"the master refused this worker: {message.reason}")
        if isinstance(message, RunConfig) or (
            isinstance(message, Stop) and message.worker in ("", name)
        ):
            answers.append(message)

    def receive(connection: Connection) -> None:
        patience = ANNOUNCE_FIRST
        while not (answers or leaving.is_set()):
            announce()
            try:
                connection.drain_events(timeout=patience)
            except TimeoutError:
                patience = min(2 * patience, ANNOUNCE_LAST)
            connection.heartbeat_check(rate=4)  # a broker that vanished sends no answer, ever

    while not (answers or leaving.is_set()):
        _listen(url, queues, name, on_message, receive, leaving)
    return answers[0] if answers else None


def follow_control(
    url: str,
    queues: Queues,
    *,
    name: str,
    announce: Callable[[], None],
    on_message: Callable[[Any], None],
    leaving: threading.Event,
) -> None:
    """Hand each control message to `on_message` until `leaving` is set.

    Announces this worker over each new connection: a desk that restarted sees it again.
    """

    def receive(connection: Connection) -> None:
        announce()
        while not leaving.is_set():
            try:
                connection.drain_events(timeout=HEARTBEAT / 4)
            except TimeoutError:
                logger.debug("no control message")
            connection.heartbeat_check(rate=4)

    while not leaving.is_set():
        _listen(url, queues, name, on_message, receive, leaving)


def _listen(
    url: str,
    queues: Queues,
    name: str,
    on_message: Callable[[Any], None],
    receive: Callable[[Connection], None],
    leaving: threading.Event,
) -> None:
    """Let `receive` use one connection; waits a moment where there is none, or no session."""
    pause = SESSION_PAUSE
    while not leaving.is_set():
        connection = make_connection(url, connect_timeout=5, heartbeat=HEARTBEAT)
        try:
            connect(connection)
            with connection, _make_consumer(connection.channel(), queues, name, on_message):
                return receive(connection)
        except NotFound as error:
            if pause == SESSION_PAUSE:
                logger.info("waiting for the master to open the session: %s", error)
            leaving.wait(pause)
            pause = min(2 * pause, BROKER_PAUSE)
        except (*connection.connection_errors, *connection.channel_errors) as error:
            logger.warning("no connection with the broker, trying again: %s", explain(error))
            leaving.wait(BROKER_PAUSE)


class ControlStep(ConsumerStep):  # type: ignore[misc]  # celery has no types
    """Listens on Celery's own connection, so that it comes back whenever that does."""

    queues: Queues
    worker: str
    on_message: Callable[[Any], None]
    announce: Callable[[], None]

    @classmethod
    def bind(
        cls,
        queues: Queues,
        worker: str,
        on_message: Callable[[Any], None],
        announce: Callable[[], None],
    ) -> type[ControlStep]:
        """A step class for one worker; Celery makes the instance."""
        members = {
            "queues": queues,
            "worker": worker,
            "on_message": staticmethod(on_message),
            "announce": staticmethod(announce),
        }
        return type("WorkerControlStep", (cls,), members)

    def get_consumers(self, channel: Any) -> list[Consumer]:
        return [_make_consumer(channel, self.queues, self.worker, self.on_message)]

    def start(self, consumer: Any) -> None:
        super().start(consumer)
        self.announce()  # a desk that restarted, or that we lost, sees us again
