"""Follows a session whose master is a task of ECS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.store.errors import StoreError
from pestfleet.targets.ecs.access import Refused, Unreachable
from pestfleet.targets.ecs.diagnosis import gather
from pestfleet.targets.ecs.fleet import Answer, EcsFleet
from pestfleet.targets.ecs.results import fetch
from pestfleet.targets.following import FollowedMaster
from pestfleet.targets.troubles import News, Trouble, refuse_dead_end
from pestfleet_worker.errors import ConfigurationError, PestfleetError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent

# Seconds between two looks: at the state, at the services, for what does not run, at the log.
# Later a session is looked at less often: many sessions share an account's rates.
LOOKS = {"state": 3.0, "services": 5.0, "diagnosis": 15.0, "log": 3.0}
LATER = {"state": 5.0, "services": 10.0, "diagnosis": 60.0, "log": 5.0}
SOON = 60.0  # seconds after its launch when that begins
LAST_WORDS = 4.0  # seconds in which a log that has ended is read to its end
MASTER_ENDS = 3  # that a master ended badly so often without a word is for good
_GOES_ON = {
    "master": "goes on from the runs that are finished",
    "broker": "has started: runs that were on their way are asked for again",
    "tunnel": "has started",
}
_ENDS = ("memory", "exit", "spot", "health")  # kinds of troubles that ended a worker


class TaskMaster(FollowedMaster[EcsFleet]):
    """Launches a session's resources, follows its master, fetches the results, removes all."""

    # Also credentials that expire in a session of days: it goes on without us.
    trouble = (Unreachable, Refused, StoreError, ConfigurationError)
    platform = "Amazon"
    lives_alone = True

    def __init__(
        self,
        folder: SessionFolder,
        spec: SessionSpec,
        fleet: EcsFleet,
        *,
        launch: Callable[[Callable[[str], None]], None],
        on_event: OnEvent,
    ) -> None:
        super().__init__(folder, spec, fleet, launch=launch, on_event=on_event)
        self._done: dict[str, float] = {}  # what was looked at -> when (monotonic)
        self._servers: dict[str, str] = {}  # role -> id of its task that was seen last
        self._news = News(lambda text: self._tell_all([text]))
        self._ended = 0.0  # when the master's end was seen (monotonic)
        self._missing = False  # was its service missing at the last look?

    def _begin(self) -> None:
        self._done["diagnosis"] = time.monotonic()

    # -- looking -------------------------------------------------------------------------------

    def _look(self, *, stopping: bool) -> bool:
        """See `FollowedMaster`: ECS itself starts again what has died."""
        if self._ended:
            return time.monotonic() - self._ended > LAST_WORDS
        if self._is_due("state"):
            self._take_state(self._fleet.store.read_state())
            if self._fleet.store.read_ended():
                self._tell_ends()
                self._ended = time.monotonic()
                return False
        if self._is_due("services"):
            services = self._fleet.services()
            missing, self._missing = self._missing, "master" not in services
            if self._missing and not missing:
                return False  # one answer may lack what is there: ECS is consistent in the end
            if self._missing:
                name = self._spec.session
                text = f"the resources of session {name} were removed: somebody has ended it"
                self._tell_all([text])
                return True
            if not services["master"]["desiredCount"]:
                return self._read_silent_end()
            self._tell_all(self._compare(services))
        if not stopping and self._is_due("diagnosis"):
            self._diagnose()
        return False

    def _is_due(self, what: str) -> bool:
        """Is it time to look? Then it counts as looked at."""
        now = time.monotonic()
        pauses = LOOKS if time.time() - self._launched < SOON else LATER
        if now - self._done.get(what, float("-inf")) < pauses[what]:
            return False
        self._done[what] = now
        return True

    def _read_silent_end(self) -> bool:
        """No master is wanted any more: it has ended, or its lease has."""
        if not self._fleet.store.read_ended():
            self._failure = TargetError(
                f"the tasks of session {self._spec.session} were stopped: by somebody, or because "
                "its master was not heard of for too long",
                remedy="Finished runs are kept: pestfleet resume starts it again.",
            )
        return True

    def _compare(self, services: dict[str, Answer]) -> list[str]:
        """What to say of servers that others have taken the place of."""
        said = []
        for role, words in _GOES_ON.items():
            service = services.get(role, {})
            mark = _find_start(service)
            if not mark or not service.get("runningCount"):
                continue
            before = self._servers.get(role, "")
            self._servers[role] = mark
            if before not in ("", mark):
                said.append(f"the task of the {role} was lost, and another one {words}")
        return said

    def _diagnose(self) -> None:
        """Say what does not run, once each. Raises `TargetError` when nothing ever will."""
        troubles = [trouble for trouble in self._gather() if not _may_pass(trouble)]
        self._news.tell(troubles)
        refuse_dead_end(troubles, wanted=self._spec.workers, least=self._spec.place.least)

    def _gather(self) -> list[Trouble]:
        return gather(self._fleet, self._spec.place, since=self._launched)

    def _tell_ends(self) -> None:
        """Say of which workers ended since the last look, and why: runs may have failed for it."""
        troubles = [t for t in self._gather() if t.role == "worker" and t.kind in _ENDS]
        self._news.tell(troubles)

    # -- the rest ------------------------------------------------------------------------------

    def _read_log(self, since: float) -> Iterator[str]:
        """See `FollowedMaster`. A line that has been told is known by its time."""
        if not self._is_due("log"):
            return
        master = self._fleet.find("master")
        if master is not None and master.status in ("RUNNING", "STOPPED", "DEPROVISIONING"):
            yield from self._fleet.follow_log(master, since=since)

    def _fetch_files(self) -> bool:
        return fetch(self._fleet, self._folder.path)

    def _explain(self, trouble: Exception) -> TargetError:
        return explain(trouble)


def _find_start(service: Answer) -> str:
    """What changes when a service starts another task: the newest event that says so."""
    for event in service.get("events") or ():
        if " has started " in str(event["message"]):
            return str(event.get("id") or event["message"])
    return ""


def _may_pass(trouble: Trouble) -> bool:
    """A master that ends badly says so itself in its journal, if it comes so far."""
    own = trouble.role == "master" and trouble.kind == "exit" and trouble.hopeless
    return own and trouble.count < MASTER_ENDS


def explain(trouble: Exception) -> TargetError:
    """A failure of Amazon in the middle of a session."""
    remedy = trouble.remedy if isinstance(trouble, PestfleetError) else ""
    on = "The session goes on by itself; follow it again with: pestfleet resume"
    return TargetError(f"Amazon failed: {trouble}", remedy=f"{remedy} {on}".strip())
