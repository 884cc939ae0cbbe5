"""A double of an API server, as far as port-forwards go: a WebSocket server that leads to ports."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import struct
import threading
from contextlib import suppress
from typing import Any

import websocket

from pestfleet.targets.kubernetes.frames import BINARY, CLOSE, PING, PONG, mask
from pestfleet_worker.errors import TargetError

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class FakeApiServer:
    """Leads a port-forward to a pod of `pods` (name -> address), as containerd does."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.pods: dict[str, tuple[str, int]] = {}
        self.pings = 0
        self.pieces = 0  # bytes of a frame that are sent at a time; 0: all
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        """Listen, again after `stop`."""
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """As a process that is killed: nothing listens, and what was connected is cut."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, EOFError):
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
                self._open.append(client)
            with client:
                self._talk(client, _read_request(client))

    def _talk(self, client: socket.socket, request: str) -> None:
        pod = request.split("/portforward")[0].rpartition("/")[2]
        if pod not in self.pods:
            body = json.dumps({"reason": "NotFound", "message": f'pods "{pod}" not found'})
            head = f"HTTP/1.1 404 Not Found\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall((head + body).encode())
            return
        key = request.lower().split("sec-websocket-key: ")[1].split("\r\n")[0]
        key = request[request.lower().index(key) :][: len(key)]
        digest = hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()
        client.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        greeting = struct.pack("<H", self.pods[pod][1])
        self._send(client, BINARY, b"\0" + greeting)
        self._send(client, BINARY, b"\1" + greeting)
        try:
            with socket.create_connection(self.pods[pod]) as port:
                self._forward(client, port)
        except OSError as error:
            self._send(client, BINARY, b"\1" + f"cannot forward: {error}".encode())
        self._send(client, CLOSE, struct.pack("!H", 1000))

    def _forward(self, client: socket.socket, port: socket.socket) -> None:
        away = threading.Thread(target=self._take, args=(client, port), daemon=True)
        away.start()
        while data := port.recv(32768):
            self._send(client, BINARY, b"\0" + data)

    def _take(self, client: socket.socket, port: socket.socket) -> None:
        """What comes from the client, to its end."""
        try:
            while True:
                first, length = _read(client, 2)
                assert length & 0x80, "a client's frames are masked"
                length &= 0x7F
                if length >= 126:
                    length = int.from_bytes(_read(client, 2 if length == 126 else 8), "big")
                key = _read(client, 4)
                payload = mask(_read(client, length), key)
                if first & 0xF == PING:
                    self.pings += 1
                    self._send(client, PONG, payload)
                elif first & 0xF == CLOSE:
                    break
                elif first & 0xF == BINARY:
                    assert payload[0] == 0
                    port.sendall(payload[1:])
        except (OSError, EOFError):
            pass
        with suppress(OSError):
            port.shutdown(socket.SHUT_RDWR)

    def _send(self, client: socket.socket, opcode: int, payload: bytes) -> None:
        length = len(payload)
        size = bytes([length]) if length < 126 else struct.pack("!BH", 126, length)
        frame = bytes([0x80 | opcode]) + size + payload
        for begin in range(0, len(frame), self.pieces or len(frame)):
            client.sendall(frame[begin : begin + (self.pieces or len(frame))])


class FakeAccess:
    """What `Forward` needs of an `Access`, for a `FakeApiServer`."""

    def __init__(self, server: FakeApiServer, *, ca: str = "") -> None:
        self._server = server
        self._ca = ca

    def find_path(self, version: str, plural: str, name: str = "") -> str:
        return f"/api/{version}/namespaces/test/{plural}/{name}"

    def open_socket(self, path: str, query: list[tuple[str, str]]) -> Any:
        (what, port) = query[0]
        assert what == "ports"
        scheme = "wss" if self._ca else "ws"
        url = f"{scheme}://127.0.0.1:{self._server.port}{path}?ports={port}"
        how = {"sslopt": {"ca_certs": self._ca}} if self._ca else {}
        try:
            return websocket.create_connection(url, subprotocols=["v4.channel.k8s.io"], **how)
        except (websocket.WebSocketException, OSError) as error:
            raise TargetError(f"no way to the pod: {error}") from error


def _read(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = client.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _read_request(client: socket.socket) -> str:
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        request += _read(client, 1)
    return request.decode()
