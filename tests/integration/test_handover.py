"""A master that is ended by a signal and started again, while its workers wait for the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cases import make_case, write_sweep
from hosting import check_every_run_once, wait_for
from pestfleet.session import Session
from rabbitmq import RabbitMQ

RUNS = 80


class Site:
    """A session's master and its workers, each a process of its own, as in containers."""

    def __init__(self, folder: Path, broker_url: str, *, session: str) -> None:
        self.folder = folder
        self.session = session
        self.environment = {
            **os.environ,
            "PESTFLEET_BROKER": broker_url,
            "COUNTER": str(folder / "counter"),
        }
        self.workers: list[subprocess.Popen[bytes]] = []
        self.masters: list[subprocess.Popen[bytes]] = []

    def start_worker(self) -> subprocess.Popen[bytes]:
        number = len(self.workers) + 1
        with (self.folder / f"worker-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "pestfleet_worker",
                    "--session", self.session,
                    "--name", f"w{number}",
                    "--scratch", str(self.folder / f"scratch-{number}"),
                    "--case", str(self.folder / "case"),
                ],
                env=self.environment,
                stdout=log,
                stderr=log,
            )  # fmt: skip
        self.workers.append(process)
        return process

    def start_master(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "master.out").open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "pestfleet", "host", "case",
                    "--engine", "sweep", "--session", self.session, "--workers", "2",
                    "--no-cache", *words,
                ],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip
        self.masters.append(process)
        return process

    def open(self) -> Session:
        return Session.open(self.session, root=self.folder / "pestfleet-sessions")

    def count_journaled(self) -> int:
        journal = self.folder / "pestfleet-sessions" / self.session / "journal.jsonl"
        return journal.read_text().count('"event":"run"') if journal.exists() else 0

    def count_made(self) -> int:
        counter = self.folder / "counter"
        return len(counter.read_text().splitlines()) if counter.exists() else 0

    @property
    def output(self) -> str:
        return (self.folder / "master.out").read_text()

    def end(self) -> None:
        for process in [*self.masters, *self.workers]:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def site(tmp_path: Path, rabbitmq: RabbitMQ, request: pytest.FixtureRequest) -> Iterator[Site]:
    session = f"handover-{zlib.crc32(request.node.name.encode()):08x}"
    site = Site(tmp_path, rabbitmq.url, session=session)
    yield site
    site.end()


def test_workers_are_taken_over_by_the_next_master(site: Site) -> None:
    make_case(site.folder / "case", seconds=0.5)
    rows = write_sweep(site.folder / "case", runs=RUNS)
    workers = [site.start_worker(), site.start_worker()]
    first = site.start_master("--keep-workers")
    wait_for(lambda: site.count_journaled() >= 5, what="5 runs")
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 12, site.output
    assert site.open().folder.read_state()["state"] == "running"
    assert [event["event"] for event in site.open().events()][-1] == "note"
    journaled = site.count_journaled()
    assert journaled < RUNS - 5
    # The workers go on, with nobody there to hear of it.
    made = site.count_made()
    wait_for(lambda: site.count_made() >= made + 4, what="runs that are made meanwhile")

    second = site.start_master("--keep-workers")
    assert second.wait(240) == 0, site.output
    assert [worker.wait(120) for worker in workers] == [0, 0]
    session = site.open()
    assert session.status()["state"] == "finished"
    check_every_run_once(session, rows)
    # Of what was under way, only what both masters had begun at the same time was made twice.
    assert RUNS <= site.count_made() <= RUNS + 2


def test_a_stop_ends_the_session_though_workers_are_kept(site: Site) -> None:
    make_case(site.folder / "case", seconds=0.3)
    write_sweep(site.folder / "case", runs=RUNS)
    worker = site.start_worker()
    master = site.start_master("--keep-workers")
    wait_for(lambda: site.count_journaled() >= 2, what="2 runs")
    site.open().folder.request_stop()
    assert master.wait(120) == 130, site.output
    assert worker.wait(120) == 0
    assert site.open().folder.read_state()["state"] == "stopped"
    # It is over for this launch, however often it is started; another launch goes on with it.
    again = site.start_master("--keep-workers")
    assert again.wait(120) == 130
    assert "has ended already" in site.output


def test_a_worker_of_another_run_config_does_not_go_on(site: Site) -> None:
    make_case(site.folder / "case", seconds=0.3)
    write_sweep(site.folder / "case", runs=RUNS)
    worker = site.start_worker()
    first = site.start_master("--keep-workers")
    wait_for(lambda: site.count_journaled() >= 2, what="2 runs")
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 12
    spec = site.folder / "pestfleet-sessions" / site.session / "session.json"
    spec.write_text(spec.read_text().replace('"threads": 1', '"threads": 2'))
    site.start_master("--keep-workers")
    assert worker.wait(120) == 11
    fresh = site.start_worker()
    done = site.count_journaled()
    wait_for(lambda: site.count_journaled() > done, what="a run of the new worker")
    assert fresh.poll() is None
