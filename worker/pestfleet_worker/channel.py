"""The channel: one Celery app for a broker's URL, and the queues of a session.

The same code speaks to RabbitMQ (`amqp://`, `amqps://`) and to the broker that a master
embeds for `--on local`, which speaks AMQP 0-9-1 too.

    control   exchange       master → workers   run configs, cancellations, stop, beats; runs
    runs      quorum queue   bound to control   one Celery task a run, acknowledged late
    answers   exchange       workers → master   all that workers say
    results   quorum queue   bound to answers   one `Result` a run, or a `GivenBack`
    desk      queue          bound to answers   announcements, heartbeats, farewells

The master makes these. A worker makes nothing but a control queue of its own, reads that and
`runs`, and writes to `answers`: so a broker can refuse it everything else.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Exchange, Queue, binding
from kombu.serialization import dumps

from pestfleet_worker.endpoint import read_endpoint
from pestfleet_worker.messages import Run, encode

RUN_TASK = "pestfleet.run"
CONTENT_TYPE = "application/x-pestfleet"

# Seconds. RabbitMQ closes a connection that was silent for two intervals, and gives back what
# was not acknowledged: so a frozen worker's run is delivered again within 30 s.
HEARTBEAT = 10

# Milliseconds after which an abandoned session's queues disappear from the broker.
ABANDONED = 3600 * 1000
# Milliseconds for which a heartbeat or an announcement is worth reading.
FRESH = 60 * 1000

# How the name of a worker's own queue goes on after that of `control` and a dot.
WORKER_QUEUE = "[0-9a-f]{12}"

_EVERYBODY = "everybody"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a message goes: an exchange ("" is the default one) and a routing key."""

    exchange: str
    routing_key: str


class Queues:
    """The queues and exchanges of one session, by the session's id.

    `owner`: the master's. For everybody else `declare` does nothing; who uses what is not
    there gets the broker's error 404.
    """

    def __init__(self, session: str, *, owner: bool = False) -> None:
        name = f"pestfleet.{session}"
        self.control = _exchange(f"{name}.control", owner)
        self.answers = _exchange(f"{name}.answers", owner)
        durable = {"x-queue-type": "quorum", "x-expires": ABANDONED}
        fresh = {"x-expires": ABANDONED, "x-message-ttl": FRESH}
        self.runs = _queue(self.control, f"{name}.runs", durable, owner)
        self.results = _queue(self.answers, f"{name}.results", durable, owner)
        self.desk = _queue(self.answers, f"{name}.desk", fresh, owner)

    def make_worker_queue(self, worker: str) -> Queue:
        """A queue for one connection of one worker; it goes when the connection goes.

        Its name is new each time: the broker may still hold the one of a connection that was cut.
        """
        return Queue(
            f"{self.control.name}.{uuid.uuid4().hex[:12]}",
            bindings=[
                binding(self.control, routing_key=_EVERYBODY),
                binding(self.control, routing_key=_key_of(worker)),
            ],
            exclusive=True,
            auto_delete=True,
            durable=False,
        )

    def address_of(self, queue: Queue) -> Address:
        return Address(queue.exchange.name, queue.routing_key)

    @property
    def everybody(self) -> Address:
        """All workers of the session."""
        return Address(self.control.name, _EVERYBODY)

    def address_of_worker(self, worker: str) -> Address:
        return Address(self.control.name, _key_of(worker))


def _key_of(worker: str) -> str:
    return f"worker.{worker}"


def _exchange(name: str, owner: bool) -> Exchange:
    return Exchange(name, type="direct", durable=True, no_declare=not owner)


def _queue(exchange: Exchange, name: str, arguments: dict[str, Any], owner: bool) -> Queue:
    return Queue(name, exchange, name, queue_arguments=arguments, no_declare=not owner)


def make_app(url: str, session: str) -> Celery:
    """The Celery app for a broker's URL and a session. MessagePack only; nothing is pickled."""
    queues = Queues(session)
    endpoint = read_endpoint(url)
    app = Celery("pestfleet", broker=endpoint.url, set_as_current=False)
    app.conf.update(
        task_serializer="msgpack",
        accept_content=["msgpack"],
        task_queues=[queues.runs],
        task_default_queue=queues.runs.name,
        task_default_exchange=queues.control.name,
        task_default_routing_key=queues.runs.routing_key,
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        result_backend="disabled://",
        worker_consumer="pestfleet_worker.consumer:RunConsumer",
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_use_ssl=endpoint.tls or False,
        broker_heartbeat=HEARTBEAT,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A queue that is not there will be: the master makes it anew.
        broker_channel_error_retry=True,
        broker_connection_timeout=5,
    )
    return app


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message ready for the broker."""

    address: Address
    body: bytes
    content_type: str = CONTENT_TYPE
    content_encoding: str = "binary"
    headers: dict[str, Any] | None = None
    persistent: bool = True


def pack(address: Address, message: Any, *, persistent: bool = True) -> Parcel:
    """One of our own messages as a parcel."""
    return Parcel(address, encode(message), persistent=persistent)


def pack_run(app: Celery, run: Run) -> Parcel:
    """A run as a parcel: Celery's task message, protocol 2 (Celery manual, "Message Protocol")."""
    task = app.amqp.as_task_v2(
        f"{run.id}",
        RUN_TASK,
        args=(encode(run),),
        argsrepr="",
        kwargsrepr="",
        ignore_result=True,
        origin="pestfleet",
    )
    content_type, content_encoding, body = dumps(task.body, serializer="msgpack")
    address = Address(app.conf.task_default_exchange, app.conf.task_default_routing_key)
    return Parcel(address, body, content_type, content_encoding, task.headers)


def count_deliveries(headers: Mapping[str, Any]) -> int:
    """How often a run was handed out before and came back, by the headers of its message.

    RabbitMQ's quorum queues say it with `x-delivery-count`, since 4.0 with `x-acquired-count`.
    """
    return max(int(headers.get(name) or 0) for name in ("x-delivery-count", "x-acquired-count"))
