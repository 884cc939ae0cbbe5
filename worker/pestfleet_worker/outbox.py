"""Sends messages and keeps each one until the broker has confirmed it.

One thread and one connection for a process. When the connection is lost, what was not
confirmed is sent again over the next one: a message may arrive twice, never not at all.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from kombu import Connection

from pestfleet_worker.channel import HEARTBEAT, Parcel
from pestfleet_worker.endpoint import EXPECTED, connect, explain, is_refusal, make_connection

logger = logging.getLogger(__name__)

RETRY_FIRST, RETRY_LAST = 0.1, 2.0  # seconds between attempts to connect
LAST_TRIES = 5  # attempts that fail in a row before a closing outbox gives up
# Seconds of nothing but refusals after which trying again is given up. Not at once: a broker
# that starts, or is replaced, may not know its users yet.
REFUSAL_PATIENCE = 60.0


class Ticket:
    """The promise that a message will be confirmed."""

    __slots__ = ("_done", "parcel")

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel
        self._done = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        """True once the broker has the message; False when `timeout` seconds passed before."""
        return self._done.wait(timeout)

    def confirm(self) -> None:
        self._done.set()


class Outbox:
    """Publishes parcels in order, from any thread, with publisher confirms."""

    def __init__(
        self,
        url: str,
        *,
        heartbeat: float = HEARTBEAT,
        on_connect: Callable[[Connection], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
        on_beat: Callable[[], None] | None = None,
    ) -> None:
        """`on_connect` gets each new connection before anything is sent over it.

        `on_refused` gets the reason once the broker has only refused us for REFUSAL_PATIENCE.
        `on_beat` is called every few seconds while there is a connection.
        """
        self._url = url
        self._on_connect = on_connect
        self._on_refused = on_refused
        self._on_beat = on_beat
        self._heartbeat = heartbeat
        self._waiting: deque[Ticket] = deque()
        self._unconfirmed: dict[int, Ticket] = {}
        self._next_tag = 1
        self._failures = 0  # since the broker last confirmed something
        self._refused_since: float | None = None
        self._trouble: tuple[float, str] | None = (time.monotonic(), "not connected yet")
        self._connection: Connection | None = None
        self._channel: Any = None
        self._closing = threading.Event()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._thread = threading.Thread(target=self._serve, name="outbox", daemon=True)
        self._thread.start()

    def publish(self, parcel: Parcel) -> Ticket:
        """Queue a parcel for sending. Never blocks."""
        ticket = Ticket(parcel)
        self._waiting.append(ticket)
        self._wake()
        return ticket

    @property
    def trouble(self) -> tuple[float, str] | None:
        """Since when (monotonic clock) there is no connection, and why; None when there is one."""
        return self._trouble

    def close(self, *, timeout: float = 5.0) -> bool:
        """Send what waits, then end. False when something is still unconfirmed."""
        self._closing.set()
        self._wake()
        self._thread.join(timeout)
        return not (self._waiting or self._unconfirmed)

    def _wake(self) -> None:
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            return  # a full buffer has woken the thread already; a closed one has none to wake

    def _serve(self) -> None:
        while not (self._closing.is_set() and not self._waiting and not self._unconfirmed):
            try:
                self._connect()
                self._exchange()
            except Exception as error:  # whatever it is: what waits must be sent one day
                text = explain(error)
                # At the end of a session its exchanges go before the last farewells.
                level = logging.DEBUG if self._closing.is_set() else logging.WARNING
                logger.log(level, "outbox: no connection, trying again: %s", text,
                           exc_info=not isinstance(error, EXPECTED))  # fmt: skip
                self._disconnect()
                since = self._trouble[0] if self._trouble else time.monotonic()
                self._trouble = (since, text)
                self._note_refusal(text, refused=is_refusal(error))
                if self._closing.is_set() and self._failures >= LAST_TRIES:
                    break
                self._closing.wait(min(RETRY_FIRST * 2 ** min(self._failures, 10), RETRY_LAST))
                self._failures += 1
        self._disconnect()
        self._wake_reader.close()
        self._wake_writer.close()

    def _note_refusal(self, text: str, *, refused: bool) -> None:
        now = time.monotonic()
        if not refused:
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = now
        elif now - self._refused_since >= REFUSAL_PATIENCE and self._on_refused is not None:
            self._on_refused(text)

    def _connect(self) -> None:
        self._connection = make_connection(self._url, heartbeat=self._heartbeat, connect_timeout=5)
        connect(self._connection)
        if self._on_connect is not None:
            self._on_connect(self._connection)
        self._channel = self._connection.channel()
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._next_tag = 1
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        self._waiting.extendleft(reversed(unconfirmed.values()))
        self._trouble = None

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        channel, self._channel = self._channel, None
        if channel is not None:
            # Closing reads on, and the broker confirms also what it has returned before.
            channel.events["basic_ack"].discard(self._on_ack)
            channel.events["basic_nack"].discard(self._on_nack)
        if connection is not None:
            try:
                connection.close()
            except Exception as error:  # whatever a broken connection raises on closing
                logger.debug("outbox: closing failed: %s", error)

    def _exchange(self) -> None:
        """Send and take confirmations until closed; raises when the connection is lost."""
        assert self._connection is not None
        self._beat()
        checked = time.monotonic()
        interval = max(self._heartbeat / 4, 0.25)
        with selectors.DefaultSelector() as selector:
            broker_socket = self._connection.connection.sock
            selector.register(broker_socket, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while True:
                self._send_waiting()
                if self._closing.is_set() and not self._waiting and not self._unconfirmed:
                    return
                for key, _ in selector.select(interval):
                    if key.fileobj is broker_socket:
                        self._take_confirmations()
                    else:
                        self._wake_reader.recv(65536)
                if time.monotonic() - checked > interval:
                    checked = time.monotonic()
                    self._connection.heartbeat_check(rate=4)
                    self._beat()

    def _beat(self) -> None:
        if self._on_beat is not None:
            self._on_beat()

    def _send_waiting(self) -> None:
        while self._waiting:
            ticket = self._waiting.popleft()
            self._unconfirmed[self._next_tag] = ticket
            self._next_tag += 1
            parcel = ticket.parcel
            message = self._channel.prepare_message(
                parcel.body,
                content_type=parcel.content_type,
                content_encoding=parcel.content_encoding,
                headers=parcel.headers or {},
                properties={"delivery_mode": 2 if parcel.persistent else 1},
            )
            self._channel.basic_publish(
                message,
                exchange=parcel.address.exchange,
                routing_key=parcel.address.routing_key,
                # A queue that is not there must be an error, not a confirmation.
                mandatory=parcel.persistent,
            )

    def _take_confirmations(self) -> None:
        assert self._connection is not None
        try:
            while True:  # several frames may have come at once
                self._connection.drain_events(timeout=0)
        except (TimeoutError, BlockingIOError):
            return

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:
        self._failures = 0
        self._refused_since = None
        for ticket in self._take(delivery_tag, multiple=multiple):
            ticket.confirm()

    def _on_nack(self, delivery_tag: int, multiple: bool) -> None:
        self._waiting.extendleft(reversed(self._take(delivery_tag, multiple=multiple)))
        # Sent again after a pause, as after a lost connection: it may refuse for a while.
        raise ConnectionError("the broker refused a message")

    def _take(self, delivery_tag: int, *, multiple: bool) -> list[Ticket]:
        if not multiple:
            ticket = self._unconfirmed.pop(delivery_tag, None)
            return [ticket] if ticket else []
        tags = [tag for tag in self._unconfirmed if tag <= delivery_tag]
        return [self._unconfirmed.pop(tag) for tag in tags]
