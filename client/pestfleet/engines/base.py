"""The contract between an engine and what makes its runs.

An engine is a function of a `Job`. It asks `job.runner` for runs, tells `job.report` how far it
is, writes its files into `job.output`, and returns a summary that can be written as JSON. It
never knows where the runs are made.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pestfleet.control.model import ControlFile
from pestfleet_worker.messages import CaseSpec, Result

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RunSet:
    """Runs that are finished.

    `observations`: (runs, observations), rows in the order asked, NaN where a run failed.
    `failures`: row -> one line that says why.
    """

    observations: Matrix
    failures: Mapping[int, str] = field(default_factory=dict)

    @property
    def failed(self) -> NDArray[np.bool_]:
        """(runs,) True where the run failed."""
        mask = np.zeros(len(self.observations), dtype=bool)
        mask[list(self.failures)] = True
        return mask


class Runner(Protocol):
    """Makes runs, as many at a time as the fleet has slots."""

    @property
    def slots(self) -> int:
        """Slots that the fleet has now, at least 1."""
        ...

    def run(self, parameters: Matrix, *, purpose: str, names: Sequence[str] = ()) -> RunSet:
        """Make one run for each row of `parameters`, shape (runs, all parameters).

        Columns: every parameter of the control file, in its order, as the control file has them
        (not log-transformed; before scale and offset, which the runner applies).
        `purpose` is shown to the user ("Jacobian", "damping values", "iteration 2"), as are
        `names`, what the user calls the rows, where they have names.
        Raises `Interrupted` when the user stops the session.
        """
        ...


class Report(Protocol):
    """Where an engine says how far it is. Goes to the display, the journal and `status`."""

    def iteration(self, number: int, *, phi: float, **detail: float | int | str) -> None:
        """Iteration `number` (0: initial values) ended with objective function `phi`.

        For ies `phi` is the ensemble's mean; detail then has `phi_min`, `phi_max`, `phi_std`,
        `realizations`. For regularization detail has `phi_regularization`, `weight_factor`.
        """
        ...

    def note(self, text: str) -> None:
        """One line that the user should see."""
        ...

    def warn(self, text: str) -> None:
        """One line that the user must see: something is lost, changed or ignored."""
        ...


class RunService(Protocol):
    """Makes single runs, for engines that ask for them one by one: external programs.

    Vectors are those of `spec`: the model's values (after scale and offset), little-endian
    float64, parameters and observations in `spec`'s order.
    """

    @property
    def spec(self) -> CaseSpec: ...

    @property
    def slots(self) -> int:
        """Slots that the fleet has now; 0 while no worker is there."""
        ...

    def request(self, parameters: bytes, on_result: Callable[[Result], None]) -> int:
        """Ask for a run; returns its id.

        `on_result` is called exactly once, unless the run is cancelled before: from another
        thread, or before `request` returns where the run has been made already.
        """
        ...

    def cancel(self, runs: Iterable[int]) -> None:
        """These runs are not wanted any more."""
        ...

    def check_stop(self) -> None:
        """Raises when the user wants the session to stop, or workers cannot come."""
        ...


class AgentService(Protocol):
    """Has the fleet's workers run an engine's own agents (agent mode)."""

    @property
    def slots(self) -> int: ...

    def start(
        self,
        command: Sequence[str],
        *,
        master_port: int,
        connect: Callable[[], socket.socket] | None = None,
    ) -> None:
        """Start agents in all slots, of workers that come later too.

        `command`: words of the agent's command line; `{host}` and `{port}` stand for the
        address that the agent connects to. `master_port`: where the engine listens on loopback;
        `connect` makes a connection to it where it is not on this machine's own.
        """
        ...

    def check_stop(self) -> None:
        """See `RunService.check_stop`."""
        ...

    def stop(self) -> None:
        """End all agents."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine gets. `options` are the user's engine options; they win over the case's.

    `control` is the control file of the case as it was at launch; its folder is never written to.
    The rest is for external engines: `engine` is the program's name, `arguments` go to it as they
    are, and `agents` is there in agent mode, `service` in queue mode.

    The summary that an engine returns can be written as JSON. Where it has `incomplete`, a line
    of text, the engine came to its end but results are missing, and the exit code says so.
    """

    control: ControlFile
    runner: Runner
    report: Report
    output: Path
    options: Mapping[str, str] = field(default_factory=dict)
    engine: str = ""
    arguments: tuple[str, ...] = ()
    service: RunService | None = None
    agents: AgentService | None = None


Engine = Callable[[Job], dict[str, Any]]
