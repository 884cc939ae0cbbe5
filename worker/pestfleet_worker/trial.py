"""One run in an image, to try it: `python -m pestfleet_worker.trial --case … --scratch …`.

Standard input has a `CaseSpec`, `Limits` and a `Run`, standard output gets the `Result`: each
message in base64 on a line of its own, for the log of a container keeps nothing but text.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pestfleet_worker.errors import PestfleetError
from pestfleet_worker.messages import (
    CaseSpec,
    Failure,
    Limits,
    MessageError,
    Result,
    Run,
    decode,
    encode,
)
from pestfleet_worker.runs import Slot

NAME = "trial"


def main() -> None:
    """The run's failure is part of the result; exit code 1 means that there is no result."""
    parser = argparse.ArgumentParser(description="Make one run of a case.")
    parser.add_argument("--case", type=Path, required=True, help="the case folder")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the slot")
    arguments = parser.parse_args()
    try:
        result = make_trial(sys.stdin.buffer, case=arguments.case, scratch=arguments.scratch)
    except PestfleetError as error:
        print(f"pestfleet_worker.trial: {error}", file=sys.stderr)
        sys.exit(1)
    sys.stdout.buffer.writelines(write_lines([result]))


def make_trial(lines: BinaryIO, *, case: Path, scratch: Path) -> Result:
    """Make the run that three lines ask for. Raises `MessageError` for other lines."""
    messages = read_lines(line for _, line in zip(range(3), lines, strict=False))
    match list(messages):
        case [CaseSpec() as spec, Limits() as limits, Run() as run]:
            pass
        case _:
            raise MessageError("not a case, its limits and a run")
    slot = Slot(spec, source=case, directory=scratch / "slot", limits=limits, worker_id=NAME)
    try:
        slot.prepare()
        outcome = slot.execute(run.parameters)
    except (PestfleetError, OSError) as error:
        failure = Failure("worker-error", str(error))
        return Result(run.id, NAME, 0, 0.0, failure=failure)
    finally:
        slot.close()
    return Result(
        run.id, NAME, 0, outcome.seconds, observations=outcome.observations, failure=outcome.failure
    )


def write_lines(messages: Iterable[Any]) -> Iterator[bytes]:
    """Messages as lines of text."""
    for message in messages:
        yield base64.b64encode(encode(message)) + b"\n"


def read_lines(lines: Iterable[bytes]) -> Iterator[Any]:
    """The reverse of `write_lines`. Raises `MessageError`."""
    for line in lines:
        try:
            data = base64.b64decode(line.strip(), validate=True)
        except ValueError as error:
            raise MessageError("not a message in base64") from error
        yield decode(data)


if __name__ == "__main__":
    main()
