"""Addresses between a master here and what runs elsewhere: free ports, and URLs of brokers."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from pestfleet_worker.errors import ConfigurationError

BROKER_URL, CA = "broker-url", "ca.pem"  # files of a part's secrets
SECRETS = "/secrets"  # where each container has its part
# RabbitMQ's URI query parameters (pestfleet_worker.endpoint), and what their files are called.
_SERVER_NAME = "server_name_indication"
_FILES = {"cacertfile": CA, "certfile": "cert.pem", "keyfile": "key.pem"}


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


def readdress(
    url: str, *, host: str, port: int, ca: str = "", cert: str = "", key: str = ""
) -> str:
    """The URL of the same broker at another place. The certificate must have the same name.

    `ca`, `cert`, `key`: where those of these files that the URL names are there.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "amqps":
        query.setdefault(_SERVER_NAME, parts.hostname or "")
    files = dict(zip(_FILES, (ca, cert, key), strict=True))
    query |= {name: path for name, path in files.items() if path and name in query}
    login = parts.netloc.rpartition("@")[0]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    place = f"{login}@{place}" if login else place
    return urlunsplit((parts.scheme, place, parts.path, urlencode(query, quote_via=quote), ""))


def pack_url(url: str, *, place: tuple[str, int] | None = None) -> dict[str, bytes]:
    """File name -> content: the secrets of a part for a broker of the user's.

    `place`: where the part reaches it, if not as we do. Raises `ConfigurationError` where a
    file that the URL names, such as the broker's CA, cannot be read.
    """
    host, port = place or find_place(url)
    ca, cert, key = (f"{SECRETS}/{file}" for file in _FILES.values())
    written = readdress(url, host=host, port=port, ca=ca, cert=cert, key=key)
    files = {BROKER_URL: written.encode()}
    query = dict(parse_qsl(urlsplit(url).query))
    for name, file in _FILES.items():
        if name not in query:
            continue
        try:
            files[file] = Path(query[name]).read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"{query[name]}, the {name} of the broker's URL, cannot be read: {error.strerror}"
            ) from error
    return files


def unpack_url(files: Mapping[str, str], folder: Path, *, place: tuple[str, int]) -> str:
    """The broker's URL of a part's files for a process here, which reaches it at `place`.

    The CA goes into `folder`.
    """
    host, port = place
    ca = folder / "broker-ca.pem"
    ca.write_text(files[CA], encoding="ascii")
    return readdress(files[BROKER_URL].strip(), host=host, port=port, ca=str(ca.resolve()))
