"""A case: a control file with everything that it needs, read and checked, never changed."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pestfleet.bundle import RunFile, compute_digest, list_run_files, write_bundle
from pestfleet.checks.command import check_commands
from pestfleet.checks.engine import add_problems, check_options
from pestfleet.checks.files import check_alike, check_external, check_pairs, check_sizes
from pestfleet.checks.interface import check_instructions, check_templates
from pestfleet.checks.keywords import check_keywords
from pestfleet.checks.names import Folder, is_file, is_folder, to_posix
from pestfleet.checks.observations import check_observations
from pestfleet.checks.parameters import (
    check_groups,
    check_parameters,
    check_priors,
    check_ties,
)
from pestfleet.checks.problem import Problem, Problems
from pestfleet.control.model import ControlFile, Place
from pestfleet.control.reader import read_control_with_problems
from pestfleet_worker.errors import CaseError
from pestfleet_worker.messages import CaseSpec, FilePair

if TYPE_CHECKING:
    from pestfleet.engines.base import Matrix, Vector


class Case:
    """A control file and the folder that it is in.

    `reading`: what was found wrong as the control file was read; `problems` has that too.
    """

    def __init__(self, control: ControlFile, reading: Problems | None = None) -> None:
        self.control = control
        self.reading = reading if reading is not None else Problems()

    @classmethod
    def read(cls, path: Path | str) -> Case:
        """Read a case from its control file, or from a folder that has one.

        Raises `CaseError` if there is none, or several, or if the file is no control file. All
        other faults are told by `problems`.
        """
        control_path = find_control(Path(path))
        control, reading = read_control_with_problems(control_path)
        if control is None:
            first = reading.errors[0]
            raise CaseError(f"{first.place}: {first.message}", remedy=first.remedy)
        return cls(control, reading)

    @property
    def name(self) -> str:
        return self.control.name

    @property
    def folder(self) -> Path:
        """The case folder: where the control file is, and to which all names are relative."""
        return self.control.path.parent

    def files(self) -> list[RunFile]:
        """The files that a run may read, sorted by name. Raises `CaseError`."""
        return list_run_files(self.control)

    @functools.cached_property
    def digest(self) -> str:
        """Hex sha256 of all that a run depends on: see `bundle.compute_digest`."""
        interface = dataclasses.asdict(self._make_spec(""))
        return compute_digest(self.control, json.dumps(interface, sort_keys=True).encode())

    @functools.cached_property
    def spec(self) -> CaseSpec:
        """What a worker must know of this case."""
        return self._make_spec(self.digest)

    def _make_spec(self, digest: str) -> CaseSpec:
        control = self.control
        return CaseSpec(
            name=control.name,
            digest=digest,
            parameters=tuple(parameter.name for parameter in control.parameters),
            observations=tuple(observation.name for observation in control.observations),
            templates=tuple(
                FilePair(to_posix(pair.pest), to_posix(pair.model)) for pair in control.templates
            ),
            instructions=tuple(
                FilePair(to_posix(pair.pest), to_posix(pair.model)) for pair in control.instructions
            ),
            commands=tuple(command.line for command in control.commands),
            precision=control.precision,
            decimal_point=control.decimal_point,
        )

    def bundle(self, path: Path) -> Path:
        """Write all run files as one reproducible archive (.tar.gz). Raises `CaseError`."""
        return write_bundle(self.control, path)

    def problems(self, slots: int = 1, *, local: bool = True) -> list[Problem]:
        """All that is wrong with this case, in the order control file, templates, …, files.

        `slots`: places for runs, each with its copy of the files; `local`: the model runs on
        this machine, so that its command must be found here. Nothing is written or started.
        """
        control, problems = self.control, Problems(self.reading)
        folder = Folder(self.folder)
        check_keywords(control, problems)
        check_parameters(control, problems)
        check_ties(control, problems)
        check_groups(control, problems)
        check_observations(control, problems)
        check_priors(control, problems)
        check_commands(control, folder, problems, local=local)
        check_pairs(control, folder, problems)
        check_external(control, folder, problems)
        check_templates(control, folder, problems)
        check_instructions(control, folder, problems)
        try:
            files = self.files()
        except CaseError as error:
            problems.error(Place(self.folder), error.message, error.remedy)
            return problems
        check_sizes(control, files, slots, problems)
        check_alike(control, files, problems)
        return problems

    def initial_values(self) -> Vector:
        """(parameters,) PARVAL1 of all parameters, in the order of the control file."""
        import numpy as np

        return np.array([p.initial for p in self.control.parameters], dtype=np.float64)

    def model_values(self, parameters: Matrix) -> Matrix:
        """What the model gets: `value * scale + offset`, shape (runs, parameters) as given."""
        import numpy as np

        own = self.control.parameters
        scale = np.array([p.scale for p in own], dtype=np.float64)
        offset = np.array([p.offset for p in own], dtype=np.float64)
        return np.asarray(parameters, dtype=np.float64) * scale + offset

    def resolve_tied(self, parameters: Matrix) -> Matrix:
        """A copy, shape (runs, parameters), in which tied parameters follow their parents.

        A tied parameter keeps the ratio that the initial values have (PEST manual, part I,
        section "Parameter data"), 1 if both are 0, as in PEST++.
        """
        import numpy as np

        resolved = np.array(parameters, dtype=np.float64)
        index = {p.name: i for i, p in enumerate(self.control.parameters)}
        for i, parameter in enumerate(self.control.parameters):
            if parameter.transform != "tied" or parameter.tied_to not in index:
                continue
            parent = index[parameter.tied_to]
            base = self.control.parameters[parent].initial
            ratio = parameter.initial / base if base else 1.0
            resolved[..., i] = resolved[..., parent] * ratio
        return resolved


def find_control(path: Path) -> Path:
    """The control file that `path` is, or the one in the folder that it is.

    Raises `CaseError`.
    """
    if is_file(path):
        return path
    if not is_folder(path):
        raise CaseError(f"{path}: does not exist", remedy="Name a case folder or a control file.")
    try:
        found = sorted(p for p in path.iterdir() if p.suffix.lower() == ".pst" and is_file(p))
    except OSError as error:
        raise CaseError(f"{path}: the folder cannot be read: {error.strerror}") from error
    if not found:
        raise CaseError(
            f"{path}: there is no control file (.pst) in this folder",
            remedy="Name the folder of a case, or its control file.",
        )
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:10]) + (", …" if len(found) > 10 else "")
        raise CaseError(
            f"{path}: there are {len(found)} control files in this folder: {names}",
            remedy="Name the one to use.",
        )
    return found[0]


def check_case(
    path: Path | str,
    *,
    slots: int = 1,
    local: bool = True,
    engine: str = "",
    options: Mapping[str, str] | None = None,
) -> tuple[Case | None, list[Problem]]:
    """Read a case and tell all problems of it; no case if there is no readable control file.

    With an `engine` and the user's `options` for it, also what keeps that engine from working
    with the case. Raises `CaseError` only where `path` names no control file at all
    (`find_control`), `ConfigurationError` for an unknown engine or an option of it that is wrong.
    """
    control_path = find_control(Path(path))
    control, reading = read_control_with_problems(control_path)
    if control is None:
        return None, reading
    case = Case(control, reading)
    problems = case.problems(slots, local=local)
    if engine:
        problems = add_problems(problems, check_options(engine, options or {}, control))
    return case, problems
