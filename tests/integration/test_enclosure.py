"""The engine's port: who reaches it, and what is left when one of the processes goes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pestfleet.engines import enclosure
from pestfleet.engines.enclosure import (
    EnclosedEngine,
    EnclosureRefused,
    Kind,
    helper,
    start_enclosed,
)
from pestfleet_worker.errors import PestfleetError

# Stands in for an engine: listens on all addresses, and answers with where it did.
_SERVER = """
import os, socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        connection.sendall(f"{server.getsockname()[0]} {os.getuid()}".encode())
"""
KINDS: tuple[Kind, ...] = ("namespace", "loopback")
Start = Callable[..., EnclosedEngine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an engine, by default the server, in a folder of its own."""
    started: list[EnclosedEngine] = []

    def start_one(kind: Kind, *words: str) -> EnclosedEngine:
        with (tmp_path / "log").open("ab") as log:
            engine = start_enclosed(
                lambda port: words or (sys.executable, "-I", "-S", "-c", _SERVER, str(port)),
                directory=tmp_path,
                log=log.fileno(),
                kinds=(kind,) if kind != "open" else (),
                allow_open=kind == "open",
            )
        started.append(engine)
        return engine

    yield start_one
    for engine in started:
        engine.stop()


def _ask(connection: socket.socket) -> str:
    with connection:
        return connection.recv(100).decode()


def _own_address() -> str | None:
    """An address of this machine that is not loopback; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # sends nothing
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return address


def _reaches(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 2).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kind", [*KINDS, "open"])
def test_we_reach_the_engine(start: Start, kind: Kind) -> None:
    engine = start(kind)
    assert engine.kind == kind
    assert engine.wait_until_listening(lambda: None)
    first, second = engine.connect(), engine.connect()
    assert _ask(second) == _ask(first)
    assert first.fileno() == -1


def test_nobody_else_reaches_it_in_a_namespace(start: Start) -> None:
    engine = start("namespace")
    assert engine.wait_until_listening(lambda: None)
    assert _ask(engine.connect()) == f"0.0.0.0 {os.getuid()}"
    assert not _reaches("127.0.0.1", engine.port)
    address = _own_address()
    assert address is None or not _reaches(address, engine.port)


def test_other_machines_do_not_reach_it_on_loopback(start: Start) -> None:
    engine, naked = start("loopback"), start("open")
    for one in (engine, naked):
        assert one.wait_until_listening(lambda: None)
    assert _ask(engine.connect()) == f"127.0.0.1 {os.getuid()}"
    address = _own_address()
    if address is not None:
        assert _reaches(address, naked.port)  # or this test would show nothing
        assert not _reaches(address, engine.port)


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("ip") is None, reason="makes an interface")
@pytest.mark.parametrize("kind", KINDS)
def test_another_machine_does_not_reach_it(start: Start, kind: Kind) -> None:
    """The other machine is a network namespace at the end of a wire."""
    name = f"pf{os.getpid()}"
    here, there = f"{name}a"[:15], f"{name}b"[:15]
    engine, naked = start(kind), start("open")
    for one in (engine, naked):
        assert one.wait_until_listening(lambda: None)
    try:
        for words in (
            f"netns add {name}",
            f"link add {here} type veth peer name {there} netns {name}",
            f"addr add 203.0.113.1/30 dev {here}",
            f"link set {here} up",
            f"-n {name} addr add 203.0.113.2/30 dev {there}",
            f"-n {name} link set {there} up",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        assert _reach_from(name, "203.0.113.1", naked.port)
        assert not _reach_from(name, "203.0.113.1", engine.port)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)
        subprocess.run(["ip", "link", "del", here], check=False, stderr=subprocess.DEVNULL)


def _reach_from(namespace: str, address: str, port: int) -> bool:
    code = f"import socket; socket.create_connection(({address!r}, {port}), 2)"
    words = ["ip", "netns", "exec", namespace, sys.executable, "-I", "-S", "-c", code]
    return subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_works_for_a_plain_user(kind: Kind) -> None:
    """A process of ours that has given up root; its Python must be one that nobody may run."""
    if os.getuid() != 0:
        return  # all other tests here are run by a plain user then
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")
    assert python is not None
    code = f"""
import os, sys, tempfile
from pathlib import Path
from pestfleet.engines.enclosure import start_enclosed
sys.executable = {python!r}
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with tempfile.TemporaryFile() as log:
    engine = start_enclosed(
        lambda port: [{python!r}, "-I", "-S", "-c", {_SERVER!r}, str(port)],
        directory=Path("/"), log=log.fileno(), kinds=[{kind!r}])
    print(engine.wait_until_listening(lambda: None), engine.connect().recv(100).decode())
    engine.stop()
