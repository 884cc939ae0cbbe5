"""Rows of a control file as parameters, groups, observations, file pairs.

A row that is faulty still gives a record where its name is known, with NaN for a number that
cannot be read, so that one wrong value does not make every check of its name fail as well. The
problem that goes with it keeps such a record from ever reaching an engine.

Source: PEST manual part I, chapter 4, sections on parameter groups, parameter data, observation
groups, observation data, model input/output.
"""

from __future__ import annotations

import math
import re
from typing import cast

from pestfleet.checks.problem import Problems
from pestfleet.control.model import (
    FilePair,
    Observation,
    Parameter,
    ParameterGroup,
    Place,
    Transform,
)
from pestfleet.control.tables import Columns, Row, Rows
from pestfleet.control.tokens import read_number

GROUP_COLUMNS = Columns(
    ("pargpnme", "inctyp", "derinc", "derinclb", "forcen", "derincmul", "dermthd"),
    required=("pargpnme",),
)
PARAMETER_COLUMNS = Columns(
    ("parnme", "partrans", "parchglim", "parval1", "parlbnd", "parubnd", "pargp", "scale",
     "offset", "dercom", "partied"),
    aliases={"name": "parnme", "transform": "partrans", "change_limit": "parchglim",
             "value": "parval1", "lower_bound": "parlbnd", "upper_bound": "parubnd",
             "group": "pargp"},
    required=("parnme", "partrans", "parval1", "parlbnd", "parubnd", "pargp"),
)  # fmt: skip
OBSERVATION_COLUMNS = Columns(
    ("obsnme", "obsval", "weight", "obgnme"),
    aliases={"name": "obsnme", "value": "obsval", "group": "obgnme"},
    required=("obsnme", "obsval", "weight", "obgnme"),
)
OBSERVATION_GROUP_COLUMNS = Columns(
    ("obgnme", "gtarg", "covfle"), required=("obgnme",), lower=False
)
PAIR_COLUMNS = Columns(
    ("pest_file", "model_file"), required=("pest_file", "model_file"), lower=False
)

_TRANSFORMS = ("none", "log", "fixed", "tied")
_CHANGE_LIMIT = re.compile(r"relative|factor|absolute\(\d+\)")
_INCREMENT_TYPES = ("relative", "absolute", "rel_to_max")
_CENTRAL = ("always_2", "always_3", "switch", "switch_5", "always_5")
_CENTRAL_METHODS = ("parabolic", "outside_pts", "best_fit", "minvar", "maxprec")


def _number(
    row: Row, index: int, name: str, problems: Problems, default: float = math.nan
) -> float:
    """Value `index` of a row; `default` (NaN: required) where there is none."""
    token = row.values[index] if index < len(row.values) else None
    if token is None:
        if math.isnan(default):
            _report_missing(row, name, problems)
        return default
    value = read_number(token)
    if value is None:
        message = f"{name} of '{row.values[0]}' is '{token}', not a number"
        problems.error(row.place, message, "Write a number, such as 1.0 or 2.5e-3.")
        return math.nan
    return value


def _word(
    row: Row, index: int, name: str, allowed: tuple[str, ...], problems: Problems, default: str
) -> str:
    token = row.values[index] if index < len(row.values) else None
    if token is None:
        return default
    if token not in allowed:
        message = f"{name} of '{row.values[0]}' is '{token}'"
        problems.error(
            row.place, message, f"It must be {', '.join(allowed[:-1])} or {allowed[-1]}."
        )
        return default
    return token


def _report_missing(row: Row, name: str, problems: Problems) -> None:
    message = f"'{row.values[0]}' has no {name}"
    problems.error(row.place, message, "Add the missing value.")


def _has_name(row: Row, what: str, problems: Problems) -> bool:
    if row.values and row.values[0]:
        return True
    problems.error(row.place, f"the row has no {what}", "Give it a name, or remove the row.")
    return False


