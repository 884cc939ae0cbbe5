"""Writes a session's secrets, each part into a folder of its own: a container sees one of them.

What belongs together is made together: the users that a broker knows and the passwords that
master and worker hold; the keys of the tunnel's two ends. A part's file `complete`, written last,
names the set that it is of.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.unpack import write_secret

COMPLETE = "complete"
SECRETS = "/secrets"

Files = dict[str, str]


@dataclass(frozen=True, slots=True)
class Choices:
    """What the secrets are for.

    `broker_host`, `broker_port`: where master and workers find the broker. `mount`: the folder
    where each container sees its own part; "" : where the part is written.
    """

    session: str
    broker_host: str = "broker"
    broker_port: int = 5671
    mount: str = SECRETS

    def __post_init__(self) -> None:
        for what, value, pattern in (
            ("the id of a session", self.session, r"[A-Za-z0-9][A-Za-z0-9._-]*"),
            ("the name of a host", self.broker_host, r"[A-Za-z0-9][A-Za-z0-9.:_-]*"),
            ("a port", str(self.broker_port), r"[1-9]\d{0,4}"),
            ("an absolute path without blanks", self.mount, r"(/[^\s#'\"\\]*)?"),
        ):
            if not re.fullmatch(pattern, value):
                raise ConfigurationError(f"{value!r} is not {what}")


def _make_channel(choices: Choices, folder: Path) -> dict[str, Files]:
    from pestfleet.certificates import make_signed_certificate
    from pestfleet.credentials import rabbitmq
    from pestfleet_worker.endpoint import BROKER_NAME

    session = choices.session
    ca, certificate = make_signed_certificate(
        "pestfleet authority", [BROKER_NAME, choices.broker_host, "localhost"]
    )
    passwords = {user: secrets.token_urlsafe(32) for user in (rabbitmq.MASTER, rabbitmq.WORKER)}

    def place(part: str) -> str:
        return choices.mount.rstrip("/") or (folder / part).resolve().as_posix()

    def connect_as(user: str) -> Files:
        query = f"cacertfile={quote(place(user))}/ca.pem&server_name_indication={BROKER_NAME}"
        host = f"[{choices.broker_host}]" if ":" in choices.broker_host else choices.broker_host
        url = (
            f"amqps://{user}:{passwords[user]}@{host}:{choices.broker_port}/"
            f"{quote(session, safe='')}?{query}"
        )
        return {"broker-url": url + "\n", "ca.pem": ca}

    broker = {
        "rabbitmq.conf": rabbitmq.make_configuration(
            port=choices.broker_port, folder=place("broker")
        ),
        "definitions.json": rabbitmq.make_definitions(session, passwords),
        "enabled_plugins": "[].\n",  # no management, no metrics
        "ca.pem": ca,
        "cert.pem": certificate.pem,
        "key.pem": certificate.key,
    }
    return {
        "broker": broker,
        "master": connect_as(rabbitmq.MASTER),
        "worker": connect_as(rabbitmq.WORKER),
    }


def _make_tunnel(choices: Choices, folder: Path) -> dict[str, Files]:
    from pestfleet.tunnel.keys import make_tunnel_keys

    keys = make_tunnel_keys()
    return {"tunnel": keys.server_files(), "home": keys.home_files()}


# Parts that are made together, and what makes them.
_SETS: dict[tuple[str, ...], Callable[[Choices, Path], dict[str, Files]]] = {
    ("broker", "master", "worker"): _make_channel,
    ("tunnel", "home"): _make_tunnel,
}
PARTS = tuple(part for parts in _SETS for part in parts)


def make_credentials(choices: Choices, *, parts: Collection[str] = PARTS) -> dict[str, Files]:
    """New secrets of these parts, in memory only: part -> file name -> content.

    `choices.mount` must say where they will be.
    """
    made: dict[str, Files] = {}
    for members, make in _SETS.items():
        if any(part in parts for part in members):
            made |= make(choices, Path(choices.mount))
    return {part: files for part, files in made.items() if part in parts}


def write_credentials(
    folder: Path, choices: Choices, *, parts: Collection[str] = PARTS
) -> list[str]:
    """Write these parts of PARTS below `folder`, but keep complete ones; returns the written.

    Raises `ConfigurationError` when a folder cannot be written, or when a part that is there
    would not fit the new ones any more.
    """
    written: list[str] = []
    for members, make in _SETS.items():
        asked = [part for part in members if part in parts]
        if not asked or _are_complete(folder, asked, choices):
            continue
        for part in members:
            if part not in asked and (folder / part / COMPLETE).exists():
                raise ConfigurationError(
                    f"{folder / part} has secrets that would not fit new ones of "
                    f"{', '.join(asked)}",
                    remedy=f"Ask for all of them (--part {' --part '.join(members)}), or remove "
                    "that folder.",
                )
        files = make(choices, folder)
        try:
            _write_set(folder, {part: files[part] for part in asked}, choices)
        except OSError as error:
            raise ConfigurationError(f"the secrets cannot be written: {error}") from error
        written += asked
    return written


def _fingerprint(choices: Choices) -> str:
    return hashlib.sha256(repr(choices).encode()).hexdigest()


def _are_complete(folder: Path, parts: list[str], choices: Choices) -> bool:
    """Are all there, of one set that was made for these choices?"""
    marks = set()
    for part in parts:
        try:
            marks.add((folder / part / COMPLETE).read_text(encoding="ascii"))
        except OSError:
            return False
    return len(marks) == 1 and marks.pop().split()[1:] == [_fingerprint(choices)]


def _write_set(folder: Path, files: dict[str, Files], choices: Choices) -> None:
    for part in files:
        # A folder that is there may be a mount point: it stays as it is.
        (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / part / COMPLETE).unlink(missing_ok=True)
    for part, contents in files.items():
        for name, text in contents.items():
            _write_secret(folder / part / name, text)
    mark = f"{secrets.token_hex(8)} {_fingerprint(choices)}\n"
    for part in files:
        _write_secret(folder / part / COMPLETE, mark)


def _write_secret(path: Path, text: str) -> None:
    write_secret(path, text, mode=0o600)
