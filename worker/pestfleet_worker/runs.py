"""One model run in one slot: fill templates, run the commands, read instructions.

A run gets a vector and gives a vector, or a typed `Failure`; a model that fails never raises.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from array import array
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from pestfleet_worker.errors import CaseError
from pestfleet_worker.instructions import InstructionError
from pestfleet_worker.kits import KitQuota, Scene, pack_kit
from pestfleet_worker.messages import (
    CaseSpec,
    Failure,
    Limits,
    Result,
    Run,
    pack_vector,
    unpack_vector,
)
from pestfleet_worker.model_files import ModelInput, ModelOutput, bind_inputs, bind_outputs
from pestfleet_worker.processes import (
    SLOT_MARK,
    WORKER_MARK,
    Canceller,
    Command,
    Ending,
    kill_marked,
    resolve_command,
    run_command,
)
from pestfleet_worker.slots import SlotFiles, prepare_slot, remove_slot
from pestfleet_worker.templates import TemplateError

logger = logging.getLogger(__name__)

LOG_LINES = 40
LOG_BYTES = 4096

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_SHELL_CODES = {
    126: ", as a shell does when the program is not executable",
    127: ", as a shell does when there is no such program",
}
_NO_SPACE_TEXT = "no space left on device"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave: packed observations, or a failure; and how long it took."""

    observations: bytes
    failure: Failure | None
    seconds: float
    kit: bytes = b""

    def make_result(self, run: Run, *, worker: str, slot: int) -> Result:
        """As the message to the master."""
        made = (self.seconds, self.observations, self.failure, self.kit)
        return Result(run.id, worker, slot, *made, parameters=run.parameters)


