"""What a PEST control file says, as plain data.

Field meanings follow the PEST manual (Doherty, part I, chapter 4 "The PEST control file") and,
for version 2 and the `++` options, the PEST++ manual (section "The PEST++ control file").
All names (parameters, observations, groups) are lower case, as PEST itself treats them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Transform = Literal["none", "log", "fixed", "tied"]
Mode = Literal["estimation", "prediction", "regularization", "pareto"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: a file and a line, counted from 1 (0: the file as a whole)."""

    file: Path
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else str(self.file)


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Derivative settings (INCTYP, DERINC, DERINCLB, FORCEN, DERINCMUL, DERMTHD)."""

    name: str
    increment_type: str = "relative"  # relative | absolute | rel_to_max
    increment: float = 0.01
    increment_floor: float = 0.0
    central: str = "switch"  # always_2 | always_3 | switch | switch_5 | always_5
    increment_multiplier: float = 2.0
    central_method: str = "parabolic"  # parabolic | outside_pts | best_fit | minvar | maxprec
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One adjustable, fixed or tied parameter. The model sees `value * scale + offset`."""

    name: str
    transform: Transform
    change_limit: str  # relative | factor | absolute(n)
    initial: float
    lower: float
    upper: float
    group: str
    scale: float = 1.0
    offset: float = 0.0
    command: int = 1
    tied_to: str | None = None
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """A measured value with its weight (1 / standard deviation, in the sense of PEST)."""

    name: str
    value: float
    weight: float
    group: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class PriorInformation:
    """`sum(factor * p) = value`, where p is log10(parameter) if `log`."""

    name: str
    terms: tuple[tuple[float, str, bool], ...]  # factor, parameter name, log
    value: float
    weight: float
    group: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class FilePair:
    """A template and the model input it makes, or an instruction file and the output it reads.

    `pest` and `model` are as written in the control file, relative to its folder.
    """

    pest: str
    model: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Command:
    line: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class ControlFile:
    """A control file, read. Order of parameters and observations is the file's own.

    `control_data`: scalar variables of `* control data`, of `* singular value decomposition` and
    of `* regularization` by lower-case PEST name (`noptmax`, `rlambda1`, `phiredstp`, `maxsing`,
    `eigthresh`, `phimlim`, …), only those that the file gives.
    `options`: the `++` options (version 1) or `* control data keyword` (version 2) that are not
    in `control_data`, lower-case key, value as written.
    `parameter_data`, `observation_data`: extra columns of version 2 external tables,
    {column: {name: text}}.
    """

    path: Path
    version: Literal[1, 2]
    mode: Mode
    parameters: tuple[Parameter, ...]
    groups: tuple[ParameterGroup, ...]
    observations: tuple[Observation, ...]
    observation_groups: tuple[str, ...]
    priors: tuple[PriorInformation, ...]
    commands: tuple[Command, ...]
    templates: tuple[FilePair, ...]
    instructions: tuple[FilePair, ...]
    precision: Literal["single", "double"] = "double"
    decimal_point: Literal["point", "nopoint"] = "point"
    control_data: dict[str, float | str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    option_places: dict[str, Place] = field(default_factory=dict)
    external_files: tuple[FilePair, ...] = ()  # version 2 tables, .cov of observation groups
    observation_covariances: dict[str, str] = field(default_factory=dict)  # group -> file
    parameter_data: dict[str, dict[str, str]] = field(default_factory=dict)
    observation_data: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The case name: the control file's name without `.pst`."""
        return self.path.stem
