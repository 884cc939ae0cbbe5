"""A port of loopback that leads to a task, wherever it is now.

A task that takes another's place has another address. Who connects here is led to the one that is
there at that moment; what goes through is not looked at (it is TLS or SSH, to its end).
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from pestfleet_worker.errors import PestfleetError

logger = logging.getLogger(__name__)

CONNECT = 5.0  # seconds to reach an address
PATIENCE = 60.0  # seconds in which an address is looked for again
PAUSE = 2.0  # seconds between two looks
CHUNK = 65536

FindAddress = Callable[[], str]


class Forward:
    """Listens from its making until `close`."""

    def __init__(self, find: FindAddress, port: int) -> None:
        """`find` gives the host now; it may raise `PestfleetError` while there is none."""
        self._find = find
        self._port = port
        self._host = ""
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=32)
        threading.Thread(target=self._accept, name="forward", daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._server.getsockname()
        return str(host), int(port)

    def close(self) -> None:
        """End it, with all connections through it."""
        self._closing.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes up who accepts
        self._server.close()
        with self._lock:
            ends = list(self._open)
        for end in ends:
            _shut(end)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                near, _ = self._server.accept()
            except OSError as error:
                if not self._closing.is_set():
                    logger.warning("the forward to port %d has ended: %s", self._port, error)
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near:
            far = self._connect()
            if far is None:
                return
            with far:
                self._join(near, far)

    def _connect(self) -> socket.socket | None:
        """To the address that is known, or to the one that there is now."""
        deadline = time.monotonic() + PATIENCE
        while not self._closing.is_set():
            try:
                self._host = self._host or self._find()
                return socket.create_connection((self._host, self._port), timeout=CONNECT)
            except (OSError, PestfleetError) as error:
                logger.info("port %d of %s: %s", self._port, self._host or "a task", error)
                self._host = ""
            if time.monotonic() > deadline:
                return None
            self._closing.wait(PAUSE)
        return None

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        ends = (near, far)
        for end in ends:
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with self._lock:
            self._open |= set(ends)
        try:
            back = threading.Thread(target=_copy, args=(far, near), daemon=True)
            back.start()
            _copy(near, far)
            back.join()
        finally:
            with self._lock:
                self._open -= set(ends)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    """Until one of both ends: then the other does, too."""
    try:
        while data := source.recv(CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError as error:
        logger.info("a connection through the forward was cut: %s", error)
        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        end.shutdown(socket.SHUT_RDWR)
