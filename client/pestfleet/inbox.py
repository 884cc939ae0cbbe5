"""Receives a session's results and desk messages, one thread, one connection.

A message is acknowledged after its handler has returned: what the handler keeps (the journal)
is kept before the broker forgets it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from kombu import Connection, Consumer

from pestfleet_worker.channel import CONTENT_TYPE, HEARTBEAT, Queues
from pestfleet_worker.messages import MessageError, decode

logger = logging.getLogger(__name__)

PREFETCH = 500  # results in flight to us; the rest waits in the broker


class Inbox:
    """Calls `on_message(message)` for each result and desk message until closed."""

    def __init__(self, url: str, queues: Queues, on_message: Callable[[Any], None]) -> None:
        self._url = url
        self._queues = queues
        self._on_message = on_message
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="inbox", daemon=True)
        self._thread.start()

    def close(self, *, timeout: float = 5.0) -> None:
        self._closing.set()
        self._thread.join(timeout)

    def _serve(self) -> None:
        while not self._closing.is_set():
            connection = Connection(self._url, heartbeat=HEARTBEAT, connect_timeout=5)
            lost = (*connection.recoverable_connection_errors, *connection.channel_errors)
            try:
                with connection:
                    connection.connect()
                    self._receive(connection)
            except lost as error:
                logger.warning("inbox: connection lost, trying again: %s", error)
                self._closing.wait(0.5)

    def _receive(self, connection: Connection) -> None:
        channel = connection.channel()
        channel.basic_qos(0, PREFETCH, False)
        consumer = Consumer(
            channel,
            [self._queues.results, self._queues.desk],
            accept=[CONTENT_TYPE],
            on_message=self._handle,
        )
        with consumer:
            while not self._closing.is_set():
                try:
                    connection.drain_events(timeout=HEARTBEAT / 4)
                except TimeoutError:
                    logger.debug("inbox: quiet")
                connection.heartbeat_check(rate=4)

    def _handle(self, message: Any) -> None:
        try:
            decoded = decode(message.body)
        except MessageError as error:
            logger.error("a message was ignored: %s", error)
        else:
            self._on_message(decoded)
        message.ack()
