"""Exchanges and bindings: which queues a message goes to. Pure logic, as queues.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pestfleet.broker.errors import (
    AmqpError,
    access_refused,
    command_invalid,
    not_found,
    precondition_failed,
    resource_locked,
)
from pestfleet.broker.fastframes import make_address, split_address
from pestfleet.broker.queues import (
    Message,
    Queue,
    find_difference,
)

_TYPES = ("direct", "fanout", "topic")
_PREDECLARED = {f"amq.{kind}": kind for kind in _TYPES}
_MAX_ROUTES = 4096  # addresses remembered at a time


def match_topic(pattern: str, key: str) -> bool:
    """Whether a routing key fits a topic pattern: `*` is one word, `#` any number of them."""
    words = key.split(".")
    reached = {0}  # how many words the pattern so far can have eaten
    for part in pattern.split("."):
        if part == "#":
            reached = set(range(min(reached), len(words) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ("*", words[at])}
        if not reached:
            return False
    return len(words) in reached


@dataclass(slots=True, eq=False)
class Exchange:
    """An exchange; `bindings`: (destination, routing key) in the order they were made."""

    name: str
    kind: str
    durable: bool = False
    auto_delete: bool = False
    internal: bool = False
    bindings: dict[tuple[Queue | Exchange, str], None] = field(default_factory=dict)

    def matches(self, pattern: str, key: str) -> bool:
        if self.kind == "fanout":
            return True
        return match_topic(pattern, key) if self.kind == "topic" else pattern == key


class Router:
    """All exchanges and queues of a broker. `now` gives seconds of a monotonic clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.queues: dict[str, Queue] = {}
        self.exchanges = {
            name: Exchange(name, kind, durable=True) for name, kind in _PREDECLARED.items()
        }
        self._routes: dict[bytes, tuple[bytes, tuple[Queue, ...]]] = {}

    # Routing

    def publish(self, address: bytes, properties: bytes, body: bytes, ttl: int | None) -> bool:
        """Put a message into every queue that it is bound for; False when there is none."""
        route = self._routes.get(address) or self.find_route(address)
        message = Message(route[0], properties, body, ttl)
        now = self.now()
        copies = [message, *(message.copy() for _ in route[1][1:])]
        for queue, copy in zip(route[1], copies, strict=False):
            queue.put(copy, now)
            queue.deliver(now)
        return bool(route[1])

    def find_route(self, address: bytes) -> tuple[bytes, tuple[Queue, ...]]:
        """The address, and the queues that it leads to; AmqpError 404 without such an exchange."""
        name, key = split_address(address)
        found: dict[Queue, None] = {}
        if not name:
            queue = self.queues.get(key)
            if queue is not None:
                found[queue] = None
        else:
            if self.get_exchange(name).internal:
                raise access_refused(f"cannot publish to internal exchange '{name}' in vhost '/'")
            seen: set[Exchange] = set()
            pending = [self.get_exchange(name)]
            while pending:
                exchange = pending.pop()
                if exchange in seen:
                    continue
                seen.add(exchange)
                for target, pattern in exchange.bindings:
                    if not exchange.matches(pattern, key):
                        continue
                    if isinstance(target, Queue):
                        found[target] = None
                    else:
                        pending.append(target)
        if len(self._routes) >= _MAX_ROUTES:
            self._routes.clear()
        self._routes[address] = route = (address, tuple(found))
        return route

    def _bury(self, queue: Queue, message: Message) -> None:
        target = queue.dead_letters
        if target is None or (target.exchange and target.exchange not in self.exchanges):
            return
        key = target.routing_key
        if key is None:
            key = split_address(message.address)[1]
        address = make_address(target.exchange, key)
        self.publish(address, message.properties, message.body, None)

    def expire(self) -> None:
        """Do what is due: messages past their time to live, queues past x-expires."""
        now = self.now()
        for queue in list(self.queues.values()):
            if queue.is_unused_since(now):
                self.delete_queue(queue)
            else:
                queue.expire(now)

    # Queues

    def get_queue(self, name: str, user: object | None = None) -> Queue:
        """The queue; AmqpError 404 without it, 405 when another connection owns it."""
        queue = self.queues.get(name)
        if queue is None:
            raise not_found(f"no queue '{name}' in vhost '/'")
        if queue.owner is not None and user is not None and queue.owner is not user:
            raise _locked(name)
        return queue

    def declare_queue(
        self,
        name: str,
        *,
        user: object,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any],
    ) -> Queue:
        """Make a queue, or find the one that is there and check that it is the same."""
        durable = durable and not exclusive  # RabbitMQ: an exclusive queue never outlives anything
        if name in self.queues:
            queue = self.get_queue(name, user)
            if (queue.owner is not None) != exclusive:
                raise _locked(name)
            difference = find_difference(
                queue,
                durable=durable,
                auto_delete=auto_delete,
                arguments=arguments,
            )
            if difference is not None:
                raise difference
            queue.last_used = self.now()
            return queue
        queue = Queue(
            name,
            durable=durable,
            owner=user if exclusive else None,
            auto_delete=auto_delete,
            arguments=arguments,
            bury=self._bury,
        )
        queue.last_used = self.now()
        self.queues[name] = queue
        self._routes.clear()
        return queue

    def delete_queue(self, queue: Queue) -> None:
        """Delete a queue with its bindings and messages; its consumers are told."""
        if queue.deleted:
            return
        queue.deleted = True
        del self.queues[queue.name]
        self._unbind_target(queue)
        for consumer in list(queue.consumers):
            queue.remove_consumer(consumer, self.now())
            consumer.cancelled(consumer)
        queue.purge()

    # Exchanges

    def get_exchange(self, name: str) -> Exchange:
        """The exchange; AmqpError 404 without it."""
        exchange = self.exchanges.get(name)
        if exchange is None:
            raise not_found(f"no exchange '{name}' in vhost '/'")
        return exchange

    def declare_exchange(
        self, name: str, kind: str, *, durable: bool, auto_delete: bool, internal: bool
    ) -> None:
        """Make an exchange, or check that the one that is there is the same."""
        wanted = Exchange(name, kind, durable, auto_delete, internal)
        current = self.exchanges.get(name)
        if kind not in _TYPES:
            raise command_invalid(f"unknown exchange type '{kind}'")
        if current is None:
            _check_name("exchange", name)
            self.exchanges[name] = wanted
            return
        for part, label in (
            ("kind", "type"),
            ("durable", "durable"),
            ("auto_delete", "auto_delete"),
            ("internal", "internal"),
        ):
            received, have = getattr(wanted, part), getattr(current, part)
            if received != have:
                raise precondition_failed(
                    f"inequivalent arg '{label}' for exchange '{name}' in vhost '/': "
                    f"received '{str(received).lower()}' but current is '{str(have).lower()}'"
                )

    def delete_exchange(self, name: str, *, if_unused: bool) -> None:
        """Delete an exchange with its bindings; nothing happens when there is none."""
        _check_name("exchange", name)
        exchange = self.exchanges.get(name)
        if exchange is None:
            return
        if if_unused and exchange.bindings:
            raise precondition_failed(f"exchange '{name}' in vhost '/' in use")
        self._drop_exchange(exchange)

    def bind(self, target: Queue | Exchange, source: str, key: str) -> None:
        """Lead messages of an exchange to a queue or another exchange."""
        self.get_exchange(source).bindings[target, key] = None
        self._routes.clear()

    def unbind(self, target: Queue | Exchange, source: str, key: str) -> None:
        """The reverse of `bind`; nothing happens when there is no such binding."""
        exchange = self.exchanges.get(source)
        if exchange is not None and (target, key) in exchange.bindings:
            del exchange.bindings[target, key]
            self._routes.clear()
            self._drop_if_unused(exchange)

    def _unbind_target(self, target: Queue | Exchange) -> None:
        self._routes.clear()
        for exchange in list(self.exchanges.values()):
            mine = [binding for binding in exchange.bindings if binding[0] is target]
            for binding in mine:
                del exchange.bindings[binding]
            if mine:
                self._drop_if_unused(exchange)

    def _drop_if_unused(self, exchange: Exchange) -> None:
        if exchange.auto_delete and not exchange.bindings:
            self._drop_exchange(exchange)

    def _drop_exchange(self, exchange: Exchange) -> None:
        if self.exchanges.pop(exchange.name, None) is not None:
            self._unbind_target(exchange)


def _locked(name: str) -> AmqpError:
    return resource_locked(f"cannot obtain exclusive access to locked queue '{name}' in vhost '/'")


def check_queue_name(name: str) -> None:
    """AmqpError 403 for a new queue with a name that is the broker's."""
    _check_name("queue", name)


def _check_name(what: str, name: str) -> None:
    if not name or name.startswith("amq."):
        raise access_refused(f"{what} name '{name}' contains reserved prefix 'amq.*'")
