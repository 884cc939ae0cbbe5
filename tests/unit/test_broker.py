"""The embedded broker as its clients see it: py-amqp, kombu, Celery, and strangers."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import amqp
import kombu
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from pamqp import commands, frame

from pestfleet.broker import EmbeddedBroker
from pestfleet_worker.errors import ChannelError, ConfigurationError

QUORUM = {"x-queue-type": "quorum"}
PATIENCE = 60.0  # seconds that a condition gets at most


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running
        for client in Client.made:
            client.connection.collect()
        Client.made.clear()


class Client:
    """A py-amqp connection with one channel; the fixture `broker` closes it."""

    made: ClassVar[list[Client]] = []

    def __init__(self, broker: EmbeddedBroker, **options: Any) -> None:
        options = {"userid": broker.user, "password": broker.password, **options}
        self.connection = amqp.Connection(f"{broker.host}:{broker.port}", **options)
        self.made.append(self)
        self.connection.connect()
        self.channel = self.connection.channel()
        self.got: list[Any] = []

    def declare(self, queue: str = "q", **options: Any) -> Any:
        options = {"durable": True, "auto_delete": False, **options}
        return self.channel.queue_declare(queue, **options)

    def publish(self, body: bytes | str = b"", key: str = "q", **options: Any) -> None:
        self.channel.basic_publish_confirm(amqp.Message(body), routing_key=key, **options)

    def consume(self, queue: str = "q", *, prefetch: int = 0, **options: Any) -> str:
        self.channel.basic_qos(0, prefetch, False)
        tag: str = self.channel.basic_consume(queue, callback=self.got.append, **options)
        return tag

    def read(self, count: int) -> list[Any]:
        """Wait until there are `count` messages."""
        deadline = time.monotonic() + PATIENCE
        while len(self.got) < count:
            self.connection.drain_events(timeout=max(0.001, deadline - time.monotonic()))
        return self.got

    def read_one(self) -> Any:
        """The next message; TimeoutError when none comes soon."""
        while not self.got:
            self.connection.drain_events(timeout=0.05)
        return self.got.pop(0)

    def sync(self) -> None:
        """Everything sent before has been done when this returns, and its messages are here."""
        self.channel.basic_qos(0, 0, False)

    def cut(self) -> None:
        """Vanish without a word, as a killed process does."""
        self.connection.collect()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def bodies(messages: list[Any]) -> list[str]:
    return [as_bytes(message.body).decode() for message in messages]


def as_bytes(body: bytes | str) -> bytes:
    """py-amqp makes text of a body that was sent as text."""
    return body if isinstance(body, bytes) else body.encode()


def returns_of(message: Any) -> int | None:
    headers: dict[str, int] = message.headers or {}
    return headers.get("x-delivery-count")


# Life


def test_the_url_is_all_that_kombu_needs(broker: EmbeddedBroker) -> None:
    with kombu.Connection(broker.url) as connection:
        with connection.SimpleQueue("q") as queue:
            queue.put({"a": [1.5, None]}, headers={"kept": "as it is"}, priority=3)
            message = queue.get(timeout=PATIENCE)
            message.ack()
        assert message.payload == {"a": [1.5, None]}
        assert message.headers == {"kept": "as it is"}
        assert connection.qos_semantics_matches_spec


@pytest.mark.parametrize("method", ["PLAIN", "AMQPLAIN"])
def test_only_the_right_password_comes_in(broker: EmbeddedBroker, method: str) -> None:
    Client(broker, login_method=method)
    with pytest.raises(amqp.AccessRefused, match="ACCESS_REFUSED"):
        Client(broker, login_method=method, password=broker.password + "x")
    with pytest.raises(amqp.AccessRefused):
        Client(broker, login_method=method, userid="guest")
    assert EmbeddedBroker().password != broker.password


def test_other_virtual_hosts_are_refused(broker: EmbeddedBroker) -> None:
    with pytest.raises(amqp.NotAllowed, match="vhost other not found"):
        Client(broker, virtual_host="other")


def test_only_loopback_addresses() -> None:
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0"):
        EmbeddedBroker("0.0.0.0")


def test_a_taken_port_is_said(broker: EmbeddedBroker) -> None:
    with pytest.raises(ChannelError, match=str(broker.port)):
        EmbeddedBroker(port=broker.port).start()


def test_durable_queues_outlive_a_restart(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.declare()
    client.declare("passing", durable=False)
    client.publish(b"held")
    client.publish(b"waits")
    client.consume(prefetch=1)
    client.read(1)
    url = broker.url
    broker.stop()
    with pytest.raises(amqp.ConnectionForced, match="CONNECTION_FORCED"):
        client.connection.drain_events(timeout=PATIENCE)
    with pytest.raises(OSError):
        Client(broker)
    broker.start()
    assert broker.url == url
    again = Client(broker)
    again.consume()
    assert bodies(again.read(2)) == ["held", "waits"]
    assert list(broker.stats().queues) == ["q"]


def test_paused_it_is_silent_and_loses_nothing(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.declare()
    broker.pause()
    client.channel.basic_publish(amqp.Message(b"late"), routing_key="q")
    with pytest.raises(socket.timeout):
        client.connection.drain_events(timeout=0.05)
    assert broker.stats().queues["q"].ready == 0
    broker.resume()
    client.consume()
    assert bodies(client.read(1)) == ["late"]


# Messages


@pytest.mark.parametrize("size", [0, 1, 131064, 131065, 3 * 131064, 800_003])
def test_bodies_arrive_as_they_were_sent(broker: EmbeddedBroker, size: int) -> None:
    client = Client(broker)
    client.declare()
    body = random.Random(size).randbytes(size)
    client.publish(body)
    client.consume()
    (message,) = client.read(1)
    assert as_bytes(message.body) == body


def test_what_a_killed_client_held_comes_back_first_and_counted(broker: EmbeddedBroker) -> None:
    publisher = Client(broker)
    publisher.declare(arguments=QUORUM)
    for number in range(5):
        publisher.publish(b"%d" % number)
    for returns in range(3):
        client = Client(broker)
        client.consume(prefetch=2)
        messages = client.read(2)
        assert bodies(messages) == ["0", "1"]
        counts = [returns_of(message) for message in messages]
        assert counts == [returns or None] * 2
        assert {message.delivery_info["redelivered"] for message in messages} == {returns > 0}
        client.cut()
        wait_for(lambda: broker.stats().queues["q"].unacked == 0)
    message = publisher.channel.basic_get("q")
    publisher.channel.basic_reject(message.delivery_tag, requeue=True)
    publisher.consume()
    assert [returns_of(message) for message in publisher.read(3)] == [4, 3, None]


def test_a_classic_queue_does_not_count(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.declare()
    client.publish(b"x")
    message = client.channel.basic_get("q")
    client.channel.basic_reject(message.delivery_tag, requeue=True)
    message = client.channel.basic_get("q")
    assert message.delivery_info["redelivered"]
    assert returns_of(message) is None


def test_a_silent_client_is_found_by_its_heartbeat(broker: EmbeddedBroker) -> None:
    frozen, alive = Client(broker, heartbeat=1), Client(broker, heartbeat=10)
    frozen.declare(arguments=QUORUM)
    frozen.publish(b"x")
    frozen.consume()
    frozen.read(1)
    alive.consume()
    deadline = time.monotonic() + PATIENCE
    while not alive.got and time.monotonic() < deadline:
        alive.connection.heartbeat_tick()  # raises when the broker sends none
        try:
            alive.connection.drain_events(timeout=0.1)
        except TimeoutError:
            continue
    (message,) = alive.got
    assert returns_of(message) == 1
    assert len(broker.stats().connections) == 1


def test_confirms_count_every_message(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.declare()
    client.channel.confirm_select()
    confirmed: list[int] = []
    client.channel.events["basic_ack"].add(lambda tag, multiple: confirmed.append(tag))
    for number in range(100):
        client.channel.basic_publish(amqp.Message(b"%d" % number), routing_key="q")
    while not confirmed or confirmed[-1] < 100:
        client.connection.drain_events(timeout=PATIENCE)
    assert confirmed == sorted(set(confirmed))
    assert broker.stats().queues["q"].ready == 100


def test_prefetch_is_the_most_that_a_consumer_holds(broker: EmbeddedBroker) -> None:
    client, other = Client(broker), Client(broker)
    client.declare(arguments=QUORUM)
    for number in range(6):
        client.publish(b"%d" % number)
    other.consume(prefetch=2)
    other.sync()
    assert bodies(other.got) == ["0", "1"]
    other.channel.basic_ack(2)
    other.sync()
    assert bodies(other.got) == ["0", "1", "2"]
    other.channel.basic_ack(3, multiple=True)
    other.sync()
    assert bodies(other.got) == ["0", "1", "2", "3", "4"]
    state = broker.stats().queues["q"]
    assert (state.ready, state.unacked, state.consumers) == (1, 2, 1)


def test_a_global_prefetch_is_for_the_whole_channel(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.declare()
    for number in range(6):
        client.publish(b"%d" % number)
    client.channel.basic_qos(0, 3, True)
    for _ in range(2):
        client.channel.basic_consume("q", callback=client.got.append)
    client.sync()
    assert len(client.got) == 3
    client.channel.basic_qos(0, 4, True)
    client.sync()
    assert len(client.got) == 4


def test_consumers_get_messages_in_turn(broker: EmbeddedBroker) -> None:
    clients = [Client(broker) for _ in range(3)]
    clients[0].declare()
    for client in clients:
        client.consume(prefetch=2)
    for number in range(7):
        clients[0].publish(b"%d" % number)
    got = [bodies(client.read(2)) for client in clients]
    assert got == [["0", "3"], ["1", "4"], ["2", "5"]]


def test_a_client_that_does_not_read_gets_no_more(broker: EmbeddedBroker) -> None:
    client, lazy = Client(broker), Client(broker)
    client.declare()
    lazy.consume(no_ack=True)
    count, body = 300, b"x" * 100_000
    for _ in range(count):
        client.publish(body)
    waiting = broker.stats().queues["q"].ready
    assert waiting > count // 3
    assert len(lazy.read(count)) == count
    assert broker.stats().queues["q"].ready == 0


def test_unroutable_mandatory_messages_return(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    returned: list[Any] = []
    client.channel.events["basic_return"].add(lambda *arguments: returned.append(arguments))
    client.publish(b"lost", "nowhere")
    client.publish(b"back", "nowhere", mandatory=True)
    client.sync()
    ((error, exchange, key, message),) = returned
    assert (error.reply_code, exchange, key, message.body) == (312, "", "nowhere", b"back")


def test_rejected_messages_go_to_the_dead_letters(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.declare("dead")
    client.channel.exchange_declare("dlx", "fanout")
    client.channel.queue_bind("dead", "dlx")
    client.declare(arguments={"x-dead-letter-exchange": "dlx"})
    for body in (b"0", b"1", b"2"):
        client.publish(body)
    client.consume()
    client.read(3)
    client.channel.basic_reject(2, requeue=False)
    client.channel.basic_recover(requeue=True)
    assert bodies(client.read(5)[3:]) == ["0", "2"]
    assert client.channel.basic_get("dead").body == b"1"


# Exchanges and queues


def test_exchanges_route(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    for kind in ("direct", "fanout", "topic"):
        client.channel.exchange_declare(kind, kind)
        client.declare(f"of-{kind}")
        client.channel.queue_bind(f"of-{kind}", kind, "worker.*")
    client.channel.exchange_bind("fanout", "direct", "all")
    for exchange in ("direct", "fanout", "topic"):
        for key in ("worker.*", "worker.7", "all"):
            client.publish(exchange.encode(), key, exchange=exchange)
    counts = {name: queue.ready for name, queue in broker.stats().queues.items()}
    assert counts == {"of-direct": 1, "of-fanout": 4, "of-topic": 2}


def test_queues_of_a_connection_go_with_it(broker: EmbeddedBroker) -> None:
    client, other = Client(broker), Client(broker)
    client.declare("mine", durable=False, exclusive=True)
    client.declare("shared", durable=False, auto_delete=True)
    name = client.declare("", durable=False).queue
    assert name.startswith("amq.gen-")
    client.consume("shared")
    tag = other.consume("shared")
    with pytest.raises(amqp.ResourceLocked, match="exclusive access"):
        other.consume("mine")
    other.channel = other.connection.channel()
    client.cut()
    wait_for(lambda: set(broker.stats().queues) == {name})
    assert tag


def test_a_deleted_queue_cancels_its_consumers(broker: EmbeddedBroker) -> None:
    client, other = Client(broker), Client(broker)
    client.declare()
    cancelled: list[str] = []
    tag = other.consume(prefetch=1, on_cancel=cancelled.append)
    for _ in range(3):
        client.publish(b"x")
    other.read(1)
    assert other.channel.queue_delete("q") == 2
    assert cancelled == []  # the answer comes first
    other.channel.basic_ack(other.got[0].delivery_tag)
    other.sync()
    assert cancelled == [tag]


def fails(client: Client, error: type[Exception], text: str, call: Callable[[Any], object]) -> None:
    """The call closes its channel with this error; the connection works on."""
    with pytest.raises(error, match=text):
        call(client.channel)
    client.channel = client.connection.channel()
    client.sync()


def test_errors_close_the_channel_only(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.declare(arguments=QUORUM)
    fails(
        client, amqp.NotFound, "NOT_FOUND - no queue 'none' in vhost '/'",
        lambda channel: channel.queue_declare("none", passive=True),
    )  # fmt: skip
    fails(
        client, amqp.PreconditionFailed, "inequivalent arg 'x-queue-type' for queue 'q'",
        lambda channel: channel.queue_declare("q", durable=True, auto_delete=False),
    )  # fmt: skip
    fails(
        client, amqp.PreconditionFailed, "invalid property 'non-durable' for queue 'other'",
        lambda channel: channel.queue_declare("other", auto_delete=False, arguments=QUORUM),
    )  # fmt: skip
    fails(
        client, amqp.NotFound, "no exchange 'none'",
        lambda channel: channel.queue_bind("q", "none"),
    )  # fmt: skip
    fails(
        client, amqp.AccessRefused, "reserved prefix",
        lambda channel: channel.queue_declare("amq.mine"),
    )  # fmt: skip
    fails(
        client, amqp.PreconditionFailed, "unknown delivery tag 9",
        lambda channel: (channel.basic_ack(9), channel.queue_declare("q", passive=True)),
    )  # fmt: skip
    fails(
        client, amqp.NotFound, "no exchange 'none'",
        lambda channel: channel.basic_publish_confirm(amqp.Message("x"), exchange="none"),
    )  # fmt: skip


def test_an_error_of_the_connection_closes_it(broker: EmbeddedBroker) -> None:
    client, other = Client(broker), Client(broker)
    with pytest.raises(amqp.AMQPNotImplementedError, match="NOT_IMPLEMENTED"):
        client.channel.tx_select()
    other.sync()
    wait_for(lambda: len(broker.stats().connections) == 1)


# Strangers


def handshake(broker: EmbeddedBroker) -> bytes:
    """What a client sends to open a connection and a channel."""
    login = f"\0{broker.user}\0{broker.password}"
    capabilities: Any = {"capabilities": {"consumer_cancel_notify": True}}
    methods = (
        commands.Connection.StartOk(capabilities, "PLAIN", login, "en_US"),
        commands.Connection.TuneOk(2047, 131072, 0),
        commands.Connection.Open("/"),
    )
    opening = b"".join(frame.marshal(method, 0) for method in methods)
    return b"AMQP\0\0\x09\x01" + opening + frame.marshal(commands.Channel.Open(), 1)


def talk(broker: EmbeddedBroker, data: bytes) -> bytes:
    """Send bytes, then end; returns all that the broker answers until it hangs up."""
    answer = b""
    with socket.create_connection((broker.host, broker.port), timeout=PATIENCE) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while received := sock.recv(65536):
                answer += received
        except ConnectionError:
            return answer
    return answer


def test_strangers_harm_only_themselves(
    broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    friend = Client(broker)
    friend.declare()
    friend.publish(b"safe")
    rng = random.Random(11)
    header, start = b"AMQP\0\0\x09\x01", handshake(broker)
    kinds: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.randrange(1, 300)),
        lambda: header + rng.randbytes(rng.randrange(1, 300)),
        lambda: start + rng.randbytes(rng.randrange(1, 300)),
        lambda: start + struct.pack(">BHI", rng.randrange(5), 1, 20) + rng.randbytes(20) + b"\xce",
        lambda: (
            start
            + b"\x01\0\x01\0\0\0\x18"
            + struct.pack(">HH", rng.choice((20, 40, 50, 60, 85)), 10 * rng.randrange(1, 12))
            + rng.randbytes(20)
            + b"\xce"
        ),
        lambda: bytes(b ^ (rng.random() < 0.01) * rng.randrange(256) for b in start),
        lambda: start[: rng.randrange(len(start))],
    ]
    for turn in range(1400):
        talk(broker, kinds[turn % len(kinds)]())
    assert talk(broker, b"GET / HTTP/1.1\r\n\r\n") == header
    assert b"CHANNEL_ERROR" in talk(broker, start + frame.marshal(commands.Basic.Ack(1), 9))
    assert b"FRAME_ERROR" in talk(broker, start + b"\x03\0\x01\xff\xff\xff\xff...")
    friend.consume()
    assert bodies(friend.read(1)) == ["safe"]
    wait_for(lambda: len(broker.stats().connections) == 1)
    assert not [record for record in caplog.records if record.exc_info]


def test_clients_that_drop_at_random_lose_nothing(broker: EmbeddedBroker) -> None:
    """Every message is acknowledged, and none is seen again after the broker took its ack."""
    count = 400
    publisher = Client(broker)
    publisher.declare(arguments=QUORUM)
    settled: set[int] = set()
    seen: Counter[int] = Counter()
    problems: list[str] = []
    lock = threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while len(settled) < count:
            client = Client(broker)
            client.consume(prefetch=rng.randrange(1, 5))
            for _ in range(rng.randrange(1, 40)):
                try:
                    message = client.read_one()
                except TimeoutError:
                    break
                number = int(as_bytes(message.body))
                with lock:
                    if number in settled:
                        problems.append(f"{number} came again")
                    if (returns_of(message) or 0) < seen[number]:
                        problems.append(f"{number} came again without being counted")
                    seen[number] += 1
                if rng.random() < 0.1:
                    break
                client.channel.basic_ack(message.delivery_tag)
                client.sync()
                with lock:
                    settled.add(number)
            client.cut()

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for number in range(count):
        publisher.publish(b"%d" % number)
    for thread in threads:
        thread.join(6 * PATIENCE)
    assert settled == set(range(count))
    assert sum(seen.values()) > count  # some were dropped, or the test shows nothing
    assert not problems
    wait_for(lambda: broker.stats().queues["q"].unacked == 0)
    assert broker.stats().queues["q"].ready == 0


# Celery


def test_celery_sends_and_works(broker: EmbeddedBroker) -> None:
    app = Celery("test", broker=broker.url, set_as_current=False)
    app.conf.update(
        task_queues=[
            kombu.Queue(
                "runs",
                kombu.Exchange("runs", "topic"),
                routing_key="runs",
                queue_arguments=QUORUM,
            )
        ],
        task_default_queue="runs",
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_transport_options={"confirm_publish": True},
        worker_hijack_root_logger=False,
        broker_heartbeat=1,
    )
    done: list[int] = []

    @app.task(name="run")
    def run(number: int) -> None:
        done.append(number)

    for number in range(10):
        app.send_task("run", (number,))
    assert broker.stats().queues["runs"].ready == 10
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        wait_for(lambda: len(done) == 10)
        app.send_task("run", (10,), countdown=1)  # through queues that expire
        wait_for(lambda: len(done) == 11)
        replies: list[Any] = []
        wait_for(lambda: replies.append(app.control.inspect(timeout=0.5).ping()) or replies[-1])
        assert len(replies[-1]) == 1
    assert done == list(range(11))
    app.close()
    wait_for(lambda: broker.stats().queues["runs"].unacked == 0)
