"""A master on the user's machine, with its broker, tunnel and workers behind a platform's API.

The master reaches broker and tunnel through forwards, what it launched lives by a lease of this
process, and an API that is away for a while ends no session.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from pestfleet.folder import SessionSpec
from pestfleet.targets.addresses import find_free_port, unpack_url
from pestfleet.targets.base import Fleet, FleetPlan, Site
from pestfleet.targets.home import BROKER_PATIENCE, HomeMaster, HomeTarget, Say, place_tunnel
from pestfleet.targets.troubles import News, Trouble, refuse_dead_end
from pestfleet.tunnel.keys import LISTEN_PORT
from pestfleet_worker.errors import PestfleetError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent
    from pestfleet.session import Session
    from pestfleet.tunnel.connection import TunnelPlace
    from pestfleet.tunnel.keys import TunnelKeys

logger = logging.getLogger(__name__)

GLANCE = 1.0  # seconds between two looks for a server that starts
LOOK = 10.0  # seconds between two looks at what keeps it
START = 1800.0  # seconds for a server that starts: machines and volumes may be made for it


class Forward(Protocol):
    """Listens on loopback from its making to `close`, and leads to a server of the session."""

    @property
    def address(self) -> tuple[str, int]: ...

    def close(self) -> None: ...


class Lease(Protocol):
    """What is launched goes by itself some time after nobody has renewed this any more."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Watch:
    """Says once what keeps a session's containers from running."""

    def __init__(self, gather: Callable[[], list[Trouble]], spec: SessionSpec, say: Say) -> None:
        self._gather = gather
        self._spec = spec
        self._news = News(say)

    def look(self, wanted: int = 0) -> None:
        """Raises `TargetError` when too few of the workers will ever run, or no broker.

        `wanted`: how many workers; 0: as many as the session asks for.
        """
        troubles = self._gather()
        wanted = wanted or self._spec.workers
        refuse_dead_end(troubles, wanted=wanted, least=self._spec.place.least)
        self._news.tell(troubles)


@dataclass(frozen=True, slots=True)
class Ways:
    """How workers reach a master here. `tunnel`: to the tunnel's server, where there is one;
    `tunnel_host`: the name by which workers find it; `relay_port`: see `HomeTarget`.
    """

    keys: TunnelKeys | None = None
    tunnel: Forward | None = None
    tunnel_host: str = ""
    relay_port: int = 0


F = TypeVar("F", bound=Fleet)


class DistantHome(HomeMaster, Generic[F]):
    """See `HomeMaster`."""

    def __init__(self, session: Session, fleet: F, *, broker_url: str, on_event: OnEvent) -> None:
        super().__init__(session, broker_url=broker_url, on_event=on_event)
        self._fleet = fleet
        self._lease: Lease | None = None
        self._forwards: list[Forward] = []

    # -- what a platform does ------------------------------------------------------------------

    @abstractmethod
    def _works(self, role: str) -> bool:
        """Does the server of a role?"""

    @abstractmethod
    def _forward_to(self, role: str) -> Forward:
        """To the server of a role, whichever it is at the time."""

    @abstractmethod
    def _tell_where(self, role: str) -> str:
        """Where to look why a server does not come to work."""

    # -- the servers ---------------------------------------------------------------------------

    def _connect(
        self,
        spec: SessionSpec,
        watch: Watch,
        say: Say,
        *,
        make_target: Callable[[FleetPlan, Ways], HomeTarget],
        written: dict[str, str] | None,
        keys: TunnelKeys | None,
        tunnel_host: str,
        image: str,
        began: float,
    ) -> tuple[str, Site]:
        """What `_launch_all` returns, when all but the workers is launched.

        `written`: the master's files for a broker of the session's own; `keys`: of its tunnel;
        `image`: what that of the workers is known by; `began`: see `Site`.
        """
        url = self._broker_url
        if written is not None:
            broker = self._open_forward("broker", watch, say)
            url = unpack_url(written, self._session.path, place=broker.address)
        tunnel = self._open_forward("tunnel", watch, say) if keys is not None else None
        relayed = tunnel is not None and spec.mode == "agent"
        ways = Ways(keys, tunnel, tunnel_host, find_free_port() if relayed else 0)
        site = Site(
            lambda wanted: make_target(wanted, ways),
            case_in_image=True,
            relay_port=ways.relay_port,
            advertised=tunnel_host if relayed else "",
            advertised_port=LISTEN_PORT if relayed else 0,
            platform=f"image {image}",
            broker_patience=BROKER_PATIENCE,
            began=began,
        )
        return url, site

    def _open_forward(self, role: str, watch: Watch, say: Say) -> Forward:
        await_server(role, lambda: self._works(role), watch, say, remedy=self._tell_where(role))
        forward = self._forward_to(role)
        self._forwards.append(forward)
        return forward

    def _remove_all(self) -> None:
        for forward in self._forwards:
            forward.close()
        if self._lease is not None:
            self._lease.stop()
        self._fleet.down(discard_results=True)  # its results are here


class DistantTarget(HomeTarget):
    """The workers of a session, with the tunnel that they reach us through."""

    trouble: ClassVar[tuple[type[PestfleetError], ...]]
    platform: ClassVar[str]  # in words
    pause: ClassVar[float]  # seconds between two looks at the fleet

    def __init__(self, wanted: FleetPlan, ways: Ways, watch: Watch, *, note: Say) -> None:
        tunnel = ways.tunnel is not None
        super().__init__(wanted, tunnel=tunnel, relay_port=ways.relay_port, note=note)
        self.tunnel_host = ways.tunnel_host
        self._ways = ways
        self._watch = watch
        self._number = wanted.workers
        self._looked = time.time()
        self._away = False

    @abstractmethod
    def _look_at_workers(self, unseen: float) -> None:
        """Say what does not run. `unseen`: seconds since the last look. Raises as `_look`."""

    def _find_tunnel(self) -> TunnelPlace:
        assert self._ways.tunnel is not None and self._ways.keys is not None
        return place_tunnel(self._ways.tunnel.address, self._ways.keys.home_files())

    def _look(self) -> None:
        # Not the monotonic clock, which stands still while a laptop sleeps.
        unseen = time.time() - self._looked
        if unseen < self.pause:
            return
        self._looked = time.time()
        try:
            self._look_at_workers(unseen)
        except self.trouble as trouble:
            logger.warning("%s", trouble)
            if not self._away:
                self._note(f"{trouble.message}; trying again")
            self._away = True
            return
        if self._away:
            self._note(f"{self.platform} answers again")
        self._away = False


def await_server(
    role: str, works: Callable[[], bool], watch: Watch, say: Say, *, remedy: str
) -> None:
    """Wait until a server works; say what keeps it. Raises `TargetError`, with this remedy."""
    deadline, looked = time.monotonic() + START, time.monotonic()
    while True:
        say("")
        if works():
            return
        now = time.monotonic()
        if now - looked > LOOK:
            looked = now
            watch.look()
        if now > deadline:
            raise TargetError(f"the {role} did not work within {START:.0f} s", remedy=remedy)
        time.sleep(GLANCE)
