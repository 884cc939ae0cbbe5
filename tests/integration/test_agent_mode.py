"""Agent mode from end to end, with the stand-ins for BEOPEST and PEST_HP.

A small fleet takes the desk's place: it hands the agent spec to workers that are there and to
those that come later.
"""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from cases import expected_observations, make_case, write_sweep
from hosting import send_signal
from pestfleet.case import Case
from pestfleet.engines import classic
from pestfleet.engines.base import Job, Runner
from pestfleet.files.parameters import read_par
from pestfleet.relay import FleetAgents
from pestfleet.testing.engine_pair import write_programs
from pestfleet_worker.agents import AgentSupervisor, Backoff
from pestfleet_worker.errors import ConfigurationError, Interrupted, RunsFailedError
from pestfleet_worker.forwarder import make_hello
from pestfleet_worker.messages import AgentSpec, Limits
from pestfleet_worker.processes import WORKER_MARK, find_marked, kill_marked

MARK = f"agent-mode-{os.getpid()}"
PATIENCE = 240.0
DEAD_AFTER = 4.0


def wait_until(condition: Callable[[], bool], what: str = "", patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


class Fleet:
    """Workers in this process, each with its supervisor, while there is a spec."""

    def __init__(self, case: Case, folder: Path, *, workers: int = 2, slots: int = 1) -> None:
        self._case, self._folder, self._slots = case, folder, slots
        self._lock = threading.Lock()
        self.spec: AgentSpec | None = None
        self.workers: dict[str, AgentSupervisor | None] = {}
        for number in range(workers):
            self.join(f"w-{number}")

    @property
    def slots(self) -> int:
        return self._slots * len(self.workers)

    def join(self, name: str) -> None:
        with self._lock:
            self.workers[name] = self._start(name) if self.spec is not None else None

    def configure(self, spec: AgentSpec | None) -> None:
        with self._lock:
            self.spec = spec
            for name, supervisor in self.workers.items():
                if supervisor is not None:
                    supervisor.stop()
                self.workers[name] = self._start(name) if spec is not None else None

    def _start(self, name: str) -> AgentSupervisor:
        assert self.spec is not None
        supervisor = AgentSupervisor(
            self.spec,
            self._case.spec,
            source=self._case.folder,
            directories=[self._folder / f"{name}-{number}" for number in range(self._slots)],
            worker_id=MARK,
            name=name,
            limits=Limits(),
            backoff=Backoff(first=0.1, longest=1.0),
        )
        supervisor.start()
        return supervisor


class Session(threading.Thread):
    """An engine's run in a thread, with the report that it gave."""

    def __init__(self, case: Case, folder: Path, engine: str, **choices: Any) -> None:
        super().__init__(daemon=True)
        sizes = {name: choices.pop(name) for name in ("workers", "slots") if name in choices}
        self.fleet = Fleet(case, folder / "slots", **sizes)
        self.stopped = False
        self.agents = FleetAgents(
            self.fleet.configure,
            lambda: self.fleet.slots,
            check_stop=self._check_stop,
            dead_after=DEAD_AFTER,
            **{name: choices.pop(name) for name in ("host", "advertised") if name in choices},
        )
        self.output = folder / "results"
        self.output.mkdir()
        self.iterations: dict[int, float] = {}
        self.notes: list[str] = []
        self.job = Job(
            case.control, cast(Runner, None), self, self.output,
            engine=engine, agents=self.agents, **choices,
        )  # fmt: skip
        self.summary: dict[str, Any] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.summary = classic.run(self.job)
        except Exception as error:
            self.error = error

    def finish(self) -> dict[str, Any]:
        self.join(PATIENCE)
        assert not self.is_alive(), "not over in time"
        if self.error is not None:
            raise self.error
        return self.summary

    def _check_stop(self) -> None:
        if self.stopped:
            raise Interrupted("stopped")

    def read(self, name: str) -> str:
        path = self.output / "master" / name
        return path.read_text() if path.exists() else ""

    def iteration(self, number: int, *, phi: float, **detail: float | int | str) -> None:
        self.iterations[number] = phi

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def _programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    write_programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    yield
    left = find_marked(WORKER_MARK, MARK)
    kill_marked(WORKER_MARK, MARK)
    assert left == [], "processes were left behind"


def make(folder: Path, *, seconds: float = 0.0, model: str = "", gate: Path | None = None) -> Case:
    return Case.read(make_case(folder / "case", seconds=seconds, model=model, gate=gate))


def check_answer(session: Session) -> None:
    """The case of `make_case` has an exact answer: p_i ** 2 + i = 10 + i."""
    summary = session.finish()
    assert summary["exit_code"] == 0
    assert summary["phi"] < 1e-6
    assert summary["iterations"] == max(session.iterations) >= 3
    assert session.iterations[0] == pytest.approx(3 * 36.0)
    assert session.iterations[summary["iterations"]] == summary["phi"]
    values = read_par(session.output / "small.par").values
    assert [value.value for value in values] == pytest.approx([10**0.5] * 3, rel=1e-6)
    assert {"small.par", "small.rec", "small.rei", "small.rmr"} <= set(summary["files"])
    assert "small.pst" not in summary["files"]


@pytest.mark.parametrize("engine", ["beopest", "pest_hp"])
def test_the_engine_finds_the_answer_with_agents_in_all_slots(tmp_path: Path, engine: str) -> None:
    case = make(tmp_path)
    (case.folder / "small.rec").write_text("OPTIMISATION ITERATION NO.: 99\nStarting phi: 1\n")
    session = Session(case, tmp_path, engine, workers=2, slots=2)
    session.start()
    check_answer(session)
    folders = set(re.findall(r'working directory "([^"]+)" is there', session.read("small.rmr")))
    assert {Path(folder).parent for folder in folders} == {tmp_path / "slots"}
    assert "cannot be read" not in session.read("small.rmr")
    assert session.agents.connected == 0
    assert session.fleet.spec is None
    assert "stand-in for BEOPEST" in (session.output / "master.out").read_text()


def read_command_line(process: int) -> bytes:
    """Nothing of a process that has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def test_agents_that_are_killed_and_workers_that_come_late_change_nothing(tmp_path: Path) -> None:
    session = Session(make(tmp_path, seconds=0.5), tmp_path, "beopest", workers=1)
    session.start()
    wait_until(lambda: "completed" in session.read("small.rmr"))
    session.fleet.join("late")
    wait_until(lambda: str(tmp_path / "slots" / "late-0") in session.read("small.rmr"))
    killed: set[int] = set()
    for count in range(1, 4):
        done = session.read("small.rmr").count("completed")
        agents = [
            process
            for process in find_marked(WORKER_MARK, MARK)
            if b"engine_pair" in read_command_line(process)
        ]
        assert agents or not session.is_alive()
        if agents:
            send_signal(agents[count % len(agents)], signal.SIGKILL)
            killed.add(agents[count % len(agents)])
        wait_until(
            lambda done=done: (
                session.read("small.rmr").count("completed") > done or not session.is_alive()
            )
        )
    check_answer(session)
    assert killed
    assert "is sent again" in session.read("small.rmr")
    folders = re.findall(r'working directory "([^"]+)"', session.read("small.rmr"))
    assert str(tmp_path / "slots" / "late-0") in folders


def test_ten_thousand_random_frames_do_nothing(tmp_path: Path) -> None:
    gate = tmp_path / "gate"  # it goes on until all frames were sent
    session = Session(make(tmp_path, gate=gate), tmp_path, "beopest", workers=1)
    session.start()
    wait_until(lambda: session.agents.connected == 1)
    assert session.fleet.spec is not None
    port = session.fleet.spec.relay_port
    generator = random.Random(20)
    hello = make_hello("agent", "w", "no-token-that-anybody-knows")
    for number in range(10_000):
        frame = generator.randbytes(generator.randrange(1, 200))
        if number % 3 == 0:  # near the truth
            cut = generator.randrange(len(hello))
            frame = hello[:cut] + frame + hello[cut:]
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stranger.sendall(frame)
    assert session.agents.workers == {"w-0": 1}
    gate.touch()
    check_answer(session)
    record = session.read("small.rmr")
    assert "cannot be read" not in record
    assert record.count("is there") == 1  # one agent, and nobody else
    # An agent may end before the engine has said that all is done: that is told, too.
    last_words = [note.rpartition(" ")[2] for note in session.notes]
    counts = [int(word) for word in last_words if word.isdigit()]
    assert counts[0] == max(counts) == 1  # the only one may have been seen to leave at the end


def test_a_stop_leaves_nothing_running(tmp_path: Path) -> None:
    session = Session(make(tmp_path, seconds=20.0), tmp_path, "beopest", workers=2)
    session.start()
    wait_until(lambda: "commences" in session.read("small.rmr"))
    session.stopped = True
    with pytest.raises(Interrupted):
        session.finish()
    assert find_marked(WORKER_MARK, MARK) == []
    assert session.fleet.spec is None
    assert (session.output / "small.rmr").is_file()  # what it has written is kept


def test_agents_that_fail_are_shown_to_the_user(tmp_path: Path) -> None:
    case = make(tmp_path)
    # The program is looked for in the slot first: a copy of the case.
    broken = case.folder / "beopest"
    broken.write_text("#!/bin/sh\necho licence expired; exit 9\n")
    broken.chmod(0o755)
    session = Session(case, tmp_path, "beopest", workers=2)
    session.start()
    wait_until(lambda: any("licence" in note for note in session.notes))
    session.stopped = True
    with pytest.raises(Interrupted):
        session.finish()
    (said,) = [note for note in session.notes if "licence" in note]
    assert re.match(r"w-\d: agent 0 ended with exit code 9: licence expired; its log", said)


def write_master(folder: Path, script: str) -> None:
    program = folder / "bin" / "beopest"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'no case here'; exit 7", r"ended with exit code 7\n  \| no case here"),
        ("echo ' Error condition prevents continued execution:'", "and an error condition"),
        ("kill -9 $$", "killed by signal 9"),
    ],
)
def test_a_master_that_fails_is_told_with_its_last_words(
    tmp_path: Path, script: str, said: str
) -> None:
    write_master(tmp_path, script)
    session = Session(make(tmp_path), tmp_path, "beopest")
    session.start()
    with pytest.raises(RunsFailedError, match=said):
        session.finish()
    assert session.fleet.spec is None


@pytest.mark.parametrize(
    ("script", "missing"),
    [("exit 0", "small.rec"), ("echo 'PEST RUN RECORD' > small.rec", "small.par")],
)
def test_a_master_that_says_well_but_left_nothing_is_incomplete(
    tmp_path: Path, script: str, missing: str
) -> None:
    write_master(tmp_path, script)
    session = Session(make(tmp_path), tmp_path, "beopest")
    session.start()
    assert session.finish()["incomplete"].endswith(f"wrote no {missing}")


def test_a_missing_program_and_a_missing_mode_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make(tmp_path)
    session = Session(case, tmp_path, "pest_hp")
    monkeypatch.setenv("PATH", "/nowhere")
    session.start()
    with pytest.raises(ConfigurationError, match="no program pest_hp or pest_hp_mkl") as told:
        session.finish()
    assert "PESTFLEET_ENGINES" in told.value.remedy
    job = Job(case.control, cast(Runner, None), session, session.output, engine="beopest")
    with pytest.raises(ConfigurationError, match="agent mode only"):
        classic.run(job)


def test_arguments_go_to_the_master(tmp_path: Path) -> None:
    write_master(tmp_path, 'echo "$@" > small.rec; cp small.rec small.par; cat small.jco || true')
    session = Session(make(tmp_path), tmp_path, "beopest", arguments=("/i", "/p1"))
    # What an earlier run left is there for a restart.
    (session.output / "master").mkdir()
    (session.output / "master" / "small.jco").write_text("kept")
    session.start()
    session.finish()
    assert re.fullmatch(r"small\.pst /H :\d+ /i /p1\n", (session.output / "small.rec").read_text())
    assert "kept" in (session.output / "master.out").read_text()


@pytest.mark.pestpp
def test_agents_of_real_pestpp_work_through_the_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swp = classic.Program(
        masters=("pestpp-swp",),
        master_words=("{case}", "/h", ":{port}"),
        agents=("pestpp-swp",),
        agent_words=("{case}", "/h", "{host}:{port}"),
        extension=".pst",
        install="",
    )
    monkeypatch.setitem(classic.PROGRAMS, "pestpp-swp", swp)
    case = make(tmp_path)
    with case.control.path.open("a") as file:
        file.write("++panther_poll_interval(0)\n")
    rows = write_sweep(case.folder, runs=6)
    session = Session(case, tmp_path, "pestpp-swp", workers=2)
    session.start()
    assert session.finish()["exit_code"] == 0
    made = list(csv.DictReader((session.output / "master" / "sweep_out.csv").open()))
    assert len(made) == len(rows)
    for row, parameters in zip(made, rows, strict=True):
        observations = [float(row[f"o{number}"]) for number in (1, 2, 3)]
        assert observations == pytest.approx(expected_observations(parameters), rel=1e-9)


# -- over a network ---------------------------------------------------------------------------


class Network:
    """Another machine: a network namespace that a cable ties to ours. Needs root."""

    def __init__(self, number: int) -> None:
        self.name = f"pf-{os.getpid()}-{number}"
        self.host, self.there = f"10.213.{number}.1", f"10.213.{number}.2"
        self.cable = f"pf{os.getpid() % 100000}-{number}"
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "cable", "netns", self.name)
        ip("addr", "add", f"{self.host}/30", "dev", self.cable)
        ip("link", "set", self.cable, "up")
        ip("-n", self.name, "addr", "add", f"{self.there}/30", "dev", "cable")
        ip("-n", self.name, "link", "set", "cable", "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    def start(self, script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, WORKER_MARK: MARK, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def ask(self, script: str) -> str:
        with self.start(script) as process:
            out, _ = process.communicate(timeout=PATIENCE)
        return out.strip()

    def cut(self) -> None:
        """Nothing comes through any more, and nobody is told."""
        ip("link", "set", self.cable, "down")

    def remove(self) -> None:
        ip("netns", "del", self.name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def network(number: int) -> Iterator[Network]:
    made = Network(number)
    try:
        yield made
    finally:
        made.remove()


WORKER = """
import signal, sys
from pathlib import Path
from pestfleet.case import Case
from pestfleet_worker.agents import AgentSupervisor
from pestfleet_worker.forwarder import make_hello
from pestfleet_worker.messages import AgentSpec, Limits
case = Case.read(Path({case!r}))
AgentSupervisor({spec!r}, case.spec, source=case.folder, directories=[Path({slot!r})],
                worker_id={mark!r}, name="far", limits=Limits()).start()
signal.pause()
"""


def test_a_cut_cable_is_noticed_and_its_run_made_elsewhere(tmp_path: Path) -> None:
    case = make(tmp_path, seconds=0.5)
    with network(1) as far:
        session = Session(case, tmp_path, "beopest", workers=0, host=far.host)
        session.start()
        wait_until(lambda: session.fleet.spec is not None)
        assert session.fleet.spec is not None and session.fleet.spec.certificate
        script = WORKER.format(
            case=str(case.control.path), spec=session.fleet.spec,
            slot=str(tmp_path / "far"), mark=MARK,
        )  # fmt: skip
        with far.start(script) as worker:
            try:
                wait_until(lambda: session.read("small.rmr").count("commences") >= 2)
                assert session.agents.workers == {"far": 1}
                far.cut()
                wait_until(lambda: session.agents.connected == 0, "the cut")
                session.fleet.join("near")
                check_answer(session)
            finally:
                worker.kill()
                kill_marked(WORKER_MARK, MARK)
    assert "is sent again" in session.read("small.rmr")


DIAL = """
import socket
connection = socket.create_connection(({host!r}, {port}), 3)
connection.settimeout(10)
try:
    connection.sendall({first!r})
    print(connection.recv(100))
except ConnectionError:
    print(b"")
"""
REACH = """
import socket
for host in ({host!r}, "127.0.0.1"):
    try:
        socket.create_connection((host, {port}), 3).close()
    except OSError as error:
        print(type(error).__name__)
    else:
        print("reached")
"""


def test_a_stranger_from_another_machine_gets_nowhere(tmp_path: Path) -> None:
    with network(2) as far:
        session = Session(
            make(tmp_path, seconds=0.2), tmp_path, "beopest", workers=1,
            host="127.0.0.1", advertised="127.0.0.1",
        )  # fmt: skip
        other = Session(
            make(tmp_path / "other"), tmp_path / "other", "beopest", workers=0, host=far.host
        )
        session.start()
        other.start()
        wait_until(lambda: session.agents.connected == 1)
        wait_until(lambda: other.fleet.spec is not None)
        assert session.fleet.spec is not None and other.fleet.spec is not None
        # The engine's own port, and the relay of a fleet that is all on one machine.
        (engine_port,) = re.findall(r"/H :(\d+)", read_command_lines("small.pst", tmp_path))
        for port in (int(engine_port), session.fleet.spec.relay_port):
            assert "reached" not in far.ask(REACH.format(host=far.host, port=port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((far.host, int(engine_port)), 3)
        # The relay of a fleet on many machines.
        for first in (b"GET / HTTP/1.0\r\n\r\n", other.fleet.spec.token.encode() + b"\n"):
            spec = other.fleet.spec
            said = far.ask(DIAL.format(host=far.host, port=spec.relay_port, first=first))
            assert "ok" not in said
        assert other.agents.connected == 0
        other.stopped = True
        with pytest.raises(Interrupted):
            other.finish()
        assert "cannot be read" not in other.read("small.rmr")
        check_answer(session)


def read_command_lines(case: str, below: Path) -> str:
    """The command line of the master that works on this case below a folder, not below others."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            folder = (entry / "cwd").readlink()
        except OSError:
            continue
        if folder == below / "results" / "master" and case in words and "enclosure" not in words[3]:
            found.append(" ".join(words))
    return found[0]
