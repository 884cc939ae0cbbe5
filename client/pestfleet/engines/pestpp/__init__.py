"""pestpp-glm, -ies, -swp, -sen, -opt, -da, -mou, -sqp: PEST++ masters that run on the fleet.

The engine runs in a folder of its own, a copy of the case, in an enclosure where only the gateway
reaches its port. It is the user's program, unchanged; only the options are ours (`control_copy`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pestfleet.engines.base import Job
from pestfleet.engines.enclosure import EnclosedEngine, start_enclosed
from pestfleet.engines.pestpp.control_copy import list_warnings, write_control_copy
from pestfleet.engines.pestpp.outcome import Ending, find_unknown_options, summarize
from pestfleet.engines.pestpp.programs import PROGRAMS, Program, find_program
from pestfleet.engines.pestpp.progress import OutputParser, PhiReader, Tail
from pestfleet.engines.pestpp.supply import AgentSupply, GatewaySupply, Supply
from pestfleet.engines.programs import OPEN_OPTIONS
from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.slots import prepare_slot

FOLDER = "master"  # of the engine, below the session's results
OUTPUT = "master.out"  # what it writes to standard output and standard error
POLL = 0.2  # seconds between looks at the engine's files and at a request to stop
_STOP_FILE = "pest.stp"


def run(job: Job) -> dict[str, Any]:
    """Run the PEST++ program `job.engine` to its end.

    `job.agents` makes its runs where there are any (agent mode), else `job.service`.

    `job.options`: `++` options that win over the control file's, and `allow_open_port`.
    Returns the summary of `outcome.summarize`. Raises `ConfigurationError` when the program is
    not there or may not run here, what `outcome` raises when it fails, and what the service's
    `check_stop` raises.
    """
    program = PROGRAMS[job.engine]
    supply: Supply
    if job.agents is not None:
        supply = AgentSupply(job, job.agents)
    elif job.service is not None:
        supply = GatewaySupply(job, job.service)
    else:
        raise ConfigurationError(f"{job.engine} has nothing that makes its runs")
    path = find_program(job.engine, case=job.control.path.parent)
    options = {key.replace("-", "_"): value for key, value in job.options.items()}
    allow_open = any([_is_yes(options.pop(name, "")) for name in OPEN_OPTIONS])
    given = {**job.control.options, **options}
    for warning in list_warnings(given, agents=job.agents is not None):
        job.report.warn(warning)
    start = _Start(job, program, supply, path, options, allow_open)
    ending = start.run(unknown=frozenset())
    unknown = find_unknown_options(ending)
    if unknown:
        job.report.note(f"this {job.engine} is older and has no {', '.join(sorted(unknown))}")
        ending = start.run(unknown=unknown)
    return summarize(job, ending)


@dataclass(frozen=True, slots=True)
class _Start:
    """All that a start of the engine needs."""

    job: Job
    program: Program
    supply: Supply
    path: Path
    options: Mapping[str, str]
    allow_open: bool

    def run(self, *, unknown: frozenset[str]) -> Ending:
        """Run the engine to its end. `unknown`: options that it does not know."""
        job = self.job
        folder = prepare_folder(job)
        control = folder / job.control.path.name
        write_control_copy(job.control, control, options=self.options, unknown=unknown)
        output = job.output / OUTPUT
        with output.open("wb") as log:
            engine = start_enclosed(
                lambda port: [str(self.path), control.name, "/h", f":{port}", *job.arguments],
                directory=folder,
                log=log.fileno(),
                environment=make_environment(os.environ),
                allow_open=self.allow_open,
            )
        watch = _Watch(job, self.program, folder, output)
        try:
            _tell_enclosure(job, engine)
            code = _drive(self.supply, engine, watch)
        finally:
            engine.stop()
        watch.look()
        failures = self.supply.failures
        return Ending(folder, output, code, watch.parser.counts, watch.phi, failures)


def prepare_folder(job: Job) -> Path:
    """The engine's folder: a copy of the case without what an earlier engine left there."""
    folder = job.output / FOLDER
    if folder.exists():  # results of an earlier start must not be taken for this one's
        for path in folder.iterdir():
            if path.is_file():
                (job.output / path.name).unlink(missing_ok=True)
    files = prepare_slot(job.control.path.parent, folder)
    for note in files.notes:
        job.report.note(note)
    stop = folder / _STOP_FILE
    if stop.exists():
        stop.unlink()
        job.report.warn(f"{_STOP_FILE} in the case folder would stop {job.engine}; left out")
    given = {value.strip("'\"") for value in (*job.control.options.values(), *job.options.values())}
    for suffix in (".rec", ".rmr", *{program.phi_file for program in PROGRAMS.values()} - {""}):
        name = f"{job.control.name}{suffix}"
        if name not in given:
            (folder / name).unlink(missing_ok=True)
    return folder


def make_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: ours, without the broker's address and password."""
    return {key: text for key, text in environment.items() if not key.startswith("PESTFLEET_")}


def _drive(supply: Supply, engine: EnclosedEngine, watch: _Watch) -> int:
    """Connect the fleet to the engine, and follow it to its end; returns its exit code."""
    if not engine.wait_until_listening(supply.check_stop):
        return engine.wait()
    supply.start(engine)
    try:
        while True:
            try:
                return engine.wait(POLL)
            except subprocess.TimeoutExpired:
                supply.check()
                watch.look()
    finally:
        # The engine first: a farewell would make it wait for other agents.
        engine.stop()
        supply.stop()


class _Watch:
    """Looks at the engine's files, and reports."""

    def __init__(self, job: Job, program: Program, folder: Path, output: Path) -> None:
        self.parser = OutputParser()
        self.phi: PhiReader | None = None
        self._job = job
        self._output = Tail(output)
        if program.phi_file:
            self.phi = PhiReader(folder / f"{job.control.name}{program.phi_file}", program)

    def look(self) -> None:
        while data := self._output.read():
            for runs in self.parser.feed(data.decode("utf-8", errors="replace")):
                self._job.report.note(f"{self._job.engine} asks for {runs} runs")
        if self.phi is not None:
            self.phi.look(self._job.report)


def _tell_enclosure(job: Job, engine: EnclosedEngine) -> None:
    if engine.kind == "open":
        job.report.warn(
            f"{job.engine} listens on port {engine.port} of all addresses of this machine, "
            "and takes commands from whoever connects"
        )
    elif engine.kind == "loopback":
        job.report.note(
            f"{job.engine} listens on 127.0.0.1:{engine.port}: other machines do not reach it, "
            "other users of this machine do"
        )


def _is_yes(text: str) -> bool:
    return text.strip().lower() in ("true", "t", "yes", "1")
