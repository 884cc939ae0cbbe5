"""A master in a task of ECS: its session comes from the store, and is kept there.

ECS starts a master again wherever one ends, and each begins with an empty disk. So the session's
folder is mirrored in the store while it works, and its last act is to have no task of any of the
session's services.
"""

from __future__ import annotations

import json
import logging
import math
import socket
import time
from contextlib import ExitStack
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.store import Mirror, SessionStore, Store
from pestfleet.targets.base import FleetPlan, Where
from pestfleet.targets.ecs.access import Cloud, connect
from pestfleet.targets.ecs.lease import Lease
from pestfleet.targets.ecs.naming import Names
from pestfleet.targets.service_workers import ServiceWorkers, dismiss
from pestfleet_worker.ecs_agent import name_task
from pestfleet_worker.errors import SessionError

if TYPE_CHECKING:
    from pestfleet.host import Host

logger = logging.getLogger(__name__)

PATIENCE = 120.0  # seconds for the end of another master, or until its claim is stale
# Seconds for the last files, where the store fails. A machine that is taken away gives less.
END_PATIENCE = 600.0
# Seconds that the lease lasts beyond the session's limits, at which the master ends it by itself.
GRACE = 900.0
HANGING = 600.0  # seconds without a new state, after which the lease is renewed no more
STARTS = 10  # of a master in one launch, without one that was ended in good order
MACHINES = "machines"  # the schedule of EC2 machines has it in the place of a role
LAUNCHED = "launched"  # file in the session's folder: the last launch, as JSON


class MasterTask:
    """A context that has the session's folder, and is its only master."""

    def __init__(self, folder: SessionFolder, *, store: str, cluster: str, group: str) -> None:
        """`store`: s3://BUCKET; `cluster`: of ECS; `group`: of the schedules of the lease.

        Raises `ConfigurationError` where `store` is no address.
        """
        self._folder = folder
        self._names = Names(folder.name)
        self._cluster = cluster
        self._group = group
        self._store = Store(store)
        self._mirror = Mirror(
            SessionStore(self._store, folder.name),
            folder,
            holder=name_task() or socket.gethostname(),
            on_warning=self._warn,
            on_lost=self._leave,
            patience=PATIENCE,
            end_patience=END_PATIENCE,
        )
        self._host: Host | None = None
        self._lease: Lease | None = None
        self._began = time.time()
        self._ended = False

    @cached_property
    def cloud(self) -> Cloud:
        """Amazon's APIs as this task's role sees them."""
        return connect(Where(region=self._folder.read_spec().place.amazon.region))

    def __enter__(self) -> Self:
        """Raises `SessionError` where the store has no such session, or it has another master."""
        self._mirror.__enter__()
        try:
            self._folder.read_spec()
            self._folder.results.mkdir(exist_ok=True)  # the store knows no empty folders
        except (SessionError, OSError):
            self._mirror.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises as `Mirror.__exit__` does."""
        with ExitStack() as stack:
            stack.callback(self._stop_lease)
            stack.callback(self._dismiss_all)
            self._mirror.__exit__(kind, error, trace)

    # -- the session's life --------------------------------------------------------------------

    def count_start(self) -> None:
        """Raises `SessionError` where masters of this launch have begun too often."""
        if self._add_start(1) > STARTS:
            name = self._folder.name
            raise SessionError(
                f"the master of session {name} has begun {STARTS} times and died each time; the "
                "session is ended",
                remedy=f"See why: pestfleet logs {name}. Go on with: pestfleet resume {name}",
            )

    def forgive_start(self) -> None:
        """This master ends in good order, for the next one."""
        self._add_start(-1)

    def start_lease(self, spec: SessionSpec, *, began: float) -> None:
        """Renew it from now on. `began`: the launch, in seconds since 1970."""
        self._lease = Lease(
            self.cloud,
            self._group,
            [self._names.service(one) for one in (*self._roles, MACHINES)],
            latest=lambda: find_latest(spec, self._folder.read_state(), began=began),
            alive=self._is_moving,
            on_trouble=self._warn,
            on_lapse=lambda: self._warn("the fleet's lease had run out: its services were stopped"),
        )
        self._lease.start()

    def make_target(self, plan: FleetPlan) -> ServiceWorkers:
        """The service with the workers."""
        return ServiceWorkers(
            plan, self.cloud, cluster=self._cluster, service=self._names.service("worker")
        )

    def watch(self, host: Host) -> None:
        """The master that works: it hears of trouble, and ends where it is the master no more."""
        self._host = host

    def end(self) -> None:
        """This launch of the session is over: on leaving, all its tasks end, and this one, too."""
        self._ended = True
        if self._mirror.lost is None:
            # Now, for ECS starts another for each worker that goes home.
            dismiss(self.cloud, self._cluster, [self._names.service("worker")])

    # -- inside --------------------------------------------------------------------------------

    @property
    def _roles(self) -> list[str]:
        """Whose services the session has, the master's last; all else this role may not touch."""
        spec = self._folder.read_spec()
        wanted = {"worker": True, "broker": spec.own_broker, "tunnel": spec.place.tunnel}
        return [role for role, is_there in wanted.items() if is_there] + ["master"]

    def _dismiss_all(self) -> None:
        if self._ended and self._mirror.lost is None:
            # The master last: it is this task.
            services = [self._names.service(role) for role in self._roles]
            for problem in dismiss(self.cloud, self._cluster, services):
                self._warn(problem)

    def _stop_lease(self) -> None:
        if self._lease is not None:
            self._lease.stop()

    def _is_moving(self) -> bool:
        """Does the master write its state?"""
        try:
            written = (self._folder.path / "state.json").stat().st_mtime
        except OSError:
            written = 0.0
        return self._ended or time.time() - max(written, self._began) < HANGING

    def _warn(self, text: str) -> None:
        logger.warning("%s", text)
        warn = getattr(self._host, "warn", None)
        if warn is None:
            return
        try:
            warn(text)
        except Exception:  # before it has begun, or after its end; the log has it
            logger.info("the session's journal does not have it")

    def _leave(self, error: SessionError) -> None:
        if self._host is not None:
            self._host.interrupt()

    def _add_start(self, number: int) -> int:
        """How often a master of this launch has begun, and died."""
        path = self._folder.path / LAUNCHED
        known = json.loads(path.read_text(encoding="utf-8"))
        known["starts"] = max(0, int(known.get("starts", 0)) + number)
        path.write_text(json.dumps(known), encoding="utf-8")
        # Now: perhaps this one dies at once. The mirror's own thread has the other object.
        SessionStore(self._store, self._folder.name).push(self._folder, [LAUNCHED])
        return int(known["starts"])


def find_latest(spec: SessionSpec, state: dict[str, Any], *, began: float) -> float:
    """The end, in seconds since 1970, that no lease of a session goes beyond.

    `state`: the master's last one, with what it has cost; `began`: when it was launched.
    """
    latest = math.inf
    if spec.max_hours:
        latest = began + 3600 * spec.max_hours + GRACE
    cost = state.get("cost") or {}
    if spec.budget and cost.get("usd_an_hour"):
        left = spec.budget - (cost["usd"] - cost.get("usd_before", 0.0))
        end = cost.get("time", time.time()) + 3600 * max(0.0, left) / cost["usd_an_hour"]
        latest = min(latest, end + GRACE)
    return latest
