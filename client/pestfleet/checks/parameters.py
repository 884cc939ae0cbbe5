"""Checks of parameters, their groups and ties, and of prior information.

The rules are those of the PEST manual, part I, chapter 4 (sections on parameter groups, parameter
data and prior information), as PESTCHEK applies them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pestfleet.checks.problem import Problems
from pestfleet.control.model import ControlFile, Parameter, ParameterGroup, Place


def check_parameters(control: ControlFile, problems: Problems) -> None:
    """Names, bounds, transformations and change limits."""
    first: dict[str, Parameter] = {}
    with problems.limited("parameters"):
        for parameter in control.parameters:
            place = _place(parameter.place, control)
            earlier = first.setdefault(parameter.name, parameter)
            if earlier is not parameter:
                message = f"the parameter '{parameter.name}' is there twice, first at "
                message += _refer(_place(earlier.place, control), place)
                problems.error(place, message, "Give each parameter a name of its own.")
                continue
            _check_bounds(parameter, place, problems)
            _check_limit(parameter, place, control, problems)
            if parameter.scale == 0:
                message = f"the parameter '{parameter.name}' has SCALE 0: the model never sees it"
                problems.error(place, message, "Set SCALE to 1.0.")
    report_not_adjustable(control, problems.warning)


def report_not_adjustable(control: ControlFile, add: Callable[[Place, str, str], None]) -> None:
    """Add a problem if no parameter is adjustable: an error for some engines only."""
    if control.parameters and not any(p.transform in ("none", "log") for p in control.parameters):
        add(
            _place(control.parameters[0].place, control),
            "no parameter is adjustable: all are fixed or tied",
            "Set PARTRANS of those to be estimated to 'none' or 'log'.",
        )


def _check_bounds(parameter: Parameter, place: Place, problems: Problems) -> None:
    name, low, high = parameter.name, parameter.lower, parameter.upper
    if any(math.isnan(value) for value in (parameter.initial, low, high)):
        return
    adjustable = parameter.transform in ("none", "log")
    if low > high:
        problems.error(
            place,
            f"the lower bound {low:g} of parameter '{name}' is above its upper bound {high:g}",
            "Exchange them.",
        )
    elif adjustable and low == high:
        problems.error(
            place,
            f"both bounds of parameter '{name}' are {low:g}, so that it cannot change",
            "Widen the bounds, or set PARTRANS to 'fixed'.",
        )
    elif not low <= parameter.initial <= high:
        bound, side = (low, "below its lower") if parameter.initial < low else (
            high, "above its upper")  # fmt: skip
        add = problems.error if adjustable else problems.warning
        add(
            place,
            f"the initial value {parameter.initial:g} of parameter '{name}' is {side} bound "
            f"{bound:g}",
            "Change the value or the bound.",
        )
    if parameter.transform == "log" and min(low, parameter.initial) <= 0:
        what, value = ("initial value", parameter.initial)
        if parameter.initial > 0:
            what, value = "lower bound", low
        problems.error(
            place,
            f"the parameter '{name}' is log-transformed, but its {what} is {value:g}",
            "It must be above 0: change it, or set PARTRANS to 'none'.",
        )


def _check_limit(
    parameter: Parameter, place: Place, control: ControlFile, problems: Problems
) -> None:
    if parameter.transform in ("fixed", "tied"):
        return
    limit = parameter.change_limit
    if limit.startswith("absolute") and f"absparmax{limit[8:]}" not in control.control_data:
        problems.error(
            place,
            f"the change of parameter '{parameter.name}' is limited by {limit}, but there is no "
            f"ABSPARMAX{limit[8:]}",
            "Add absparmax(n)=value to the line of RELPARMAX and FACPARMAX.",
        )
    if limit == "factor" and parameter.lower <= 0 <= parameter.upper:
        problems.warning(
            place,
            f"the parameter '{parameter.name}' is factor-limited, but its bounds include 0",
            "Set PARCHGLIM to 'relative', or keep 0 out of the bounds.",
        )


def check_ties(control: ControlFile, problems: Problems) -> None:
    """A tied parameter needs an adjustable parent."""
    by_name = _first_by_name(control)
    with problems.limited("tied parameters"):
        for parameter in control.parameters:
            if parameter.transform != "tied" or parameter.tied_to is None:
                continue
            name, parent = parameter.name, by_name.get(parameter.tied_to)
            place = _place(parameter.place, control)
            remedy = "Tie it to a parameter whose PARTRANS is 'none' or 'log'."
            if parameter.tied_to == name:
                problems.error(place, f"the parameter '{name}' is tied to itself", remedy)
            elif parent is None:
                message = f"the parameter '{name}' is tied to '{parameter.tied_to}', "
                problems.error(place, message + "which is no parameter", remedy)
            elif parent.transform in ("tied", "fixed"):
                message = f"the parameter '{name}' is tied to '{parent.name}', "
                problems.error(place, f"{message}which is {parent.transform} itself", remedy)
            elif parent.initial == 0:
                problems.error(
                    place,
                    f"the parameter '{name}' is tied to '{parent.name}', whose initial value is "
                    "0: their ratio is not defined",
                    "Give the parent another initial value (and use OFFSET if it must be 0).",
                )


def check_groups(control: ControlFile, problems: Problems) -> None:
    """Parameter groups: known, named once, with increments that move a parameter."""
    groups: dict[str, ParameterGroup] = {}
    with problems.limited("parameter groups"):
        for group in control.groups:
            place = _place(group.place, control)
            if group.name in groups:
                message = f"the parameter group '{group.name}' is there twice, first at "
                message += _refer(_place(groups[group.name].place, control), place)
                problems.error(place, message, "Remove one of them.")
            groups.setdefault(group.name, group)
            for variable, value in (
                ("DERINC", group.increment), ("DERINCMUL", group.increment_multiplier),
            ):  # fmt: skip
                if value <= 0:
                    message = f"{variable} of parameter group '{group.name}' is {value:g}"
                    problems.error(place, message, "It must be above 0.")
    with problems.limited("groups of parameters"):
        for parameter in control.parameters:
            place = _place(parameter.place, control)
            adjustable = parameter.transform in ("none", "log")
            own = groups.get(parameter.group)
            if own is None:
                if adjustable or parameter.group != "none":
                    add = problems.error if adjustable else problems.warning
                    add(
                        place,
                        f"the group '{parameter.group}' of parameter '{parameter.name}' is not "
                        "in '* parameter groups'",
                        "Add the group there, or correct the name.",
                    )
            elif (
                adjustable
                and own.increment_type == "relative"
                and parameter.initial == 0
                and own.increment_floor == 0
            ):
                problems.warning(
                    place,
                    f"the increment of parameter '{parameter.name}' is 0: it is relative to an "
                    "initial value of 0",
                    f"Set DERINCLB of group '{own.name}', or its INCTYP to 'absolute'.",
                )


def check_priors(control: ControlFile, problems: Problems) -> None:
    """Prior information: parameters that can be estimated, in the form they are estimated in."""
    by_name = _first_by_name(control)
    seen: dict[str, Place] = {}
    with problems.limited("prior information"):
        for prior in control.priors:
            place = _place(prior.place, control)
            label = f"the prior information '{prior.name}'"
            if prior.name in seen:
                message = f"{label} is there twice, first at {_refer(seen[prior.name], place)}"
                problems.error(place, message, "Give each equation a label of its own.")
            seen.setdefault(prior.name, place)
            if prior.weight < 0:
                message = f"{label} has a negative weight, {prior.weight:g}"
                problems.error(place, message, "Weights are 0 or above.")
            if control.version == 1 and prior.group not in control.observation_groups:
                message = f"the group '{prior.group}' of {label[4:]} is not in "
                message += "'* observation groups'"
                problems.error(place, message, "Add the group there, or correct the name.")
            for _, name, logged in prior.terms:
                parameter = by_name.get(name)
                if parameter is None:
                    message = f"{label} has '{name}', which is no parameter"
                    problems.error(place, message, "Correct the name.")
                elif parameter.transform in ("fixed", "tied"):
                    message = f"{label} has '{name}', which is {parameter.transform}"
                    problems.error(place, message, "Use adjustable parameters only.")
                elif logged != (parameter.transform == "log"):
                    how = "is" if parameter.transform == "log" else "is not"
                    wanted = f"log({name})" if parameter.transform == "log" else name
                    message = f"{label} must have {wanted}: '{name}' {how} log-transformed"
                    problems.error(place, message, f"Write {wanted}.")


def _first_by_name(control: ControlFile) -> dict[str, Parameter]:
    return {parameter.name: parameter for parameter in reversed(control.parameters)}


def _place(place: Place | None, control: ControlFile) -> Place:
    return place or Place(control.path)


def _refer(earlier: Place, now: Place) -> str:
    """`line 12`, with the file where it is another one."""
    return f"line {earlier.line}" if earlier.file == now.file else str(earlier)
