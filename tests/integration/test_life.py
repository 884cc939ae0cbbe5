"""A session from launch to teardown: stopped, killed, resumed; workers that come late."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cases import make_case, write_sweep
from hosting import (
    check_every_run_once,
    host_sweep,
    marked_processes,
    send_signal,
    wait_for,
)
from pestfleet.broker import EmbeddedBroker
from pestfleet.session import Session, resume
from pestfleet_worker.errors import Interrupted, TargetError
from proxy import FreezingProxy


def start_command(
    *words: str, folder: Path, counter: Path | None = None
) -> subprocess.Popen[bytes]:
    """`pestfleet …` in a process of its own."""
    environment = {**os.environ, "COUNTER": str(counter or "")}
    return subprocess.Popen(
        [sys.executable, "-m", "pestfleet", *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def start_sweep(folder: Path, *, runs: int, seconds: float) -> subprocess.Popen[bytes]:
    make_case(folder / "case", seconds=seconds)
    write_sweep(folder / "case", runs=runs)
    return start_command(
        "run", "case", "--engine", "sweep", "--workers", "2", "--session", "s",
        folder=folder, counter=folder / "counter",
    )  # fmt: skip


def count_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that work in, or for, a session below `folder`."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            line = (process / "cmdline").read_bytes()
            text = line + (process / "environ").read_bytes()
            place = str((process / "cwd").readlink())
        except OSError:
            continue
        if str(folder).encode() in text or place.startswith(str(folder)):
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_kill_of_the_master_leaves_no_process_and_a_readable_journal(tmp_path: Path) -> None:
    rows_wanted = 200
    master = start_sweep(tmp_path, runs=rows_wanted, seconds=0.1)
    journal = tmp_path / "pestfleet-sessions" / "s" / "journal.jsonl"
    wait_for(lambda: journal.exists() and journal.read_text().count('"event":"run"') > 20)
    master.kill()
    master.communicate()
    wait_for(lambda: not processes_of(tmp_path), timeout=90, what="all processes gone")

    session = Session.open("s", root=tmp_path / "pestfleet-sessions")
    assert session.status()["state"] == "died"
    finished = [event for event in session.events() if event["event"] == "run"]
    assert 20 < len(finished) < rows_wanted

    made = count_lines(tmp_path / "counter")
    again = start_command("resume", "s", folder=tmp_path, counter=tmp_path / "counter")
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output.decode()
    assert session.status()["state"] == "finished"
    # Each run that was finished counts as made; those in hand when the master died are repeated.
    assert count_lines(tmp_path / "counter") - made == rows_wanted - len(finished)
    check_every_run_once(session, write_sweep(tmp_path / "case", runs=rows_wanted))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_clean(tmp_path: Path, number: signal.Signals) -> None:
    master = start_sweep(tmp_path, runs=500, seconds=0.1)
    wait_for(lambda: count_lines(tmp_path / "counter") > 10)
    master.send_signal(number)
    output, _ = master.communicate(timeout=240)
    assert master.returncode == 130, output.decode()
    assert "pestfleet resume s" in output.decode()
    assert "Traceback" not in output.decode()
    wait_for(lambda: not processes_of(tmp_path), timeout=60, what="all processes gone")
    session = Session.open("s", root=tmp_path / "pestfleet-sessions")
    assert session.status()["state"] == "stopped"
    assert not (session.path / "slots").exists()


def test_stop_from_another_process(tmp_path: Path) -> None:
    master = start_sweep(tmp_path, runs=500, seconds=0.1)
    wait_for(lambda: count_lines(tmp_path / "counter") > 10)
    stop = start_command("stop", "s", folder=tmp_path)
    output, _ = stop.communicate(timeout=240)
    assert stop.returncode == 0, output.decode()
    master.communicate(timeout=240)
    assert master.returncode == 130


def test_status_while_it_runs(tmp_path: Path) -> None:
    master = start_sweep(tmp_path, runs=600, seconds=0.5)
    wait_for(lambda: count_lines(tmp_path / "counter") > 4)
    read = Session.open("s", root=tmp_path / "pestfleet-sessions").status
    wait_for(
        lambda: {worker["name"] for worker in read().get("workers", ())} == {"local-1", "local-2"}
    )
    assert read()["state"] == "running"
    second = start_command("resume", "s", folder=tmp_path)
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 8
    assert "session s is running" in output.decode()
    master.send_signal(signal.SIGINT)
    master.communicate(timeout=240)


def test_a_stopped_session_goes_on(tmp_path: Path, sessions: Path, broker_url: str) -> None:
    case = make_case(tmp_path / "case", seconds=0.03)
    rows = write_sweep(case.parent, runs=300)
    hosted = host_sweep(case, sessions, broker_url=broker_url, workers=2, session="s")
    wait_for(lambda: hosted.done() > 20)
    hosted.master.interrupt()
    outcome = hosted.wait(120)
    assert isinstance(outcome.error, Interrupted)
    wait_for(lambda: not marked_processes(hosted.session), what="model processes gone")
    # The user's folder may change meanwhile; the session has the case as it was.
    shutil.rmtree(case.parent)
    session = resume("s", root=sessions, broker_url=broker_url)
    check_every_run_once(session, rows)


def test_a_late_worker_takes_part_and_a_cut_off_one_loses_nothing(
    tmp_path: Path, sessions: Path
) -> None:
    broker = EmbeddedBroker()
    broker.start()
    proxy = FreezingProxy(broker.url)
    late = None
    try:
        case = make_case(tmp_path / "case", seconds=0.1)
        rows = write_sweep(case.parent, runs=300)
        hosted = host_sweep(case, sessions, broker_url=broker.url, workers=1)
        wait_for(lambda: hosted.done() > 5)
        late = subprocess.Popen(
            [sys.executable, "-m", "pestfleet_worker", "--session", hosted.session.name,
             "--name", "late", "--scratch", str(tmp_path / "scratch")],
            env={**os.environ, "PESTFLEET_BROKER": proxy.url},
        )  # fmt: skip
        wait_for(lambda: any(e.get("worker") == "late" for e in hosted.events))
        wait_for(lambda: any(
            worker["name"] == "late" and worker["finished"] > 3 for worker in hosted.workers()
        ))  # fmt: skip
        proxy.freeze()  # no packet comes through any more, and nobody is told
        assert hosted.wait(240).error is None
        check_every_run_once(hosted.session, rows)
        send_signal(late.pid, signal.SIGTERM)
        late.wait(120)
    finally:
        proxy.close()
        broker.stop()
        if late is not None and late.poll() is None:
            late.kill()
            late.wait()


def test_a_worker_whose_image_holds_another_case_is_refused(
    tmp_path: Path, sessions: Path, broker_url: str
) -> None:
    if not broker_url:
        broker = EmbeddedBroker()
        broker.start()
        url = broker.url
    else:
        broker, url = None, broker_url
    try:
        case = make_case(tmp_path / "case", seconds=0.05)
        write_sweep(case.parent, runs=5000)
        hosted = host_sweep(case, sessions, broker_url=url, workers=1)
        wait_for(lambda: hosted.done() > 1)
        stranger = subprocess.run(
            [sys.executable, "-m", "pestfleet_worker", "--session", hosted.session.name,
             "--name", "other", "--digest", "0" * 64, "--scratch", str(tmp_path / "scratch")],
            env={**os.environ, "PESTFLEET_BROKER": url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )  # fmt: skip
        assert stranger.returncode == 10
        assert "its image holds case 000000000000, this session's case is" in stranger.stderr
        wait_for(lambda: any(event["event"] == "worker-refused" for event in hosted.events))
        hosted.master.interrupt()
        hosted.wait(120)
    finally:
        if broker is not None:
            broker.stop()


def test_workers_that_cannot_come_end_the_session_with_the_reason(
    tmp_path: Path, sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path / "case")
    write_sweep(case.parent, runs=10)
    scratch = tmp_path / "scratch"
    scratch.write_text("a file where a folder should be")
    monkeypatch.setattr("pestfleet.targets.local.EARLY", 120.0)  # however slow the machine
    hosted = host_sweep(case, sessions, workers=1, scratch=str(scratch))
    outcome = hosted.wait(240)
    assert isinstance(outcome.error, TargetError)
    assert "worker local-1 ended with exit code" in outcome.error.message
    assert hosted.session.status()["state"] == "failed"


def test_cancelling_kills_the_model_that_runs(
    tmp_path: Path, sessions: Path, broker_url: str
) -> None:
    case = make_case(tmp_path / "case", seconds=600)
    write_sweep(case.parent, runs=2)
    hosted = host_sweep(case, sessions, broker_url=broker_url, workers=2)

    def count_busy_slots() -> int:
        workers = hosted.master.snapshot()["workers"]
        return sum(slot["run"] is not None for worker in workers for slot in worker["slots"])

    # One model may have two processes, and a worker that has not joined yet hears nothing.
    wait_for(lambda: count_busy_slots() == 2, what="two models run")
    assert marked_processes(hosted.session)
    hosted.master._fleet.cancel(range(1, 3))  # type: ignore[union-attr]
    wait_for(lambda: not marked_processes(hosted.session), timeout=60, what="no model runs")
    hosted.master.interrupt()
    hosted.wait(120)
