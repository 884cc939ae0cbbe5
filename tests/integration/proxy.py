"""A TCP proxy that can stop forwarding without closing: what a cut network looks like."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit


class FreezingProxy:
    """Forwards connections to a broker until `freeze`."""

    def __init__(self, broker_url: str) -> None:
        parts = urlsplit(broker_url)
        assert parts.hostname and parts.port
        self._target = (parts.hostname, parts.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._frozen = threading.Event()
        self._sockets: list[socket.socket] = []
        port = self._server.getsockname()[1]
        self.url = broker_url.replace(f":{parts.port}", f":{port}")
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        self._frozen.set()

    def close(self) -> None:
        for endpoint in [self._server, *self._sockets]:
            endpoint.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return
            outer = socket.create_connection(self._target)
            self._sockets += [inner, outer]
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        while True:
            try:
                data = source.recv(65536)
                if not data:
                    if not self._frozen.is_set():
                        sink.shutdown(socket.SHUT_WR)
                    return
                if self._frozen.is_set():
                    continue  # swallowed; the connection stays open
                sink.sendall(data)
            except OSError:
                return
