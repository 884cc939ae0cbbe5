"""The engines `beopest` and `pest_hp`: programs of their own, with their own agents.

Nothing is known of them but their command lines, the port on which the master listens, and the
files that it writes: the run record `.rec`, the parallel run management record `.rmr`, and the
results `.par`, `.rei`, `.sen`, … (PEST manual part I; the manuals of BEOPEST and PEST_HP). So
their agents do the runs (agent mode): pestfleet starts them, keeps them alive and connects them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from pestfleet.engines.base import AgentService, Job
from pestfleet.engines.enclosure import EnclosedEngine, start_enclosed
from pestfleet.engines.programs import OPEN_OPTIONS, find_program
from pestfleet_worker.errors import ConfigurationError, RunsFailedError
from pestfleet_worker.slots import MARKER, prepare_slot

POLL = 0.25  # seconds between two looks at the record; the user's stop waits as long at most
FOLDER = "master"  # below the session's results: the master's copy of the case
LOG = "master.out"
TAIL_LINES = 15
COUNT_INTERVAL = 3.0  # seconds between two notes about the number of agents
REPORTS_SHOWN = 20  # different ways in which agents end
# Switches with which these programs go on from what an earlier run of theirs left behind.
RESTARTS = frozenset(("/r", "/j", "/s", "/d", "/i", "/hpstart"))

_NUMBER = r"([-+]?\d+(?:\.\d*)?(?:[EeDd][-+]?\d+)?)"
_ITERATION = re.compile(r"\s*OPTIMI[SZ]ATION ITERATION NO\.\s*:\s*(\d+)", re.IGNORECASE)
_STARTING = re.compile(r"\s*Starting phi for this iteration\s*:\s*" + _NUMBER, re.IGNORECASE)
_INITIAL = re.compile(
    r"\s*Sum of squared weighted residuals \(ie phi\)\s*=\s*" + _NUMBER, re.IGNORECASE
)
_LOWEST = re.compile(r"\s*Lowest phi this iteration\s*:\s*" + _NUMBER, re.IGNORECASE)
_BROKEN = "error condition prevents"  # how PEST says that it gave up, whatever its exit code


class Agents(AgentService, Protocol):
    """The agent service, with what it knows of the agents."""

    @property
    def connected(self) -> int: ...

    def take_reports(self) -> list[tuple[str, str]]: ...


@dataclass(frozen=True, slots=True)
class Program:
    """The command lines of an engine. `{case}` is the control file or the case's name."""

    masters: tuple[str, ...]
    master_words: tuple[str, ...]
    agents: tuple[str, ...]
    agent_words: tuple[str, ...]
    extension: str
    install: str

    def make_master(
        self, case: str, program: Path, arguments: Sequence[str], port: int
    ) -> list[str]:
        words = [
            word.replace("{case}", case).replace("{port}", str(port)) for word in self.master_words
        ]
        return [str(program), *words, *arguments]

    def make_agent(self, case: str, program: str) -> list[str]:
        """`{host}` and `{port}` are left for the worker."""
        return [program, *(word.replace("{case}", case) for word in self.agent_words)]


PROGRAMS = {
    "beopest": Program(
        masters=("beopest", "beopest64", "beopest32", "ppest"),
        master_words=("{case}", "/H", ":{port}"),
        agents=("beopest", "beopest64", "beopest32", "ppest"),
        agent_words=("{case}", "/H", "{host}:{port}"),
        extension=".pst",
        install="BEOPEST is part of PEST: get it from the PEST home page, or build it from source.",
    ),
    "pest_hp": Program(
        masters=("pest_hp", "pest_hp_mkl"),
        master_words=("{case}", "/h", ":{port}"),
        agents=("agent_hp",),
        agent_words=("{case}", "/h", "{host}:{port}"),
        extension="",
        install="PEST_HP comes from the PEST home page, with its agent agent_hp.",
    ),
}  # fmt: skip


