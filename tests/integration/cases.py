"""Small real cases for the tests: a model script, a template, an instruction file, a .pst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# The model appends a line to $COUNTER, if set, so that a test can count the runs that were made.
_MODEL = """#!/bin/sh
[ -z "$COUNTER" ] || echo run >> "$COUNTER"
{wait}sleep {seconds}
awk '{{ x = x * 0 + $1; printf "%.17g\\n", x * x + NR }}' input.dat > output.dat
"""


def make_case(
    folder: Path,
    *,
    parameters: int = 3,
    seconds: float = 0.0,
    gate: Path | None = None,
    model: str = "",
    name: str = "small",
) -> Path:
    """A case whose observation i is `parameter_i ** 2 + i`; returns its control file.

    `seconds`: how long the model sleeps. `gate`: it waits before until this file is there.
    `model`: a shell script instead of the default one, which is written as `model.sh`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "model.sh"
    wait = f"while [ ! -e '{gate}' ]; do sleep 0.05; done\n" if gate else ""
    script.write_text(model or _MODEL.format(seconds=seconds, wait=wait))
    script.chmod(0o755)
    names = [f"p{number}" for number in range(1, parameters + 1)]
    (folder / "input.tpl").write_text(
        "ptf ~\n" + "".join(f"~{parameter:^24}~\n" for parameter in names)
    )
    (folder / "output.ins").write_text(
        "pif @\n" + "".join(f"l1 !o{number}!\n" for number in range(1, parameters + 1))
    )
    control = folder / f"{name}.pst"
    control.write_text(_control_file(names))
    return control


def _control_file(parameters: Sequence[str]) -> str:
    count = len(parameters)
    lines = [
        "pcf",
        "* control data",
        "restart estimation",
        f"{count} {count} 1 0 1",
        "1 1 double point",
        "10.0 2.0 0.3 0.01 8",
        "5.0 5.0 0.001",
        "0.1",
        "10 0.005 4 4 0.005 4",
        "1 1 1",
        "* parameter groups",
        "par relative 0.01 0.00001 switch 2.0 parabolic",
        "* parameter data",
        *(f"{name} none relative 2.0 -1000.0 1000.0 par 1.0 0.0 1" for name in parameters),
        "* observation groups",
        "obs",
        "* observation data",
        *(f"o{number} {10.0 + number} 1.0 obs" for number in range(1, count + 1)),
        "* model command line",
        "./model.sh",
        "* model input/output",
        "input.tpl input.dat",
        "output.ins output.dat",
    ]
    return "\n".join(lines) + "\n"


def write_sweep(folder: Path, *, runs: int, parameters: int = 3) -> list[list[float]]:
    """Write sweep_in.csv with that many different parameter vectors; returns them."""
    rows = [
        [1.0 + 0.1 * row + 0.001 * column / 3.0 for column in range(parameters)]
        for row in range(runs)
    ]
    lines = ["run," + ",".join(f"p{column + 1}" for column in range(parameters))]
    lines += [f"{number}," + ",".join(map(repr, row)) for number, row in enumerate(rows)]
    (folder / "sweep_in.csv").write_text("\n".join(lines) + "\n")
    return rows


def expected_observations(row: Sequence[float]) -> list[float]:
    """What the model of `make_case` gives for a parameter vector, to the last bit."""
    return [value * value + number for number, value in enumerate(row, start=1)]
