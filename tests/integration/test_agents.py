"""Agents in a worker's slots: started, kept alive, and ended with all that they started."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pestfleet.relay import Relay
from pestfleet_worker.agents import AgentSupervisor, Backoff, find_agent
from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.messages import AgentSpec, CaseSpec, FilePair, Limits
from pestfleet_worker.processes import SLOT_MARK, WORKER_MARK, find_marked

TOKEN = "a-token-of-this-session-1234"
MARK = "test-session/w-1/0123"
PATIENCE = 60.0
CASE = CaseSpec("c", "", ("p",), ("o",), (), (FilePair("o.ins", "out.dat"),), ("./model",))
QUICK = Backoff(first=0.05, longest=0.2, healthy=60.0)

# Connects, says which it is, and starts a "model" in a process group of its own.
AGENT = """#!/bin/sh
echo "agent $* threads $OMP_NUM_THREADS broker '$PESTFLEET_BROKER'"
exec {python} - "$@" <<'END'
import os, socket, subprocess, sys
connection = socket.create_connection((sys.argv[2], int(sys.argv[3])))
subprocess.Popen(["sleep", "1000"], start_new_session=True)
subprocess.Popen(["sleep", "1001"])
connection.sendall(f"{{os.getpid()}} {{os.getcwd()}}\\n".encode())
connection.recv(1)
sys.exit(3)
END
"""


def wait_until(condition: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def lives(process: int) -> bool:
    """Does it run? One that has ended but is not reaped does not."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Master:
    """An engine's master that agents connect to, with the relay before it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.agents: list[tuple[int, Path, socket.socket]] = []
        self.reports: list[tuple[str, str]] = []
        self.relay = Relay(
            self._connect, token=TOKEN, on_report=lambda *report: self.reports.append(report)
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._listener.getsockname())

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection.makefile() as lines:
                process, folder = lines.readline().split()
            self.agents.append((int(process), Path(folder), connection))

    def close(self) -> None:
        self.relay.close()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for _, _, connection in self.agents:
            connection.close()


@pytest.fixture
def master() -> Iterator[Master]:
    with closing(Master()) as master:
        master.relay.start()
        yield master


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "case"
    (folder / "sub").mkdir(parents=True)
    (folder / "c.pst").write_text("pcf\n")
    (folder / "out.dat").write_text("a stale result")
    (folder / "sub" / "grid.dat").write_bytes(bytes(1 << 21))
    agent = folder / "agent"
    agent.write_text(AGENT.format(python=sys.executable))
    agent.chmod(0o755)
    return folder


def make_spec(master: Master, *words: str) -> AgentSpec:
    command = words or ("agent", "c.pst", "{host}", "{port}")
    return AgentSpec(command, "127.0.0.1", master.relay.port, TOKEN)


def make_supervisor(
    spec: AgentSpec, source: Path, *, slots: int = 1, backoff: Backoff = QUICK
) -> AgentSupervisor:
    return AgentSupervisor(
        spec,
        CASE,
        source=source,
        directories=[source.parent / f"slot-{number}" for number in range(slots)],
        worker_id=MARK,
        limits=Limits(threads=3),
        backoff=backoff,
    )


@contextmanager
def supervised(supervisor: AgentSupervisor) -> Iterator[AgentSupervisor]:
    try:
        supervisor.start()
        yield supervisor
    finally:
        supervisor.stop()


def test_each_slot_has_an_agent_in_a_copy_of_the_case(
    master: Master, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PESTFLEET_BROKER", "amqp://user:secret@host")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with supervised(make_supervisor(make_spec(master), source, slots=2)) as supervisor:
        wait_until(lambda: len(master.agents) == 2)
        folders = {folder for _, folder, _ in master.agents}
        assert folders == {source.parent / "slot-0", source.parent / "slot-1"}
        for folder in folders:
            assert (folder / "c.pst").read_text() == "pcf\n"
            assert not (folder / "out.dat").exists()
            # A model may write in place: no two slots share a file.
            assert (folder / "sub" / "grid.dat").stat().st_nlink == 1
            log = Path(f"{folder}.log").read_text()
            assert "agent c.pst 127.0.0.1" in log
            assert "threads 3 broker ''" in log
        assert supervisor.connections == 2
        assert master.relay.workers == {"w-1": 2}
        states = supervisor.states()
        assert [state.run for state in states] == [1, 1]
        assert all(0 < state.seconds < PATIENCE for state in states)
        assert [state.state for state in supervisor.agents()] == ["running"] * 2
        assert len(find_marked(WORKER_MARK, MARK)) >= 6
    assert find_marked(WORKER_MARK, MARK) == []
    supervisor.remove()
    assert sorted(path.name for path in source.parent.iterdir()) == ["case"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_agent_takes_its_model_along_and_comes_back(
    master: Master, source: Path, number: int
) -> None:
    with supervised(make_supervisor(make_spec(master), source)) as supervisor:
        wait_until(lambda: len(master.agents) == 1)
        process, folder, _ = master.agents[0]
        models = [p.pid for p in psutil.Process(process).children(recursive=True)]
        assert len(models) == 2
        os.kill(process, number)
        wait_until(lambda: len(master.agents) == 2, "another agent")
        assert not any(lives(model) for model in models)
        assert master.agents[1][0] != process
        assert master.agents[1][1] == folder
        assert supervisor.starts == 2
        assert supervisor.agents()[0].trouble == f"was killed by signal {int(number)}"
        assert supervisor.states()[0].run == 2


def test_an_agent_that_ends_is_told_with_its_log(
    master: Master, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ("sh", "-c", "echo 'no licence for {host}'; exit 5")
    with supervised(make_supervisor(make_spec(master, *command), source)) as supervisor:
        wait_until(lambda: supervisor.starts >= 3)
        wait_until(lambda: "exit code 5" in caplog.text)
        assert "no licence for 127.0.0.1" in caplog.text
        assert "exit code 5" in supervisor.agents()[0].trouble
        wait_until(lambda: len(master.reports) >= 2)
        said = "agent 0 ended with exit code 5: no licence for 127.0.0.1"
        assert master.reports[0] == ("w-1", said)


def test_restarts_are_ever_further_apart(master: Master, source: Path) -> None:
    stamps = source.parent / "stamps"
    command = ("sh", "-c", f"date +%s.%N >> {stamps}")
    backoff = Backoff(first=0.1, longest=0.4, healthy=60.0)
    spec = make_spec(master, *command)
    with supervised(make_supervisor(spec, source, backoff=backoff)) as supervisor:
        wait_until(lambda: supervisor.starts >= 6)
    times = [float(line) for line in stamps.read_text().split()]
    gaps = [after - before for before, after in itertools.pairwise(times[:5])]
    for gap, least in zip(gaps, [0.1, 0.2, 0.4, 0.4], strict=True):
        assert gap >= least - 0.02


def test_an_agent_that_lived_long_comes_back_at_once(master: Master, source: Path) -> None:
    backoff = Backoff(first=0.01, longest=1000.0, healthy=0.0)  # every life is long enough
    spec = make_spec(master, "sh", "-c", "exit 1")
    with supervised(make_supervisor(spec, source, backoff=backoff)) as supervisor:
        wait_until(lambda: supervisor.starts >= 12)  # 0.01 * 2 ** 11 would be 20 s


def test_agents_wait_for_the_masters_end(source: Path) -> None:
    probe = socket.socket()  # it holds the port, and does not listen
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    spec = AgentSpec(("agent", "c.pst", "{host}", "{port}"), "127.0.0.1", port, TOKEN)
    with supervised(make_supervisor(spec, source)) as supervisor:
        wait_until(lambda: "cannot be reached" in supervisor.agents()[0].trouble)
        assert supervisor.starts == 0
        assert supervisor.states()[0].run is None
        with closing(Master()) as master:
            master.relay.port = port
            probe.close()
            master.relay.start()
            wait_until(lambda: len(master.agents) == 1)


def test_agents_wait_for_a_name_that_is_not_known_yet(
    master: Master, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = threading.Event()
    look_up = socket.getaddrinfo

    def getaddrinfo(host: str, *others: object, **more: object) -> object:
        if host == "localhost" and not known.is_set():
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *others, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    spec = replace(make_spec(master), relay_host="localhost")
    with supervised(make_supervisor(spec, source)) as supervisor:
        wait_until(lambda: "the name localhost is not known" in supervisor.agents()[0].trouble)
        assert supervisor.starts == 0
        known.set()
        wait_until(lambda: len(master.agents) == 1)


def test_a_missing_program_is_told_at_once(master: Master, source: Path) -> None:
    supervisor = make_supervisor(make_spec(master, "no-such-engine", "{port}"), source)
    with pytest.raises(ConfigurationError, match="no-such-engine is not on this worker") as told:
        supervisor.start()
    assert "PESTFLEET_ENGINES" in told.value.remedy
    supervisor.stop()
    with pytest.raises(ConfigurationError, match="names no agent"):
        make_supervisor(replace(make_spec(master), command=()), source)


def test_programs_are_looked_for_in_the_case_first(tmp_path: Path) -> None:
    def place(folder: str, name: str) -> Path:
        program = tmp_path / folder / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("")
        program.chmod(0o755)
        return program

    engines = place("engines", "ppest")
    path = f"{tmp_path / 'case'}:{tmp_path / 'engines'}"
    assert find_agent("ppest", directory=tmp_path / "case", path=path) == str(engines)
    own = place("case", "ppest")
    assert find_agent("ppest", directory=tmp_path / "case", path=path) == str(own)
    assert find_agent("./ppest", directory=tmp_path / "case", path="") == str(own)


def test_a_long_log_begins_anew(
    master: Master, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pestfleet_worker.agents.LOG_LIMIT", 100_000)
    monkeypatch.setattr("pestfleet_worker.agents._TRIM_INTERVAL", 0.05)
    spec = make_spec(master, "sh", "-c", "while :; do echo 0123456789012345678901234567; done")
    with supervised(make_supervisor(spec, source)) as supervisor:
        log = source.parent / "slot-0.log"
        wait_until(lambda: log.exists() and log.stat().st_size > 0)
        sizes = []

        def shrank() -> bool:
            sizes.append(log.stat().st_size)
            return len(sizes) > 1 and sizes[-1] < sizes[-2]

        wait_until(shrank, "the log never got shorter")
        assert supervisor.starts == 1


def test_all_ends_when_the_worker_is_killed(master: Master, source: Path, tmp_path: Path) -> None:
    script = f"""
import signal
from pathlib import Path
from pestfleet_worker.agents import AgentSupervisor
from pestfleet_worker.messages import AgentSpec, CaseSpec, Limits
from pestfleet_worker.processes import Guardian
Guardian.start({MARK!r})
spec = AgentSpec(("agent", "c.pst", "{{host}}", "{{port}}"), "127.0.0.1",
                 {master.relay.port}, {TOKEN!r})
case = CaseSpec("c", "", (), (), (), (), ())
AgentSupervisor(spec, case, source=Path({str(source)!r}), worker_id={MARK!r}, limits=Limits(),
                directories=[Path({str(tmp_path)!r}, "s")]).start()
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", script]) as worker:
        try:
            wait_until(lambda: len(master.agents) == 1)
            assert len(find_marked(SLOT_MARK, str(tmp_path / "s"))) >= 3
        finally:
            worker.kill()
    wait_until(lambda: not find_marked(WORKER_MARK, MARK))
    wait_until(lambda: master.relay.agents == 0)
