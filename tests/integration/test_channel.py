"""Brokers that are wrong, that go for good, and what a session leaves in them and on the disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from cases import make_case, write_sweep
from hosting import check_every_run_once, host_sweep, send_signal, wait_for
from pestfleet import fleet as fleet_module
from pestfleet import master as master_module
from pestfleet import watch as watch_module
from pestfleet.broker import EmbeddedBroker
from pestfleet.engines.base import Job
from pestfleet.journal import Journal
from pestfleet.session import Session, create_session, resume
from pestfleet.targets.base import Site
from pestfleet.targets.joining import JoiningTarget
from pestfleet_worker.channel import Queues
from pestfleet_worker.errors import ChannelError, SessionError
from rabbitmq import RabbitMQ
from test_life import count_lines, processes_of, start_command, start_sweep


@pytest.fixture
def own_broker() -> Iterator[EmbeddedBroker]:
    """A broker that is not the master's."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("amqp://guest:wrong@127.0.0.1:{port}//", "refuses the user guest"),
        ("amqp://guest:guest@127.0.0.1:{port}/none", "refuses the virtual host none"),
        ("amqp://guest:guest@no-host.invalid:{port}//", "cannot be reached"),
        ("amqps://guest:guest@127.0.0.1:{port}//", "cannot be reached"),
    ],
)
def test_a_wrong_broker_is_told_at_once(
    tmp_path: Path, rabbitmq: RabbitMQ, url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_case(tmp_path / "case")
    write_sweep(tmp_path / "case", runs=2)
    monkeypatch.setenv("PESTFLEET_BROKER", url.format(port=rabbitmq.port))
    command = start_command("run", "case", "--engine", "sweep", "--session", "s", folder=tmp_path)
    output, _ = command.communicate(timeout=240)
    assert command.returncode == 6, output.decode()
    assert message in output.decode()
    assert "Traceback" not in output.decode()
    assert not processes_of(tmp_path)


def test_a_session_leaves_no_queue_in_the_broker(
    tmp_path: Path, sessions: Path, rabbitmq: RabbitMQ
) -> None:
    case = make_case(tmp_path / "case")
    rows = write_sweep(case.parent, runs=20)
    hosted = host_sweep(case, sessions, broker_url=rabbitmq.url, workers=2)
    assert hosted.wait(240).error is None
    check_every_run_once(hosted.session, rows)
    queues = Queues(hosted.session.name)
    for queue in (queues.runs, queues.results, queues.desk):
        with Connection(rabbitmq.url) as connection:
            channel = connection.channel()
            with pytest.raises(connection.channel_errors, match="NOT_FOUND"):
                queue(channel).queue_declare(passive=True)


def test_a_broker_that_goes_for_good_ends_the_session_and_the_rest_is_made_later(
    tmp_path: Path,
    sessions: Path,
    own_broker: EmbeddedBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make_case(tmp_path / "case", seconds=0.2)
    rows = write_sweep(case.parent, runs=100)
    hosted = host_sweep(case, sessions, broker_url=own_broker.url, workers=2, session="s")
    wait_for(lambda: hosted.done() > 10)
    monkeypatch.setattr(watch_module, "BROKER_SILENCE", 0.5)
    monkeypatch.setattr(fleet_module, "BROKER_PATIENCE", 3.0)
    own_broker.stop()
    outcome = hosted.wait(240)
    assert isinstance(outcome.error, ChannelError)
    assert "the broker has been away" in outcome.error.message
    warnings = [event["text"] for event in hosted.events if event["event"] == "warn"]
    assert any("the broker does not answer, trying again" in text for text in warnings)
    assert not (hosted.session.path / "slots").exists()
    monkeypatch.setattr(fleet_module, "BROKER_PATIENCE", 600.0)
    with EmbeddedBroker() as another:
        check_every_run_once(resume("s", root=sessions, broker_url=another.url), rows)


def test_an_outage_of_the_broker_does_not_end_the_models_that_run(
    tmp_path: Path,
    sessions: Path,
    own_broker: EmbeddedBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(master_module, "HEARTBEAT", 1.0)  # a silence of 6 s is the limit
    counter = tmp_path / "counter"
    monkeypatch.setenv("COUNTER", str(counter))
    case = make_case(tmp_path / "case", seconds=16)
    rows = write_sweep(case.parent, runs=2)
    hosted = host_sweep(case, sessions, broker_url=own_broker.url, workers=2)
    wait_for(lambda: count_lines(counter) == 2)
    own_broker.pause()
    threading.Event().wait(10)  # the time itself is what is tested
    own_broker.resume()
    assert hosted.wait(240).error is None
    check_every_run_once(hosted.session, rows)
    assert count_lines(counter) == 2
    assert not [event for event in hosted.events if "silent for" in event.get("reason", "")]


def test_two_sessions_of_one_id_on_one_broker(tmp_path: Path, own_broker: EmbeddedBroker) -> None:
    case = make_case(tmp_path / "case", seconds=0.1)
    rows = write_sweep(case.parent, runs=200)
    first = host_sweep(case, tmp_path / "a", broker_url=own_broker.url, workers=1, session="s")
    wait_for(lambda: first.done() > 3)
    second = host_sweep(case, tmp_path / "b", broker_url=own_broker.url, workers=1, session="s")
    error = second.wait(120).error
    assert isinstance(error, SessionError) and "another master hosts a session s" in error.message
    assert first.wait(240).error is None
    check_every_run_once(first.session, rows)


def test_a_session_resumed_at_once_is_not_harmed_by_the_old_workers(tmp_path: Path) -> None:
    rows = 200
    master = start_sweep(tmp_path, runs=rows, seconds=0.1)
    wait_for(lambda: count_lines(tmp_path / "counter") > 20)
    send_signal(master.pid, signal.SIGKILL)
    master.communicate()
    again = start_command("resume", "s", folder=tmp_path, counter=tmp_path / "counter")
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output.decode()
    session = Session.open("s", root=tmp_path / "pestfleet-sessions")
    check_every_run_once(session, write_sweep(tmp_path / "case", runs=rows))
    starts = [event["first_run"] for event in session.events() if event["event"] == "start"]
    assert starts[0] == 1 and starts[1] > 1_000_000
    wait_for(lambda: not processes_of(tmp_path), what="all processes gone")


def test_run_ids_never_come_twice_however_often_a_session_is_resumed(
    tmp_path: Path, sessions: Path
) -> None:
    case = make_case(tmp_path / "case", seconds=60)
    write_sweep(case.parent, runs=4)
    session = create_session(case, engine="sweep", root=sessions, workers=1)
    for _ in range(3):
        master = session.make_master()
        master.interrupt()  # before any run is finished
        assert master.host().error is not None
    starts = [event["first_run"] for event in session.events() if event["event"] == "start"]
    assert starts[0] < starts[1] < starts[2]
    assert starts[2] - starts[1] >= 1_000_000


@pytest.mark.parametrize("events", [0, 2, 6])
def test_a_disk_that_is_full_ends_the_session_with_the_reason(
    tmp_path: Path, sessions: Path, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    case = make_case(tmp_path / "case")
    rows = write_sweep(case.parent, runs=20)
    session = create_session(case, engine="sweep", root=sessions, workers=1, session="s")
    written: list[str] = []
    write = Journal.write

    def write_until_full(journal: Journal, event: str, **fields: object) -> None:
        written.append(event)
        if len(written) > events:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(journal, event, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", write_until_full)
        try:
            error = session.make_master().host().error
        except SessionError as raised:
            error = raised
    assert isinstance(error, SessionError) and "No space left on device" in error.message
    assert not session.folder.running
    check_every_run_once(resume("s", root=sessions), rows)


def test_a_session_folder_that_vanishes_ends_the_session(tmp_path: Path, sessions: Path) -> None:
    case = make_case(tmp_path / "case", seconds=0.1)
    write_sweep(case.parent, runs=100)
    hosted = host_sweep(case, sessions, workers=2)
    wait_for(lambda: hosted.done() > 3)
    shutil.rmtree(hosted.session.path, ignore_errors=True)
    outcome = hosted.wait(240)
    assert outcome.error is not None


def test_names_with_spaces_and_umlauts(tmp_path: Path) -> None:
    case = make_case(tmp_path / "Fälle 1" / "mein Modell", name="Köln 2")
    rows = write_sweep(case.parent, runs=6)
    hosted = host_sweep(case, tmp_path / "Fälle 1" / "out", workers=1)
    assert hosted.wait(240).error is None
    assert hosted.session.name.startswith("K-ln-2-")
    check_every_run_once(hosted.session, rows)


def test_a_case_that_was_copied_by_half_is_copied_again(tmp_path: Path, sessions: Path) -> None:
    case = make_case(tmp_path / "case")
    rows = write_sweep(case.parent, runs=6)
    session = create_session(case, engine="sweep", root=sessions, workers=1)
    # A master that was killed while it copied.
    (session.path / "case.draft").mkdir()
    (session.path / "case.draft" / ".pestfleet-slot").touch()
    (session.path / "case.draft" / case.name).write_text("pcf\n")
    assert session.make_master().host().error is None
    check_every_run_once(session, rows)
    assert not (session.path / "case.draft").exists()


def test_finished_runs_do_not_count_for_a_case_that_was_changed(
    tmp_path: Path, sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTER", str(tmp_path / "counter"))
    case = make_case(tmp_path / "case")
    write_sweep(case.parent, runs=6)
    session = create_session(case, engine="sweep", root=sessions, workers=1, session="s")
    assert session.make_master().host().error is None
    resume("s", root=sessions)
    assert count_lines(tmp_path / "counter") == 6
    with (session.folder.case / "model.sh").open("a") as file:
        file.write("# another model\n")
    resume("s", root=sessions)
    assert count_lines(tmp_path / "counter") == 12
    warnings = [event["text"] for event in session.events() if event["event"] == "warn"]
    assert len(warnings) == 1 and "is not as it was" in warnings[0]


def test_a_session_that_ends_in_spite_of_a_signal_is_over_for_its_workers(
    tmp_path: Path,
    sessions: Path,
    own_broker: EmbeddedBroker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal comes while the engine writes its last tables."""
    case = make_case(tmp_path / "case")
    write_sweep(case.parent, runs=2)
    session = create_session(case, engine="sweep", root=sessions, own_broker=False)
    master = session.make_master(
        broker_url=own_broker.url, site=Site(JoiningTarget, keep_workers=True)
    )

    def engine(job: Job) -> dict[str, Any]:
        master.interrupt()
        time.sleep(1.0)  # it does not look at whether the session is to end
        return {"phi": 1.0}

    monkeypatch.setattr(master_module, "load_engine", lambda name: engine)
    assert master.host().error is None
    assert session.status()["state"] == "finished"
    assert not [name for name in own_broker.stats().queues if name.startswith("pestfleet.")]
