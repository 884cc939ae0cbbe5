"""A small case for real PEST++, and a run service that evaluates a Python function."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pestfleet.case import Case
from pestfleet.engines.base import Job
from pestfleet_worker.messages import CaseSpec, Failure, Result, pack_vector, unpack_vector

TIMES = tuple(0.5 * (i + 1) for i in range(8))

# PEST++ takes a leading slash off the model command: the interpreter's folder goes on PATH.
_SCRIPT = """
import math
a, b, c = (float(line.split()[1]) for line in open("model.in"))
with open("model.out", "w") as out:
    for t in {times}:
        out.write("%.17e\\n" % (a * math.exp(-b * t) + c * t))
"""


def evaluate(values: Sequence[float]) -> list[float]:
    """What the case's model computes."""
    a, b, c = values
    return [a * math.exp(-b * t) + c * t for t in TIMES]


def make_case(
    folder: Path,
    *,
    noptmax: int = 2,
    options: dict[str, str] | None = None,
    version: int = 1,
    transform: str = "log",
    group: str = "og",
) -> Path:
    """Write the case; returns its control file. Template fields are wide enough for a double."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(_SCRIPT.format(times=TIMES))
    template = "".join(f"{name} ~{name:^26}~\n" for name in "abc")
    (folder / "model.in.tpl").write_text("ptf ~\n" + template)
    (folder / "model.out.ins").write_text("pif @\n" + "".join(f"l1 !o{i}!\n" for i in range(8)))
    measured = [value + 0.01 * (-1) ** i for i, value in enumerate(evaluate((3.0, 0.4, 0.2)))]
    observations = [f"o{i} {value!r} 20.0 {group}" for i, value in enumerate(measured)]
    parameters = [
        f"a {transform} factor 2.0 0.5 10 g 1 0 1",
        f"b {transform} factor 0.3 0.05 2 g 1 0 1",
        "c none relative 0.3 0.0 1 g 1 0 1",
    ]
    command = f"{Path(sys.executable).name} -I -S model.py"
    given = options or {}
    if version == 1:
        lines = [
            "pcf", "* control data", "restart estimation", "3 8 1 0 1", "1 1 double point",
            "10 2 0.3 0.03 10", "5 5 0.001", "0.1", f"{noptmax} 0.005 4 4 0.005 4", "1 1 1",
            "* parameter groups", "g relative 0.01 0.0 switch 2.0 parabolic",
            "* parameter data", *parameters, "* observation groups", group,
            "* observation data", *observations, "* model command line", command,
            "* model input/output", "model.in.tpl model.in", "model.out.ins model.out",
            *(f"++{key}({value})" for key, value in given.items()),
        ]  # fmt: skip
    else:
        tables = {
            "pargp": ["pargpnme,inctyp,derinc,derinclb,forcen,derincmul,dermthd",
                      "g,relative,0.01,0.0,switch,2.0,parabolic"],
            "par": ["parnme,partrans,parchglim,parval1,parlbnd,parubnd,pargp,scale,offset,dercom",
                    *(",".join(line.split()) for line in parameters)],
            "obs": ["obsnme,obsval,weight,obgnme", *(",".join(o.split()) for o in observations)],
            "tpl": ["pest_file,model_file", "model.in.tpl,model.in"],
            "ins": ["pest_file,model_file", "model.out.ins,model.out"],
        }  # fmt: skip
        for name, rows in tables.items():
            (folder / f"case.{name}.csv").write_text("\n".join(rows) + "\n")
        lines = [
            "pcf version=2", "* control data keyword", "pestmode estimation",
            f"noptmax {noptmax}", *(f"{key} {value}" for key, value in given.items()),
            "* parameter groups external", "case.pargp.csv",
            "* parameter data external", "case.par.csv",
            "* observation data external", "case.obs.csv",
            "* model command line", command,
            "* model input external", "case.tpl.csv", "* model output external", "case.ins.csv",
        ]  # fmt: skip
    path = folder / "case.pst"
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass
class FunctionService:
    """Makes runs by a function of the parameters, in threads. A `RunService`.

    `fails(values)` says which runs fail, `seconds(values)` how long one takes.
    """

    spec: CaseSpec
    slots: int = 4
    fails: Callable[[Sequence[float]], bool] = lambda values: False
    seconds: Callable[[Sequence[float]], float] = lambda values: 0.0
    stop_after: int | None = None
    asked: list[array[float]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    error: type[Exception] = KeyboardInterrupt  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.slots)
        self._lock = threading.Lock()

    def request(self, parameters: bytes, on_result: Callable[[Result], None]) -> int:
        values = unpack_vector(parameters)
        with self._lock:
            self.asked.append(values)
            number = len(self.asked)
        self._pool.submit(self._make, number, values, on_result)
        return number

    def _make(
        self, number: int, values: Sequence[float], on_result: Callable[[Result], None]
    ) -> None:
        if pause := self.seconds(values):
            time.sleep(pause)
        if self.fails(values):
            failure = Failure("model-failed", "the model ended with exit code 3", exit_code=3)
            on_result(Result(number, "w", 0, pause, failure=failure))
        else:
            data = pack_vector(evaluate(values))
            on_result(Result(number, "w", 0, pause, observations=data))

    def cancel(self, runs: Iterable[int]) -> None:
        self.cancelled += runs

    def check_stop(self) -> None:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise self.error("stop")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@dataclass
class Notebook:
    """A `Report` that keeps everything."""

    iterations: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def iteration(self, number: int, *, phi: float, **detail: float | int | str) -> None:
        self.iterations.append({"number": number, "phi": phi, **detail})

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def make_job(
    control: Path,
    output: Path,
    engine: str,
    *,
    options: dict[str, str] | None = None,
    arguments: tuple[str, ...] = (),
    **service: Any,
) -> Job:
    """A job in queue mode with a `FunctionService` of these settings and a `Notebook`."""
    case = Case.read(control)
    output.mkdir(parents=True, exist_ok=True)
    return Job(
        control=case.control,
        runner=None,  # type: ignore[arg-type]
        report=Notebook(),
        output=output,
        options=options or {},
        engine=engine,
        arguments=arguments,
        service=FunctionService(case.spec, **service),
    )


def run_serially(program: str, folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    """The engine with its own serial run manager, in the case's folder."""
    return subprocess.run(
        [program, "case.pst"],
        cwd=folder,
        env={"PATH": f"{Path(sys.executable).parent}:{path}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