class _RunFailed(Exception):
    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class Slot:
    """A private directory in which a worker makes one run at a time.

    `prepare` once, then `execute` as often as wanted, from one thread at a time; `cancel` from
    any other. The directory's log, `<directory>.log`, has the output of the latest run.
    """

    def __init__(
        self, spec: CaseSpec, *, source: Path, directory: Path, limits: Limits, worker_id: str
    ) -> None:
        self.spec = spec
        self.source = source
        self.directory = directory.absolute()
        self.limits = limits
        self.worker_id = worker_id
        self._log_path = self.directory.with_name(self.directory.name + ".log")
        self._log = -1
        self._canceller: Canceller | None = None
        self._lock = threading.Lock()
        self._running = False
        self._files: SlotFiles | None = None
        self._inputs: list[ModelInput] = []
        self._outputs: list[ModelOutput] = []
        self._commands: list[Command] = []
        self._environment: dict[str, str] = {}

    # -- before the runs -----------------------------------------------------------------------

    def prepare(self) -> SlotFiles:
        """Copy the case and compile its templates and instructions.

        Returns what is in the slot: the disk it uses and notes for the user.
        Raises `CaseError`, and `ConfigurationError` or `OSError` where the copy fails.
        """
        self._inputs = bind_inputs(self.spec, source=self.source, directory=self.directory)
        self._outputs = bind_outputs(self.spec, source=self.source, directory=self.directory)
        written = [pair.model for pair in (*self.spec.templates, *self.spec.instructions)]
        self._files = prepare_slot(self.source, self.directory, written=written)
        self._environment = self._make_environment()
        if not self.spec.commands:
            raise CaseError(
                "the case has no model command",
                remedy="Name one in the control file's section * model command line.",
            )
        self._commands = [
            resolve_command(line, directory=self.directory, environment=self._environment)
            for line in self.spec.commands
        ]
        if self._log < 0:
            self._log = os.open(
                self._log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
            self._canceller = Canceller()
        return self._files

    def _make_environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        for name in THREAD_VARIABLES:
            environment.setdefault(name, str(self.limits.threads))
        environment[WORKER_MARK] = self.worker_id
        environment[SLOT_MARK] = str(self.directory)
        environment["PWD"] = str(self.directory)
        environment["PATH"] = os.pathsep.join(
            (str(self.directory), environment.get("PATH", os.defpath))
        )
        return environment

    # -- runs ----------------------------------------------------------------------------------

    def execute(self, parameters: bytes) -> Outcome:
        """Make one run. `parameters`: packed vector in the order of the case's parameters."""
        began = time.perf_counter()
        canceller = self._canceller
        if canceller is None:
            raise RuntimeError("Slot.prepare must come before Slot.execute")
        with self._lock:
            canceller.clear()
            self._running = True
        observations, failure = b"", None
        try:
            observations = self._run(parameters, canceller)
        except _RunFailed as failed:
            failure = failed.failure
        except OSError as error:
            reason = "disk-full" if error.errno in _NO_SPACE else "worker-error"
            failure = Failure(reason, error.strerror or str(error), file=str(error.filename or ""))
        except MemoryError:
            failure = Failure("worker-error", "the worker has not enough memory for this run")
        finally:
            with self._lock:
                self._running = False
        return Outcome(observations, failure, time.perf_counter() - began)

    def add_kit(self, outcome: Outcome, run: Run, quota: KitQuota) -> Outcome:
        """The outcome of the run that `execute` made last, with a kit if it failed.

        Never raises: where none can be packed, the end of the failure's log says why.
        """
        failure = outcome.failure
        if failure is None or self.limits.kit_bytes <= 0 or not quota.take(failure.reason):
            return outcome
        scene = Scene(
            run=run.id,
            failure=failure,
            values=unpack_vector(run.parameters[: len(run.parameters) // 8 * 8]),
            spec=self.spec,
            limits=self.limits,
            source=self.source,
            directory=self.directory,
            log=self._log_path,
        )
        try:
            return replace(outcome, kit=pack_kit(scene, self.limits.kit_bytes))
        except Exception as error:  # that a run failed must be told, with a kit or without
            logger.exception("run %d has no kit", run.id)
            log = f"{failure.log.rstrip()}\npestfleet: the run has no kit: {error}\n".lstrip()
            return replace(outcome, failure=replace(failure, log=log))

    def cancel(self) -> bool:
        """Kill the run in hand, if there is one, so that `execute` returns at once."""
        with self._lock:
            if self._running and self._canceller is not None:
                self._canceller.set()
            return self._running

    def close(self) -> None:
        """Remove the directory and the log. No run may be in hand."""
        if self._canceller is not None:
            self._canceller.close()
            self._canceller = None
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
            self._log_path.unlink(missing_ok=True)
        remove_slot(self.directory)

    def _run(self, parameters: bytes, canceller: Canceller) -> bytes:
        expected = 8 * len(self.spec.parameters)
        if len(parameters) != expected:
            raise _RunFailed(
                Failure(
                    "worker-error",
                    f"the run has {len(parameters)} bytes of parameters, not {expected}",
                )
            )
        values = unpack_vector(parameters)
        deadline = time.monotonic() + self.limits.seconds if self.limits.seconds > 0 else None
        while True:
            os.ftruncate(self._log, 0)
            self._write_inputs(values)
            self._run_commands(deadline, canceller)
            observations = self._read_outputs()
            # A linked file has changed: the result may come from another slot's writing.
            if self._files is None or not self._files.repair():
                return observations

    def _write_inputs(self, values: array[float]) -> None:
        # Removed first: a result of an earlier run must never count, and an input that the model
        # replaced by a link must not be written through.
        for path in (*(o.path for o in self._outputs), *(i.path for i in self._inputs)):
            try:
                os.unlink(path)  # noqa: PTH108 (pathlib takes ten times as long)
            except FileNotFoundError:
                continue
        for item in self._inputs:
            try:
                data = item.template.render(values)
            except TemplateError as error:
                name = self._relative(error.file)
                raise _RunFailed(
                    Failure("bad-input", error.problem, file=name, line=error.line)
                ) from None
            try:
                item.path.write_bytes(data)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                raise _RunFailed(
                    Failure("disk-full", "no space left to write the model input", file=item.name)
                ) from None

    def _run_commands(self, deadline: float | None, canceller: Canceller) -> None:
        for command in self._commands:
            try:
                ending = run_command(
                    command,
                    directory=self.directory,
                    environment=self._environment,
                    log=self._log,
                    deadline=deadline,
                    canceller=canceller,
                )
            except OSError as error:
                reason = "disk-full" if error.errno in _NO_SPACE else "model-failed"
                raise _RunFailed(
                    Failure(
                        reason,
                        f"the command {command.line!r} cannot be started: {error.strerror}",
                        log=self._read_log(),
                    )
                ) from None
            if ending.cause != "exit" or ending.code != 0:
                raise _RunFailed(self._describe_ending(command, ending))

    def _describe_ending(self, command: Command, ending: Ending) -> Failure:
        if ending.cause != "exit":
            # What left its process group is still there.
            kill_marked(SLOT_MARK, str(self.directory))
            log = self._read_log()
            if ending.cause == "cancelled":
                return Failure("cancelled", "the run was cancelled", log=log)
            limit = f"{self.limits.seconds:g} s"
            return Failure(
                "time-limit", f"the command {command.line!r} was not ready within {limit}", log=log
            )
        log = self._read_log()
        if _NO_SPACE_TEXT in log.lower():
            return Failure(
                "disk-full", f"the command {command.line!r} found no space left", log=log
            )
        number = -ending.code
        if command.by_shell and 128 < ending.code < 160:
            number = ending.code - 128  # the shell's way to tell of a signal
        if number > 0:
            try:
                name = signal.Signals(number).name
            except ValueError:
                name = f"signal {number}"
            return Failure(
                "model-failed",
                f"the command {command.line!r} was killed by {name}",
                exit_code=ending.code if ending.code > 0 else None,
                signal=number,
                log=log,
            )
        hint = _SHELL_CODES.get(ending.code, "")
        return Failure(
            "model-failed",
            f"the command {command.line!r} ended with exit code {ending.code}{hint}",
            exit_code=ending.code,
            log=log,
        )

    def _read_outputs(self) -> bytes:
        observations = [0.0] * len(self.spec.observations)
        for output in self._outputs:
            try:
                values = output.instructions.read(output.path)
            except FileNotFoundError:
                raise _RunFailed(self._describe_missing()) from None
            except IsADirectoryError:
                raise _RunFailed(
                    Failure("output-missing", "a folder, not a file", file=output.name)
                ) from None
            except InstructionError as error:
                # Instructions know the file's path in the slot; the control file has its folder.
                problem = error.problem
                if problem.startswith(output.path.name):
                    problem = output.name + problem.removeprefix(output.path.name)
                raise _RunFailed(
                    Failure(
                        "instruction-failed",
                        problem,
                        file=self._relative(error.file),
                        line=error.line,
                        log=self._read_log(),
                    )
                ) from None
            # nan and inf come through every sum: one look at all instead of one at each.
            if not isfinite(sum(values)):
                self._refuse_non_finite(output, values)
            for index, value in zip(output.order, values, strict=True):
                observations[index] = value
        return pack_vector(observations)

    def _refuse_non_finite(self, output: ModelOutput, values: list[float]) -> None:
        for name, value in zip(output.instructions.names, values, strict=True):
            if not isfinite(value):
                raise _RunFailed(
                    Failure(
                        "non-finite",
                        f"observation {name} is {value}",
                        file=output.name,
                        log=self._read_log(),
                    )
                )

    def _describe_missing(self) -> Failure:
        missing = [output.name for output in self._outputs if not output.path.exists()]
        commands = "the command" if len(self._commands) == 1 else "all commands"
        return Failure(
            "output-missing",
            f"{', '.join(missing)} {'was' if len(missing) == 1 else 'were'} not written, "
            f"though {commands} ended with exit code 0",
            file=missing[0] if missing else "",
            exit_code=0,
            log=self._read_log(),
        )

    def _read_log(self) -> str:
        """The tail of what the model wrote to stdout and stderr."""
        size = os.fstat(self._log).st_size
        data = os.pread(self._log, LOG_BYTES, max(size - LOG_BYTES, 0))
        text = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
        lines = text.split("\n")
        if size > LOG_BYTES and any(lines[1:]):
            del lines[0]  # cut off in the middle
        return "\n".join(lines[-LOG_LINES - (lines[-1] == "") :])

    def _relative(self, file: Path) -> str:
        return file.relative_to(self.source).as_posix()
