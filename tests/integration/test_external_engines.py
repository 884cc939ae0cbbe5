"""External engines on a real fleet: PEST++ where it is, and stand-ins for BEOPEST and PEST_HP."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from cases import make_case, write_sweep
from hosting import Hosted, send_signal, wait_for
from pestfleet.session import Session, create_session
from pestfleet.testing.engine_pair import write_programs
from test_life import count_lines, processes_of, start_command

NOT_COMPARED = (".rec", ".rmr", ".log", ".rid", ".rns", ".rnj", ".rnu", ".rst", ".out")


def make_ies_case(folder: Path, *, seconds: float, iterations: int = 2) -> Path:
    """A case for pestpp-ies with 12 realizations, and for glm and swp as well."""
    case = make_case(folder, seconds=seconds)
    text = case.read_text().replace("\n10 0.005 4 4", f"\n{iterations} 0.005 4 4")
    text = text.replace("-1000.0 1000.0", "1.0 6.0")
    text += "++ies_num_reals(12)\n++ies_add_base(true)\n++sweep_parameter_csv_file(sweep_in.csv)\n"
    case.write_text(text)
    write_sweep(folder, runs=40)
    return case


def result_files(session: Session) -> dict[str, bytes]:
    """Name -> bytes of the engine's result files that hold no times and no paths."""
    return {
        path.name: path.read_bytes()
        for path in sorted(session.folder.results.iterdir())
        if path.is_file() and path.suffix not in NOT_COMPARED and path.suffix in RESULTS
    }


RESULTS = (".csv", ".par", ".rei", ".jcb", ".iobj", ".ipar", ".isen", ".jco")


def host(case: Path, root: Path, engine: str, *, cache: str = "none", **choices: object) -> Hosted:
    session = create_session(
        case,
        engine=engine,
        root=root,
        cache=cache,
        workers=2,
        **choices,  # type: ignore[arg-type]
    )
    return Hosted(session)


@pytest.mark.pestpp
@pytest.mark.parametrize("engine", ["pestpp-swp", "pestpp-ies", "pestpp-glm"])
def test_kill_of_the_master_and_resume(tmp_path: Path, sessions: Path, engine: str) -> None:
    """No finished run is made again, and the final files are those of an undisturbed session."""
    case = make_ies_case(tmp_path / "case", seconds=0.1)
    calm = host(case, sessions, engine)
    assert calm.wait(240).error is None

    counter = tmp_path / "counter"
    words = ("run", "case", "--engine", engine, "--workers", "2", "--session", "s", "--no-cache")
    master = start_command(*words, folder=tmp_path, counter=counter)
    wait_for(lambda: count_lines(counter) > 8)
    master.send_signal(signal.SIGKILL)
    master.communicate()
    wait_for(lambda: not processes_of(tmp_path), timeout=30, what="all processes gone")

    session = Session.open("s", root=tmp_path / "pestfleet-sessions")
    finished = {e["parameters"] for e in session.events() if e["event"] == "run"}
    made = count_lines(counter)
    again = start_command("resume", "s", folder=tmp_path, counter=counter)
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output.decode()
    runs = [event["parameters"] for event in session.events() if event["event"] == "run"]
    assert len(runs) == len(set(runs)), "a finished run was made again"
    assert count_lines(counter) - made == len(runs) - len(finished)
    assert result_files(session) == result_files(calm.session)


def _list_sound(hosted: Hosted, hurt: set[int]) -> list[int]:
    return [w["process"] for w in hosted.workers() if w["process"] not in hurt]


@pytest.mark.pestpp
def test_harm_to_workers_costs_no_realization(tmp_path: Path, sessions: Path) -> None:
    case = make_ies_case(tmp_path / "case", seconds=0.2)
    calm = host(case, sessions, "pestpp-ies")
    assert calm.wait(240).error is None
    harmed = host(case, sessions, "pestpp-ies")
    chance = random.Random(4)
    hurt: set[int] = set()
    for done, harm in ((3, signal.SIGKILL), (8, signal.SIGSTOP), (16, signal.SIGKILL)):
        wait_for(lambda done=done: harmed.done() >= done, timeout=240)
        alive: list[int] = []
        wait_for(lambda alive=alive: alive.extend(_list_sound(harmed, hurt)) or alive)
        victim = chance.choice(alive)
        hurt.add(victim)
        send_signal(victim, harm)
    outcome = harmed.wait(400)
    assert outcome.error is None
    assert result_files(harmed.session) == result_files(calm.session)


