"""A port of this machine that leads to one of a pod, through the API server.

Each connection has a port-forward of its own: a WebSocket with Kubernetes' channel protocol
(v4.channel.k8s.io), in which the first byte of each message names a channel: 0 is the data, 1 tells
what is wrong, and each begins with the port's number. So no connection suffers when another
breaks, and none is ever repaired: a client whose connection has ended connects again, and is led
to the pod that is there then.

The channel protocol cannot tell that one side has sent all and still listens. When the client has,
it gets what still comes, as long as no pause is longer than `LINGER`.
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from pestfleet.targets.kubernetes.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    FrameReader,
    make_frame,
)
from pestfleet_worker.errors import PestfleetError
from pestfleet_worker.forwarder import harden, is_own_peer

logger = logging.getLogger(__name__)

CHUNK = 32768  # bytes read at a time
HELD = 4 * CHUNK  # bytes that a direction holds before it reads no more
ALIVE = 20.0  # seconds between pings: what is between us and the cluster forgets idle connections
DEAD_AFTER = 60.0  # seconds without a sign of the API server's machine
LINGER = 5.0
HANDSHAKE = 20.0  # seconds for the first messages of a port-forward
ACCEPT_PAUSE = 0.2  # seconds after a connection that the system did not let us have
_JOIN = 5.0
_DATA, _ERROR = 0, 1
_BLOCKED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_NORMAL = struct.pack("!H", 1000)  # why a WebSocket is closed (RFC 6455, section 7.4.1)


class SocketMaker(Protocol):
    """What we need of `access.Access`."""

    def find_path(self, version: str, plural: str, name: str = "") -> str: ...

    def open_socket(self, path: str, query: list[tuple[str, str]]) -> Any: ...


class Forward:
    """Listens on loopback from its making to `close`; `address` is where."""

    def __init__(self, find_pod: Callable[[], str], access: SocketMaker, port: int) -> None:
        """`find_pod()` names the pod at the moment of each connection, or raises a
        `PestfleetError` when there is none; `port` is the pod's.
        """
        self._find_pod = find_pod
        self._access = access
        self._port = port
        self._trouble = ""
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        # All threads look at one end; when the other is closed, they end.
        self._over, self._end = socket.socketpair()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._acceptor = threading.Thread(target=self._accept, name="forward", daemon=True)
        self._acceptor.start()

    @property
    def trouble(self) -> str:
        """Why the last connection could not be made, or was cut; "" when nothing is known."""
        return self._trouble

    @property
    def connections(self) -> int:
        """How many there are now."""
        with self._lock:
            return len(self._threads)

    def close(self) -> None:
        """Break all connections and end all threads; from any thread, as often as you like."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            threads = [self._acceptor, *self._threads]
        self._end.close()
        deadline = time.monotonic() + _JOIN
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()
        if not any(thread.is_alive() for thread in threads):
            self._over.close()

    # -- in threads of our own -------------------------------------------------------------------

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._over, selectors.EVENT_READ)
            while True:
                selector.select()
                if self._closed.is_set():
                    return
                try:
                    near, peer = self._listener.accept()
                except BlockingIOError:  # the client has gone already
                    continue
                except OSError as error:  # such as too many open files
                    logger.warning("a connection cannot be forwarded: %s", error)
                    self._closed.wait(ACCEPT_PAUSE)
                    continue
                self._serve(near, peer)

    def _serve(self, near: socket.socket, peer: tuple[str, int]) -> None:
        if not is_own_peer(peer, self.address):
            logger.warning("another user's process wanted to use the port-forward; refused")
            _reset(near)
            return
        thread = threading.Thread(
            target=self._forward, args=(near,), name="forward-connection", daemon=True
        )
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _forward(self, near: socket.socket) -> None:
        trouble = ""
        try:
            with ExitStack() as stack:
                stack.callback(_reset, near)
                trouble = self._join(near, stack)
        except (PestfleetError, OSError) as error:
            trouble = error.message if isinstance(error, PestfleetError) else str(error)
        except Exception as error:  # the next connection must find us
            logger.exception("a port-forward ended by a defect")
            trouble = f"{type(error).__name__}: {error}"
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
        if not self._closed.is_set():
            if trouble and trouble != self._trouble:
                logger.info("a port-forward ended: %s", trouble)
            self._trouble = trouble

    def _join(self, near: socket.socket, stack: ExitStack) -> str:
        """Forward until one side ends; why it was cut, "" where it was not."""
        pod = self._find_pod()
        path = f"{self._access.find_path('v1', 'pods', pod)}/portforward"
        made = self._access.open_socket(path, [("ports", str(self._port))])
        # We read and write its socket ourselves, but it is its owner.
        stack.callback(made.shutdown)
        far = made.sock
        for end in (near, far):
            harden(end, DEAD_AFTER)
            end.setblocking(False)
        link = _Link(near, far, self._over)
        link.run()
        if not link.broken:
            near.close()  # what is on its way still arrives, as it does not after a reset
        return f"pod {pod}: {link.trouble}" if link.trouble else ""


