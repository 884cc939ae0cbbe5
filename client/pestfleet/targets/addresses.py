"""Addresses between a master here and what runs elsewhere: free ports, and URLs of brokers."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from pestfleet_worker.errors import ConfigurationError

BROKER_URL, CA = "broker-url", "ca.pem"  # files of a part's secrets
SECRETS = "/secrets"  # where each container has its part
_CA, _SERVER_NAME = "cacertfile", "server_name_indication"  # RabbitMQ's URI query parameters


def find_free_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_place(url: str) -> tuple[str, int]:
    """Host and port of a broker's URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or (5671 if parts.scheme == "amqps" else 5672)


def readdress(url: str, *, host: str, port: int, ca: str = "") -> str:
    """The URL of the same broker at another place. `ca`: where the file of its CA is there.

    The certificate is verified against the name that it was before.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "amqps":
        query.setdefault(_SERVER_NAME, parts.hostname or "")
    if ca and _CA in query:
        query[_CA] = ca
    login = parts.netloc.rpartition("@")[0]
    place = f"{login}@{host}:{port}" if login else f"{host}:{port}"
    return urlunsplit((parts.scheme, place, parts.path, urlencode(query, quote_via=quote), ""))


def pack_url(url: str, *, place: tuple[str, int] | None = None) -> dict[str, bytes]:
    """File name -> content: the secrets of a part for a broker of the user's.

    `place`: where the part reaches it, if not as we do. Raises `ConfigurationError` where the
    file with the broker's CA cannot be read.
    """
    host, port = place or find_place(url)
    written = readdress(url, host=host, port=port, ca=f"{SECRETS}/{CA}")
    files = {BROKER_URL: written.encode()}
    ca = dict(parse_qsl(urlsplit(url).query)).get(_CA)
    if ca:
        try:
            files[CA] = Path(ca).read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"{ca}, the CA of the broker's URL, cannot be read: {error.strerror}"
            ) from error
    return files
