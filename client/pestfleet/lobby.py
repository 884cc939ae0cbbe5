"""A look at a broker of the user's, before anything is launched for it."""

from __future__ import annotations

import ssl
import time
import uuid

from kombu import Connection

from pestfleet_worker.channel import Queues
from pestfleet_worker.endpoint import connect, explain, make_connection
from pestfleet_worker.errors import ChannelError, SessionError

CONNECT_TIMEOUT = 3.0  # seconds
# Seconds within which a broker notices that a master has died; with its machine it takes longer.
OTHER_MASTER_PATIENCE = 5.0

# AMQP 0-9-1, section 1.2.1 "Reply codes".
_ACCESS_REFUSED, _NOT_FOUND, _NOT_ALLOWED = 403, 404, 530


def check_broker(url: str, session: str) -> None:
    """See whether a session can use this broker.

    Raises `ChannelError` when the URL cannot be read, when the broker cannot be reached, is not
    who it should be, or refuses us; `SessionError` when a session of that id has a master there
    already.
    """
    connection = make_connection(url, connect_timeout=CONNECT_TIMEOUT)
    port = connection.port or (5671 if connection.ssl else 5672)
    place = f"{connection.hostname}:{port}"
    try:
        with connection:
            connect(connection)
            _check_rights(connection, session)
            _refuse_second_master(connection, Queues(session), session)
    except SessionError:
        raise
    except Exception as error:
        raise _explain(error, place, connection) from error


def _check_rights(connection: Connection, session: str) -> None:
    """Raises the broker's refusal when we may not make queues of this session."""
    channel = connection.channel()
    channel.queue_declare(f"pestfleet.{session}.{uuid.uuid4().hex}", exclusive=True)
    channel.close()


def _refuse_second_master(connection: Connection, queues: Queues, session: str) -> None:
    deadline = time.monotonic() + OTHER_MASTER_PATIENCE
    while True:
        channel = connection.channel()
        try:
            answer = queues.results(channel).queue_declare(passive=True)
        except connection.channel_errors as error:
            if _code_of(error) != _NOT_FOUND:
                raise
            return
        channel.close()
        if not answer.consumer_count:
            return
        if time.monotonic() > deadline:
            raise SessionError(
                f"another master hosts a session {session} on this broker",
                remedy="Choose another id with --session. If that master died with its machine, "
                "try again in half a minute.",
            )
        time.sleep(0.2)  # the broker has no event to wait for


def _explain(error: Exception, place: str, connection: Connection) -> ChannelError:
    if _code_of(error) == _ACCESS_REFUSED:
        return ChannelError(
            f"the broker at {place} refuses the user {connection.userid}: {_text_of(error)}",
            remedy="Check the user and the password in the broker's URL, and the permissions.",
        )
    if _code_of(error) == _NOT_ALLOWED:
        return ChannelError(
            f"the broker at {place} refuses the virtual host {connection.virtual_host}: "
            f"{_text_of(error)}",
            remedy="Check the end of the broker's URL; RabbitMQ's default is //, the host named /.",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return ChannelError(
            f"who answers at {place} is not the broker: {explain(error)}",
            remedy="Check cacertfile and server_name_indication in the broker's URL, and the "
            "dates of its certificate.",
        )
    if isinstance(error, ssl.SSLError):
        return ChannelError(
            f"the broker at {place} cannot be reached: {explain(error)}",
            remedy="Check that the port is the one of its TLS listener (usually 5671).",
        )
    if isinstance(error, OSError | EOFError):
        return ChannelError(
            f"the broker at {place} cannot be reached: {str(error) or type(error).__name__}",
            remedy="Check the broker's URL, that it runs, and the network between.",
        )
    return ChannelError(
        f"what answers at {place} is no AMQP broker: {type(error).__name__}: {error}",
        remedy="Check the broker's URL. RabbitMQ listens on port 5672, with TLS on 5671.",
    )


def _code_of(error: Exception) -> int:
    return int(getattr(error, "code", 0) or 0)


def _text_of(error: Exception) -> str:
    return str(getattr(error, "message", "") or error)
