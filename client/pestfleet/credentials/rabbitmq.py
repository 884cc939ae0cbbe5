"""A RabbitMQ of one session's own: its configuration, its two users and what each may do.

Works with 3.10, 3.13 and 4.x. RabbitMQ's rights are three regular expressions for the names of
queues and exchanges (rabbitmq.com, "Access Control"): *configure* to declare and delete, *write*
to publish to an exchange and to bind a queue, *read* to consume from a queue and to bind to an
exchange. Publishing to the default exchange, which leads to every queue, needs *write* on
`amq.default`, which nobody has here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

from pestfleet_worker.channel import WORKER_QUEUE, Queues

MASTER, WORKER = "master", "worker"

# Milliseconds for which a run may take without an answer, then RabbitMQ gives it to another
# worker; its default of 30 minutes is less than models take.
CONSUMER_TIMEOUT = 7 * 24 * 3600 * 1000

_CONFIGURATION = """\
# The broker of one session. TLS only; no port for anything else.
listeners.tcp = none
listeners.ssl.default = {port}
ssl_options.cacertfile = {folder}/ca.pem
ssl_options.certfile = {folder}/cert.pem
ssl_options.keyfile = {folder}/key.pem
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
# Clients show a password, not a certificate.
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
# No other: RabbitMQ 4 would let in clients without a name, too.
auth_mechanisms.1 = PLAIN
# Users, rights and the virtual host. With these there is no user guest.
load_definitions = {folder}/definitions.json
consumer_timeout = {consumer_timeout}
log.console = true
log.console.level = warning
log.file = false
# Publishers wait, and nothing is lost, when one of these is reached.
vm_memory_high_watermark.relative = 0.6
disk_free_limit.absolute = 100MB
"""


@dataclass(frozen=True, slots=True)
class Rights:
    """Regular expressions for names of queues and exchanges."""

    configure: str
    write: str
    read: str


def make_configuration(*, port: int, folder: str) -> str:
    """rabbitmq.conf. `folder`: where the broker sees it and its other files."""
    return _CONFIGURATION.format(port=port, folder=folder, consumer_timeout=CONSUMER_TIMEOUT)


def make_rights(session: str) -> dict[str, Rights]:
    """What the users of a session's virtual host may do."""
    queues = Queues(session)
    own = re.escape(queues.control.name) + rf"\.{WORKER_QUEUE}"
    runs, control, answers = (
        re.escape(name) for name in (queues.runs.name, queues.control.name, queues.answers.name)
    )
    all_of_session = rf"^pestfleet\.{re.escape(session)}\..*$"
    return {
        MASTER: Rights(all_of_session, all_of_session, all_of_session),
        # It declares the queue on which it is led, binds it to `control`, reads that and runs.
        WORKER: Rights(f"^{own}$", f"^({answers}|{own})$", f"^({runs}|{control}|{own})$"),
    }


def make_definitions(session: str, passwords: dict[str, str]) -> str:
    """definitions.json, as `load_definitions` reads it. `passwords`: of each user."""
    users: list[dict[str, Any]] = []
    permissions: list[dict[str, str]] = []
    for name, rights in make_rights(session).items():
        users.append(
            {
                "name": name,
                "password_hash": hash_password(passwords[name]),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
                "limits": {},
            }
        )
        permissions.append(
            {
                "user": name,
                "vhost": session,
                "configure": rights.configure,
                "write": rights.write,
                "read": rights.read,
            }
        )
    definitions = {
        "users": users,
        "vhosts": [{"name": session}],
        "permissions": permissions,
        "topic_permissions": [],
        "parameters": [],
        "global_parameters": [],
        "policies": [],
        "queues": [],
        "exchanges": [],
        "bindings": [],
    }
    return json.dumps(definitions, indent=2) + "\n"


def hash_password(password: str, *, salt: bytes | None = None) -> str:
    """RabbitMQ's salted SHA-256 of a password.

    The base64 of 4 random bytes and the SHA-256 digest of these and the password in UTF-8
    (rabbitmq.com, "Credentials and Passwords", section "Computing Password Hash").
    """
    salt = salt or secrets.token_bytes(4)
    digest = hashlib.sha256(salt + password.encode()).digest()
    return base64.b64encode(salt + digest).decode("ascii")