def _report_short(row: Row, columns: Columns, least: int, problems: Problems) -> None:
    """Say which values the line of the control file lacks."""
    names = [name.upper() for name in columns.names[len(row.values) : least]]
    if names:
        message = f"'{row.values[0]}' has no {', '.join(names)}"
        form = " ".join(name.upper() for name in columns.names[:least])
        problems.error(row.place, message, f"The line must hold {form}.")


def read_groups(rows: Rows, *, inline: bool, problems: Problems) -> list[ParameterGroup]:
    """Parameter groups with their derivative settings."""
    groups = []
    with problems.limited("lines of '* parameter groups'"):
        for row in rows:
            if not _has_name(row, "PARGPNME", problems):
                continue
            if inline:
                _report_short(row, GROUP_COLUMNS, 7, problems)
            groups.append(
                ParameterGroup(
                    name=str(row.values[0]),
                    increment_type=_word(row, 1, "INCTYP", _INCREMENT_TYPES, problems, "relative"),
                    increment=_number(row, 2, "DERINC", problems, 0.01),
                    increment_floor=_number(row, 3, "DERINCLB", problems, 0.0),
                    central=_word(row, 4, "FORCEN", _CENTRAL, problems, "switch"),
                    increment_multiplier=_number(row, 5, "DERINCMUL", problems, 2.0),
                    central_method=_word(
                        row, 6, "DERMTHD", _CENTRAL_METHODS, problems, "parabolic"
                    ),
                    place=row.place,
                )
            )
    return groups


def read_parameters(rows: Rows, *, inline: bool, problems: Problems) -> list[Parameter]:
    """Parameters in file order.

    In the inline form the lines of tied parameters follow: name and parent, nothing else.
    """
    ties: dict[str, tuple[str, Place]] = {}
    records: list[tuple[Row, str]] = []
    with problems.limited("lines of '* parameter data'"):
        for row in rows:
            if not _has_name(row, "PARNME", problems):
                continue
            name = str(row.values[0])
            if inline and len(row.values) == 2:
                if name in ties:
                    message = f"'{name}' is tied twice, first at line {ties[name][1].line}"
                    problems.error(row.place, message, "Remove one of the two lines.")
                ties[name] = (str(row.values[1]), row.place)
                continue
            if inline:
                _report_short(row, PARAMETER_COLUMNS, 9, problems)
            records.append((row, name))
        parameters = [_read_parameter(row, name, inline, ties, problems) for row, name in records]
        known = {name for _, name in records}
        for name, (_, place) in ties.items():
            if name not in known:
                message = f"'{name}' is tied, but it is no parameter of this section"
                problems.error(place, message, "Correct the name, or remove the line.")
    return parameters


def _read_parameter(
    row: Row,
    name: str,
    inline: bool,
    ties: dict[str, tuple[str, Place]],
    problems: Problems,
) -> Parameter:
    values = row.values
    transform = values[1] if len(values) > 1 else None
    if transform not in _TRANSFORMS:
        if transform is None and not inline:
            _report_missing(row, "PARTRANS", problems)
        elif transform is not None:
            message = f"PARTRANS of '{name}' is '{transform}'"
            problems.error(row.place, message, "It must be none, log, fixed or tied.")
        transform = "none"
    limit = (values[2] if len(values) > 2 else None) or "factor"
    if not _CHANGE_LIMIT.fullmatch(limit):
        message = f"PARCHGLIM of '{name}' is '{limit}'"
        problems.error(row.place, message, "It must be relative, factor or absolute(n).")
        limit = "factor"
    parent = _find_parent(row, name, transform, inline, ties, problems)
    lacking = len(values) if inline else len(PARAMETER_COLUMNS.names)

    def number(index: int, variable: str, default: float = math.nan) -> float:
        # `_report_short` has told already of what an inline row lacks.
        return math.nan if index >= lacking else _number(row, index, variable, problems, default)

    command = number(9, "DERCOM", 1.0) if lacking > 9 else 1.0
    return Parameter(
        name=name,
        transform=cast(Transform, transform),
        change_limit=limit,
        initial=number(3, "PARVAL1"),
        lower=number(4, "PARLBND"),
        upper=number(5, "PARUBND"),
        group=(values[6] if len(values) > 6 else None) or "none",
        scale=number(7, "SCALE", 1.0),
        offset=number(8, "OFFSET", 0.0),
        command=1 if math.isnan(command) else int(command),
        tied_to=parent,
        place=row.place,
    )


