"""A master and its agents that stand in for BEOPEST and PEST_HP where these are not at hand.

    stand-in-master case.pst /H :port          waits for agents, estimates, writes its files
    stand-in-agent  case.pst /H host:port      makes runs in its working directory

They take the command lines of both programs, write a run record (`.rec`) and a run management
record (`.rmr`) that look like theirs, and estimate with plain Gauss-Newton steps. Between them is
a protocol of their own (JSON lines over TCP), as trusting as the real ones: the master listens on
every address and asks nobody who he is. It counts in the `.rmr` what it could not read.

`write_programs` makes them programs in a folder, under the names of the real ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pestfleet.case import Case
from pestfleet.control.model import Parameter
from pestfleet.files.parameters import ParameterValue, write_par
from pestfleet.files.residuals import Residual, write_rei
from pestfleet_worker.errors import PestfleetError
from pestfleet_worker.messages import pack_vector, unpack_vector

NAMES = ("beopest", "pest_hp", "agent_hp", "stand-in-master", "stand-in-agent")
LINE_LIMIT = 1 << 24  # bytes
STEP = 1e-4  # relative parameter increment
RETRY = 0.2  # seconds between two tries at a refused port


def write_programs(folder: Path | str) -> None:
    """Write programs named as the real ones, and by their own names, that run this module."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, sys.path))
    for name in NAMES:
        program = folder / name
        program.write_text(
            f"#!/bin/sh\nPYTHONPATH={shlex.quote(path)} exec {shlex.quote(sys.executable)} "
            f'-m pestfleet.testing.engine_pair "$@"\n',
            encoding="utf-8",
        )
        program.chmod(0o755)


def main(arguments: Sequence[str]) -> int:
    """Be the master or an agent, as the command line says; returns the exit code."""
    if len(arguments) < 3 or arguments[1].lower() != "/h":
        print("usage: CASE /H :PORT (master) or CASE /H HOST:PORT (agent)", file=sys.stderr)
        return 2
    control = Path(arguments[0])
    if control.suffix.lower() != ".pst":
        control = control.with_name(control.name + ".pst")
    host, _, port = arguments[2].rpartition(":")
    print("stand-in for BEOPEST and PEST_HP: this is not PEST", flush=True)
    try:
        case = Case.read(control)
        if host:
            return _Agent(case, host, int(port)).serve()
        asyncio.run(_Master(case).estimate(int(port)))
    except PestfleetError as error:
        print(f"Error condition prevents continued execution:\n{error}", file=sys.stderr)
        return 1
    return 0


# -- agent -------------------------------------------------------------------------------------


class _Agent:
    def __init__(self, case: Case, host: str, port: int) -> None:
        self._case = case
        self._address = (host, port)

    def serve(self) -> int:
        """Make runs until the master says that it ends (0), or is gone (1)."""
        connection = self._connect()
        with connection, connection.makefile("rwb") as stream:
            _send(stream, {"agent": str(Path.cwd()), "process": os.getpid()})
            while line := stream.readline():
                message = json.loads(line)
                if message.get("end"):
                    return 0
                _send(stream, {"run": message["run"], **self._run(message["parameters"])})
        print("the master is gone", file=sys.stderr)
        return 1

    def _connect(self) -> socket.socket:
        """A name that is not known ends the agent; a refused port is tried for ever."""
        socket.getaddrinfo(*self._address)
        while True:
            try:
                return socket.create_connection(self._address)
            except ConnectionRefusedError:
                time.sleep(RETRY)

    def _run(self, parameters: list[float]) -> dict[str, Any]:
        import subprocess

        from pestfleet_worker.model_files import bind_inputs, bind_outputs
        from pestfleet_worker.processes import resolve_command

        here, spec = Path.cwd(), self._case.spec
        outputs = bind_outputs(spec, source=here, directory=here)
        for output in outputs:
            output.path.unlink(missing_ok=True)
        values = unpack_vector(pack_vector(parameters))
        for item in bind_inputs(spec, source=here, directory=here):
            item.path.write_bytes(item.template.render(values))
        for line in spec.commands:
            command = resolve_command(line, directory=here, environment=os.environ)
            code = subprocess.run(command.arguments, check=False).returncode
            if code != 0:
                return {"failed": f"{line} ended with exit code {code}"}
        observations = [0.0] * len(spec.observations)
        try:
            for output in outputs:
                read = output.instructions.read(output.path)
                for index, value in zip(output.order, read, strict=True):
                    observations[index] = value
        except (OSError, PestfleetError) as error:
            return {"failed": str(error)}
        return {"observations": observations}


