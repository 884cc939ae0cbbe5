"""The gateway's thread: as many agents at the master as the fleet has slots."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from pestfleet.engines.base import RunService
from pestfleet.engines.gateway.agent import Agent, Counters
from pestfleet.engines.gateway.frames import FrameError
from pestfleet.engines.gateway.link import Link, Post, Send
from pestfleet.engines.gateway.names import Interface
from pestfleet_worker.errors import ConfigurationError, PestfleetError, SessionError

MOST = 900  # connections; a master has a descriptor for each, and breaks at 1024 of them
HARD_MOST = 1000
POLL = 0.25  # seconds between looks at the fleet's slots
FIRST_RETRY, LAST_RETRY = 0.02, 0.5  # seconds between tries while the master does not listen yet
FAREWELL = 0.5  # seconds that the master has to read the farewells when the gateway stops
REFUSED_OFTEN = 3  # polls in a row after which the user is told of refused connections
MOST_ERRORS = 5  # connections in a row that ended by an error, without a finished run between
_OTHER_DESCRIPTORS = 4096  # of the same process: the channel's connections, files
_CONNECTING = 8  # connections that are being made at a time

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GatewayEvent:
    """Something that the user may want to know."""

    kind: Literal["note", "warning", "error"]
    text: str


class Gateway:
    """Speaks for a fleet to one PANTHER master; runs in a thread of its own.

    There is one connection for each slot of the fleet, at least one, at most `most`. A PANTHER
    agent has one run at a time, so of a fleet with more slots than that only `most` are used.
    `spare` connections more than slots keep the next runs waiting in the channel, so that no slot
    waits for the master between short runs; the master then sees more agents than there are slots.

    When the fleet shrinks, connections leave, idle ones first, the others after their run.
    When the master has ended (it said TERMINATE, or does not listen any more) the gateway ends.
    It also ends where going on is of no use, and `check` then raises the reason: another case
    at the master, the run service failed, or the master cannot be understood.

    All methods may be called from any thread.
    """

    def __init__(
        self,
        service: RunService,
        *,
        connect: Callable[[], socket.socket],
        most: int = MOST,
        spare: int = 0,
        whole_cycles: bool = False,
        on_event: Callable[[GatewayEvent], None] | None = None,
        poll: float = POLL,
    ) -> None:
        """`connect` gives a new socket that is connected to the master, or raises `OSError`.

        It is called in threads of a small pool, as often as needed, also before the master
        listens. `whole_cycles`: see `Interface`. `on_event` is called in the gateway's thread.
        """
        if not 1 <= most <= HARD_MOST:
            raise ConfigurationError(
                f"a PANTHER master cannot have {most} agents",
                remedy=f"Choose 1 to {HARD_MOST} connections.",
            )
        self._service = service
        self._interface = Interface(service.spec, whole_cycles=whole_cycles)
        self._connect = connect
        self._most = most
        self._spare = spare
        self._on_event = on_event
        self._poll = poll
        self._counters = Counters()
        self._links: set[Link] = set()
        self._made = 0  # connections since the start
        self._errors = 0
        self._finished_before = 0
        self._told_share = False
        self._error: Exception | None = None
        self._terminated = False
        self._stopping = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread, and return at once; the master need not listen yet."""
        _allow_descriptors(self._most)
        self._thread.start()

    def stop(self) -> None:
        """Say farewell to the master, cancel the runs in hand, end the thread. May be repeated."""
        with self._lock:
            self._stopping = True
            self._wake_up()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the gateway's end, at most `timeout` seconds; True when it has ended."""
        return self._ended.wait(timeout)

    def check(self) -> None:
        """Raise why the gateway ended by itself, where that is an error."""
        error = self._error
        if isinstance(error, PestfleetError):
            raise error
        if error is not None:
            raise SessionError(f"the gateway ended by a defect: {error!r}") from error

    @property
    def counters(self) -> Counters:
        """How many runs and connections; a copy."""
        return replace(self._counters)

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except Exception as error:
            logger.exception("the gateway ended by a defect")
            self._error = self._error or error
        finally:
            self._ended.set()

    async def _live(self) -> None:
        self._wake = asyncio.Event()
        with self._lock:
            self._loop = asyncio.get_running_loop()
        pool = concurrent.futures.ThreadPoolExecutor(_CONNECTING, thread_name_prefix="connect")
        try:
            await self._follow_fleet(pool)
        except Exception as error:
            self._end_by(error)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            with self._lock:
                self._loop = None
            await self._say_farewells()

    async def _follow_fleet(self, pool: concurrent.futures.Executor) -> None:
        retry, refused = FIRST_RETRY, 0
        while not self._is_over():
            refusal = await self._grow(pool, self._count_missing())
            refused = refused + 1 if refusal else 0
            if self._links or refusal is None:
                if refused == REFUSED_OFTEN:  # once may be the master's end
                    self._tell("warning", f"the master takes no more connections: {refusal}")
                await self._sleep(self._poll)
            elif self._made:
                return  # it does not listen any more: it has ended
            else:
                await self._sleep(retry)
                retry = min(2 * retry, LAST_RETRY)

    def _is_over(self) -> bool:
        return self._stopping or self._terminated or self._error is not None

    async def _sleep(self, seconds: float) -> None:
        assert self._wake is not None
        if self._is_over():
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)
        self._wake.clear()

    def _wake_up(self) -> None:
        if self._loop is not None and self._wake is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    # -- as many connections as slots ----------------------------------------------------------

    def _count_missing(self) -> int:
        """Have connections leave that are too many; say how many are missing."""
        slots = self._service.slots
        if slots > self._most and not self._told_share:
            self._told_share = True
            self._tell(
                "warning",
                f"the fleet has {slots} slots, but a PANTHER master takes {self._most} agents "
                f"with one run each: {self._most} runs are made at a time",
            )
        wanted = min(max(slots + self._spare, 1), self._most)
        present = [link for link in self._links if not link.agent.ended]
        # Those that stay come first: with a run in hand, then the rest.
        present.sort(key=lambda link: (link.agent.idle, link.agent.leaving))
        for link in present[:wanted]:
            link.agent.stay()
        for link in present[wanted:]:
            link.leave()
        # The master has a descriptor also for those that it has not seen off yet.
        return min(wanted - len(present), self._most - len(self._links))

    async def _grow(self, pool: concurrent.futures.Executor, missing: int) -> OSError | None:
        """Make connections; gives why one could not be made."""
        loop = asyncio.get_running_loop()
        while missing > 0 and not self._is_over():
            jobs = [
                loop.run_in_executor(pool, self._connect) for _ in range(min(missing, _CONNECTING))
            ]
            refusal: OSError | None = None
            broken: BaseException | None = None
            for outcome in await asyncio.gather(*jobs, return_exceptions=True):
                if isinstance(outcome, socket.socket):
                    await self._add(outcome)
                elif isinstance(outcome, OSError):
                    refusal = outcome
                else:
                    broken = outcome
            if broken is not None:
                raise broken
            if refusal is not None:
                return refusal
            missing -= len(jobs)
        return None

    async def _add(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._made += 1
        name = f"pestfleet/connection-{self._made}"

        def make() -> Link:
            def make_agent(send: Send, post: Post) -> Agent:
                return Agent(
                    name,
                    service=self._service,
                    interface=self._interface,
                    counters=self._counters,
                    send=send,
                    post=post,
                )

            link = Link(
                name,
                make_agent,
                result_bytes=self._interface.parameter_bytes + self._interface.observation_bytes,
                on_lost=self._forget,
                on_error=self._count_error,
            )
            self._links.add(link)
            self._counters.connections = len(self._links)
            return link

        try:
            await asyncio.get_running_loop().create_connection(make, sock=sock)
        except OSError as error:  # gone before it began
            logger.info("%s: %s", name, error)
            sock.close()
            for link in [link for link in self._links if link.name == name]:
                self._forget(link)

    # -- connections that end ------------------------------------------------------------------

    def _forget(self, link: Link) -> None:
        self._links.discard(link)
        self._counters.connections = len(self._links)
        if link.agent.terminated:
            self._terminated = True
            self._wake_now()

    def _count_error(self, link: Link, error: Exception) -> None:
        logger.warning("%s: %s", link.name, error)
        if self._is_over():
            return
        if not isinstance(error, FrameError):
            self._end_by(error)
            return
        if self._counters.finished > self._finished_before:
            self._errors = 0
        self._finished_before = self._counters.finished
        self._errors += 1
        self._tell("warning", f"a connection to the master was given up: {error.message}")
        if self._errors >= MOST_ERRORS:
            self._end_by(
                SessionError(
                    f"{self._errors} connections to the master were given up one after the other, "
                    f"the last one because {error.message}",
                    remedy="Use PEST++ 5.2, or run it with its own agents: --mode agent.",
                )
            )

    def _end_by(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
            if not isinstance(error, PestfleetError):
                logger.error("the gateway ends by a defect", exc_info=error)
            self._tell("error", error.message if isinstance(error, PestfleetError) else repr(error))
        self._wake_now()

    def _wake_now(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def _say_farewells(self) -> None:
        """End all connections; the master gets a moment to read that."""
        for link in list(self._links):
            link.agent.say_farewell()
            link.leave()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FAREWELL
        while self._links and loop.time() < deadline:
            await asyncio.sleep(0.01)
        for link in list(self._links):
            link.abort()
        await asyncio.sleep(0)  # the transports close in the loop's next round

    def _tell(self, kind: Literal["note", "warning", "error"], text: str) -> None:
        if self._on_event is not None:
            self._on_event(GatewayEvent(kind, text))


def _allow_descriptors(connections: int) -> None:
    """Raise this process's limit of open files, as far as the system lets a user, if it is low."""
    if sys.platform != "win32":  # which has none
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + _OTHER_DESCRIPTORS
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
