"""The relay lets in who knows the token, and nobody and nothing else."""

from __future__ import annotations

import queue
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pestfleet.relay import Certificate, FleetAgents, Relay, make_certificate
from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.forwarder import Forwarder, is_loopback, is_own_peer, make_hello
from pestfleet_worker.messages import AgentSpec

TOKEN = "a-token-of-this-session-1234"
PATIENCE = 60.0


class Engine:
    """Takes connections as an engine's master does, and keeps what they send."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections: queue.Queue[socket.socket] = queue.Queue()
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            self.connections.put(connection)
            self.accepted += 1

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    def take(self) -> socket.socket:
        return self.connections.get(timeout=PATIENCE)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)
        while not self.connections.empty():
            self.connections.get().close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with closing(Engine()) as engine:
        yield engine


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return make_certificate()


@contextmanager
def relay_before(engine: Engine, **choices: Any) -> Iterator[Relay]:
    with closing(Relay(engine.connect, token=TOKEN, **choices)) as relay:
        relay.start()
        yield relay


@contextmanager
def forwarder_to(relay: Relay, **fields: Any) -> Iterator[Forwarder]:
    fields = {"token": TOKEN, **fields}
    spec = AgentSpec(("agent",), relay_host="127.0.0.1", relay_port=relay.port, **fields)
    with closing(Forwarder(spec, worker="worker 1/ä")) as forwarder:
        forwarder.start()
        yield forwarder


def dial(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(PATIENCE)
    return connection


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            break
        data += piece
    return data


def is_refused(connection: socket.socket) -> bool:
    """Did the other end close without a word?"""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("tls", [False, True], ids=["loopback", "tls"])
def test_bytes_pass_both_ways_unchanged(
    engine: Engine, certificate: Certificate, tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data = random.Random(1).randbytes(3_000_000)
    pem = certificate.pem if tls else ""
    with (
        relay_before(engine, certificate=certificate if tls else None) as relay,
        forwarder_to(relay, certificate=pem) as forwarder,
        dial(forwarder.port) as agent,
        engine.take() as master,
    ):
        for sender, receiver in ((agent, master), (master, agent)):
            thread = threading.Thread(target=sender.sendall, args=(data,))
            thread.start()
            assert receive(receiver, len(data)) == data
            thread.join()
        assert relay.agents == 1
        assert relay.workers == {"worker 1/ä": 1}
        assert forwarder.connections == 1
        # The end of one side is the end of the other, after all that was sent.
        agent.sendall(b"the last words")
        agent.close()
        assert receive(master, 100) == b"the last words"
        wait_until(lambda: relay.agents == 0)
    assert caplog.records == []  # no task of the loop ended by an error either


def test_a_side_that_breaks_off_resets_the_other(engine: Engine) -> None:
    with (
        relay_before(engine) as relay,
        forwarder_to(relay) as forwarder,
        dial(forwarder.port) as agent,
        engine.take() as master,
    ):
        agent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        agent.close()
        with pytest.raises(ConnectionResetError):
            receive(master, 1)


def test_a_slow_master_slows_its_agent_down(engine: Engine) -> None:
    with (
        relay_before(engine) as relay,
        forwarder_to(relay) as forwarder,
        dial(forwarder.port) as agent,
        engine.take(),
    ):
        agent.settimeout(1.0)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 1 << 28:
                sent += agent.send(bytes(1 << 16))
        # Buffers of five sockets, and not the rest of 256 MB.
        assert sent < 1 << 26


@pytest.mark.parametrize(
    "first",
    [
        make_hello("agent", "w", "another-token-of-somebody-else"),
        make_hello("agent", "w", TOKEN[:-1]),
        make_hello("agent", "w", TOKEN + "x"),
        make_hello("agent", "w", ""),
        make_hello("steal", "w", TOKEN),
        b"pestfleet-relay 2 agent w " + TOKEN.encode() + b"\n",
        b"pestfleet-relay 1 agent " + TOKEN.encode() + b"\n",
        b"pestfleet-relay 1 agent w\xff " + TOKEN.encode() + b"\n",
        b"pestfleet-relay 1 agent " + 10_000 * b"w" + b" " + TOKEN.encode() + b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        bytes((1, 3, 5, 7, 9)) + bytes(2000) + b"\n",
        b"\n",
        200_000 * b"x",
    ],
)  # fmt: skip
def test_a_stranger_is_refused_without_a_word(engine: Engine, first: bytes) -> None:
    with relay_before(engine) as relay, dial(relay.port) as stranger:
        with suppress(ConnectionError):
            stranger.sendall(first + b"and more for the master\n")
        assert is_refused(stranger)
        wait_until(lambda: relay.refused == 1)
        assert engine.accepted == 0


def test_random_frames_do_nothing(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    generator = random.Random(20)
    hello = make_hello("agent", "w", "no-token-that-anybody-knows")
    with relay_before(engine) as relay:
        for number in range(1_000):
            frame = generator.randbytes(generator.randrange(1, 200))
            if number % 3 == 0:  # near the truth
                cut = generator.randrange(len(hello))
                frame = hello[:cut] + frame + hello[cut:]
            with dial(relay.port) as stranger:
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                stranger.sendall(frame)
        wait_until(lambda: relay.refused == 1_000)
        assert engine.accepted == 0
        assert len(caplog.records) < 20  # a flood must not fill the log
        with forwarder_to(relay) as forwarder, dial(forwarder.port) as agent, engine.take() as end:
            agent.sendall(b"still there")
            assert receive(end, 11) == b"still there"


def test_who_says_nothing_is_sent_away(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pestfleet.relay.server.HELLO_TIMEOUT", 2.0)
    with relay_before(engine) as relay, dial(relay.port) as silent:
        silent.sendall(b"pestfleet-relay 1 agent")
        assert is_refused(silent)
        assert relay.refused == 1


def test_silent_strangers_do_not_keep_agents_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pestfleet.relay.server.STRANGERS", 4)
    monkeypatch.setattr("pestfleet.relay.server.HELLO_TIMEOUT", 2.0)
    with relay_before(engine) as relay, ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(dial(relay.port))
        forwarder = stack.enter_context(forwarder_to(relay))
        assert forwarder.probe() == ""
        assert relay.refused >= 7  # all but the last few had their time


def test_a_whole_fleet_may_come_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pestfleet.relay.server.STRANGERS", 4)
    with relay_before(engine) as relay, forwarder_to(relay) as forwarder, ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(dial(forwarder.port))
        wait_until(lambda: engine.accepted == 60)
        wait_until(lambda: forwarder.connections == 60)
        assert (relay.agents, relay.refused) == (60, 0)


def test_there_is_a_limit_to_agents(engine: Engine) -> None:
    with (
        relay_before(engine, most=2) as relay,
        forwarder_to(relay) as forwarder,
        dial(forwarder.port) as first,
        dial(forwarder.port),
    ):
        wait_until(lambda: engine.accepted == 2)
        with dial(forwarder.port) as third:
            assert is_refused(third)
        assert "all agents that it takes" in forwarder.probe()
        first.close()
        wait_until(lambda: forwarder.probe() == "")
        assert engine.accepted == 2  # a probe is no agent


def test_a_lost_workers_agents_are_reset(engine: Engine) -> None:
    with (
        relay_before(engine) as relay,
        forwarder_to(relay) as forwarder,
        dial(forwarder.port),
        engine.take() as master,
    ):
        wait_until(lambda: forwarder.connections == 1)
        relay.drop("somebody else")
        relay.drop("worker 1/ä")
        with pytest.raises(ConnectionResetError):
            receive(master, 1)
        wait_until(lambda: relay.agents == 0)


def test_an_engine_that_is_not_there_yet_is_waited_for(engine: Engine) -> None:
    tries: list[float] = []

    def connect() -> socket.socket:
        tries.append(time.monotonic())
        if len(tries) < 4:
            raise ConnectionRefusedError("not yet")
        return engine.connect()

    with closing(Relay(connect, token=TOKEN)) as relay:
        relay.start()
        with forwarder_to(relay) as forwarder, dial(forwarder.port) as agent, engine.take() as end:
            agent.sendall(b"hello")
            assert receive(end, 5) == b"hello"
    assert len(tries) == 4


def test_an_engine_that_never_comes_ends_the_agents_connection(engine: Engine) -> None:
    def connect() -> socket.socket:
        raise ConnectionRefusedError("no")

    with closing(Relay(connect, token=TOKEN, patience=0.3)) as relay:
        relay.start()
        with forwarder_to(relay) as forwarder, dial(forwarder.port) as agent:
            assert is_refused(agent)
        wait_until(lambda: relay.agents == 0)


@pytest.mark.parametrize("answer", [b"", b"OK\n", b"ok", b"okay\n", 100_000 * b"x", b"\n"])
def test_an_answer_of_another_kind_never_reaches_the_agent(answer: bytes) -> None:
    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):
                connection.recv(4096)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        spec = AgentSpec(("agent",), "127.0.0.1", listener.getsockname()[1], TOKEN)
        with closing(Forwarder(spec, worker="w")) as forwarder:
            forwarder.start()
            assert "cannot be reached" in forwarder.probe()
            with dial(forwarder.port) as agent:
                assert is_refused(agent)
        thread.join()


def test_reports_of_workers_are_handed_out_once(engine: Engine) -> None:
    told: list[AgentSpec | None] = []
    agents = FleetAgents(told.append, lambda: 1, check_stop=lambda: None, most=1)
    agents.start(["a"], master_port=engine.port)
    assert told[0] is not None
    with closing(Forwarder(told[0], worker="w 1")) as forwarder:
        forwarder.start()
        with dial(forwarder.port), engine.take():  # a full relay takes reports nevertheless
            forwarder.report("agent 0 ended: ü\n" + 1000 * "\u4e16")
        wait_until(lambda: len(agents._reports) == 1)
        assert agents.take_reports() == [("w 1", "agent 0 ended: ü\n" + 383 * "\u4e16")]
        assert agents.take_reports() == []
        agents.stop()
        forwarder.report("nobody listens")  # and nothing happens


def test_another_certificate_is_not_trusted(engine: Engine, certificate: Certificate) -> None:
    with relay_before(engine, certificate=certificate) as relay:
        with forwarder_to(relay, certificate=make_certificate().pem) as forwarder:
            assert "is not the relay of this session" in forwarder.probe()
            with dial(forwarder.port) as agent:
                assert is_refused(agent)
        with forwarder_to(relay, certificate=certificate.pem) as forwarder:
            assert forwarder.probe() == ""
        with dial(relay.port) as plain:  # the right token, in the clear
            plain.sendall(make_hello("agent", "w", TOKEN))
            # TLS answers with an alert at most.
            assert b"ok" not in plain.recv(100)
    assert engine.accepted == 0


def test_the_key_stays_with_the_master(certificate: Certificate) -> None:
    assert "PRIVATE" not in certificate.pem
    assert "PRIVATE" not in repr(certificate)
    assert isinstance(certificate.make_context(), ssl.SSLContext)


def test_no_token_goes_over_a_network_in_the_clear(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match="without TLS"):
        Relay(engine.connect, token=TOKEN, host="0.0.0.0")
    spec = AgentSpec(("agent",), relay_host="10.0.0.1", relay_port=1, token=TOKEN)
    with pytest.raises(ConfigurationError, match="no certificate"):
        Forwarder(spec, worker="w")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Forwarder(
            AgentSpec(("agent",), "10.0.0.1", 1, TOKEN, certificate="no certificate"), worker="w"
        )
    assert is_loopback("127.8.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("localhost.example.com") and not is_loopback("10.0.0.1")


def test_a_probe_says_why_not(engine: Engine) -> None:
    with relay_before(engine) as relay:
        port = relay.port
        with forwarder_to(relay, token="a-token-of-another-session") as forwarder:
            assert "without an answer" in forwarder.probe() or "reset" in forwarder.probe()
    spec = AgentSpec(("agent",), relay_host="127.0.0.1", relay_port=port, token=TOKEN)
    with closing(Forwarder(spec, worker="w")) as forwarder:
        forwarder.start()
        assert f"127.0.0.1:{port} cannot be reached" in forwarder.probe()


def test_only_this_users_processes_use_the_forwarder(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        dial(listener.getsockname()[1]),
        listener.accept()[0] as accepted,
    ):
        peer, own = accepted.getpeername(), accepted.getsockname()
        assert is_own_peer(peer, own)
        table = tmp_path / "tcp"
        lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()
        marks = f"{peer[1]:04X}", f"{own[1]:04X}"
        for number, line in enumerate(lines):
            words = line.split()
            if words[1].endswith(marks[0]) and words[2].endswith(marks[1]):
                words[7] = "54321"
                lines[number] = " ".join(words)
        table.write_text("\n".join(lines), encoding="ascii")
        assert not is_own_peer(peer, own, table=table)
    assert is_own_peer(peer, own, table=tmp_path / "no such table")


def test_fleet_agents_tell_the_workers_and_take_it_back(engine: Engine) -> None:
    told: list[AgentSpec | None] = []
    agents = FleetAgents(told.append, lambda: 3, check_stop=lambda: None)
    agents.start(["beopest", "a.pst", "/H", "{host}:{port}"], master_port=engine.port)
    (spec,) = told
    assert spec is not None
    assert spec.command == ("beopest", "a.pst", "/H", "{host}:{port}")
    assert (spec.relay_host, spec.certificate, agents.slots) == ("127.0.0.1", "", 3)
    with closing(Forwarder(spec, worker="w-1")) as forwarder:
        forwarder.start()
        with dial(forwarder.port), engine.take() as master:
            wait_until(lambda: forwarder.connections == 1)
            assert agents.workers == {"w-1": 1}
            assert agents.connected == 1
            agents.drop("w-1")
            with pytest.raises(ConnectionResetError):
                receive(master, 1)
        agents.stop()
        assert told[-1] is None
        assert agents.connected == 0
        assert "cannot be reached" in forwarder.probe()
    agents.stop()
    assert len(told) == 2


def test_fleet_agents_elsewhere_get_a_certificate_of_their_own(engine: Engine) -> None:
    told: list[AgentSpec | None] = []
    agents = FleetAgents(
        told.append, lambda: 1, check_stop=lambda: None, host="0.0.0.0", advertised="master"
    )
    for _ in range(2):
        agents.start(["a"], master_port=engine.port)
        agents.stop()
    first, second = (spec for spec in told if spec is not None)
    assert first.relay_host == "master"
    assert "BEGIN CERTIFICATE" in first.certificate
    assert first.certificate != second.certificate
    assert first.token != second.token
    with pytest.raises(ConfigurationError, match="no address to connect to"):
        FleetAgents(told.append, lambda: 1, check_stop=lambda: None, host="0.0.0.0")