@pytest.mark.pestpp
def test_the_engine_s_own_agents_give_the_same(tmp_path: Path, sessions: Path) -> None:
    case = make_ies_case(tmp_path / "case", seconds=0.0)
    queue = host(case, sessions, "pestpp-swp")
    assert queue.wait(240).error is None
    agents = host(case, sessions, "pestpp-swp", mode="agent")
    assert agents.wait(240).error is None
    name = "sweep_out.csv"
    assert result_files(agents.session)[name] == result_files(queue.session)[name]


@pytest.mark.pestpp
def test_a_model_that_hangs_is_stopped_and_reported(tmp_path: Path, sessions: Path) -> None:
    model = """#!/bin/sh
read value < input.dat
case $value in 2.5*) echo waiting for nothing; sleep 1000;; esac
awk '{ printf "%.17g\\n", $1 * $1 + NR }' input.dat > output.dat
"""
    case = make_case(tmp_path / "case", model=model)
    write_sweep(case.parent, runs=20)
    hosted = host(case, sessions, "pestpp-swp", run_seconds=5.0)
    outcome = hosted.wait(240)
    assert outcome.error is not None and outcome.error.exit_code == 5
    runs = [e for e in hosted.session.events() if e["event"] == "run" and "failure" in e]
    assert {run["failure"]["reason"] for run in runs} == {"time-limit"}
    assert any("waiting for nothing" in run["failure"]["log"] for run in runs)


@pytest.mark.parametrize("engine", ["beopest", "pest_hp"])
def test_a_stand_in_with_its_own_agents(
    tmp_path: Path, sessions: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    programs = tmp_path / "programs"
    write_programs(programs)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    case = make_case(tmp_path / "case", seconds=0.05)
    write_sweep(case.parent, runs=40)
    hosted = host(case, sessions, engine)
    outcome = hosted.wait(240)
    assert outcome.error is None, outcome.error
    assert outcome.summary["files"]
    wait_for(lambda: not processes_of(sessions), timeout=60, what="all agents gone")


def test_the_cache_spares_runs_of_another_session(tmp_path: Path, sessions: Path) -> None:
    case = make_case(tmp_path / "case", seconds=0.01)
    write_sweep(case.parent, runs=30)
    first = host(case, sessions, "sweep", cache="")
    assert first.wait(240).error is None
    second = host(case, sessions, "sweep", cache="")
    assert second.wait(240).error is None
    assert [e for e in second.session.events() if e["event"] == "run"] == []
    assert result_files(first.session) == result_files(second.session)
    third = host(case, sessions, "sweep", cache="none")
    assert third.wait(240).error is None
    assert len([e for e in third.session.events() if e["event"] == "run"]) == 30


@pytest.mark.pestpp
def test_the_engine_s_port_is_shut(tmp_path: Path, sessions: Path) -> None:
    """Nothing of the host listens on the engine's port while it runs."""
    case = make_ies_case(tmp_path / "case", seconds=0.5)
    hosted = host(case, sessions, "pestpp-ies")
    wait_for(lambda: hosted.done() > 0, timeout=60)
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    assert "pestpp" not in listening
    hosted.master.interrupt()
    hosted.wait(120)


@pytest.mark.pestpp
def test_a_model_that_takes_longer_than_the_engine_likes(tmp_path: Path, sessions: Path) -> None:
    """A run of 70 s, which the engine's own limits would give up, ends well."""
    case = make_case(tmp_path / "case", seconds=70)
    write_sweep(case.parent, runs=2)
    outcome = host(case, sessions, "pestpp-swp").wait(150)
    assert outcome.error is None
