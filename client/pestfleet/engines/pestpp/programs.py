"""The programs of PEST++ that run as masters here, and what is known of each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pestfleet.engines import programs

_INSTALL = (
    "Get PEST++ from its releases page (usgs/pestpp on GitHub) or build it; pestfleet is tested "
    "with version 5.2.23."
)


@dataclass(frozen=True, slots=True)
class Program:
    """`phi_file`: what follows the case's name in the file that has phi by iteration.

    `columns`: names of its columns with iteration, phi and, where there are any, more for the
    report {our name: column}. `ensemble`: each row ends with a column for each realization.
    """

    phi_file: str = ""
    iteration: str = "iteration"
    phi: str = ""
    detail: tuple[tuple[str, str], ...] = ()
    ensemble: bool = False


_SPREAD = (("phi_min", "min"), ("phi_max", "max"), ("phi_std", "standard_deviation"))

PROGRAMS = {
    "pestpp-glm": Program(
        ".iobj", phi="total_phi", detail=(("phi_regularization", "regularization_phi"),)
    ),
    "pestpp-ies": Program(".phi.actual.csv", phi="mean", detail=_SPREAD, ensemble=True),
    "pestpp-da": Program(
        ".global.phi.actual.csv", phi="mean", detail=(("cycle", "cycle"), *_SPREAD), ensemble=True
    ),
    "pestpp-swp": Program(),
    "pestpp-sen": Program(),
    "pestpp-opt": Program(".slp.iobj.csv", phi="objective_function"),
    "pestpp-mou": Program(),
    "pestpp-sqp": Program(),
}


def find_program(name: str, *, case: Path) -> Path:
    """The program of that name. Raises `ConfigurationError` with what to install and to set."""
    if os.name == "nt":
        name = f"{name}.exe"
    return programs.find_program((name,), case=case, install=_INSTALL)
