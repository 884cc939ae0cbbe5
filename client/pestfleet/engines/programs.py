"""Where the programs of external engines are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pestfleet_worker.errors import ConfigurationError

ENGINES_VARIABLE = "PESTFLEET_ENGINES"  # folders with engines' programs, before PATH


# Options of ours, not of a program: each agrees to a port that cannot be shut.
OPEN_OPTIONS = frozenset(("allow_open_port", "i_know_the_port_is_open"))


def find_program(names: Sequence[str], *, case: Path, install: str) -> Path:
    """The first of `names` that is there: in PESTFLEET_ENGINES, on PATH, or in the folder `case`.

    Modellers keep the program with the case, so that is looked at too. `install`: what to do when
    there is none. Raises `ConfigurationError`.
    """
    folders = [os.environ.get(ENGINES_VARIABLE, ""), os.environ.get("PATH", ""), str(case)]
    path = os.pathsep.join(filter(None, folders))
    for name in names:
        found = shutil.which(name, path=path)
        if found is not None:
            return Path(found).absolute()
    raise ConfigurationError(
        f"there is no program {' or '.join(names)} on this machine",
        remedy=f"{install} Then put it on PATH, or name its folder in {ENGINES_VARIABLE}.",
    )
