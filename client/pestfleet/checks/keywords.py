"""Checks of `++` options and keywords: names that nobody knows, values of the wrong kind."""

from __future__ import annotations

from pestfleet.checks.problem import Problems
from pestfleet.control import variables as v
from pestfleet.control.keywords import (
    control_variables,
    describe_expected,
    find_nearest,
    pestpp_options,
)
from pestfleet.control.model import ControlFile, Place


def check_keywords(control: ControlFile, problems: Problems) -> None:
    """Options of the control file are known, and have values of their kind.

    Warnings only: a newer PEST++ may know more, and no engine uses all of them.
    """
    with problems.limited("options"):
        for name, value in control.options.items():
            place = control.option_places.get(name, Place(control.path))
            if name in control_variables():
                problems.warning(
                    place,
                    f"'{name}' is a control variable, not a '++' option: pestfleet ignores it "
                    "here, PEST++ refuses it",
                    f"Write it into {_section_of(name)}.",
                )
            elif name not in pestpp_options():
                _report_unknown(name, place, control, problems)
            elif value and (expected := describe_expected(name, value)):
                problems.warning(
                    place, f"the option '{name}' is '{value}', not {expected}", "Correct the value."
                )


def _report_unknown(name: str, place: Place, control: ControlFile, problems: Problems) -> None:
    near = find_nearest(name, pestpp_options() | control_variables())
    if not near:
        remedy = "Correct the name, or remove it."
    elif near in control_variables() and control.version == 1:
        remedy = f"Did you mean {near}? It belongs into {_section_of(near)}."
    else:
        remedy = f"Did you mean {near}?"
    problems.warning(
        place, f"the option '{name}' is unknown: pestfleet ignores it, PEST++ refuses it", remedy
    )


def _section_of(variable: str) -> str:
    sections = {
        "singular value decomposition": v.SINGULAR_VALUE_DECOMPOSITION,
        "lsqr": v.LSQR,
        "sensitivity reuse": v.SENSITIVITY_REUSE,
        "automatic user intervention": v.AUTOMATIC_USER_INTERVENTION,
        "regularization": v.REGULARIZATION,
        "predictive analysis": v.PREDICTIVE_ANALYSIS,
        "pareto": v.PARETO,
    }
    for title, table in sections.items():
        if any(known.name == variable for line in table for known in v.variables_of(line)):
            return f"'* {title}'"
    return "'* control data'"