def run(job: Job) -> dict[str, Any]:
    """Run the program with its agents on the fleet, to its end.

    The summary has `program`, `exit_code`, `iterations`, `phi`, `files`, and
    `incomplete` where the program ended well but left no results. Raises `ConfigurationError`
    when it is not there or may not run here, `RunsFailedError` when it failed, and what the
    session's check raises when the user stops it.
    """
    program = PROGRAMS[job.engine]
    if job.agents is None:
        raise ConfigurationError(
            f"{job.engine} needs its own agents: it runs in agent mode only",
            remedy="Run it with --mode agent.",
        )
    refuse_options(job.engine, job.options)
    agents = cast(Agents, job.agents)
    source = job.control.path.parent
    master = find_program(program.masters, case=source, install=program.install)
    agent = _choose_agent(program, master)
    case = job.control.name + program.extension
    folder = _prepare_folder(job)
    with (job.output / LOG).open("ab") as log:
        log.truncate(0)
        engine = start_enclosed(
            lambda port: program.make_master(case, master, job.arguments, port),
            directory=folder,
            log=log.fileno(),
            environment=_make_environment(folder),
            allow_open=_allows_open(job.options),
        )
    record = _Record(folder / f"{job.control.name}.rec", job)
    try:
        _tell_enclosure(job, engine)
        if engine.wait_until_listening(agents.check_stop):
            agents.start(
                program.make_agent(case, agent), master_port=engine.port, connect=engine.connect
            )
        code = _watch(engine, record, _AgentReports(job, agents))
    finally:
        engine.stop()  # before its agents: their end would look like a loss to it
        agents.stop()
        files = _keep_results(folder, job)
    return _summarize(job, program, master, code, record, files)


def refuse_options(engine: str, options: Mapping[str, str]) -> None:
    """Raises `ConfigurationError` for options: these programs have none but their command line."""
    given = [name for name in options if name.replace("-", "_") not in OPEN_OPTIONS]
    if given:
        raise ConfigurationError(
            f"{engine} takes no options from pestfleet: {', '.join(sorted(given))}",
            remedy="Set them in the control file; words of its command line go in --engine-args.",
        )


def _choose_agent(program: Program, master: Path) -> str:
    """The agent's program as workers look for it: by its name, on their own machines."""
    return master.name if master.stem in program.agents else program.agents[0]


def _prepare_folder(job: Job) -> Path:
    folder = job.output / FOLDER
    if folder.is_dir() and RESTARTS.intersection(word.lower() for word in job.arguments):
        return folder
    # Nothing is linked: the master may write to any of its files in place.
    prepare_slot(job.control.path.parent, folder, large=sys.maxsize)
    # Of an earlier run of the user's own: they would be taken for this one's.
    for name in (f"{job.control.name}.rec", f"{job.control.name}.rmr", "pest.stp"):
        (folder / name).unlink(missing_ok=True)
    return folder


def _make_environment(folder: Path) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PESTFLEET_BROKER")}
    environment["PATH"] = os.pathsep.join((str(folder), environment.get("PATH", os.defpath)))
    return environment


def _allows_open(options: Mapping[str, str]) -> bool:
    said = {
        value.lower() for key, value in options.items() if key.replace("-", "_") in OPEN_OPTIONS
    }
    return bool(said & {"true", "1", "yes"})


def _tell_enclosure(job: Job, engine: EnclosedEngine) -> None:
    if engine.kind == "open":
        job.report.warn(
            f"{job.engine} listens on port {engine.port} of all addresses of this machine, and "
            "whoever connects can send it results"
        )
    elif engine.kind == "loopback":
        job.report.note(
            f"other users of this machine can reach {job.engine}'s port {engine.port}; other "
            "machines cannot"
        )


def _watch(engine: EnclosedEngine, record: _Record, agents: _AgentReports) -> int:
    """Follow the program to its end; returns its exit code."""
    while True:
        try:
            code = engine.wait(POLL)
        except subprocess.TimeoutExpired:
            agents.follow()
            record.follow()
            continue
        record.follow()
        record.finish()
        return code


