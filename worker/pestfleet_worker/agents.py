"""An engine's own agents in this worker's slots (agent mode).

Each slot has a directory with a true copy of the case, one agent process in a process group of its
own, and a thread that starts it, waits for its end, and starts it again. A model ends with its
agent, however that ended: by its process group, or by the slot's mark in its environment. The
worker's guardian (`pestfleet_worker.processes`) ends all of it when the worker itself is gone.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.forwarder import Forwarder, ReadyGate
from pestfleet_worker.messages import AgentSpec, CaseSpec, Limits, SlotState
from pestfleet_worker.processes import (
    SLOT_MARK,
    WORKER_MARK,
    Canceller,
    Command,
    Ending,
    kill_marked,
    run_command,
)
from pestfleet_worker.runs import THREAD_VARIABLES
from pestfleet_worker.slots import prepare_slot, remove_slot

logger = logging.getLogger(__name__)

ENGINES_VARIABLE = "PESTFLEET_ENGINES"  # folders with engines' programs, before PATH
TAIL_BYTES, TAIL_LINES = 4096, 20
LOG_LIMIT = 16 << 20  # bytes of an agent's log, after which it begins anew
_TRIM_INTERVAL = 10.0
_JOIN_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between an agent's end and its next start: `first`, doubled up to `longest`.

    An agent that lived for `healthy` seconds begins with `first` again.
    """

    first: float = 0.5
    longest: float = 30.0
    healthy: float = 60.0


@dataclass(frozen=True, slots=True)
class AgentState:
    """What a slot's agent does: waiting (for the master's end), running, or resting (back-off).

    `seconds` since it is so; `starts`: how often an agent was started here; `trouble`: what it
    waits for, or how the last one ended.
    """

    slot: int
    state: str
    seconds: float
    starts: int
    trouble: str = ""


class AgentSupervisor:
    """Keeps one agent alive in each directory. `start` once, `stop` once, from any thread."""

    def __init__(
        self,
        spec: AgentSpec,
        case: CaseSpec,
        *,
        source: Path,
        directories: Sequence[Path],
        worker_id: str,
        limits: Limits,
        name: str = "",
        backoff: Backoff | None = None,
    ) -> None:
        """`worker_id`: the mark that the worker's guardian looks for; `name`: the worker's name
        as the master knows it (default: the middle of `session/name/number` in the mark).

        Raises `ConfigurationError` when the spec cannot be right.
        """
        if not spec.command:
            raise ConfigurationError("the run config names no agent to start")
        marks = worker_id.split("/")
        self._forwarder = Forwarder(spec, worker=name or (marks[1] if marks[1:] else worker_id))
        self._gate = ReadyGate(self._forwarder)
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None
        self._slots = [
            _AgentSlot(
                number,
                spec.command,
                case,
                source=source,
                directory=directory.absolute(),
                environment=_make_environment(directory.absolute(), worker_id, limits),
                backoff=backoff or Backoff(),
                stopping=self._stopping,
            )
            for number, directory in enumerate(directories)
        ]

    def start(self) -> None:
        """Copy the case into the slots and start the agents.

        Raises `ConfigurationError` when that fails or when the agent's program is not there.
        """
        for slot in self._slots:
            slot.prepare()
        try:
            self._forwarder.start()
        except OSError as error:
            raise ConfigurationError(
                f"this worker cannot listen for its agents on loopback: {error}"
            ) from error
        address = {"host": self._forwarder.host, "port": str(self._forwarder.port)}
        for slot in self._slots:
            slot.start(address, self._gate, self._forwarder.report)
        self._keeper = threading.Thread(target=self._trim_logs, name="agent-logs", daemon=True)
        self._keeper.start()

    def stop(self) -> None:
        """End all agents and their models."""
        self._stopping.set()
        for slot in self._slots:
            slot.cancel()
        for slot in self._slots:
            slot.join()
        self._forwarder.close()
        if self._keeper is not None:
            self._keeper.join(_JOIN_TIMEOUT)

    def remove(self) -> None:
        """After `stop`: remove the slots' directories and their logs. Raises `OSError`."""
        for slot in self._slots:
            remove_slot(slot.directory)
            slot.log_path.unlink(missing_ok=True)

    def states(self) -> tuple[SlotState, ...]:
        """For heartbeats: while an agent lives, `run` is how often one was started in the slot and
        `seconds` how long this one has lived; a slot without one is idle."""
        states = self.agents()
        return tuple(
            SlotState(state.starts, state.seconds) if state.state == "running" else SlotState()
            for state in states
        )

    def agents(self) -> tuple[AgentState, ...]:
        """What each slot's agent does."""
        return tuple(slot.describe() for slot in self._slots)

    @property
    def starts(self) -> int:
        """Agents started so far, in all slots."""
        return sum(state.starts for state in self.agents())

    @property
    def connections(self) -> int:
        """Agents of this worker that are connected to the engine's master."""
        return self._forwarder.connections

    def _trim_logs(self) -> None:
        while not self._stopping.wait(_TRIM_INTERVAL):
            for slot in self._slots:
                slot.trim_log()


