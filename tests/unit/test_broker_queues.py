"""Queues and exchanges without sockets or a clock."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from pestfleet.broker.errors import AmqpError
from pestfleet.broker.exchanges import Router, match_topic
from pestfleet.broker.fastframes import make_address
from pestfleet.broker.queues import Consumer, Message, Queue, Window

NO_PROPERTIES = b"\0\0"


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Client:
    """Consumers that note what they get."""

    def __init__(self, queue: Queue, *, prefetch: int = 0, window: Window | None = None) -> None:
        self.got: list[Message] = []
        self.consumer = Consumer(
            "tag",
            queue,
            window or Window(),
            lambda consumer, message: self.got.append(message),
            lambda consumer: None,
            prefetch=prefetch,
        )
        queue.add_consumer(self.consumer)
        queue.deliver(0.0)

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.got]


def fill(queue: Queue, count: int) -> None:
    for number in range(count):
        queue.put(Message(b"\0\0", NO_PROPERTIES, b"%d" % number), 0.0)


def declare(router: Router, name: str, **arguments: object) -> Queue:
    return router.declare_queue(
        name, user=None, durable=True, exclusive=False, auto_delete=False, arguments=arguments
    )


def publish(
    router: Router, exchange: str, key: str, body: bytes = b"", ttl: int | None = None
) -> bool:
    return router.publish(make_address(exchange, key), NO_PROPERTIES, body, ttl)


def test_consumers_take_turns_and_a_full_one_is_passed_over() -> None:
    queue = Queue("q")
    clients = [Client(queue, prefetch=limit) for limit in (1, 3, 2)]
    fill(queue, 10)
    queue.deliver(0.0)
    assert [client.bodies for client in clients] == [[b"0"], [b"1", b"3", b"5"], [b"2", b"4"]]
    clients[0].consumer.release()
    clients[0].consumer.wake()
    queue.deliver(0.0)
    assert clients[0].bodies == [b"0", b"6"]
    assert len(queue) == 3


def test_a_channels_limit_counts_all_its_consumers() -> None:
    queue = Queue("q")
    window = Window(limit=3)
    clients = [Client(queue, window=window) for _ in range(2)]
    fill(queue, 10)
    queue.deliver(0.0)
    assert [client.bodies for client in clients] == [[b"0", b"2"], [b"1"]]


@pytest.mark.parametrize("seed", range(5))
def test_returned_messages_take_their_old_place(seed: int) -> None:
    rng = random.Random(seed)
    queue = Queue("q")
    fill(queue, 20)
    taken = [message for message in (queue.take(0.0) for _ in range(12)) if message]
    kept = taken.pop(3)
    rng.shuffle(taken)
    for message in taken:
        queue.give_back(message)
    order = []
    while (message := queue.take(0.0)) is not None:
        order.append(int(message.body))
        queue.settle()
    assert order == [number for number in range(20) if number != int(kept.body)]
    assert queue.unacked == 1


def test_topics_match_as_the_same_regular_expression() -> None:
    words = ["a", "b", "", "cc"]
    parts = ["a", "*", "#"]
    patterns = [".".join(p) for n in (1, 2, 3) for p in itertools.product(parts, repeat=n)]
    keys = [".".join(k) for n in (1, 2, 3) for k in itertools.product(words, repeat=n)]
    for pattern in patterns:
        # Every word with a dot before it, so that # may leave nothing at all.
        forms = {"#": r"(\.[^.]*)*", "*": r"\.[^.]*"}
        regex = re.compile("".join(forms.get(p, r"\." + p) for p in pattern.split(".")))
        for key in keys:
            assert match_topic(pattern, key) == bool(regex.fullmatch("." + key)), (pattern, key)


def test_a_message_goes_once_to_every_queue_that_is_bound() -> None:
    router = Router(Clock())
    queues = {name: declare(router, name) for name in ("a", "b", "c")}
    router.declare_exchange("top", "topic", durable=True, auto_delete=False, internal=False)
    router.declare_exchange("all", "fanout", durable=True, auto_delete=False, internal=False)
    router.bind(router.get_exchange("all"), "top", "run.#")
    router.bind(queues["a"], "all", "")
    router.bind(queues["a"], "top", "run.*")
    router.bind(queues["b"], "top", "*.7")
    router.bind(router.get_exchange("top"), "all", "")  # a circle
    assert publish(router, "top", "run.7")
    assert [len(queue) for queue in queues.values()] == [1, 1, 0]
    assert not publish(router, "top", "stop")
    router.unbind(queues["b"], "top", "*.7")
    assert publish(router, "top", "run.7")
    assert [len(queue) for queue in queues.values()] == [2, 1, 0]
    router.delete_queue(queues["a"])
    assert not publish(router, "top", "run.7")
    assert publish(router, "", "c") and len(queues["c"]) == 1
    with pytest.raises(AmqpError, match="no exchange 'none'"):
        publish(router, "none", "c")


def test_messages_past_their_time_go_to_the_dead_letters() -> None:
    clock = Clock()
    router = Router(clock)
    dead = declare(router, "dead")
    queue = declare(
        router,
        "q",
        **{
            "x-message-ttl": 2000,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "dead",
        },
    )
    publish(router, "", "q", b"short", ttl=500)
    publish(router, "", "q", b"long", ttl=60_000)
    clock.time = 1.0
    router.expire()
    assert (len(queue), len(dead)) == (1, 1)
    clock.time = 2.5
    assert queue.take(clock()) is None  # never handed out, even before the next tick
    router.expire()
    first, second = dead.take(clock()), dead.take(clock())
    assert first and second and (first.body, second.body) == (b"short", b"long")


def test_a_quorum_queue_gives_up_after_its_delivery_limit() -> None:
    router = Router(Clock())
    queue = declare(router, "q", **{"x-queue-type": "quorum", "x-delivery-limit": 2})
    publish(router, "", "q")
    for _ in range(3):
        message = queue.take(0.0)
        assert message is not None
        queue.give_back(message)
    assert queue.take(0.0) is None
    assert queue.unacked == 0


def test_queues_nobody_uses_expire() -> None:
    clock = Clock()
    router = Router(clock)
    queue = declare(router, "q", **{"x-expires": 1000})
    client = Client(queue)
    clock.time = 5.0
    router.expire()
    assert "q" in router.queues
    queue.remove_consumer(client.consumer, clock())
    clock.time = 5.9
    router.expire()
    assert "q" in router.queues
    clock.time = 6.1
    router.expire()
    assert "q" not in router.queues


@pytest.mark.parametrize(
    "arguments, code",
    [
        ({"x-queue-type": "stream"}, 406),
        ({"x-message-ttl": -1}, 406),
        ({"x-expires": "soon"}, 406),
        ({"x-dead-letter-exchange": 3}, 406),
        ({"x-max-length": 3}, 540),
    ],
)
def test_queue_arguments_that_are_wrong_or_not_honoured(
    arguments: dict[str, object], code: int
) -> None:
    with pytest.raises(AmqpError) as caught:
        declare(Router(Clock()), "q", **arguments)
    assert caught.value.code == code