class _AgentReports:
    """Tells the user how many agents there are, and how agents end."""

    def __init__(self, job: Job, agents: Agents) -> None:
        self._job = job
        self._agents = agents
        self._told = 0
        self._when = float("-inf")
        self._said: set[str] = set()

    def follow(self) -> None:
        """Raises what the session's check raises."""
        self._agents.check_stop()
        connected, now = self._agents.connected, time.monotonic()
        if connected != self._told and now - self._when > COUNT_INTERVAL:
            self._told, self._when = connected, now
            self._job.report.note(f"agents connected to {self._job.engine}: {connected}")
        for worker, text in self._agents.take_reports():
            kind = re.sub(r"\d+", "", text)
            if kind not in self._said and len(self._said) < REPORTS_SHOWN:
                self._said.add(kind)
                self._job.report.warn(f"{worker}: {text}; its log has more (pestfleet logs)")


class _Record:
    """Reads the run record as it grows, and reports iterations.

    An iteration's phi is the lowest of it; PEST's own name for iteration 0 is initial conditions.
    """

    def __init__(self, path: Path, job: Job) -> None:
        self._path = path
        self._job = job
        self._offset = 0
        self._rest = b""
        self._number = 0
        self._phi: float | None = None
        self._reported = -1
        self.broken = False

    def follow(self) -> None:
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._offset, self._rest = 0, b""  # begun anew
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line.decode("utf-8", errors="replace"))

    def finish(self) -> None:
        if self._rest:
            self._take(self._rest.decode("utf-8", errors="replace"))
            self._rest = b""
        self._report()

    @property
    def iterations(self) -> int:
        return max(self._reported, 0)

    @property
    def phi(self) -> float | None:
        return self._phi

    def _take(self, line: str) -> None:
        if (found := _ITERATION.match(line)) is not None:
            self._report()
            self._number = int(found[1])
        elif (found := _STARTING.match(line)) is not None:
            # Where the first iteration starts, the initial conditions end.
            if self._reported < 0:
                number, self._number = self._number, 0
                self._phi = _read_number(found[1])
                self._report()
                self._number = number
            self._phi = _read_number(found[1])
        elif (found := _INITIAL.match(line)) is not None and self._reported < 0:
            self._phi = _read_number(found[1])
        elif (found := _LOWEST.match(line)) is not None:
            self._phi = _read_number(found[1])
            self._report()
        elif _BROKEN in line.lower():
            self.broken = True

    def _report(self) -> None:
        if self._phi is None or self._number <= self._reported:
            return
        self._reported = self._number
        self._job.report.iteration(self._number, phi=self._phi)


def _read_number(text: str) -> float:
    return float(text.upper().replace("D", "E"))


def _keep_results(folder: Path, job: Job) -> list[str]:
    """Copy what the master wrote of its own to the results; returns the names."""
    case = job.control.path.parent
    kept = []
    for path in sorted(folder.iterdir()):
        known = case / path.name
        if not path.is_file() or path.name == MARKER or not path.name.startswith(job.control.name):
            continue
        if known.exists() and known.stat().st_mtime_ns == path.stat().st_mtime_ns:
            continue  # came with the case
        shutil.copy2(path, job.output / path.name)
        kept.append(path.name)
    return kept


def _summarize(
    job: Job, program: Program, master: Path, code: int, record: _Record, files: list[str]
) -> dict[str, Any]:
    tail = list(_read_tail(job.output / LOG))
    broken = record.broken or any(_BROKEN in line.lower() for line in tail)
    if code != 0 or broken:
        ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = "".join(f"\n  | {line}" for line in tail)
        raise RunsFailedError(
            f"{master.name} {ending}{' and an error condition' if broken else ''}{said}",
            remedy=f"See {job.output / LOG}, the run record beside it, and the workers' logs.",
        )
    name = job.control.name
    summary: dict[str, Any] = {
        "program": str(master),
        "exit_code": code,
        "iterations": record.iterations,
        "phi": record.phi,
        "files": files,
    }
    if f"{name}.rec" not in files:
        summary["incomplete"] = f"{master.name} ended with exit code 0 but wrote no {name}.rec"
    elif job.control.control_data.get("noptmax", 0) and f"{name}.par" not in files:
        summary["incomplete"] = f"{master.name} ended with exit code 0 but wrote no {name}.par"
    return summary


def _read_tail(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        text = file.read().decode("utf-8", errors="replace")
    yield from [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]
