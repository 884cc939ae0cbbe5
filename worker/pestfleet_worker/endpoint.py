"""From a broker's URL to connections: one place for TLS, for errors in words, for refusals.

The query of an `amqps` URL is that of RabbitMQ's own clients (rabbitmq.com, "URI Query
Parameters"): `cacertfile`, `certfile`, `keyfile`, `verify` (verify_peer, the default, or
verify_none) and `server_name_indication`. Without a query the broker's certificate is verified
against the system's authorities and the host in the URL.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import amqp
from amqp.exceptions import AccessRefused, NotAllowed
from kombu import Connection

from pestfleet_worker.errors import ChannelError, ConfigurationError

# The name in the certificate of a session's own broker, wherever that broker is.
BROKER_NAME = "pestfleet-broker"

# What a connection raises when the broker or the network is to blame, not a defect of ours.
EXPECTED: tuple[type[BaseException], ...] = (
    *amqp.Connection.connection_errors,
    *amqp.Connection.channel_errors,
    ChannelError,
)

# Variable with the path of a file that holds the broker's URL.
URL_FILE = "PESTFLEET_BROKER_FILE"

# Parameters of the URL that name files -> options of ssl.
FILES = {"cacertfile": "ca_certs", "certfile": "certfile", "keyfile": "keyfile"}
_VERIFY = {"verify_peer": ssl.CERT_REQUIRED, "verify_none": ssl.CERT_NONE}
_PARAMETERS = (*FILES, "verify", "server_name_indication")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A broker's URL without its query, and what py-amqp must know for TLS (None: no TLS)."""

    url: str = field(repr=False)  # with the password
    tls: dict[str, Any] | None


def read_url_file() -> str:
    """The broker's URL in the file that PESTFLEET_BROKER_FILE names; "" where it names none.

    Raises `ConfigurationError` when the file cannot be read.
    """
    path = os.environ.get(URL_FILE, "")
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{URL_FILE}: {error}") from error
    except UnicodeDecodeError:  # not chained: its message has a part of the content
        raise ConfigurationError(f"{URL_FILE}: {path} is no text") from None


def read_endpoint(url: str) -> Endpoint:
    """Take a broker's URL apart. Hosts after `;` are alternatives, with the first one's query.

    Raises `ChannelError` for a URL that cannot be read, an unknown parameter, a missing file.
    """
    if not url.startswith(("amqp://", "amqps://")):
        raise ChannelError(
            "the broker's URL does not start with amqp:// or amqps://",
            remedy="The channel needs a broker that speaks AMQP 0-9-1, such as RabbitMQ.",
        )
    hosts, queries = [], []
    for part in url.split(";"):
        host, _, query = part.partition("?")
        if "@" in query:  # a password with a question mark
            raise _make_unreadable()
        hosts.append(host)
        queries.append(dict(parse_qsl(query, keep_blank_values=True)))
    place = _read_host(hosts[0])
    if url.startswith("amqps://"):
        tls = _read_tls(queries[0])
        if "server_hostname" not in tls and tls["cert_reqs"] == ssl.CERT_REQUIRED:
            if len(hosts) > 1:
                raise ChannelError(
                    "a broker's URL with several hosts names no server_name_indication",
                    remedy="Give the name that is in the certificate of all of them.",
                )
            tls["server_hostname"] = place
    elif queries[0]:
        raise ChannelError(
            "the broker's URL has parameters for TLS but starts with amqp://",
            remedy="Write amqps://, and the port of the broker's TLS listener (usually 5671).",
        )
    else:
        tls = None
    return Endpoint(";".join(hosts), tls)


def _read_host(url: str) -> str:
    try:
        connection = Connection(url)
        if connection.port is not None and not 0 < int(connection.port) < 65536:
            raise ValueError("no port")
        return str(connection.hostname or "localhost")
    except Exception:  # not chained: what a parser says may have a part of the password
        raise _make_unreadable() from None


def _make_unreadable() -> ChannelError:
    return ChannelError(
        "the URL of the broker cannot be read",
        remedy="It looks like amqp://USER:PASSWORD@HOST:5672/VHOST; special characters of "
        "the password are written as %XX.",
    )


def _read_tls(query: dict[str, str]) -> dict[str, Any]:
    unknown = sorted(set(query) - set(_PARAMETERS))
    if unknown:
        raise ChannelError(
            f"the broker's URL has an unknown parameter: {unknown[0]}",
            remedy=f"Known are {', '.join(_PARAMETERS)}.",
        )
    verify = query.get("verify", "verify_peer")
    if verify not in _VERIFY:
        raise ChannelError(
            f"the broker's URL has verify={verify}", remedy=f"Known are {' and '.join(_VERIFY)}."
        )
    tls: dict[str, Any] = {
        "cert_reqs": _VERIFY[verify],
        "tls_minimum_version": ssl.TLSVersion.TLSv1_2,
    }
    for parameter, option in FILES.items():
        if parameter not in query:
            continue
        if not Path(query[parameter]).is_file():
            raise ChannelError(
                f"the file {query[parameter]} is not there",
                remedy=f"The broker's URL names it as its {parameter}.",
            )
        tls[option] = query[parameter]
    # py-amqp checks the name whenever it gets one, which ssl allows with verify_peer only.
    if verify == "verify_peer" and query.get("server_name_indication"):
        tls["server_hostname"] = query["server_name_indication"]
    return tls


def make_connection(url: str, **options: Any) -> Connection:
    """A kombu connection, not yet connected. Raises as `read_endpoint` does."""
    endpoint = read_endpoint(url)
    return Connection(endpoint.url, ssl=dict(endpoint.tls) if endpoint.tls else False, **options)


def connect(connection: Connection) -> None:
    """Connect now, or raise what hinders; each host of the URL is tried, without a pause."""
    connection.ensure_connection(
        max_retries=max(1, len(connection.alt)),
        interval_start=0,
        interval_step=0,
        reraise_as_library_errors=False,
    )


def is_refusal(error: BaseException) -> bool:
    """Does the broker know us, and not want us? Trying again does not help then."""
    return isinstance(error, AccessRefused | NotAllowed)


def explain(error: BaseException) -> str:
    """What went wrong with a connection, in words that name the cause."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = error.verify_message.rstrip(".")
        return f"the certificate of the broker is not accepted: {reason}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection with the broker: {error.reason or error}"
    if is_refusal(error):
        return f"the broker refuses us: {getattr(error, 'message', '') or error}"
    return str(error) or type(error).__name__