class _AgentSlot:
    def __init__(
        self,
        number: int,
        command: Sequence[str],
        case: CaseSpec,
        *,
        source: Path,
        directory: Path,
        environment: Mapping[str, str],
        backoff: Backoff,
        stopping: threading.Event,
    ) -> None:
        self.number = number
        self.directory = directory
        self.log_path = directory.with_name(directory.name + ".log")
        self._words = tuple(command)
        self._case = case
        self._source = source
        self._environment = environment
        self._backoff = backoff
        self._stopping = stopping
        self._program = ""
        self._report: Callable[[str], None] = logger.warning
        self._log = -1
        self._canceller: Canceller | None = None
        self._thread: threading.Thread | None = None
        self._state = ("waiting", time.monotonic())
        self._starts = 0
        self._trouble = ""

    def prepare(self) -> None:
        written = [pair.model for pair in (*self._case.templates, *self._case.instructions)]
        # Nothing is linked: what a model writes in place could not be noticed after each run.
        prepare_slot(self._source, self.directory, written=written, large=sys.maxsize)
        self._program = find_agent(
            self._words[0], directory=self.directory, path=self._environment["PATH"]
        )

    def start(
        self, address: Mapping[str, str], gate: ReadyGate, report: Callable[[str], None]
    ) -> None:
        self._report = lambda trouble: report(f"agent {self.number} {trouble}{self._last_line()}")
        words = tuple(_fill(word, address) for word in self._words)
        command = Command(" ".join(words), (self._program, *words[1:]))
        self._log = os.open(
            self.log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
        self._canceller = Canceller()
        self._thread = threading.Thread(
            target=self._keep, args=(command, gate), name=f"agent-{self.number}", daemon=True
        )
        self._thread.start()

    def cancel(self) -> None:
        if self._canceller is not None:
            self._canceller.set()

    def join(self) -> None:
        if self._thread is None:
            return
        self._thread.join(_JOIN_TIMEOUT)
        if self._thread.is_alive():  # its process hangs in the kernel; the guardian goes on
            logger.error("agent %d does not end", self.number)
            return
        self._thread = None
        os.close(self._log)
        if self._canceller is not None:
            self._canceller.close()
            self._canceller = None

    def describe(self) -> AgentState:
        state, since = self._state
        return AgentState(self.number, state, time.monotonic() - since, self._starts, self._trouble)

    def trim_log(self) -> None:
        """An agent that talks for days must not fill the disk."""
        if self.log_path.stat().st_size > LOG_LIMIT:
            os.truncate(self.log_path, 0)

    # -- the slot's thread ---------------------------------------------------------------------

    def _keep(self, command: Command, gate: ReadyGate) -> None:
        pause = self._backoff.first
        while self._wait_for_master(gate):
            began = time.monotonic()
            self._starts += 1
            self._set_state("running")
            self._trouble = self._run(command)
            if self._stopping.is_set():
                return
            if time.monotonic() - began >= self._backoff.healthy:
                pause = self._backoff.first
            logger.warning(
                "agent %d %s; another starts in %.1f s\n%s",
                self.number, self._trouble, pause, self._read_tail(),
            )  # fmt: skip
            self._set_state("resting")
            self._report(self._trouble)
            self._stopping.wait(pause)
            pause = min(2 * pause, self._backoff.longest)

    def _wait_for_master(self, gate: ReadyGate) -> bool:
        """Wait until the master's end takes agents; False when we stop.

        Agents of PEST++ give up on a name that is not known yet, and others on a refused port.
        """
        self._set_state("waiting")
        pause = self._backoff.first
        while not self._stopping.is_set():
            reason = gate.ask()
            if not reason:
                return not self._stopping.is_set()
            self._trouble = reason
            self._stopping.wait(pause)
            pause = min(2 * pause, self._backoff.longest / 6)
        return False

    def _run(self, command: Command) -> str:
        """Run the agent to its end; returns how it ended."""
        assert self._canceller is not None
        try:
            ending = run_command(
                command,
                directory=self.directory,
                environment=self._environment,
                log=self._log,
                deadline=None,
                canceller=self._canceller,
            )
        except OSError as error:
            return f"could not be started: {error.strerror}"
        finally:
            kill_marked(SLOT_MARK, str(self.directory))  # a model outside of the agent's group
        return _describe_ending(ending)

    def _set_state(self, state: str) -> None:
        self._state = (state, time.monotonic())

    def _read_tail(self) -> str:
        return "\n".join(f"  | {line}" for line in self._tail()) or "  | (it wrote nothing)"

    def _last_line(self) -> str:
        said = [line.strip() for line in self._tail() if line.strip()]
        return f": {said[-1]}" if said else ""

    def _tail(self) -> list[str]:
        size = os.fstat(self._log).st_size
        data = os.pread(self._log, TAIL_BYTES, max(size - TAIL_BYTES, 0))
        return data.decode("utf-8", errors="replace").splitlines()[-TAIL_LINES:]


def find_agent(program: str, *, directory: Path, path: str) -> str:
    """The agent's program: in the slot's copy of the case, PESTFLEET_ENGINES, or PATH.

    Raises `ConfigurationError` when it is in none of them.
    """
    if os.sep in program:
        found = shutil.which(str(directory / program))
    else:
        found = shutil.which(program, path=path)
    if found is None:
        raise ConfigurationError(
            f"the agent's program {program} is not on this worker",
            remedy=f"Put it on the worker's PATH or in the case's folder, or name its folder in "
            f"{ENGINES_VARIABLE}; in a container it belongs into the worker's image.",
        )
    return found


def _make_environment(directory: Path, worker_id: str, limits: Limits) -> dict[str, str]:
    environment = dict(os.environ)
    for name in THREAD_VARIABLES:
        environment.setdefault(name, str(limits.threads))
    environment[WORKER_MARK] = worker_id
    environment[SLOT_MARK] = str(directory)
    environment["PWD"] = str(directory)
    folders = [str(directory), os.environ.get(ENGINES_VARIABLE, ""), os.environ.get("PATH", "")]
    environment["PATH"] = os.pathsep.join(filter(None, folders)) or os.defpath
    environment.pop("PESTFLEET_BROKER", None)  # it has a password, and no agent needs it
    return environment


def _fill(word: str, address: Mapping[str, str]) -> str:
    # Not str.format: a file name may have braces.
    return word.replace("{host}", address["host"]).replace("{port}", address["port"])


def _describe_ending(ending: Ending) -> str:
    if ending.cause == "cancelled":
        return "was stopped"
    if ending.code < 0:
        return f"was killed by signal {-ending.code}"
    return f"ended with exit code {ending.code}"
