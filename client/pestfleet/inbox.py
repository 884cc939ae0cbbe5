"""Receives a session's results and desk messages, one thread, one connection.

A message is acknowledged after its handler has returned: what the handler keeps (the journal)
is kept before the broker forgets it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from kombu import Connection, Consumer

from pestfleet_worker.channel import CONTENT_TYPE, HEARTBEAT, Queues
from pestfleet_worker.endpoint import EXPECTED, connect, explain, make_connection
from pestfleet_worker.messages import MessageError, decode

logger = logging.getLogger(__name__)

PREFETCH = 500  # results in flight to us; the rest waits in the broker
RETRY_FIRST, RETRY_LAST = 0.5, 2.0  # seconds between attempts to connect
POLL = 0.5  # seconds between looks at whether it shall close
BUSY = 1.0  # seconds with one message after which the others have to wait noticeably


class Inbox:
    """Calls `on_message(message)`, which must not raise, for each message until closed."""

    def __init__(
        self,
        url: str,
        queues: Queues,
        on_message: Callable[[Any], None],
        *,
        declared: threading.Event,
    ) -> None:
        """`declared` is set once the queues have been made; the inbox itself makes none."""
        self._declared = declared
        self._url = url
        self._queues = queues
        self._on_message = on_message
        self._connected = False
        self._handling_since: float | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="inbox", daemon=True)
        self._thread.start()

    @property
    def listening(self) -> bool:
        """Would a message that comes now be handled soon? Not while the broker is away."""
        since = self._handling_since
        return self._connected and (since is None or time.monotonic() - since < BUSY)

    def close(self, *, timeout: float = 5.0) -> None:
        self._closing.set()
        self._thread.join(timeout)

    def _serve(self) -> None:
        while not self._declared.wait(0.1):
            if self._closing.is_set():
                return
        pause = RETRY_FIRST
        while not self._closing.is_set():
            try:
                with make_connection(
                    self._url, heartbeat=HEARTBEAT, connect_timeout=5
                ) as connection:
                    connect(connection)
                    self._receive(connection)
            except Exception as error:  # whatever it is: without an inbox the session hangs
                logger.warning("inbox: no connection, trying again: %s", explain(error),
                               exc_info=not isinstance(error, EXPECTED))  # fmt: skip
                pause = RETRY_FIRST if self._connected else min(2 * pause, RETRY_LAST)
                self._connected = False
                self._closing.wait(pause)

    def _receive(self, connection: Connection) -> None:
        channel = connection.channel()
        channel.basic_qos(0, PREFETCH, False)
        consumer = Consumer(
            channel,
            [self._queues.results, self._queues.desk],
            accept=[CONTENT_TYPE],
            on_message=self._handle,
            # A broker that has lost its queues must show it to the fleet, who sends runs again.
            auto_declare=False,
        )
        with consumer:
            self._connected = True
            while not self._closing.is_set():
                try:
                    connection.drain_events(timeout=POLL)
                except TimeoutError:
                    logger.debug("inbox: quiet")
                connection.heartbeat_check(rate=4)

    def _handle(self, message: Any) -> None:
        try:
            decoded = decode(message.body)
        except MessageError as error:
            logger.error("a message was ignored: %s", error)
        else:
            self._handling_since = time.monotonic()
            self._on_message(decoded)
            self._handling_since = None
        message.ack()
