"""Runs the benchmarks and prints JSON, one object a line.

    python -m benchmarks [NAME ...]

`value` is what was measured, `limit` what we hold ourselves to, `holds` whether it does. What
is compared is measured in the same run, one after the other: machines are noisy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

from benchmarks import (
    containers,
    kubernetes,
    memory,
    message_path,
    overhead,
    parsing,
    pestpp,
    scale,
    simulated_fleet,
    start,
)
from benchmarks.figure import Figure

BENCHMARKS: dict[str, Callable[[], Iterator[Figure]]] = {
    "overhead": overhead.measure,
    "start": start.measure,
    "scale": scale.measure,
    "parsing": parsing.measure,
    "message_path": message_path.measure,
    "memory": memory.measure,
    "pestpp": pestpp.measure,
    "containers": containers.measure,
    "kubernetes": kubernetes.measure,
    "simulated_fleet": simulated_fleet.measure,
}


def main() -> None:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in chosen if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    for name in chosen:
        for figure in BENCHMARKS[name]():
            print(json.dumps(figure.as_row(name)), flush=True)


if __name__ == "__main__":
    main()
