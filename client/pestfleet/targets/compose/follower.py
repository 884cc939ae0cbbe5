"""Follows a session whose master is in a container of a Docker engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.targets.compose.fleet import TROUBLE, ComposeFleet, Container, split_lines
from pestfleet.targets.compose.keeper import Keeper
from pestfleet.targets.following import NO_RESTART, FollowedMaster
from pestfleet_worker.errors import Interrupted, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent

logger = logging.getLogger(__name__)

STOP_DWELL = 5.0  # seconds for which a master that others have stopped may come back
ENGINE_DWELL = 30.0  # when all was stopped; the engine gives containers 15 s for their end


class ContainerMaster(FollowedMaster[ComposeFleet]):
    """Launches a session's containers, follows its master, fetches the results, removes all."""

    trouble = TROUBLE
    platform = "the Docker engine"

    def __init__(
        self,
        folder: SessionFolder,
        spec: SessionSpec,
        fleet: ComposeFleet,
        *,
        launch: Callable[[Callable[[str], None]], None],
        on_event: OnEvent,
    ) -> None:
        super().__init__(folder, spec, fleet, launch=launch, on_event=on_event)
        self._keeper = Keeper(fleet)
        self._stopped = 0.0  # when the master was first seen to have been stopped by others

    def _look(self, *, stopping: bool) -> bool:
        """See `FollowedMaster`: what has died is started again."""
        master = self._fleet.find("master")
        if master is None:  # its results may be there still
            name = self._spec.session
            self._tell_all(
                [f"the containers of session {name} were removed: somebody has ended it"]
            )
            return True
        state = self._fleet.read_state()
        self._take_state(state)
        if master.exit_code is None:
            self._stopped = 0.0
            if not stopping:
                self._tell_all(self._keeper.check())
            return False
        if stopping:
            return True
        if state.get("state", "running") != "running":
            return self._is_over(master)
        if master.exit_code in NO_RESTART:
            raise TargetError(self._fleet.describe_end(master))
        self._tell_all([self._keeper.restart(master)])
        return False

    def _is_over(self, master: Container) -> bool:
        """A Docker engine that shuts down stops the master, and starts it again at its return."""
        if master.exit_code != Interrupted.exit_code:
            return True
        if self._stopped <= self._silent:
            self._stopped = time.monotonic()
        # Of a session that was stopped the workers end without an error, and the broker runs on.
        ended = [c for c in self._fleet.containers() if c.exit_code is not None]
        shut_down = any(c.role == "broker" or (c.role == "worker" and c.exit_code) for c in ended)
        dwell = ENGINE_DWELL if shut_down else STOP_DWELL
        return time.monotonic() - self._stopped > dwell

    def _read_log(self, since: float) -> Iterator[str]:
        master = self._fleet.find("master")
        if master is None:
            return
        chunks = self._fleet.client.api.logs(
            master.id, stdout=True, stderr=False, stream=True, follow=True, since=max(1, int(since))
        )
        yield from split_lines(chunks)

    def _fetch_files(self) -> bool:
        return self._fleet.fetch(self._folder.path)

    def _explain(self, trouble: Exception) -> TargetError:
        return explain(trouble)


def explain(trouble: Exception) -> TargetError:
    """A failure of the Docker engine in the middle of a session."""
    return TargetError(
        f"the Docker engine failed: {trouble}",
        remedy="Containers may be left; remove them with: pestfleet down",
    )
