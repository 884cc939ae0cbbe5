"""One run in two containers: what is asked of the image with the case, and how it went.

    python -m pestfleet.images.request ask CASE FILE
    python -m pestfleet.images.request judge FILE

The first writes what `python -m pestfleet_worker.trial` reads, the second reads what that writes:
so the master's image can have a run made in an image that has no control file's reader.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pestfleet.case import Case
from pestfleet.initial_run import pack_initial_values
from pestfleet_worker.errors import CaseError, PestfleetError, TargetError
from pestfleet_worker.messages import Limits, MessageError, Result, Run
from pestfleet_worker.trial import read_lines, write_lines


def ask(case: Path, file: Path) -> None:
    """Write the request for a run with the initial values. Raises `CaseError`."""
    read = Case.read(case)
    request = [read.spec, Limits(), Run(1, pack_initial_values(read))]
    file.write_bytes(b"".join(write_lines(request)))


def judge(file: Path) -> str:
    """One line about a run that succeeded. Raises `CaseError` for one that failed."""
    try:
        result = next(read_lines(file.read_bytes().splitlines()), None)
    except (MessageError, OSError) as error:
        raise TargetError(f"{file} has no result: {error}") from error
    if not isinstance(result, Result):
        raise TargetError(f"{file} has no result")
    if result.failure:
        raise CaseError(f"the run failed: {result.failure}", remedy=result.failure.log)
    values = len(result.observations) // 8
    return f"the run succeeded: {values} observations in {result.seconds:.2f} s"


def main() -> None:
    """Exit code 0: asked, or the run succeeded."""
    try:
        match sys.argv[1:]:
            case ["ask", case, file]:
                ask(Path(case), Path(file))
            case ["judge", file]:
                print(judge(Path(file)))
            case _:
                sys.exit("usage: python -m pestfleet.images.request ask CASE FILE | judge FILE")
    except PestfleetError as error:
        print("\n".join(text for text in (error.message, error.remedy) if text), file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
