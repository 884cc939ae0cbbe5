"""Template and instruction files of the largest cases."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.figure import Figure
from pestfleet_worker.instructions import Instructions
from pestfleet_worker.templates import Template

TRIES = 7
PARAMETERS, OBSERVATIONS = 10_000, 100_000


def measure() -> Iterator[Figure]:
    """Milliseconds for writing and for reading a file, compiled beforehand as a slot does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield Figure("template file with 10,000 parameters", _time_template(folder), "ms", 30.0)
        for shape, instruction in (("one a line", "l1 !o{0}!"), ("fixed columns", "l1 [o{0}]1:20")):
            yield Figure(
                f"instruction file with 100,000 observations, {shape}",
                _time_instructions(folder, instruction),
                "ms",
                150.0,
            )


def _time_template(folder: Path) -> float:
    path = folder / "input.tpl"
    names = [f"p{number}" for number in range(PARAMETERS)]
    path.write_text("ptf ~\n" + "".join(f"~{name:^23}~\n" for name in names))
    template = Template.parse(path).bind(names)
    values = [1.0 + number / 3.0 for number in range(PARAMETERS)]
    target = folder / "input.dat"
    return _median(lambda: target.write_bytes(template.render(values)))


def _time_instructions(folder: Path, instruction: str) -> float:
    path = folder / "output.ins"
    path.write_text("pif @\n" + "".join(instruction.format(n) + "\n" for n in range(OBSERVATIONS)))
    output = folder / "output.dat"
    output.write_text("".join(f"{number / 3.0:20.12e}\n" for number in range(OBSERVATIONS)))
    instructions = Instructions.parse(path)
    return _median(lambda: instructions.read(output))


def _median(action: Callable[[], object]) -> float:
    times = []
    for _ in range(TRIES):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return 1000.0 * statistics.median(times)