def _send(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


# -- master ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    number: int
    parameters: list[float]
    done: asyncio.Future[list[float]] = field(repr=False)


class _Master:
    def __init__(self, case: Case) -> None:
        self._case = case
        control = case.control
        self._record = control.path.with_suffix(".rec").open("w", encoding="utf-8")
        self._runs_record = control.path.with_suffix(".rmr").open("w", encoding="utf-8")
        self._waiting: asyncio.Queue[_Run] = asyncio.Queue()
        self._made = 0
        self._agents = 0
        self._adjustable = [
            (index, parameter)
            for index, parameter in enumerate(control.parameters)
            if parameter.transform in ("none", "log")
        ]

    async def estimate(self, port: int) -> None:
        """Estimate with as many agents as come, and write the results."""
        server = await asyncio.start_server(self._serve, "0.0.0.0", port, limit=LINE_LIMIT)
        control = self._case.control
        self._write("PEST RUN RECORD: CASE " + control.name)
        best = [parameter.initial for parameter in control.parameters]
        observed = await self._make_run(best)
        phi = self._measure(observed)
        self._write("INITIAL CONDITIONS:")
        self._write(f"   Sum of squared weighted residuals (ie phi) = {phi:14.6E}")
        iterations = int(control.control_data.get("noptmax", 0))
        for number in range(1, iterations + 1):
            self._write(f"OPTIMISATION ITERATION NO.        : {number}")
            self._write(f"   Model calls so far             : {self._made}")
            self._write(f"   Starting phi for this iteration: {phi:14.6E}")
            trial = await self._step(best, observed)
            modelled = await self._make_run(trial)
            trial_phi = self._measure(modelled)
            better = trial_phi < phi
            reduction = 1.0 - trial_phi / phi if phi else 0.0
            if better:
                best, observed, phi = trial, modelled, trial_phi
            self._write(f"   Lowest phi this iteration      : {phi:14.6E}")
            self._write_results(best, observed, number)
            if not better or reduction < 0.005:
                break
        self._write("OPTIMISATION COMPLETE")
        server.close()

    async def _step(self, best: list[float], observed: list[float]) -> list[float]:
        """A Gauss-Newton step from `best`, within the bounds."""
        import numpy as np

        control = self._case.control
        vectors, steps = [], []
        for index, parameter in self._adjustable:
            moved = list(best)
            start = _transform(parameter, best[index])
            # Backwards where forwards would leave the bounds.
            size = STEP * max(abs(start), 1.0)
            if _transform(parameter, parameter.upper) < start + size:
                size = -size
            moved[index] = _restore(parameter, start + size)
            vectors.append(moved)
            steps.append(_transform(parameter, moved[index]) - start)
        rows = await asyncio.gather(*map(self._make_run, vectors))
        weights = np.array([observation.weight for observation in control.observations])
        measured = np.array([observation.value for observation in control.observations])
        jacobian = (np.array(rows) - np.array(observed)).T / np.array(steps)
        upgrade = np.linalg.lstsq(
            jacobian * weights[:, None], (measured - np.array(observed)) * weights, rcond=None
        )[0]
        trial = list(best)
        for (index, parameter), change in zip(self._adjustable, upgrade.tolist(), strict=True):
            value = _restore(parameter, _transform(parameter, best[index]) + change)
            trial[index] = min(max(value, parameter.lower), parameter.upper)
        return trial

    async def _make_run(self, parameters: list[float]) -> list[float]:
        self._made += 1
        model = [
            value * parameter.scale + parameter.offset
            for value, parameter in zip(parameters, self._case.control.parameters, strict=True)
        ]
        run = _Run(self._made, model, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(run)
        return await run.done

    def _measure(self, observed: list[float]) -> float:
        rows = zip(self._case.control.observations, observed, strict=True)
        return sum((o.weight * (o.value - value)) ** 2 for o, value in rows)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._agents += 1
        agent = self._agents
        run: _Run | None = None
        try:
            hello = await _receive(reader)
            self._log(f'agent {agent} at working directory "{hello["agent"]}" is there')
            while True:
                run = await self._waiting.get()
                self._log(f"run {run.number} commences on agent {agent}")
                writer.write(
                    json.dumps({"run": run.number, "parameters": run.parameters}).encode() + b"\n"
                )
                await writer.drain()
                answer = await _receive(reader)
                if answer["run"] != run.number:
                    raise ValueError(f"agent {agent} answers run {answer['run']}")
                self._log(f"run {run.number} completed on agent {agent}")
                self._take(run, answer)
                run = None
        except (ValueError, TypeError, KeyError) as error:
            self._log(f"agent {agent} sends what cannot be read: {error}")
        except OSError as error:
            self._log(f"agent {agent} is lost: {error}")
        except asyncio.CancelledError:
            writer.write(b'{"end": true}\n')
        finally:
            if run is not None and not run.done.done():
                self._log(f"run {run.number} is sent again")
                self._waiting.put_nowait(run)
            writer.close()

    def _take(self, run: _Run, answer: dict[str, Any]) -> None:
        if "observations" in answer:
            run.done.set_result([float(value) for value in answer["observations"]])
        else:
            run.done.set_exception(PestfleetError(f"run {run.number} failed: {answer['failed']}"))

    def _write_results(self, values: list[float], observed: list[float], number: int) -> None:
        control = self._case.control
        write_par(
            control.path.with_suffix(".par"),
            [
                ParameterValue(parameter.name, value, parameter.scale, parameter.offset)
                for parameter, value in zip(control.parameters, values, strict=True)
            ],
        )
        write_rei(
            control.path.with_suffix(".rei"),
            [
                Residual(o.name, o.group, o.value, value, o.weight)
                for o, value in zip(control.observations, observed, strict=True)
            ],
            iteration=number,
        )

    def _write(self, line: str) -> None:
        print(line, file=self._record, flush=True)
        print(line, flush=True)

    def _log(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}:- {line}.", file=self._runs_record, flush=True)


async def _receive(reader: asyncio.StreamReader) -> Any:
    line = await reader.readline()
    if not line:
        raise ConnectionResetError("it closed the connection")
    return json.loads(line)


def _transform(parameter: Parameter, value: float) -> float:
    import math

    return math.log10(value) if parameter.transform == "log" else value


def _restore(parameter: Parameter, value: float) -> float:
    return float(10.0**value) if parameter.transform == "log" else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
