"""Who the broker says it is, and who a client says it is.

The mechanisms are PLAIN (RFC 4616) and RabbitMQ's AMQPLAIN, a table of LOGIN and PASSWORD.
"""

from __future__ import annotations

import secrets

from pamqp.commands import Connection as Methods
from pamqp.common import FieldTable

from pestfleet.broker import frames
from pestfleet.broker.errors import syntax_error

_VERSION = "3.10.0"  # RabbitMQ's version whose behaviour this is

SERVER_PROPERTIES: FieldTable = {
    "product": "pestfleet",
    "version": _VERSION,
    "platform": "Python",
    "capabilities": {
        "publisher_confirms": True,
        "exchange_exchange_bindings": True,
        "basic.nack": True,
        "consumer_cancel_notify": True,
        "connection.blocked": False,
        "authentication_failure_close": True,
        "per_consumer_qos": True,
    },
}


def read_credentials(method: Methods.StartOk) -> tuple[str, str]:
    """User and password that a client sends; AmqpError 502 when they are in no known form."""
    response = method.response
    raw = response if isinstance(response, bytes) else str(response).encode()
    if method.mechanism == "PLAIN":
        parts = raw.split(b"\0")
        if len(parts) == 3:
            return parts[1].decode(errors="replace"), parts[2].decode(errors="replace")
    elif method.mechanism == "AMQPLAIN":
        table = frames.decode_plain_table(raw)
        return str(table.get("LOGIN", "")), str(table.get("PASSWORD", ""))
    raise syntax_error("login response does not fit a mechanism of PLAIN, AMQPLAIN")


def make_password() -> str:
    """A password that nobody can guess."""
    return secrets.token_urlsafe(24)
