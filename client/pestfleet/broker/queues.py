"""Queues, their messages and consumers: pure logic, no sockets and no clock.

Semantics follow RabbitMQ's: a message that comes back goes to its old place at the front,
consumers with room take turns, and a quorum queue counts how often a message came back.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pestfleet.broker.errors import AmqpError, not_implemented, precondition_failed

_COUNTS = ("x-message-ttl", "x-expires", "x-delivery-limit")
# What would change which messages a queue keeps or who gets them, and is not done here.
_UNSUPPORTED = (
    "x-max-length", "x-max-length-bytes", "x-max-priority", "x-single-active-consumer",
)  # fmt: skip


class Message:
    """One message in one queue.

    `address`, `properties` and `body` are bytes as the publisher sent them; `returns` counts
    how often it was handed out and came back; times are seconds of the caller's clock.
    """

    __slots__ = ("address", "body", "expires_at", "place", "properties", "returns", "ttl")

    def __init__(
        self, address: bytes, properties: bytes, body: bytes, ttl: int | None = None
    ) -> None:
        self.address = address
        self.properties = properties
        self.body = body
        self.ttl = ttl  # ms
        self.expires_at: float | None = None
        self.place = 0
        self.returns = 0

    def copy(self) -> Message:
        """The same message for another queue; the bytes are shared."""
        return Message(self.address, self.properties, self.body, self.ttl)


@dataclass(slots=True, eq=False)
class Window:
    """What a channel's consumers share.

    `open`: the client wants messages and its connection takes bytes. `limit`: unacked
    messages of all its consumers together (0: no limit).
    """

    open: bool = True
    limit: int = 0
    unacked: int = 0


@dataclass(slots=True, eq=False)
class Consumer:
    """A client's subscription. `prefetch`: unacked messages at most (0: no limit).

    `send` hands one message to the client; `cancelled` tells it that the queue is gone.
    """

    tag: str
    queue: Queue
    window: Window
    send: Callable[[Consumer, Message], None]
    cancelled: Callable[[Consumer], None]
    no_ack: bool = False
    exclusive: bool = False
    prefetch: int = 0
    unacked: int = 0
    start: bytes = b""
    active: bool = True
    waiting: bool = False

    def has_room(self) -> bool:
        """Whether it may get a message now."""
        window = self.window
        if not (self.active and window.open):
            return False
        return self.no_ack or (
            (not self.prefetch or self.unacked < self.prefetch)
            and (not window.limit or window.unacked < window.limit)
        )

    def release(self) -> None:
        """One of its messages is settled."""
        self.unacked -= 1
        self.window.unacked -= 1

    def wake(self) -> None:
        """Stand in line for messages, if there is room. `Queue.deliver` then serves the line."""
        if not self.waiting and self.has_room():
            self.waiting = True
            self.queue.line.append(self)


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Where messages go that expired or were rejected (x-dead-letter-*)."""

    exchange: str
    routing_key: str | None


