"""Where a PEST++ master's runs come from: the gateway (queue mode), or its own agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pestfleet.control.model import ControlFile
from pestfleet.engines.base import AgentService, Job, RunService
from pestfleet.engines.enclosure import EnclosedEngine
from pestfleet.engines.pestpp.failures import WatchedService

if TYPE_CHECKING:
    from pestfleet.engines.gateway import GatewayEvent

_EVERY_CYCLE = ("-1", "")  # PEST++ manual, "PESTPP-DA": -1 is for all cycles
_CYCLE_TABLES = frozenset(("da_parameter_cycle_table", "da_observation_cycle_table"))


class Supply(Protocol):
    """`start` when the engine listens, `check` now and then, `stop` when it has ended."""

    @property
    def failures(self) -> dict[str, int]:
        """Reason -> runs that failed for it, as far as it is known."""
        ...

    def start(self, engine: EnclosedEngine) -> None: ...

    def check_stop(self) -> None:
        """Raises when the session must stop."""
        ...

    def check(self) -> None:
        """Raises when no more runs can come, or the session must stop."""
        ...

    def stop(self) -> None: ...


class GatewaySupply:
    """Queue mode: the fleet's slots appear to the engine as its agents."""

    def __init__(self, job: Job, service: RunService) -> None:
        self._job = job
        self._service = WatchedService(service)

    @property
    def failures(self) -> dict[str, int]:
        return self._service.failures

    def start(self, engine: EnclosedEngine) -> None:
        from pestfleet.engines.gateway import Gateway

        self._gateway = Gateway(
            self._service,
            connect=engine.connect,
            on_event=self._tell,
            whole_cycles=not has_cycles(self._job.control),
        )
        self._gateway.start()

    def _tell(self, event: GatewayEvent) -> None:
        report = self._job.report
        (report.note if event.kind == "note" else report.warn)(event.text)

    def check_stop(self) -> None:
        self._service.check_stop()

    def check(self) -> None:
        self._service.check_stop()
        self._gateway.check()

    def stop(self) -> None:
        self._gateway.stop()


class AgentSupply:
    """Agent mode: each slot runs an agent of the engine's own."""

    failures: dict[str, int]

    def __init__(self, job: Job, agents: AgentService) -> None:
        self._job = job
        self._agents = agents
        self.failures = {}  # the engine's .rmr has them

    def start(self, engine: EnclosedEngine) -> None:
        command = (self._job.engine, self._job.control.path.name, "/h", "{host}:{port}")
        self._agents.start(command, master_port=engine.port, connect=engine.connect)

    def check_stop(self) -> None:
        self._agents.check_stop()

    def check(self) -> None:
        self._agents.check_stop()

    def stop(self) -> None:
        self._agents.stop()


def has_cycles(control: ControlFile) -> bool:
    """Do parameters, observations or files come and go with the cycles of pestpp-da?"""
    if _CYCLE_TABLES & control.options.keys():
        return True
    tables = (control.parameter_data, control.observation_data)
    return any(
        text.strip() not in _EVERY_CYCLE
        for table in tables
        for text in table.get("cycle", {}).values()
    )
