"""A worker's duty in agent mode: keep what the run config says, agents or none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from pestfleet_worker.agents import AgentSupervisor
from pestfleet_worker.messages import AgentSpec, RunConfig, SlotState

logger = logging.getLogger(__name__)


class AgentDuty:
    """The agents of one worker, as the desk wants them at the time."""

    def __init__(
        self, config: RunConfig, *, source: Path, directories: Sequence[Path], mark: str, name: str
    ) -> None:
        self._config = config
        self._source = source
        self._directories = directories
        self._mark = mark
        self._name = name
        self._lock = threading.Lock()
        self._wanted: AgentSpec | None = None
        self._supervisor: AgentSupervisor | None = None

    def configure(self, agent: AgentSpec | None) -> None:
        """Have these agents, or none. The same spec again changes nothing.

        Raises `ConfigurationError` when they cannot be started.
        """
        with self._lock:
            if agent == self._wanted:
                return
            self._end()
            self._wanted = agent
            if agent is None:
                return
            supervisor = AgentSupervisor(
                agent,
                self._config.case,
                source=self._source,
                directories=self._directories,
                worker_id=self._mark,
                limits=self._config.limits,
                name=self._name,
            )
            self._supervisor = supervisor
            supervisor.start()

    def states(self) -> tuple[SlotState, ...]:
        """What each slot does, for heartbeats."""
        supervisor = self._supervisor
        if supervisor is None:
            return tuple(SlotState() for _ in self._directories)
        return supervisor.states()

    @property
    def starts(self) -> int:
        """Agents started so far."""
        supervisor = self._supervisor
        return 0 if supervisor is None else supervisor.starts

    def stop(self) -> None:
        """End the agents and remove their slots."""
        with self._lock:
            self._wanted = None
            self._end()

    def _end(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        supervisor.stop()
        try:
            supervisor.remove()
        except OSError as error:  # a process that does not end in time still writes there
            logger.warning("a slot stays: %s", error)
