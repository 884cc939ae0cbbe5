"""Cases for the benchmarks, with a model in C that reads and writes files."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
/* Reads all numbers of input.dat, works or sleeps, writes OBSERVATIONS numbers to output.dat. */
int main(void) {
    double value, sum = 0.0; int count = 0;
    FILE *in = fopen("input.dat", "r"), *out;
    if (!in) return 1;
    while (fscanf(in, "%lf", &value) == 1) { sum += value; count++; }
    fclose(in);
    if (SLEEP_MS > 0) {
        struct timespec pause = {SLEEP_MS / 1000, (SLEEP_MS % 1000) * 1000000L};
        nanosleep(&pause, NULL);
    } else {
        volatile double x = 1.0;
        for (long i = 0; i < WORK; i++) x = x * 1.0000001 + 1e-9;
    }
    out = fopen("output.dat", "w");
    if (!out) return 1;
    for (int i = 0; i < OBSERVATIONS; i++) fprintf(out, "%.17g\n", sum + i);
    return fclose(out) ? 1 : 0;
}
"""


def make_case(
    folder: Path,
    *,
    parameters: int = 10,
    observations: int = 10,
    work: int = 350_000,
    sleep_ms: int = 0,
) -> Path:
    """A case whose model is one C program; returns its control file. `work`: loop turns."""
    folder.mkdir(parents=True)
    source = folder.parent / "model.c"
    source.write_text(_SOURCE)
    defines = [f"-DOBSERVATIONS={observations}", f"-DWORK={work}L", f"-DSLEEP_MS={sleep_ms}"]
    subprocess.run(["gcc", "-O1", *defines, "-o", str(folder / "model"), str(source)], check=True)
    (folder / "input.tpl").write_text(
        "ptf ~\n" + "".join(f"~p{number:<22}~\n" for number in range(parameters))
    )
    (folder / "output.ins").write_text(
        "pif @\n" + "".join(f"l1 !o{number}!\n" for number in range(observations))
    )
    (folder / "input.dat").write_text("1.0\n" * parameters)
    control = folder / "bench.pst"
    control.write_text(
        f"""pcf
* control data
restart estimation
{parameters} {observations} 1 0 1
1 1 double point
10.0 2.0 0.3 0.01 8
5.0 5.0 0.001
0.1
10 0.005 4 4 0.005 4
1 1 1
* parameter groups
par relative 0.01 0.00001 switch 2.0 parabolic
* parameter data
"""
        + "".join(f"p{n} none relative 2.0 -1e9 1e9 par 1.0 0.0 1\n" for n in range(parameters))
        + "* observation groups\nobs\n* observation data\n"
        + "".join(f"o{n} 1.0 1.0 obs\n" for n in range(observations))
        + "* model command line\n./model\n* model input/output\n"
        + "input.tpl input.dat\noutput.ins output.dat\n"
    )
    return control
