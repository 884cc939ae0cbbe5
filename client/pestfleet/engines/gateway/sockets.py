"""Connected sockets, made fast for PANTHER."""

from __future__ import annotations

import logging
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Callable

CONNECT_SECONDS = 5.0

# Missing on Windows and macOS.
_QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)

logger = logging.getLogger(__name__)


def connect_to(host: str, port: int) -> Callable[[], socket.socket]:
    """What a `Gateway` needs to reach a master that listens there."""

    def connect() -> socket.socket:
        return socket.create_connection((host, port), timeout=CONNECT_SECONDS)

    return connect


def acknowledge_quickly(sock: socket.socket | TransportSocket) -> None:
    """To be called before each read: the kernel forgets it.

    A master writes five bytes, then the rest of the frame, and its kernel holds the rest back
    (Nagle) until the five are acknowledged, which ours would delay by 40 ms.
    """
    if _QUICK_ACK is not None:
        _set_option(sock, _QUICK_ACK)


def send_at_once(sock: socket.socket | TransportSocket) -> None:
    """To be called once: what is written is not held back."""
    _set_option(sock, socket.TCP_NODELAY)


def _set_option(sock: socket.socket | TransportSocket, option: int) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, option, 1)
    except OSError as error:  # not TCP, or gone: slower, not wrong
        logger.debug("socket option %d: %s", option, error)