def _find_parent(
    row: Row,
    name: str,
    transform: str | None,
    inline: bool,
    ties: dict[str, tuple[str, Place]],
    problems: Problems,
) -> str | None:
    if inline:
        parent, place = ties.get(name, (None, row.place))
    else:
        parent, place = (row.values[10] if len(row.values) > 10 else None), row.place
    if transform == "tied":
        if parent is None:
            how = f"add the line '{name} parent'" if inline else "fill its column 'partied'"
            message = f"'{name}' is tied, but nothing says to which parameter"
            problems.error(row.place, message, f"{how.capitalize()}, or change its PARTRANS.")
        return parent
    if parent is not None and inline:
        message = f"'{name}' is tied to '{parent}' here, but its PARTRANS is '{transform}'"
        problems.error(place, message, f"Write 'tied' at line {row.line}, or remove this line.")
    return None


def read_observations(rows: Rows, *, inline: bool, problems: Problems) -> list[Observation]:
    """Observations in file order."""
    observations = []
    with problems.limited("lines of '* observation data'"):
        for row in rows:
            values = row.values
            if len(values) >= 4 and values[0] and values[3]:
                value = read_number(values[1]) if values[1] else None
                weight = read_number(values[2]) if values[2] else None
                if value is not None and weight is not None:
                    observations.append(Observation(values[0], value, weight, values[3], row.place))
                    continue
            if _has_name(row, "OBSNME", problems):
                observations.append(_read_faulty_observation(row, inline, problems))
    return observations


def _read_faulty_observation(row: Row, inline: bool, problems: Problems) -> Observation:
    present = len(row.values) if inline else 4
    if inline:
        _report_short(row, OBSERVATION_COLUMNS, 4, problems)
    value = _number(row, 1, "OBSVAL", problems) if present > 1 else math.nan
    weight = _number(row, 2, "WEIGHT", problems) if present > 2 else math.nan
    group = row.values[3] if len(row.values) > 3 else None
    if group is None and not inline:
        _report_missing(row, "OBGNME", problems)
    return Observation(str(row.values[0]), value, weight, group or "", row.place)


def read_observation_groups(
    rows: Rows, problems: Problems
) -> tuple[list[tuple[str, Place]], dict[str, str]]:
    """Names of observation groups, and their covariance matrix files: OBGNME [GTARG] [COVFLE]."""
    groups: list[tuple[str, Place]] = []
    covariances: dict[str, str] = {}
    for row in rows:
        if not _has_name(row, "OBGNME", problems):
            continue
        name = str(row.values[0]).lower()
        groups.append((name, row.place))
        files = [v for v in row.values[1:] if v is not None and read_number(v) is None]
        if files:
            covariances[name] = files[0]
    return groups, covariances


def read_pairs(rows: Rows, problems: Problems) -> list[FilePair]:
    """Pairs of template and model input, or of instruction file and model output."""
    pairs = []
    for row in rows:
        values = [value.strip().strip("'\"") if value else "" for value in row.values]
        if len(values) < 2 or not values[0] or not values[1]:
            message = "the line names one file, not two"
            problems.error(row.place, message, "Name the PEST file, then the model's file.")
            continue
        if len(values) > 2:
            problems.error(
                row.place,
                f"the line names {len(values)} files, not two",
                "Name the PEST file, then the model's; put quotes around a name with blanks.",
            )
        pairs.append(FilePair(values[0], values[1], row.place))
    return pairs
