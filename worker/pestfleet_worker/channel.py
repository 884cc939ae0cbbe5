"""The channel: one Celery app for a broker's URL, and the queues of a session.

The same code speaks to RabbitMQ (`amqp://`, `amqps://`) and to the broker that a master
embeds for `--on local`, which speaks AMQP 0-9-1 too.

    runs      quorum queue   master → workers   one Celery task a run, acknowledged late
    results   quorum queue   workers → master   one `Result` a run
    desk      queue          workers → master   announcements, heartbeats, farewells
    control   exchange       master → workers   run configs, cancellations, stop, beats
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Connection, Exchange, Queue, binding
from kombu.serialization import dumps

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

_EVERYBODY = "everybody"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a message goes: an exchange ("" is the default one) and a routing key."""

    exchange: str
    routing_key: str


class Queues:
    """The queues of one session, by the session's id."""

    def __init__(self, session: str) -> None:
        name = f"pestfleet.{session}"
        durable = {"x-queue-type": "quorum", "x-expires": ABANDONED}
        self.runs = Queue(f"{name}.runs", routing_key=f"{name}.runs", queue_arguments=durable)
        self.results = Queue(f"{name}.results", queue_arguments=durable)
        self.desk = Queue(
            f"{name}.desk", queue_arguments={"x-expires": ABANDONED, "x-message-ttl": FRESH}
        )
        self.control = Exchange(f"{name}.control", type="direct", durable=True)

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
        return Address("", queue.name)

    @property
    def everybody(self) -> Address:
        """All workers of the session."""
        return Address(self.control.name, _EVERYBODY)

    def address_of_worker(self, worker: str) -> Address:
        return Address(self.control.name, _key_of(worker))


def _key_of(worker: str) -> str:
    return f"worker.{worker}"


def make_app(url: str, session: str) -> Celery:
    """The Celery app for a broker's URL and a session. MessagePack only; nothing is pickled."""
    queues = Queues(session)
    app = Celery("pestfleet", broker=url, set_as_current=False)
    app.conf.update(
        task_serializer="msgpack",
        accept_content=["msgpack"],
        task_queues=[queues.runs],
        task_default_queue=queues.runs.name,
        task_default_routing_key=queues.runs.name,
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
        broker_heartbeat=HEARTBEAT,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
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
    queue = app.conf.task_default_queue
    return Parcel(Address("", queue), body, content_type, content_encoding, task.headers)


def connect(connection: Connection) -> None:
    """Connect now, or raise what hinders; each host of the URL is tried, without a pause."""
    connection.ensure_connection(
        max_retries=max(1, len(connection.alt)),
        interval_start=0,
        interval_step=0,
        reraise_as_library_errors=False,
    )