class _Link:
    """Two sockets, of a client (near) and of a WebSocket of channels (far), in one thread."""

    def __init__(self, near: socket.socket, far: Any, over: socket.socket) -> None:
        """`over` becomes readable when all is to end."""
        self._near, self._far, self._over = near, far, over
        self._reader = FrameReader()
        self._to_near, self._to_far = bytearray(), bytearray()
        self._greeted: set[int] = set()  # channels that have begun
        self._began = self._sent = self._heard = time.monotonic()
        self._near_done = self._far_done = False  # nothing comes from there any more
        self._closing = False  # we have said goodbye to the other side
        # TLS may have to write before it can read, and to read before it can write.
        self._read_waits = self._write_waits = 0
        self.broken = False  # the client is to notice that it was cut off
        self.trouble = ""

    def run(self) -> None:
        """Forward until both sides have ended, or one has broken off. Raises `OSError` for that."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._over, selectors.EVENT_READ)
            while True:
                while self._move():
                    pass
                if self._is_over():
                    return
                _watch(selector, self._near, self._list_near())
                _watch(selector, self._far, self._list_far())
                for key, _ in selector.select(self._find_pause()):
                    if key.fileobj is self._over:
                        self.broken = True
                        return

    # -- when ------------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        now = time.monotonic()
        if self._far_done or self.broken:
            return not self._to_near
        if _DATA not in self._greeted and now - self._began > HANDSHAKE:
            self._break("no answer from the node")
            return True
        if self._near_done and not self._closing and now - self._heard > LINGER:
            self._closing = True
            self._send(CLOSE, _NORMAL)
        elif not self._to_far and now - self._sent > ALIVE:
            self._send(PING, b"")
        return self._closing and not self._to_far

    def _find_pause(self) -> float | None:
        """Seconds until `_is_over` has something to do of its own; None: it has not."""
        if self._far_done or self._closing:
            return None
        due = [] if self._to_far else [self._sent + ALIVE]
        if _DATA not in self._greeted:
            due.append(self._began + HANDSHAKE)
        if self._near_done:
            due.append(self._heard + LINGER)
        return max(0.01, min(due) - time.monotonic()) if due else None

    def _list_near(self) -> int:
        reads = not self._near_done and len(self._to_far) < HELD
        return _list(reads=reads, writes=bool(self._to_near))

    def _list_far(self) -> int:
        wanted = self._read_waits | self._write_waits
        if self._reads_far and not self._read_waits:
            wanted |= selectors.EVENT_READ
        if self._to_far and not self._write_waits:
            wanted |= selectors.EVENT_WRITE
        return wanted

    @property
    def _reads_far(self) -> bool:
        return not self._far_done and len(self._to_near) < HELD

    # -- what ------------------------------------------------------------------------------------

    def _move(self) -> bool:
        """Take and give what goes at once; was there anything?"""
        moved = self._reads_far and self._read_far()
        moved |= bool(self._to_near) and self._write_near()
        moved |= bool(self._list_near() & selectors.EVENT_READ) and self._read_near()
        moved |= bool(self._to_far) and not self._far_done and self._write_far()
        return moved

    def _read_near(self) -> bool:
        try:
            data = self._near.recv(CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._send(BINARY, bytes([_DATA]) + data)
        else:
            self._near_done = True
            self._heard = time.monotonic()  # what still comes has its time from now on
        return True

    def _write_near(self) -> bool:
        try:
            del self._to_near[: self._near.send(self._to_near)]
        except BlockingIOError:
            return False
        return True

    def _read_far(self) -> bool:
        self._read_waits = 0
        try:
            data = self._far.recv(CHUNK)
        except ssl.SSLWantWriteError:
            self._read_waits = selectors.EVENT_WRITE
            return False
        except _BLOCKED:
            return False
        if not data:
            self._break("the API server has cut the connection")
            return False
        self._heard = time.monotonic()
        for opcode, payload in self._reader.feed(data):
            self._take(opcode, payload)
        return True

    def _write_far(self) -> bool:
        self._write_waits = 0
        try:
            del self._to_far[: self._far.send(self._to_far)]
        except ssl.SSLWantReadError:
            self._write_waits = selectors.EVENT_READ
            return False
        except _BLOCKED:
            return False
        self._sent = time.monotonic()
        return True

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self._send(PONG, payload)
        elif opcode == CLOSE:
            self._far_done = True
        elif opcode == BINARY and payload:
            channel, data = payload[0], payload[1:]
            if channel not in self._greeted:
                self._greeted.add(channel)
                data = data[2:]  # the port's number
            if channel == _DATA:
                self._to_near += data
            elif channel == _ERROR and data:
                self._break(data.decode("utf-8", "replace").strip())

    def _send(self, opcode: int, payload: bytes) -> None:
        self._to_far += make_frame(opcode, payload)

    def _break(self, trouble: str) -> None:
        self.broken = self._far_done = True
        self.trouble = self.trouble or trouble


def _list(*, reads: bool, writes: bool) -> int:
    return selectors.EVENT_READ * reads | selectors.EVENT_WRITE * writes


def _watch(selector: selectors.BaseSelector, sock: Any, events: int) -> None:
    """Have the selector look at a socket for these events, or not at all."""
    watched = selector.get_map().get(sock)
    if watched is None:
        if events:
            selector.register(sock, events)
    elif not events:
        selector.unregister(sock)
    elif watched.events != events:
        selector.modify(sock, events)


def _reset(sock: socket.socket) -> None:
    """Close a connection so that the other side notices that it was cut."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