@dataclass(slots=True, eq=False)
class Queue:
    """A queue. `owner`: the connection that alone may use it (exclusive), or None."""

    name: str
    durable: bool = False
    owner: object | None = None
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bury: Callable[[Queue, Message], None] = lambda queue, message: None
    quorum: bool = field(init=False)
    ttl: int | None = field(init=False)
    expires: int | None = field(init=False)
    delivery_limit: int | None = field(init=False)
    dead_letters: DeadLetters | None = field(init=False)
    consumers: dict[Consumer, None] = field(init=False, default_factory=dict)
    line: deque[Consumer] = field(init=False, default_factory=deque)
    unacked: int = field(init=False, default=0)
    deleted: bool = field(init=False, default=False)
    last_used: float = field(init=False, default=0.0)
    _fresh: deque[Message] = field(init=False, default_factory=deque)
    _returned: list[tuple[int, Message]] = field(init=False, default_factory=list)
    _expired: list[Message] = field(init=False, default_factory=list)
    _next_place: int = field(init=False, default=0)
    _times_out: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        check_arguments(self.arguments)
        self.quorum = queue_type(self.arguments) == "quorum"
        if self.quorum:
            self._check_quorum()
        self.ttl = self.arguments.get("x-message-ttl")
        self.expires = self.arguments.get("x-expires")
        self.delivery_limit = self.arguments.get("x-delivery-limit") if self.quorum else None
        exchange = self.arguments.get("x-dead-letter-exchange")
        key = self.arguments.get("x-dead-letter-routing-key")
        self.dead_letters = None if exchange is None else DeadLetters(exchange, key)

    def _check_quorum(self) -> None:
        wrong = {
            "exclusive": self.owner is not None,
            "auto-delete": self.auto_delete,
            "non-durable": not self.durable,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise precondition_failed(
                    f"invalid property '{name}' for queue '{self.name}' in vhost '/'"
                )

    def __len__(self) -> int:
        """Messages that are ready, without those that consumers hold."""
        return len(self._fresh) + len(self._returned)

    def put(self, message: Message, now: float) -> None:
        """Append a message."""
        message.place = self._next_place
        self._next_place += 1
        if message.ttl is not None or self.ttl is not None:
            limits = [limit for limit in (message.ttl, self.ttl) if limit is not None]
            message.expires_at = now + min(limits) / 1000
            self._times_out = True
        self._fresh.append(message)

    def take(self, now: float) -> Message | None:
        """The first message that has not expired; it counts as unacked from now on."""
        while True:
            if self._returned:
                message = heapq.heappop(self._returned)[1]
            elif self._fresh:
                message = self._fresh.popleft()
            else:
                return None
            if message.expires_at is not None and message.expires_at <= now:
                self._expired.append(message)
                continue
            self.unacked += 1
            return message

    def settle(self) -> None:
        """A message that was taken is done with."""
        self.unacked -= 1

    def give_back(self, message: Message) -> None:
        """A message that was taken comes back to where it was."""
        self.unacked -= 1
        message.returns += 1
        if self.deleted:
            return
        if self.delivery_limit is not None and message.returns > self.delivery_limit:
            self.bury(self, message)
        else:
            heapq.heappush(self._returned, (message.place, message))

    def reject(self, message: Message) -> None:
        """A message that was taken is not wanted: to the dead letters, if the queue has any."""
        self.unacked -= 1
        if not self.deleted:
            self.bury(self, message)

    def deliver(self, now: float) -> None:
        """Hand out messages while there are any and a consumer has room, one each in turn."""
        line = self.line
        while line and (self._fresh or self._returned):
            consumer = line.popleft()
            if not consumer.has_room():
                consumer.waiting = False
                continue
            message = self.take(now)
            if message is None:
                line.appendleft(consumer)
                return
            if consumer.no_ack:
                self.unacked -= 1
            else:
                consumer.unacked += 1
                consumer.window.unacked += 1
            consumer.send(consumer, message)
            if consumer.has_room():
                line.append(consumer)
            else:
                consumer.waiting = False

    def add_consumer(self, consumer: Consumer) -> None:
        """Subscribe; `deliver` then gives it messages."""
        self.consumers[consumer] = None
        consumer.wake()

    def remove_consumer(self, consumer: Consumer, now: float) -> None:
        """Unsubscribe; messages that it holds stay with its channel."""
        consumer.active = False
        self.consumers.pop(consumer, None)
        if consumer.waiting:
            consumer.waiting = False
            self.line.remove(consumer)
        self.last_used = now

    def purge(self) -> int:
        """Drop what is ready; returns how many messages that were."""
        count = len(self)
        self._fresh.clear()
        self._returned.clear()
        return count

    def expire(self, now: float) -> None:
        """Bury the messages whose time is over."""
        if self._times_out:
            self._sift(now)
        if self._expired:
            expired, self._expired = self._expired, []
            for message in expired:
                self.bury(self, message)

    def _sift(self, now: float) -> None:
        def is_over(message: Message) -> bool:
            return message.expires_at is not None and message.expires_at <= now

        # As in RabbitMQ a message is looked at when it has come to the head of its queue.
        while self._returned and is_over(self._returned[0][1]):
            self._expired.append(heapq.heappop(self._returned)[1])
        while not self._returned and self._fresh and is_over(self._fresh[0]):
            self._expired.append(self._fresh.popleft())

    def is_unused_since(self, now: float) -> bool:
        """Whether x-expires is over."""
        if self.expires is None or self.consumers:
            return False
        return now - self.last_used >= self.expires / 1000


def queue_type(arguments: Mapping[str, Any]) -> str:
    """classic or quorum."""
    return str(arguments.get("x-queue-type", "classic"))


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """AmqpError when an argument is wrong, or would silently not be honoured."""
    kind = queue_type(arguments)
    if kind not in ("classic", "quorum"):
        raise precondition_failed(f"invalid arg 'x-queue-type': '{kind}'")
    for name in _COUNTS:
        value = arguments.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise precondition_failed(f"invalid arg '{name}': not an integer")
        if value is not None and value < (1 if name == "x-expires" else 0):
            raise precondition_failed(f"invalid arg '{name}': {value} is too small")
    for name in ("x-dead-letter-exchange", "x-dead-letter-routing-key"):
        if not isinstance(arguments.get(name, ""), str):
            raise precondition_failed(f"invalid arg '{name}': not a string")
    for name in _UNSUPPORTED:
        if name in arguments:
            raise not_implemented(f"queue argument '{name}' in the embedded broker")


def find_difference(
    queue: Queue, *, durable: bool, auto_delete: bool, arguments: Mapping[str, Any]
) -> AmqpError | None:
    """The error for a second declaration that does not fit the first one; None when it does."""
    received = {"durable": durable, "auto_delete": auto_delete}
    current = {"durable": queue.durable, "auto_delete": queue.auto_delete}
    wanted = _known_arguments({**arguments, "x-queue-type": queue_type(arguments)})
    there = _known_arguments({**queue.arguments, "x-queue-type": queue_type(queue.arguments)})
    pairs: list[tuple[str, object, object]]
    pairs = [(name, received[name], current[name]) for name in received]
    pairs += [(name, wanted.get(name), there.get(name)) for name in sorted({*wanted, *there})]
    for name, new, old in pairs:
        if new != old:
            return precondition_failed(
                f"inequivalent arg '{name}' for queue '{queue.name}' in vhost '/': "
                f"received {_show(new)} but current is {_show(old)}"
            )
    return None


def _known_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name.startswith("x-")}


def _show(value: object) -> str:
    if value is None:
        return "none"
    return f"'{str(value).lower() if isinstance(value, bool) else value}'"
