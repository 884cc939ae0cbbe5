"""The program `pestfleet-worker`: one worker of a session's fleet.

The broker's URL holds a password, so it comes from the environment (PESTFLEET_BROKER) or a
file (PESTFLEET_BROKER_FILE), never from the command line, which anybody on the machine can read.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from pathlib import Path

from pestfleet_worker.ecs_agent import name_task
from pestfleet_worker.endpoint import URL_FILE, read_url_file
from pestfleet_worker.errors import ConfigurationError, PestfleetError
from pestfleet_worker.worker import MASTER_GONE, REFUSED, SENT_AWAY, Worker


def main() -> None:
    """Run the worker and exit with its code."""
    arguments = _parse_arguments()
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    for noisy in ("celery", "kombu", "amqp"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        worker = Worker(
            _read_broker_url(),
            arguments.session,
            name=arguments.name or name_task() or _name_host(),
            slots=arguments.slots,
            scratch=arguments.scratch,
            digest=arguments.digest,
            source=arguments.case,
            health_port=arguments.health_port,
        )
    except PestfleetError as error:
        print(f"pestfleet-worker: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.leave(SENT_AWAY, "told to stop by a signal"))
    if arguments.with_parent:
        threading.Thread(target=_watch_parent, args=(worker,), daemon=True).start()
    exit_code = worker.serve()
    logging.shutdown()
    os._exit(exit_code)  # a slot's thread that waits for a dead broker must not keep us here


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pestfleet-worker",
        description="Make runs for one session. PESTFLEET_BROKER or PESTFLEET_BROKER_FILE gives "
        "the broker's URL.",
    )
    parser.add_argument("--session", required=True, help="id of the session")
    parser.add_argument("--slots", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--name", default="", help="default: of this task of ECS, or this host")
    parser.add_argument(
        "--scratch", type=Path, default=Path("slots"), help="folder for the slots' directories"
    )
    parser.add_argument("--case", type=Path, help="case folder, when the run config names none")
    parser.add_argument(
        "--digest",
        default=os.environ.get("PESTFLEET_DIGEST", ""),
        help="digest of the case in this worker's image (default: PESTFLEET_DIGEST)",
    )
    parser.add_argument(
        "--health-port",
        type=int,
        default=0,
        metavar="PORT",
        help="port that is open while there is a connection with the broker (default: none)",
    )
    parser.add_argument(
        "--with-parent", action="store_true", help="end when standard input is closed"
    )
    return parser.parse_args()


def _name_host() -> str:
    return f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


def _read_broker_url() -> str:
    url = os.environ.pop("PESTFLEET_BROKER", "") or read_url_file()
    if not url:
        raise ConfigurationError(
            "the broker's URL is not given",
            remedy=f"Set PESTFLEET_BROKER, or {URL_FILE} to a file that holds it.",
        )
    return url


def _watch_parent(worker: Worker) -> None:
    # The parent holds the other end of our standard input and writes nothing.
    while os.read(sys.stdin.fileno(), 1):
        pass
    worker.leave(MASTER_GONE, "the process that started this worker is gone")


if __name__ == "__main__":
    main()
