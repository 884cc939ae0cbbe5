"""Agents of the whole fleet, for an engine: the relay, and what the workers are told."""

from __future__ import annotations

import secrets
import socket
from collections import deque
from collections.abc import Callable, Sequence

from pestfleet.relay.certificate import make_certificate
from pestfleet.relay.server import Relay
from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.forwarder import DEAD_AFTER, is_loopback
from pestfleet_worker.messages import AgentSpec

_CONNECT_TIMEOUT = 5.0
REPORTS_KEPT = 100


class FleetAgents:
    """The `AgentService` of a session.

    `configure` hands an `AgentSpec` to all workers, those that come later too; None ends the
    agents. `slots` asks how many the fleet has. `check_stop` raises when the session shall stop.
    """

    def __init__(
        self,
        configure: Callable[[AgentSpec | None], None],
        slots: Callable[[], int],
        *,
        check_stop: Callable[[], None],
        host: str = "127.0.0.1",
        port: int = 0,
        advertised: str = "",
        advertised_port: int = 0,
        most: int = 1000,
        dead_after: float = DEAD_AFTER,
    ) -> None:
        """`host`, `port`: where the relay listens. `advertised`, `advertised_port`: the name and
        the port by which workers reach it, where these differ. Unless both names are loopback the
        relay makes itself a certificate. `most`: agents at a time. `dead_after`: seconds without a
        sign of a worker's machine after which its agents are given up.
        """
        self._configure = configure
        self._slots = slots
        self._host = host
        self._port = port
        self._advertised = advertised or host
        if host in ("0.0.0.0", "::") and not advertised:
            raise ConfigurationError(
                f"the relay listens on {host}, which is no address to connect to",
                remedy="Say by which name the workers reach it.",
            )
        self._advertised_port = advertised_port
        self._most = most
        self._dead_after = dead_after
        self._relay: Relay | None = None
        self._reports: deque[tuple[str, str]] = deque(maxlen=REPORTS_KEPT)
        self.check_stop = check_stop

    @property
    def slots(self) -> int:
        return self._slots()

    @property
    def connected(self) -> int:
        """Agents that are connected to the engine's master."""
        return self._relay.agents if self._relay is not None else 0

    @property
    def workers(self) -> dict[str, int]:
        """Worker -> its connected agents."""
        return self._relay.workers if self._relay is not None else {}

    def start(
        self,
        command: Sequence[str],
        *,
        master_port: int,
        connect: Callable[[], socket.socket] | None = None,
    ) -> None:
        """See `AgentService.start`.

        `connect` makes a connection to the engine where it is not on this machine's loopback: in
        a network namespace. Raises `ConfigurationError` when the relay cannot listen.
        """
        self.stop()
        local = is_loopback(self._host) and is_loopback(self._advertised)
        certificate = None if local else make_certificate()
        token = secrets.token_urlsafe(32)
        relay = Relay(
            connect or (lambda: _connect_loopback(master_port)),
            token=token,
            host=self._host,
            port=self._port,
            certificate=certificate,
            most=self._most,
            dead_after=self._dead_after,
            on_report=lambda worker, text: self._reports.append((worker, text)),
        )
        try:
            relay.start()
        except OSError as error:
            raise ConfigurationError(
                f"the relay cannot listen on {self._host}:{self._port}: {error.strerror}",
                remedy="Choose another address or port for it.",
            ) from error
        self._relay = relay
        self._configure(
            AgentSpec(
                command=tuple(command),
                relay_host=self._advertised,
                relay_port=self._advertised_port or relay.port,
                token=token,
                certificate=certificate.pem if certificate is not None else "",
            )
        )

    def stop(self) -> None:
        """See `AgentService.stop`; may be called more than once."""
        relay, self._relay = self._relay, None
        if relay is not None:
            self._configure(None)
            relay.close()

    def take_reports(self) -> list[tuple[str, str]]:
        """(worker, how an agent of it ended), oldest first; each is handed out once."""
        reports = []
        while self._reports:
            reports.append(self._reports.popleft())
        return reports

    def drop(self, worker: str) -> None:
        """A worker is lost: reset its agents' connections, so that the engine notices."""
        if self._relay is not None:
            self._relay.drop(worker)


def _connect_loopback(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_TIMEOUT)
