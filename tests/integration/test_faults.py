"""Harm to workers and brokers in the middle of a session: no run lost, none twice, same values."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path

import pytest

from cases import make_case, write_sweep
from hosting import Hosted, check_every_run_once, host_sweep, send_signal, wait_for
from rabbitmq import RabbitMQ

RUNS = 500
HARMS = 20
FREEZES = 3  # of the 20; each keeps a run for as long as the broker waits for a heartbeat


def test_random_kills_of_workers(tmp_path: Path, sessions: Path, broker_url: str) -> None:
    case = make_case(tmp_path / "case", seconds=0.03)
    rows = write_sweep(case.parent, runs=RUNS)
    hosted = host_sweep(case, sessions, broker_url=broker_url, workers=4)
    chance = random.Random(20)
    harms = [signal.SIGSTOP] * FREEZES + [signal.SIGKILL] * (HARMS - FREEZES)
    chance.shuffle(harms)
    frozen: set[int] = set()
    done = 0
    for number, harm in enumerate(harms, start=1):
        # Spread over the session: the next harm waits for its share of the runs.
        share = number * (RUNS - 150) // HARMS
        wait_for(lambda share=share: hosted.done() >= share, timeout=240, what=f"{share} runs")
        alive: list[int] = []
        wait_for(lambda alive=alive: alive.extend(_alive(hosted, frozen)) or alive, what="a worker")
        victim = chance.choice(alive)
        send_signal(victim, harm)
        frozen.add(victim)
        done = hosted.done()
    assert done < RUNS, "the session was over before the last harm"
    outcome = hosted.wait(240)
    assert outcome.error is None
    check_every_run_once(hosted.session, rows)
    assert len([e for e in hosted.events if e["event"] == "worker-joined"]) > 4


def _alive(hosted: Hosted, harmed: set[int]) -> list[int]:
    return [worker["process"] for worker in hosted.workers() if worker["process"] not in harmed]


@pytest.mark.parametrize("way", ["restarted", "killed"])
def test_rabbitmq_goes_away_for_a_while(
    tmp_path: Path, sessions: Path, rabbitmq: RabbitMQ, way: str
) -> None:
    case = make_case(tmp_path / "case", seconds=0.02)
    rows = write_sweep(case.parent, runs=300)
    hosted = host_sweep(case, sessions, broker_url=rabbitmq.url, workers=2)
    wait_for(lambda: hosted.done() > 50)
    if way == "restarted":
        rabbitmq.stop()
    else:
        rabbitmq.kill()
    rabbitmq.start()
    outcome = hosted.wait(240)
    assert outcome.error is None
    check_every_run_once(hosted.session, rows)


def test_connections_of_the_embedded_broker_are_cut(tmp_path: Path, sessions: Path) -> None:
    from pestfleet.broker import EmbeddedBroker

    broker = EmbeddedBroker()
    broker.start()
    try:
        case = make_case(tmp_path / "case", seconds=0.02)
        rows = write_sweep(case.parent, runs=300)
        hosted = host_sweep(case, sessions, broker_url=broker.url, workers=2)
        for done in (50, 120, 200):
            wait_for(lambda done=done: hosted.done() > done)
            broker.drop_connections()
        outcome = hosted.wait(240)
        assert outcome.error is None
        check_every_run_once(hosted.session, rows)
    finally:
        broker.stop()


def test_the_run_of_a_killed_worker_is_soon_under_way_again(
    tmp_path: Path, sessions: Path, broker_url: str
) -> None:
    case = make_case(tmp_path / "case", seconds=60)
    write_sweep(case.parent, runs=1)
    hosted = host_sweep(case, sessions, broker_url=broker_url, workers=2)

    def busy() -> list[int]:
        return [
            worker["process"]
            for worker in hosted.workers()
            if any(slot["run"] is not None for slot in worker["slots"])
        ]

    wait_for(lambda: busy() and len(hosted.workers()) == 2)
    victim = busy()[0]
    send_signal(victim, signal.SIGKILL)
    wait_for(lambda: [p for p in busy() if p != victim])  # its run would take longer
    hosted.master.interrupt()
    hosted.wait(120)


def test_a_run_that_kills_its_worker_fails_after_three_deliveries(
    tmp_path: Path, sessions: Path, broker_url: str
) -> None:
    model = """#!/bin/sh
read value < input.dat
case $value in *7.5*) kill -9 $(cut -d' ' -f4 /proc/$$/stat); sleep 60;; esac
awk '{ printf "%.17g\\n", $1 * $1 + NR }' input.dat > output.dat
"""
    case = make_case(tmp_path / "case", model=model)
    rows = write_sweep(case.parent, runs=20)
    poison = "run,p1,p2,p3\\n" + "".join(
        f"{n},{7.5 if n == 4 else row[0]},{row[1]},{row[2]}\\n" for n, row in enumerate(rows)
    )
    (case.parent / "sweep_in.csv").write_text(poison.replace("\\n", "\n"))
    hosted = host_sweep(case, sessions, broker_url=broker_url, workers=2)
    hosted.wait(240)
    runs = [event for event in hosted.session.events() if event["event"] == "run"]
    assert len(runs) == 20
    failures = [event["failure"] for event in runs if "failure" in event]
    assert [failure["reason"] for failure in failures] == ["killed-worker"]
    assert "was handed out 3 times and each time its worker died" in failures[0]["message"]


def test_a_results_consumer_that_is_away_loses_nothing(
    tmp_path: Path, sessions: Path, broker_url: str
) -> None:
    case = make_case(tmp_path / "case")
    rows = write_sweep(case.parent, runs=60)
    gate = threading.Event()
    hosted = host_sweep(case, sessions, broker_url=broker_url, workers=2)
    wait_for(lambda: hosted.master._ledger is not None)
    ledger = hosted.master._ledger
    assert ledger is not None
    take = ledger._take

    def take_slowly(*arguments: object) -> None:
        gate.wait(5)
        take(*arguments)  # type: ignore[arg-type]

    ledger._take = take_slowly  # type: ignore[method-assign]
    threading.Timer(3.0, gate.set).start()
    assert hosted.wait(240).error is None
    check_every_run_once(hosted.session, rows)
