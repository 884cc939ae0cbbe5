"""Workers whose broker, or whose session, is not there, is lost, or does not want them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cases import make_case, write_sweep
from hosting import check_every_run_once, host_sweep, wait_for
from pestfleet import master as master_module
from pestfleet.broker import EmbeddedBroker
from pestfleet.targets.joining import JoiningTarget
from pestfleet_worker.channel import Queues
from pestfleet_worker.endpoint import make_connection
from pestfleet_worker.worker import REFUSED
from rabbitmq import RabbitMQ

# The program, with less patience.
PROGRAM = """
import pestfleet_worker.outbox as outbox
outbox.REFUSAL_PATIENCE = 2.0
from pestfleet_worker.__main__ import main
main()
"""


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts workers that no target keeps."""
    monkeypatch.setattr(master_module, "make_target", lambda name, plan: JoiningTarget(plan))
    started: list[subprocess.Popen[bytes]] = []

    def start(url: str, session: str, *, slots: int = 1) -> subprocess.Popen[bytes]:
        name = f"w{len(started)}"
        with (tmp_path / f"{name}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "--session", session, "--name", name,
                 "--scratch", str(tmp_path / name), "--slots", str(slots)],
                env={**os.environ, "PESTFLEET_BROKER": url},
                stdin=subprocess.DEVNULL,
                stderr=log,
            )  # fmt: skip
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
        worker.wait()


def test_a_worker_with_a_wrong_password_gives_up(
    tmp_path: Path, broker: EmbeddedBroker, workers: Any
) -> None:
    worker = workers(broker.url.replace("pestfleet:", "pestfleet:x"), "s")
    assert worker.wait(120) == REFUSED
    log = (tmp_path / "w0.log").read_text()
    assert "the broker refuses us: " in log.splitlines()[-1]
    assert "check the user, the password" in log.splitlines()[-1]
    assert broker.password not in log and "Traceback" not in log


def test_a_worker_that_is_refused_in_the_middle_gives_up(
    tmp_path: Path, sessions: Path, broker: EmbeddedBroker, workers: Any
) -> None:
    case = make_case(tmp_path / "case", seconds=0.1)
    write_sweep(case.parent, runs=1000)
    hosted = host_sweep(case, sessions, broker_url=broker.url, session="s")
    worker = workers(broker.url, "s")
    wait_for(lambda: hosted.done() > 3)
    broker.password = "another"
    broker.drop_connections()
    assert worker.wait(120) == REFUSED
    log = (tmp_path / "w0.log").read_text()
    assert "the broker refuses us: " in log.splitlines()[-1]
    assert "Traceback" not in log
    hosted.master.interrupt()
    hosted.wait(120)


def test_a_queue_of_runs_that_is_lost_and_comes_back(
    tmp_path: Path, sessions: Path, rabbitmq: RabbitMQ, workers: Any
) -> None:
    case = make_case(tmp_path / "case", seconds=0.05)
    rows = write_sweep(case.parent, runs=300)
    hosted = host_sweep(case, sessions, broker_url=rabbitmq.url, session="s")
    worker = workers(rabbitmq.url, "s")
    wait_for(lambda: hosted.done() > 10)
    queues = Queues("s", owner=True)
    with make_connection(rabbitmq.url) as connection:
        channel = connection.channel()
        queues.runs(channel).delete()
        log = tmp_path / "w0.log"
        wait_for(lambda: "NOT_FOUND" in log.read_text(), what="a worker without its queue")
        queues.runs(channel).declare()
    assert worker.poll() is None
    # What was in the queue is lost; a broker that has lost it has lost the others, too, and then
    # the master sends it again.
    fleet = hosted.master._fleet
    assert fleet is not None
    fleet._publish_again()
    assert hosted.wait(240).error is None
    check_every_run_once(hosted.session, rows)
    assert worker.wait(120) == 0


def test_a_broker_that_has_lost_everything(tmp_path: Path, sessions: Path, workers: Any) -> None:
    old = EmbeddedBroker(password="secret")
    old.start()
    case = make_case(tmp_path / "case", seconds=0.1)
    rows = write_sweep(case.parent, runs=200)
    hosted = host_sweep(case, sessions, broker_url=old.url, session="s")
    two = [workers(old.url, "s") for _ in range(2)]
    wait_for(lambda: hosted.done() > 10 and len(hosted.workers()) == 2)
    old.stop()
    with EmbeddedBroker(port=old.port, password="secret"):
        assert hosted.wait(240).error is None
        check_every_run_once(hosted.session, rows)
        assert [worker.wait(120) for worker in two] == [0, 0]


def test_runs_of_workers_that_leave_in_good_order_do_not_fail(
    tmp_path: Path, sessions: Path, broker_url: str, workers: Any
) -> None:
    """They come and go while many runs wait: nothing counts as lost with a worker."""
    with EmbeddedBroker() as embedded:
        url = broker_url or embedded.url
        case = make_case(tmp_path / "case", seconds=60)
        write_sweep(case.parent, runs=60)
        hosted = host_sweep(case, sessions, broker_url=url, session="s", deliveries=1)
        for _ in range(6):
            worker = workers(url, "s", slots=4)
            wait_for(lambda: any(slot["run"] for w in hosted.workers() for slot in w["slots"]))
            worker.terminate()
            assert worker.wait(120) == 12
            wait_for(lambda: not hosted.workers())
        assert not [e for e in hosted.session.events() if e["event"] == "run"]
        (hosted.session.folder.case / "model.sh").write_text(
            "#!/bin/sh\nawk '{ printf \"%.17g\\n\", $1 * $1 + NR }' input.dat > output.dat\n"
        )
        workers(url, "s")
        assert hosted.wait(240).error is None
        failures = [e.get("failure") for e in hosted.session.events() if e["event"] == "run"]
        assert failures == [None] * 60
