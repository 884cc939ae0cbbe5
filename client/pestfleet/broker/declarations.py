"""A channel's methods that make, bind and delete exchanges and queues."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pamqp import base
from pamqp.commands import Exchange, Queue

from pestfleet.broker.errors import access_refused, precondition_failed
from pestfleet.broker.exchanges import check_queue_name

if TYPE_CHECKING:
    from pestfleet.broker.channel import Channel

Handler = Callable[["Channel", Any], None]

_M = TypeVar("_M", bound=base.Frame)


def handles(
    kind: type[_M], handler: Callable[[Channel, _M], None]
) -> tuple[type[base.Frame], Handler]:
    """An entry of a table of handlers, checked for its types."""
    return kind, handler


def _declare_exchange(channel: Channel, method: Exchange.Declare) -> None:
    if method.passive:
        channel.router.get_exchange(method.exchange)
    else:
        channel.router.declare_exchange(
            method.exchange,
            method.exchange_type,
            durable=method.durable,
            auto_delete=method.auto_delete,
            internal=method.internal,
        )
    if not method.nowait:
        channel.answer(Exchange.DeclareOk())


def _delete_exchange(channel: Channel, method: Exchange.Delete) -> None:
    channel.router.delete_exchange(method.exchange, if_unused=method.if_unused)
    if not method.nowait:
        channel.answer(Exchange.DeleteOk())


def _bind_exchange(channel: Channel, method: Exchange.Bind) -> None:
    _refuse_default(method.source, method.destination)
    target = channel.router.get_exchange(method.destination)
    channel.router.bind(target, method.source, method.routing_key)
    if not method.nowait:
        channel.answer(Exchange.BindOk())


def _unbind_exchange(channel: Channel, method: Exchange.Unbind) -> None:
    _refuse_default(method.source, method.destination)
    target = channel.router.exchanges.get(method.destination)
    if target is not None:
        channel.router.unbind(target, method.source, method.routing_key)
    if not method.nowait:
        channel.answer(Exchange.UnbindOk())


def _declare_queue(channel: Channel, method: Queue.Declare) -> None:
    name = method.queue
    if method.passive:
        queue = channel.find_queue(name)
    else:
        if not name:
            name = f"amq.gen-{secrets.token_urlsafe(16)}"
        elif name not in channel.router.queues:
            check_queue_name(name)
        queue = channel.router.declare_queue(
            name,
            user=channel.port,
            durable=method.durable,
            exclusive=method.exclusive,
            auto_delete=method.auto_delete,
            arguments=method.arguments or {},
        )
    channel.last_queue = queue.name
    if not method.nowait:
        channel.answer(Queue.DeclareOk(queue.name, len(queue), len(queue.consumers)))


def _bind_queue(channel: Channel, method: Queue.Bind) -> None:
    _refuse_default(method.exchange)
    queue = channel.find_queue(method.queue)
    key = method.routing_key
    if not method.queue and not key:
        key = queue.name
    channel.router.bind(queue, method.exchange, key)
    if not method.nowait:
        channel.answer(Queue.BindOk())


def _unbind_queue(channel: Channel, method: Queue.Unbind) -> None:
    _refuse_default(method.exchange)
    name = method.queue or channel.last_queue
    if name in channel.router.queues:
        channel.router.unbind(channel.find_queue(name), method.exchange, method.routing_key)
    channel.answer(Queue.UnbindOk())


def _purge_queue(channel: Channel, method: Queue.Purge) -> None:
    count = channel.find_queue(method.queue).purge()
    if not method.nowait:
        channel.answer(Queue.PurgeOk(count))


def _delete_queue(channel: Channel, method: Queue.Delete) -> None:
    name = method.queue or channel.last_queue
    queue = channel.find_queue(name) if name in channel.router.queues else None
    if queue is not None and method.if_unused and queue.consumers:
        raise precondition_failed(f"queue '{name}' in vhost '/' in use")
    if queue is not None and method.if_empty and len(queue):
        raise precondition_failed(f"queue '{name}' in vhost '/' is not empty")
    # First the answer: a Basic.Cancel before it would surprise a client that waits for it.
    if not method.nowait:
        channel.answer(Queue.DeleteOk(0 if queue is None else len(queue)))
    if queue is not None:
        channel.router.delete_queue(queue)


def _refuse_default(*names: str) -> None:
    if "" in names:
        raise access_refused("operation not permitted on the default exchange")


HANDLERS: dict[type[base.Frame], Handler] = dict(
    (
        handles(Exchange.Declare, _declare_exchange),
        handles(Exchange.Delete, _delete_exchange),
        handles(Exchange.Bind, _bind_exchange),
        handles(Exchange.Unbind, _unbind_exchange),
        handles(Queue.Declare, _declare_queue),
        handles(Queue.Bind, _bind_queue),
        handles(Queue.Unbind, _unbind_queue),
        handles(Queue.Purge, _purge_queue),
        handles(Queue.Delete, _delete_queue),
    )
)
