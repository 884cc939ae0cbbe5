"""Stands in for workers where a benchmark measures the master: answers runs without a model.

python -m benchmarks.answerer SESSION OBSERVATIONS      (URL in PESTFLEET_BROKER)
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgpack
from kombu import Consumer

from pestfleet_worker.channel import Queues, pack
from pestfleet_worker.endpoint import make_connection
from pestfleet_worker.messages import Result, decode, pack_vector
from pestfleet_worker.outbox import Outbox


def main() -> None:
    session, observations = sys.argv[1], int(sys.argv[2])
    url = os.environ["PESTFLEET_BROKER"]
    queues = Queues(session)
    results = queues.address_of(queues.results)
    outbox = Outbox(url)

    def answer(message: Any) -> None:
        (data,), _, _ = msgpack.unpackb(message.body)
        run = decode(data)
        values = pack_vector(run.id + column / 7.0 for column in range(observations))
        outbox.publish(pack(results, Result(run.id, "stand-in", 0, 0.001, values)))
        message.ack()

    with make_connection(url) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 200, False)
        with Consumer(channel, [queues.runs], accept=["msgpack"], on_message=answer):
            while True:
                connection.drain_events()


if __name__ == "__main__":
    main()
