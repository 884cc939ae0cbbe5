"""OpenSSH's client: its command line, and what it says put into our words.

Windows, macOS and every Linux have it. Options and messages: ssh(1), ssh_config(5), and the
sources of OpenSSH 8 to 10 (ssh.c, sshconnect.c, channels.c, serverloop.c), which print these
messages unchanged on all systems.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from pestfleet_worker.errors import TargetError

# Files in the folder that ssh is started in: a name without a folder needs no quotes anywhere.
KEY_FILE = "key"
KNOWN_HOSTS = "known_hosts"
HOST_ALIAS = "pestfleet-tunnel"  # the server's name in known_hosts, whatever its address
ALIVE_INTERVAL, ALIVE_COUNT = 3, 3  # a server is given up after 9 to 12 s without an answer
CONNECT_TIMEOUT = 10

_UP = re.compile(r"debug1: remote forward success for: listen ")
_CHATTER = re.compile(r"debug\d: |OpenSSH_|Authenticated to |Transferred: |Bytes per second: ")


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection ended, or did not come to be. `final`: trying again will not help."""

    reason: str
    remedy: str = ""
    final: bool = False
    held: bool = False  # the port there is still held by an earlier connection


def find_ssh() -> str:
    """The path of ssh. Raises `TargetError` when there is none."""
    path = shutil.which("ssh")
    if path is None:
        raise TargetError(
            "there is no program ssh on this machine",
            remedy="Install OpenSSH's client (Windows: Settings, Optional features, OpenSSH "
            "Client; Debian: apt install openssh-client) and look whether `ssh -V` answers.",
        )
    return path


def make_command(ssh: str, *, port: int, user: str, listen: int, to: tuple[str, int]) -> list[str]:
    """The command line that keeps one reverse forward, to a server at a port on loopback.

    `listen`: port on the server; `to`: address and port that this machine connects it to. No
    configuration, agent, known host or terminal of the user's has any part in it.
    """
    host = f"[{to[0]}]" if ":" in to[0] else to[0]
    options = {
        "BatchMode": "yes",
        "CheckHostIP": "no",
        "ConnectTimeout": CONNECT_TIMEOUT,
        "ControlMaster": "no",
        "ControlPath": "none",
        "ExitOnForwardFailure": "yes",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "GlobalKnownHostsFile": "none",
        "HostKeyAlgorithms": "ssh-ed25519",
        "HostKeyAlias": HOST_ALIAS,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "LogLevel": "DEBUG1",  # else nobody would tell when the forward is there
        "PermitLocalCommand": "no",
        "PreferredAuthentications": "publickey",
        "ServerAliveCountMax": ALIVE_COUNT,
        "ServerAliveInterval": ALIVE_INTERVAL,
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "UserKnownHostsFile": KNOWN_HOSTS,
        "VerifyHostKeyDNS": "no",
    }
    return [
        ssh,
        *("-N", "-T", "-F", "none", "-i", KEY_FILE, "-l", user, "-p", str(port)),
        *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
        *("-R", f"{listen}:{host}:{to[1]}"),
        "127.0.0.1",
    ]


def says_up(line: str) -> bool:
    """Does this line of ssh's say that the forward is there?"""
    return _UP.match(line) is not None


def explain_ending(lines: Sequence[str], code: int, *, where: str, listen: int) -> Ending:
    """What the last lines and the exit code of an ssh mean. `where`: the server, for the words."""
    text = "\n".join(lines)
    if re.search(r"port forwarding refused|disabled port forwarding", text):
        return Ending(
            f"the tunnel at {where} does not let this key listen on its port {listen}",
            "Ask for the port that it was set up for: --listen, PESTFLEET_TUNNEL_PORT there, and "
            "permitlisten in its authorized_keys are the same number.",
            final=True,
        )
    if "remote port forwarding failed" in text:
        return Ending(f"port {listen} there is still held by another connection", held=True)
    for pattern, reason, remedy in _FINAL:
        found = re.search(pattern, text, re.MULTILINE)
        if found is not None:
            said = found[0].strip()
            return Ending(reason.format(where=where, said=said), remedy, final=True)
    if re.search(r"^Timeout, server .* not responding", text, re.MULTILINE):
        return Ending(f"no answer from {where}")
    if re.search(r"[Cc]onnection (?:\S+ )*(?:closed|reset)|Broken pipe|by remote host", text):
        return Ending(f"the connection to {where} was lost")
    if code < 0:
        return Ending(f"ssh was ended by signal {-code}")
    words = [line.strip() for line in lines if line.strip() and not _CHATTER.match(line)]
    return Ending(words[-1] if words else f"ssh ended with exit code {code}")


# (what ssh says, what it means, what to do); none of these heals by itself.
_FINAL = (
    (
        r"Host key verification failed|No \S+ host key is known",
        "the server at {where} is not the tunnel that is meant: its host key differs",
        "Take the host_key.pub that was made together with the tunnel's keys; one that was set up "
        "anew has new keys. If nobody did that, somebody may be in between: do not connect.",
    ),
    (
        r"^Load key .*",
        "the key cannot be used: {said}",
        "Take the file tunnel_key as it was written, without a passphrase.",
    ),
    (
        r"Permission denied \(",
        "the tunnel at {where} does not know the key",
        "Take the tunnel_key that was made together with the tunnel's authorized_keys.",
    ),
    (
        r"^Unable to negotiate.*|^.*no matching .*",
        "the server at {where} and this machine's ssh cannot agree: {said}",
        "Look whether that is the tunnel's port, and update OpenSSH here (`ssh -V`).",
    ),
    (
        r"^.*(?:Bad configuration option|[Uu]nsupported option|unknown option).*",
        "this machine's ssh does not know an option: {said}",
        "Update OpenSSH (`ssh -V` shows its version; 8.1 or newer is needed).",
    ),
    (
        r"^No user exists for uid.*|^.*don't exist, who are you.*",
        "ssh does not run here: {said}",
        "Run this as a user that the system knows.",
    ),
)
