"""Stands in for idle workers where a benchmark measures who looks at many: they say who they are.

python -m benchmarks.announcer SESSION WORKERS      (URL in PESTFLEET_BROKER)
"""

from __future__ import annotations

import os
import sys
import time

from pestfleet_worker.channel import Queues, pack
from pestfleet_worker.messages import Announce, Heartbeat, SlotState
from pestfleet_worker.outbox import Outbox

INTERVAL = 4.0  # seconds between two heartbeats of one; the desk loses it after 12
STEPS = 20


def main() -> None:
    session, count = sys.argv[1], int(sys.argv[2])
    queues = Queues(session)
    desk = queues.address_of(queues.desk)
    outbox = Outbox(os.environ["PESTFLEET_BROKER"])
    names = [f"pf-{session}-workers-{number:05}" for number in range(count)]
    for name in names:
        announcement = Announce(name, name, 1, 1, "linux/x86_64", {"pestfleet-worker": "0"})
        outbox.publish(pack(desk, announcement))
    while True:
        for step in range(STEPS):
            tickets = [
                outbox.publish(pack(desk, Heartbeat(name, (SlotState(),), 0)))
                for name in names[step::STEPS]
            ]
            time.sleep(INTERVAL / STEPS)
            for ticket in tickets:
                ticket.wait(INTERVAL)


if __name__ == "__main__":
    main()