"""
    with tempfile.TemporaryDirectory(prefix="pf-enclosure-") as copy:
        # The helper lies below our own folder, which nobody may read.
        folder = Path(copy)
        folder.chmod(0o755)
        shutil.copy(helper.__file__, folder / "helper.py")
        code = code.replace("sys.executable =", "from pestfleet.engines import enclosure\n"
                            f"enclosure._HELPER = Path({str(folder / 'helper.py')!r})\n"
                            "sys.executable =", 1)  # fmt: skip
        made = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/"
        )
    address = "0.0.0.0" if kind == "namespace" else "127.0.0.1"
    assert made.stdout == f"True {address} 65534\n", made.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_the_exit_code_is_the_engines(start: Start, kind: Kind) -> None:
    engine = start(kind, "/bin/sh", "-c", "exit 7")
    assert engine.wait(120) == 7
    assert engine.poll() == 7
    with pytest.raises(ConnectionAbortedError):
        engine.connect()
    assert not engine.wait_until_listening(lambda: None)
    engine.stop()
    assert start(kind, "/bin/sh", "-c", "kill -SEGV $$").wait(120) == -signal.SIGSEGV


def test_a_connection_is_refused_while_nothing_listens(start: Start) -> None:
    engine = start("namespace", "/bin/sleep", "60")
    with pytest.raises(ConnectionRefusedError):
        engine.connect()
    assert engine.poll() is None


def test_waiting_ends_when_the_user_stops(start: Start) -> None:
    engine = start("namespace", "/bin/sleep", "60")

    def stop() -> None:
        raise PestfleetError("stop")

    with pytest.raises(PestfleetError, match="stop"):
        engine.wait_until_listening(stop)


def test_an_engine_that_ignores_sigterm_ends_with_its_children(
    start: Start, tmp_path: Path
) -> None:
    script = "trap '' TERM; sleep 60 & echo $! > child; wait; wait; sleep 60"
    engine = start("namespace", "/bin/sh", "-c", script)
    child = _wait_for(lambda: _read_number(tmp_path / "child"))
    engine.stop()
    assert engine.poll() == -signal.SIGKILL
    assert _wait_for(lambda: not _is_alive(child))


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_dies_with_its_helper(start: Start, tmp_path: Path, kind: Kind) -> None:
    engine = start(kind, "/bin/sh", "-c", "echo $$ > number; exec sleep 60")
    number = _wait_for(lambda: _read_number(tmp_path / "number"))
    os.kill(engine.helper_pid, signal.SIGKILL)
    assert engine.wait(120) == -signal.SIGKILL
    assert _wait_for(lambda: not _is_alive(number))


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_dies_with_the_master(tmp_path: Path, kind: Kind) -> None:
    code = f"""
import os, sys
from pathlib import Path
from pestfleet.engines.enclosure import start_enclosed
engine = start_enclosed(lambda port: ["/bin/sh", "-c", "echo $$ > number; exec sleep 60"],
               directory=Path({str(tmp_path)!r}), log=2, kinds=[{kind!r}])
print("started", flush=True)
sys.stdin.read()
"""
    master = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with master:
        assert master.stdout is not None
        assert master.stdout.readline() == b"started\n"
        number = _wait_for(lambda: _read_number(tmp_path / "number"))
        assert _is_alive(number)
        master.kill()
    assert _wait_for(lambda: not _is_alive(number))


def test_a_program_that_is_not_there_is_said(start: Start) -> None:
    with pytest.raises(PestfleetError, match="/nowhere/pestpp-ies"):
        start("namespace", "/nowhere/pestpp-ies")
    with pytest.raises(PestfleetError, match="/nowhere/pestpp-ies"):
        start("loopback", "/nowhere/pestpp-ies")


def test_where_nothing_is_allowed_it_refuses_and_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(kind: str, *rest: object) -> str:
        asked.append(kind)
        return "no"

    monkeypatch.setattr(enclosure, "_start", refuse)
    with pytest.raises(EnclosureRefused) as caught:
        start_enclosed(lambda port: ["x"], directory=tmp_path, log=2)
    assert asked == ["namespace", "loopback"]
    assert "namespace: no; loopback: no" in caught.value.message
    assert "--i-know-the-port-is-open" in caught.value.remedy
    with pytest.raises(EnclosureRefused):
        start_enclosed(lambda port: ["x"], directory=tmp_path, log=2, allow_open=True)
    assert asked[2:] == ["namespace", "loopback", "open"]


def test_internet_addresses_become_loopback() -> None:
    import struct

    def pack(address: str, port: int = 4004) -> bytes:
        return struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + socket.inet_aton(
            address
        ) + bytes(8)  # fmt: skip

    assert helper.move_to_loopback(pack("0.0.0.0")) == pack("127.0.0.1")
    assert helper.move_to_loopback(pack("192.0.2.7")) == pack("127.0.0.1")
    any6 = struct.pack("=HHI", socket.AF_INET6, 0, 0) + bytes(16) + bytes(4)
    moved = helper.move_to_loopback(any6)
    assert socket.inet_ntop(socket.AF_INET6, moved[8:24]) == "::1"
    unix = struct.pack("=H", socket.AF_UNIX) + b"/tmp/socket"
    assert helper.move_to_loopback(unix) == unix
    assert helper.move_to_loopback(b"\x02") == b"\x02"


def _wait_for(look: Callable[[], int | bool | None], seconds: float = 10.0) -> int:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return int(found)


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
