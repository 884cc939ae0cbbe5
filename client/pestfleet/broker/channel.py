"""One AMQP channel: what a client's methods do to queues and exchanges.

A channel knows its connection only as a `Port`: something that takes bytes.
"""

from __future__ import annotations

import secrets
from typing import Protocol

from pamqp import base
from pamqp.commands import Basic, Confirm
from pamqp.commands import Channel as ChannelMethods

from pestfleet.broker import exchanges, fastframes, frames, queues
from pestfleet.broker.declarations import HANDLERS, handles
from pestfleet.broker.errors import (
    access_refused,
    not_allowed,
    not_found,
    not_implemented,
    precondition_failed,
    syntax_error,
    unexpected_frame,
)

MAX_BODY = 128 * 1024 * 1024  # bytes, RabbitMQ's default in 3.10
_NO_ROUTE = 312
_MANDATORY = 1
_IMMEDIATE = 2


class Port(Protocol):
    """What a channel needs of its connection."""

    frame_max: int
    cancel_notify: bool
    writable: bool

    def send(self, *pieces: bytes) -> None:
        """Queue bytes for the client."""


Held = tuple[queues.Queue, queues.Message, queues.Consumer | None]


class Channel:
    """A channel that is open. `number`: as the client chose it."""

    def __init__(self, number: int, port: Port, router: exchanges.Router) -> None:
        self.number = number
        self.closing = False
        self.port = port
        self.router = router
        self._window = queues.Window()
        self._prefetch = 0
        self._consumers: dict[str, queues.Consumer] = {}
        self._unacked: dict[int, Held] = {}
        self._next_tag = 1
        self.last_queue = ""
        self._flowing = True
        self._confirming = False
        self._published = 0
        self._confirmed = 0
        self._reset_content()

    @property
    def unacked(self) -> int:
        """Messages that the client holds."""
        return len(self._unacked)

    # Publishing

    def _reset_content(self) -> None:
        self._publish: tuple[bytes, int] | None = None
        self._properties: bytes | None = None
        self._parts: list[bytes] = []
        self._missing = 0
        self._ttl: int | None = None

    def start_publish(self, payload: bytes) -> None:
        """A Basic.Publish; its content follows in frames of its own."""
        self.expect_method()
        address, bits = fastframes.decode_publish(payload)
        if bits & _IMMEDIATE:
            raise not_implemented("immediate=true")
        self._publish = address, bits

    def expect_method(self) -> None:
        """AmqpError 505 when content of a message must come first."""
        if self._publish is not None:
            raise unexpected_frame("expected content of the message, got a method")

    def take_header(self, payload: bytes) -> None:
        """A content header frame."""
        if self._publish is None or self._properties is not None:
            raise unexpected_frame("content header without Basic.Publish")
        self._missing, properties = fastframes.decode_content_header(payload)
        if self._missing > MAX_BODY:
            size = self._missing
            self._reset_content()
            raise precondition_failed(
                f"message size {size} is larger than configured max size {MAX_BODY}"
            )
        self._ttl = frames.read_expiration(properties)
        self._properties = properties
        if not self._missing:
            self._finish_publish(b"")

    def take_body(self, payload: bytes) -> None:
        """A content body frame."""
        if self._properties is None:
            raise unexpected_frame("content body without content header")
        self._missing -= len(payload)
        if self._missing < 0:
            raise unexpected_frame("more content than its header said")
        self._parts.append(payload)
        if not self._missing:
            parts = self._parts
            self._finish_publish(parts[0] if len(parts) == 1 else b"".join(parts))

    def _finish_publish(self, body: bytes) -> None:
        assert self._publish is not None and self._properties is not None
        (address, bits), properties, ttl = self._publish, self._properties, self._ttl
        self._reset_content()
        routed = self.router.publish(address, properties, body, ttl)
        if not routed and bits & _MANDATORY:
            exchange, key = fastframes.split_address(address)
            method = Basic.Return(_NO_ROUTE, "NO_ROUTE", exchange, key)
            self._send_content(method, properties, body)
        self._published += 1

    def confirm(self) -> bytes:
        """The Basic.Ack for all that was published since the last call; empty when none is due."""
        if not self._confirming:
            return b""
        count = self._published - self._confirmed
        self._confirmed = self._published
        return fastframes.encode_ack(self.number, self._published, count > 1) if count else b""

    # Delivering

    def _deliver(self, consumer: queues.Consumer, message: queues.Message) -> None:
        tag = self._next_tag
        self._next_tag = tag + 1
        if not consumer.no_ack:
            self._unacked[tag] = (consumer.queue, message, consumer)
        port = self.port
        port.send(
            *fastframes.encode_delivery(
                self.number,
                consumer.start,
                tag,
                message.returns > 0,
                message.address,
                _outgoing_properties(consumer.queue, message),
                message.body,
                port.frame_max,
            )
        )

    def _cancelled(self, consumer: queues.Consumer) -> None:
        self._consumers.pop(consumer.tag, None)
        if self.port.cancel_notify:
            self.answer(Basic.Cancel(consumer.tag, nowait=True))

    def settle(self, tag: int, multiple: bool) -> None:
        """The client acknowledges."""
        touched: dict[queues.Consumer, None] = {}
        for queue, _, consumer in self._take_held(tag, multiple):
            queue.settle()
            if consumer is not None:
                consumer.release()
                touched[consumer] = None
        self._wake(touched)

    def _give_up(self, tag: int, multiple: bool, requeue: bool) -> None:
        touched: dict[queues.Consumer, None] = {}
        returned: dict[queues.Queue, None] = {}
        for queue, message, consumer in self._take_held(tag, multiple):
            if consumer is not None:
                consumer.release()
                touched[consumer] = None
            if requeue:
                queue.give_back(message)
            else:
                queue.reject(message)
            returned[queue] = None
        for queue in returned:
            self._serve(queue)
        self._wake(touched)

    def _take_held(self, tag: int, multiple: bool) -> list[Held]:
        unacked = self._unacked
        if not multiple:
            held = unacked.pop(tag, None)
            if held is None:
                raise precondition_failed(f"unknown delivery tag {tag}")
            return [held]
        if tag >= self._next_tag or (tag and not unacked):
            raise precondition_failed(f"unknown delivery tag {tag}")
        if tag == 0:
            tags = list(unacked)
        else:
            tags = []
            for known in unacked:
                if known > tag:
                    break
                tags.append(known)
        return [unacked.pop(known) for known in tags]

    def _wake(self, consumers: dict[queues.Consumer, None]) -> None:
        # With a limit for the channel, room for one of its consumers is room for all.
        for consumer in list(self._consumers.values()) if self._window.limit else consumers:
            consumer.wake()
            self._serve(consumer.queue)

    def _serve(self, queue: queues.Queue) -> None:
        queue.deliver(self.router.now())

    def update_window(self) -> None:
        """Whether the connection takes bytes has changed."""
        self._window.open = self.port.writable and self._flowing and not self.closing
        if self._window.open:
            for consumer in list(self._consumers.values()):
                consumer.wake()
                self._serve(consumer.queue)

    def detach(self) -> dict[queues.Queue, None]:
        """The channel is over: messages that it holds return, its consumers leave.

        Returns the queues that must be served again, once all channels of a lost connection
        are detached.
        """
        self._window.open = False
        touched: dict[queues.Queue, None] = {}
        for consumer in list(self._consumers.values()):
            touched[consumer.queue] = None
        held = list(self._unacked.values())
        self._unacked.clear()
        for queue, message, _ in held:
            queue.give_back(message)
            touched[queue] = None
        for consumer in list(self._consumers.values()):
            self._remove(consumer)
        self._reset_content()
        return touched

    # Methods

    def handle(self, method: base.Frame) -> None:
        """Do what a method says, and answer it; AmqpError when that is not possible."""
        self.expect_method()
        handler = _HANDLERS.get(type(method))
        if handler is None:
            raise not_implemented(method.name)
        try:
            method.validate()
        except ValueError as error:
            raise syntax_error(f"{method.name}: {error}") from error
        handler(self, method)

    def answer(self, method: base.Frame) -> None:
        """Send a method without content."""
        self.port.send(frames.encode_method(self.number, method))

    def _send_content(self, method: base.Frame, properties: bytes, body: bytes) -> None:
        start = frames.encode_method(self.number, method)[:-1]
        content = fastframes.encode_content(self.number, properties, body, self.port.frame_max)
        self.port.send(start, *content)

    def find_queue(self, name: str) -> queues.Queue:
        """The queue of that name, or the one declared last for ""; AmqpError 404 or 405."""
        if not name and not self.last_queue:
            raise not_found("no previously declared queue")
        return self.router.get_queue(name or self.last_queue, self.port)

    def _flow(self, method: ChannelMethods.Flow) -> None:
        self._flowing = bool(method.active)
        self.update_window()
        self.answer(ChannelMethods.FlowOk(self._flowing))

    def _qos(self, method: Basic.Qos) -> None:
        if method.prefetch_size:
            raise not_implemented("prefetch_size!=0")
        if method.global_:
            self._window.limit = method.prefetch_count
            self._wake({})
        else:
            self._prefetch = method.prefetch_count  # for consumers that come, as in RabbitMQ
        self.answer(Basic.QosOk())

    def _consume(self, method: Basic.Consume) -> None:
        queue = self.find_queue(method.queue)
        tag = method.consumer_tag or f"amq.ctag-{secrets.token_urlsafe(16)}"
        if tag in self._consumers:
            raise not_allowed(f"attempt to reuse consumer tag '{tag}'")
        if queue.quorum and self._window.limit:
            raise not_implemented(f"queue '{queue.name}' in vhost '/' does not support global qos")
        if any(consumer.exclusive for consumer in queue.consumers) or (
            method.exclusive and queue.consumers
        ):
            raise access_refused(f"queue '{queue.name}' in vhost '/' in exclusive use")
        consumer = queues.Consumer(
            tag,
            queue,
            self._window,
            self._deliver,
            self._cancelled,
            no_ack=method.no_ack,
            exclusive=method.exclusive,
            prefetch=self._prefetch,
            start=fastframes.encode_deliver_start(tag),
        )
        self._consumers[tag] = consumer
        if not method.nowait:
            self.answer(Basic.ConsumeOk(tag))
        queue.add_consumer(consumer)
        self._serve(queue)

    def _cancel(self, method: Basic.Cancel) -> None:
        consumer = self._consumers.get(method.consumer_tag or "")
        if consumer is not None:
            self._remove(consumer)
        if not method.nowait:
            self.answer(Basic.CancelOk(method.consumer_tag))

    def _remove(self, consumer: queues.Consumer) -> None:
        del self._consumers[consumer.tag]
        queue = consumer.queue
        queue.remove_consumer(consumer, self.router.now())
        if queue.auto_delete and not queue.consumers:
            self.router.delete_queue(queue)

    def _get(self, method: Basic.Get) -> None:
        queue = self.find_queue(method.queue)
        now = self.router.now()
        queue.last_used = now
        message = queue.take(now)
        if message is None:
            self.answer(Basic.GetEmpty())
            return
        tag = self._next_tag
        self._next_tag += 1
        if method.no_ack:
            queue.settle()
        else:
            self._unacked[tag] = (queue, message, None)
        exchange, key = fastframes.split_address(message.address)
        answer = Basic.GetOk(tag, message.returns > 0, exchange, key, len(queue))
        self._send_content(answer, _outgoing_properties(queue, message), message.body)

    def _ack(self, method: Basic.Ack) -> None:
        self.settle(method.delivery_tag, method.multiple)

    def _nack(self, method: Basic.Nack) -> None:
        self._give_up(method.delivery_tag, method.multiple, method.requeue)

    def _reject(self, method: Basic.Reject) -> None:
        self._give_up(method.delivery_tag or 0, False, method.requeue)

    def _recover(self, method: Basic.Recover) -> None:
        if not method.requeue:
            raise not_implemented("requeue=false")
        self._give_up(0, True, True)
        self.answer(Basic.RecoverOk())

    def _select_confirms(self, method: Confirm.Select) -> None:
        if not self._confirming:
            self._confirming = True
            self._published = self._confirmed = 0
        if not method.nowait:
            self.answer(Confirm.SelectOk())


def _outgoing_properties(queue: queues.Queue, message: queues.Message) -> bytes:
    if queue.quorum and message.returns:
        return frames.set_delivery_count(message.properties, message.returns)
    return message.properties


_HANDLERS = HANDLERS | dict(
    (
        handles(ChannelMethods.Flow, Channel._flow),
        handles(Basic.Qos, Channel._qos),
        handles(Basic.Consume, Channel._consume),
        handles(Basic.Cancel, Channel._cancel),
        handles(Basic.CancelOk, lambda channel, method: None),
        handles(Basic.Get, Channel._get),
        handles(Basic.Ack, Channel._ack),
        handles(Basic.Nack, Channel._nack),
        handles(Basic.Reject, Channel._reject),
        handles(Basic.Recover, Channel._recover),
        handles(Confirm.Select, Channel._select_confirms),
    )
)
