"""The port-forward of a master here, with a double of the API server in front of real ports."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from websocket import ABNF

from fake_port_forward import FakeAccess, FakeApiServer
from pestfleet.certificates import make_signed_certificate
from pestfleet.targets.kubernetes import forward as module
from pestfleet.targets.kubernetes.forward import Forward
from pestfleet.targets.kubernetes.frames import (
    BINARY,
    CONTINUATION,
    LARGEST,
    PING,
    FrameError,
    FrameReader,
    make_frame,
)
from pestfleet_worker.errors import TargetError

PATIENCE = 60.0  # seconds

Handler = Callable[[socket.socket], None]


@contextmanager
def open_port(handle: Handler) -> Iterator[tuple[str, int]]:
    """A port of a pod: each connection is handled in a thread of its own, then closed."""

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            handle(client)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def echo(client: socket.socket) -> None:
    while data := client.recv(32768):
        client.sendall(data)


def say(text: bytes) -> Handler:
    return lambda client: client.sendall(text)


def read_all(client: socket.socket) -> bytes:
    parts = []
    while data := client.recv(65536):
        parts.append(data)
    return b"".join(parts)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Site:
    """A forward to the pod `pod`, behind the double of an API server."""

    def __init__(self, server: FakeApiServer, ca: str) -> None:
        self.server = server
        self.pod = "broker-0"
        self.forward = Forward(self.find_pod, FakeAccess(server, ca=ca), 5671)

    def find_pod(self) -> str:
        if not self.pod:
            raise TargetError("the broker has no pod")
        return self.pod

    def connect(self) -> socket.socket:
        return socket.create_connection(self.forward.address, timeout=PATIENCE)

    def exchange(self, text: bytes) -> bytes:
        """What a new connection to an echoing pod gives back."""
        with self.connect() as client:
            client.sendall(text)
            return client.recv(len(text))


@pytest.fixture(params=["plain", "tls"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    context, ca = None, ""
    if request.param == "tls":
        authority, certificate = make_signed_certificate("test authority", ["127.0.0.1"])
        (tmp_path / "ca.pem").write_text(authority)
        (tmp_path / "server.pem").write_text(certificate.pem + certificate.key)
        context, ca = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), str(tmp_path / "ca.pem")
        context.load_cert_chain(tmp_path / "server.pem")
    server = FakeApiServer(context)
    site = Site(server, ca)
    yield site
    site.forward.close()
    server.stop()


def is_cut(client: socket.socket) -> bool:
    """Does the connection end by a reset, without a byte?"""
    try:
        read_all(client)
    except ConnectionResetError:
        return True
    return False


def is_refused(site: Site) -> bool:
    """Is a new connection cut at once? It may be, before we know that it was made."""
    try:
        with site.connect() as client:
            return is_cut(client)
    except ConnectionResetError:
        return True


def test_all_bytes_come_in_order_both_ways(site: Site) -> None:
    sent = os.urandom(3_000_000)
    with open_port(echo) as site.server.pods["broker-0"], site.connect() as client:
        threading.Thread(target=client.sendall, args=(sent,), daemon=True).start()
        got = b""
        while len(got) < len(sent):
            got += client.recv(65536)
    assert got == sent
    assert site.forward.trouble == ""


def test_frames_in_pieces(site: Site) -> None:
    site.server.pieces = 7
    with open_port(echo) as site.server.pods["broker-0"]:
        assert site.exchange(b"hello") == b"hello"


def test_many_connections_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER", 0.1)
    with open_port(echo) as site.server.pods["broker-0"]:
        clients = [site.connect() for _ in range(8)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        assert [client.recv(9) for client in clients] == [b"%d" % n for n in range(8)]
        assert site.forward.connections == 8
        for client in clients:
            client.close()
        wait_for(lambda: not site.forward.connections, "connections end with their clients")


def test_a_pod_that_ends_orderly(site: Site) -> None:
    text = os.urandom(500_000)
    with open_port(say(text)) as site.server.pods["broker-0"], site.connect() as client:
        assert read_all(client) == text


def test_a_client_that_has_sent_all_still_listens(site: Site) -> None:
    answer = os.urandom(500_000)

    def handle(client: socket.socket) -> None:
        assert client.recv(5) == b"begin"
        client.sendall(answer)

    with open_port(handle) as site.server.pods["broker-0"], site.connect() as client:
        client.sendall(b"begin")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == answer


def test_a_pod_learns_that_its_client_is_gone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER", 0.1)
    ended = threading.Event()

    def handle(client: socket.socket) -> None:
        assert read_all(client) == b"all of it"
        ended.set()

    with open_port(handle) as site.server.pods["broker-0"]:
        with site.connect() as client:
            client.sendall(b"all of it")
        assert ended.wait(PATIENCE)
        wait_for(lambda: not site.forward.connections, "the connection is over")


def test_another_pod_in_its_place(site: Site) -> None:
    with open_port(say(b"first")) as site.server.pods["broker-0"], site.connect() as client:
        assert read_all(client) == b"first"
    del site.server.pods["broker-0"]
    assert is_refused(site)
    site.pod = "broker-1"
    with open_port(say(b"second")) as site.server.pods["broker-1"], site.connect() as client:
        assert read_all(client) == b"second"


def test_no_pod_for_a_while(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER", 0.1)
    site.pod = ""
    assert is_refused(site)
    wait_for(lambda: "no pod" in site.forward.trouble, "the trouble is told")
    site.pod = "broker-0"
    with open_port(echo) as site.server.pods["broker-0"]:
        assert site.exchange(b"again") == b"again"
    wait_for(lambda: site.forward.trouble == "", "the trouble is over")


def test_a_pod_whose_port_is_closed(site: Site) -> None:
    with open_port(echo) as closed:
        pass
    site.server.pods["broker-0"] = closed
    assert is_refused(site)
    wait_for(lambda: "cannot forward" in site.forward.trouble, "the node's words are told")


def test_the_api_server_is_away_for_a_while(site: Site) -> None:
    with open_port(echo) as site.server.pods["broker-0"]:
        with site.connect() as client:
            client.sendall(b"before")
            assert client.recv(6) == b"before"
            site.server.stop()
            assert is_cut(client)
        assert is_refused(site)
        site.server.start()
        assert site.exchange(b"after") == b"after"


def test_a_slow_client_slows_the_pod(site: Site) -> None:
    size, blocked, ended = 32_000_000, threading.Event(), threading.Event()

    def handle(client: socket.socket) -> None:
        sent, piece = 0, bytes(64_000)
        client.settimeout(1.0)
        while sent < size:
            try:
                sent += client.send(piece)
            except TimeoutError:
                blocked.set()
        ended.set()

    with open_port(handle) as site.server.pods["broker-0"], site.connect() as client:
        assert blocked.wait(PATIENCE)
        assert not ended.is_set()
        assert len(read_all(client)) == size


def test_a_slow_pod_slows_the_client(site: Site) -> None:
    size, go = 32_000_000, threading.Event()
    counted: list[int] = []

    def count(client: socket.socket) -> None:
        go.wait(PATIENCE)
        got = 0
        while got < size and (data := client.recv(65536)):
            got += len(data)
        counted.append(got)

    with open_port(count) as site.server.pods["broker-0"], site.connect() as client:
        client.settimeout(1.0)
        sent, piece = 0, bytes(64_000)
        while sent < size:
            try:
                sent += client.send(piece[: size - sent])
            except TimeoutError:
                go.set()
        assert go.is_set(), "all was taken before the pod read any of it"
        wait_for(lambda: counted, "the pod has read all")
    assert counted == [size]


def test_idle_connections_are_kept_alive(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALIVE", 0.05)
    with open_port(echo) as site.server.pods["broker-0"], site.connect() as client:
        wait_for(lambda: site.server.pings >= 3, "pings")
        client.sendall(b"still there")
        assert client.recv(20) == b"still there"


def test_an_idle_connection_costs_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float] = []
    move = module._Link._move
    monkeypatch.setattr(
        module._Link, "_move", lambda link: turns.append(time.monotonic()) or move(link)
    )
    with open_port(echo) as site.server.pods["broker-0"], site.connect() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        wait_for(lambda: turns and time.monotonic() - turns[-1] > 0.5, "rest")
    with open_port(lambda client: client.sendall(bytes(32_000_000))) as port:
        site.server.pods["broker-0"] = port
        with site.connect() as client:
            assert client.recv(1)
            wait_for(lambda: time.monotonic() - turns[-1] > 0.5, "rest with a client that waits")


def test_close_ends_everything(site: Site) -> None:
    with open_port(echo) as site.server.pods["broker-0"]:
        clients = [site.connect() for _ in range(3)]
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        site.forward.close()
        assert all(is_cut(client) for client in clients)
    assert not [t for t in threading.enumerate() if t.name.startswith("forward")]
    with pytest.raises(ConnectionRefusedError):
        site.connect()
    site.forward.close()


def test_others_on_this_machine_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_own_peer", lambda peer, own: False)
    site.server.pods["broker-0"] = site.forward.address
    assert is_refused(site)
    assert site.forward.connections == 0


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
def test_frames_are_those_of_a_websocket(size: int) -> None:
    payload = os.urandom(size)
    frame = make_frame(BINARY, payload)
    key = frame[-size - 4 :][:4] if size else frame[-4:]
    other = ABNF.create_frame(payload, ABNF.OPCODE_BINARY)
    other.get_mask_key = lambda count: key
    assert frame == other.format()


def make_server_frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    frame = ABNF(1 if final else 0, 0, 0, 0, opcode, 0, payload)
    return bytes(frame.format())


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_messages_in_parts(step: int) -> None:
    wire = (
        make_server_frame(BINARY, b"one ", final=False)
        + make_server_frame(PING, b"?")
        + make_server_frame(CONTINUATION, b"mess", final=False)
        + make_server_frame(CONTINUATION, b"age")
        + make_server_frame(BINARY, b"y" * 300)
        + make_server_frame(BINARY, b"")
    )
    reader, found = FrameReader(), []
    for begin in range(0, len(wire), step):
        found += reader.feed(wire[begin : begin + step])
    assert found == [(PING, b"?"), (BINARY, b"one message"), (BINARY, b"y" * 300), (BINARY, b"")]


@pytest.mark.parametrize(
    "wire",
    [
        make_frame(BINARY, b"a client's, masked"),
        b"\xf2\x00",
        b"HTTP/1.1 502 Bad Gateway",
        make_server_frame(CONTINUATION, b"of nothing"),
        make_server_frame(BINARY, b"x", final=False) + make_server_frame(BINARY, b"y"),
        b"\x82\x7f" + (LARGEST + 1).to_bytes(8, "big"),
        make_server_frame(BINARY, bytes(LARGEST), final=False)
        + make_server_frame(CONTINUATION, b"x", final=False),
    ],
    ids=["masked", "reserved", "text", "continuation", "unfinished", "long", "parts"],
)
def test_what_is_no_frame(wire: bytes) -> None:
    with pytest.raises(FrameError):
        FrameReader().feed(wire)
