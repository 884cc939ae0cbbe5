"""Keeps a reverse forward alive: from a port beside the workers to one on this machine."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pestfleet.apart import run_apart
from pestfleet.tunnel.bridge import Bridge
from pestfleet.tunnel.keys import LISTEN_PORT
from pestfleet.tunnel.program import (
    ALIVE_COUNT,
    ALIVE_INTERVAL,
    CONNECT_TIMEOUT,
    HOST_ALIAS,
    KEY_FILE,
    KNOWN_HOSTS,
    Ending,
    explain_ending,
    find_ssh,
    make_command,
    says_up,
)
from pestfleet_worker.errors import ConfigurationError, TargetError

logger = logging.getLogger(__name__)

SSH_PORT = 2222
USER = "tunnel"
PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0)  # seconds before each try; the last one for ever
HELD_PAUSE = 2.0  # seconds at most while the port there is held: the server frees it by itself
HEALTHY = 10.0  # seconds up after which the pauses begin anew
UP_TIMEOUT = 30.0  # seconds for one try, of an ssh that hangs
_LINES = 40
_GRACE = 1.0
_JOIN = 10.0

OnEvent = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class TunnelPlace:
    """Where a tunnel's server is, and what proves both ends: contents of files, not paths.

    `host_public`: one line, `ssh-ed25519 KEY [COMMENT]`. `listen`: the port that it has for us.
    """

    host: str
    port: int = SSH_PORT
    user_key: str = field(kw_only=True, repr=False)
    host_public: str = field(kw_only=True)
    listen: int = LISTEN_PORT
    user: str = USER

    def __post_init__(self) -> None:
        """Raises `ConfigurationError` when a key is none."""
        if not re.match(r"ssh-ed25519 [A-Za-z0-9+/=]+\s", f"{self.host_public}\n"):
            raise ConfigurationError(
                "the tunnel's host key is no public Ed25519 key",
                remedy="It is one line that begins with ssh-ed25519: the file host_key.pub.",
            )
        if not re.match(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s", self.user_key):
            raise ConfigurationError(
                "the tunnel's key is no private key",
                remedy="It begins with -----BEGIN OPENSSH PRIVATE KEY-----: the file tunnel_key.",
            )

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Tunnel:
    """Connects, watches and reconnects in a thread of its own, with OpenSSH's client.

    `start` once, `stop` once (also after a failure), or as a context manager. `state` is
    "connecting", "connected", "retrying", "failed" (it will not heal; see `error`) or "stopped".
    Nothing of it outlives this process, however that ends.
    """

    def __init__(
        self,
        place: TunnelPlace,
        *,
        to: tuple[str, int] = ("127.0.0.1", LISTEN_PORT),
        on_event: OnEvent | None = None,
    ) -> None:
        """`to`: where this machine takes what arrives at the server's port.

        `on_event` gets an event and its reason, in the tunnel's thread: "connected", "lost",
        "retrying" (told once for each reason), "failed". Raises `TargetError` without ssh.
        """
        self.place = place
        self.error: TargetError | None = None
        self._to = to
        self._on_event = on_event
        self._ssh = find_ssh()
        self._state = "connecting"
        self._reason = ""
        self._told = ""
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        # Not Thread.join: when Ctrl-C interrupts that, a thread that runs counts as ended (until
        # Python 3.13).
        self._over = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._went_up: float | None = None  # when ssh's present connection was up
        self._bridge: Bridge | None = None
        self._thread = threading.Thread(target=self._run, name="tunnel", daemon=True)

    @property
    def state(self) -> str:
        return self._state

    @property
    def reason(self) -> str:
        """Why it is not connected; "" when nothing is known yet."""
        return self._reason

    def start(self) -> None:
        self._bridge = Bridge(
            self.place.host,
            self.place.port,
            connect_timeout=CONNECT_TIMEOUT,
            dead_after=float(ALIVE_INTERVAL * (ALIVE_COUNT + 1)),
        )
        self._thread.start()

    def wait_until_up(self, timeout: float) -> None:
        """Wait until it is connected. Raises `TargetError` when it failed, or is not in time."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._state in ("connected", "failed", "stopped"), timeout
            )
            if self._state == "connected":
                return
            if self.error is not None:
                raise self.error
            reason = self._reason or f"no answer from {self.place}"
        raise TargetError(
            f"the tunnel was not there within {timeout:g} s: {reason}",
            remedy="Look whether the tunnel's container runs, and whether this machine may "
            f"connect to {self.place} (a firewall must let that out).",
        )

    def wait(self, timeout: float) -> bool:
        """Wait for its end, seconds; is it over?"""
        return self._over.wait(timeout)

    def stop(self) -> None:
        """End ssh and remove the files; nothing happens when it has ended."""
        with self._changed:
            self._stopping.set()
            process = self._process
        if process is not None:
            process.kill()
        if self._bridge is not None:
            self._bridge.close()
            self._over.wait(_JOIN)
        if self._state != "failed":
            self._change("stopped", "")

    def __enter__(self) -> Tunnel:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # -- in the tunnel's thread ----------------------------------------------------------------

    def _run(self) -> None:
        assert self._bridge is not None
        try:
            self._keep(self._bridge)
        except Exception as error:  # whoever waits must not wait for ever
            logger.exception("the tunnel's thread ended")
            self._fail(Ending(f"the tunnel ended: {error}", final=True))
        finally:
            self._bridge.close()
            self._over.set()

    def _keep(self, bridge: Bridge) -> None:
        tries = 0
        while not self._stopping.is_set():
            self._went_up = None
            ending = self._connect(bridge)
            up = self._went_up
            if self._stopping.is_set():
                return
            if ending.final:
                self._fail(ending)
                return
            tries = 0 if up is not None and time.monotonic() - up > HEALTHY else tries
            self._change("retrying", ending.reason)
            if up is not None:
                self._told = ending.reason
                self._tell("lost", ending.reason)
            elif ending.reason != self._told:
                self._told = ending.reason
                self._tell("retrying", ending.reason)
            pause = PAUSES[min(tries, len(PAUSES) - 1)]
            tries += 1
            self._stopping.wait(min(pause, HELD_PAUSE) if ending.held else pause)

    def _connect(self, bridge: Bridge) -> Ending:
        """One connection from beginning to end, and why it ended."""
        where = str(self.place)
        try:
            port = bridge.connect()
        except socket.gaierror as error:
            return Ending(f"the name {self.place.host} is not known: {error.strerror}")
        except TimeoutError:
            return Ending(f"no answer from {where}")
        except OSError as error:
            words = os.strerror(error.errno) if error.errno else str(error)
            return Ending(f"{where} cannot be reached: {words}")
        try:
            with tempfile.TemporaryDirectory(prefix="pestfleet-tunnel-") as folder:
                return self._run_ssh(port, Path(folder))
        finally:
            bridge.shut()

    def _run_ssh(self, port: int, folder: Path) -> Ending:
        host_key = " ".join(self.place.host_public.split()[:2])
        _write_private(folder / KNOWN_HOSTS, f"{HOST_ALIAS} {host_key}\n")
        _write_private(folder / KEY_FILE, self.place.user_key.rstrip() + "\n")
        command = make_command(
            self._ssh, port=port, user=self.place.user, listen=self.place.listen, to=self._to
        )
        with self._changed:
            if self._stopping.is_set():
                return Ending("stopped")
            process = self._process = _start(command, folder)
        hung = threading.Timer(UP_TIMEOUT, process.kill)
        hung.daemon = True
        hung.start()
        lines: deque[str] = deque(maxlen=_LINES)
        try:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line.rstrip())
                logger.debug("ssh: %s", line.rstrip())
                if self._went_up is None and says_up(line):
                    hung.cancel()
                    (folder / KEY_FILE).unlink()  # ssh has it; a kill -9 of us leaves none
                    self._went_up = time.monotonic()
                    self._told = ""
                    self._change("connected", "")
                    self._tell("connected", "")
        finally:
            hung.cancel()
            with self._changed:
                self._process = None
            _end(process)
        return explain_ending(
            lines, process.returncode, where=str(self.place), listen=self.place.listen
        )

    def _fail(self, ending: Ending) -> None:
        self.error = TargetError(ending.reason, remedy=ending.remedy)
        self._change("failed", ending.reason)
        self._tell("failed", ending.reason)

    def _change(self, state: str, reason: str) -> None:
        with self._changed:
            self._state, self._reason = state, reason
            self._changed.notify_all()

    def _tell(self, event: str, reason: str) -> None:
        logger.info("the tunnel to %s: %s%s", self.place, event, f": {reason}" if reason else "")
        if self._on_event is not None:
            try:
                self._on_event(event, reason)
            except Exception:  # a display that fails must not end a session of hours
                logger.exception("the event %s could not be shown", event)


def open_tunnel(
    place: TunnelPlace,
    *,
    to: tuple[str, int] = ("127.0.0.1", LISTEN_PORT),
    on_event: OnEvent | None = None,
    timeout: float = 60.0,
) -> Tunnel:
    """A tunnel that is up; the caller stops it. Raises as `Tunnel` and `wait_until_up` do."""
    tunnel = Tunnel(place, to=to, on_event=on_event)
    tunnel.start()
    try:
        tunnel.wait_until_up(timeout)
    except BaseException:
        tunnel.stop()
        raise
    return tunnel


def _start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start ssh in a folder, apart from our terminal: Ctrl-C there is for us alone."""
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        **run_apart(),
    )


def _end(process: subprocess.Popen[str]) -> None:
    """Its output has ended, so it does too; if not, we end it."""
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, from its first moment on."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text, encoding="utf-8", newline="\n")
