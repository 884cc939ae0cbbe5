"""`pestfleet tunnel`: keeps the way from workers to a master behind a firewall open."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import click

from pestfleet_worker.errors import ConfigurationError

_LOOK = 0.5  # seconds between two looks for its end: Windows does not interrupt a wait


@click.command("tunnel", short_help="Let workers elsewhere reach a master behind a firewall.")
@click.option("--host", metavar="NAME", required=True, help="Where the tunnel's server is.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=2222,
    show_default=True,
    help="Port of its ssh.",
)
@click.option(
    "--key",
    "key_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="The session's tunnel_key.",
)
@click.option(
    "--host-key",
    "host_key_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The server's public key.  [default: host_key.pub beside --key]",
)
@click.option(
    "--listen",
    type=click.IntRange(1024, 65535),
    default=4004,
    show_default=True,
    help="Port beside the workers, at which they find the master.",
)
@click.option(
    "--to",
    "target",
    metavar="ADDRESS:PORT",
    default="127.0.0.1:4004",
    show_default=True,
    help="Where that leads on this side.",
)
def command(
    *, host: str, port: int, key_file: Path, host_key_file: Path | None, listen: int, target: str
) -> None:
    """Keep a reverse forward alive: from the tunnel's server, beside workers, to this machine.

    Only this machine connects, outward, with OpenSSH's client. A lost connection is made anew; a
    server with another host key, or one that refuses the key, ends it. Ctrl-C ends it, too.
    """
    from pestfleet.tunnel.connection import Tunnel, TunnelPlace

    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    to = parse_address(target)
    place = TunnelPlace(
        host,
        port,
        user_key=_read_key(key_file),
        host_public=_read(host_key_file or key_file.with_name("host_key.pub")),
        listen=listen,
    )
    told = f"{place}, port {listen}, leads to {target}"
    with Tunnel(place, to=to, on_event=lambda event, why: _show(event, why, told)) as tunnel:
        while not tunnel.wait(_LOOK):
            pass
    if tunnel.error is not None:
        raise tunnel.error


def parse_address(text: str) -> tuple[str, int]:
    """`127.0.0.1:4004`, `[::1]:4004`, or only the port. Raises `ConfigurationError`."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(
            f"{text!r} is no address with a port", remedy="Such as --to 127.0.0.1:4004"
        )
    return host, int(port)


def _show(event: str, reason: str, told: str) -> None:
    if event == "failed":
        return  # the error itself is shown
    words = {"connected": f"connected: {told}", "lost": f"lost: {reason}; connecting again"}
    click.echo(f"{time.strftime('%H:%M:%S')} {words.get(event, f'not yet: {reason}')}")


def _read_key(path: Path) -> str:
    text = _read(path)
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigurationError(
            f"{path} can be read by other users", remedy=f"Type: chmod 600 {path}"
        )
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError(
            f"{path} cannot be read: {why}",
            remedy="`pestfleet credentials` writes the keys: tunnel_key and host_key.pub.",
        ) from error
