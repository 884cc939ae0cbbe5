"""Checks of templates and instruction files against the control file."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

from pestfleet.checks.files import check_exists
from pestfleet.checks.names import Folder, is_outside, to_posix
from pestfleet.checks.problem import Problems
from pestfleet.control.model import ControlFile, FilePair, Parameter, Place
from pestfleet_worker.instruction_parser import InstructionError, Parser, read_marker
from pestfleet_worker.instructions import Instructions
from pestfleet_worker.numbers import DecimalPoint, NumberError, Precision, format_number
from pestfleet_worker.templates import Field, Template, TemplateError

# Below this a one-percent increment of a derivative is known to five digits or fewer.
ENOUGH_DIGITS = 7
_SHOWN_NAMES = 20
_PROBE = "1.2345678901234567"


def check_templates(control: ControlFile, folder: Folder, problems: Problems) -> None:
    """Templates can be read, have the control file's parameters, and spaces wide enough."""
    templates: list[Template] = []
    complete = bool(control.templates)
    with problems.limited("template files"):
        for pair in control.templates:
            if not _is_readable(pair, folder):
                complete = False
                continue
            try:
                templates.append(Template.parse(folder.root / to_posix(pair.pest)))
            except TemplateError as error:
                complete = False
                for each in (error, *error.more):
                    _report(each, pair, folder, problems)
            except ValueError as error:
                complete = False
                _report(error, pair, folder, problems)
    if not _is_counted(control, "npar", len(control.parameters)):
        return
    by_name = {parameter.name: parameter for parameter in control.parameters}
    narrowest: dict[str, tuple[int, Place]] = {}
    for template in templates:
        unknown: dict[str, Field] = {}
        for field in template.fields:
            if field.name not in by_name:
                unknown.setdefault(field.name, field)
            elif field.width < narrowest.get(field.name, (math.inf,))[0]:
                narrowest[field.name] = field.width, Place(template.file, field.line)
        with problems.limited("parameters of this template", limit=_SHOWN_NAMES):
            for name, field in unknown.items():
                problems.error(
                    Place(template.file, field.line),
                    f"the parameter '{name}' is not in the control file",
                    "Add it to '* parameter data', or correct the name.",
                )
    if complete:
        with problems.limited("parameters without a template", limit=_SHOWN_NAMES):
            for parameter in control.parameters:
                if parameter.name not in narrowest:
                    problems.error(
                        parameter.place or Place(control.path),
                        f"the parameter '{parameter.name}' is in no template file",
                        "Put it into a template, or remove it from '* parameter data'.",
                    )
    with problems.limited("parameter spaces"):
        for name, (width, place) in narrowest.items():
            _check_width(by_name[name], width, place, control, problems)


def check_instructions(control: ControlFile, folder: Folder, problems: Problems) -> None:
    """Instruction files can be read, and read the control file's observations, each once."""
    files: list[Instructions] = []
    complete = bool(control.instructions)
    with problems.limited("instruction files"):
        for pair in control.instructions:
            if not _is_readable(pair, folder):
                complete = False
                continue
            try:
                files.append(Instructions.parse(folder.root / to_posix(pair.pest)))
            except InstructionError as error:
                complete = False
                for each in (error, *_find_later_errors(error)):
                    _report(each, pair, folder, problems)
            except ValueError as error:
                complete = False
                _report(error, pair, folder, problems)
    if not _is_counted(control, "nobs", len(control.observations)):
        return
    known = frozenset(observation.name for observation in control.observations)
    owners: dict[str, Instructions] = {}
    for file in files:
        _report_names(
            file,
            (name for name in file.names if name not in known),
            "the observation '{}' is not in the control file",
            "Add it to '* observation data', or read over the number with !dum!.",
            problems,
        )
        _report_names(
            file,
            (name for name in file.names if name in owners),
            "the observation '{}' is read by another instruction file too",
            "Give each observation a name of its own, or remove one of the two instructions.",
            problems,
        )
        owners |= dict.fromkeys(file.names, file)
    if complete:
        with problems.limited("observations that are not read", limit=_SHOWN_NAMES):
            for observation in control.observations:
                if observation.name not in owners:
                    problems.error(
                        observation.place or Place(control.path),
                        f"the observation '{observation.name}' is in no instruction file",
                        "Read it in an instruction file, or remove it from '* observation data'.",
                    )


def _find_later_errors(first: InstructionError) -> list[InstructionError]:
    """Errors of an instruction file in the lines after its first one."""
    if first.line < 2:
        return []  # without its marker no line can be read
    lines = first.file.read_bytes().decode("latin-1").replace("\r\n", "\n").split("\n")
    parser = Parser(first.file, read_marker(lines[0], first.file))
    errors: list[InstructionError] = []
    spoilt = False
    for number, line in enumerate(lines[1:], start=1):
        if spoilt and line.split()[:1] == ["&"]:
            continue  # it goes on with a line that is wrong
        try:
            parser.add(line, number)
            spoilt = False
        except InstructionError as error:
            errors.append(error)
            spoilt = True
    return errors[1:]


def _is_readable(pair: FilePair, folder: Folder) -> bool:
    """Whether there is a file to parse; `files.check_pairs` tells of those that are not there."""
    inside = not is_outside(pair.pest)
    place = pair.place or Place(folder.root)
    return inside and check_exists(pair.pest, "file", place, folder, Problems())


def _report(
    error: TemplateError | InstructionError | ValueError,
    pair: FilePair,
    folder: Folder,
    problems: Problems,
) -> None:
    path = folder.root / to_posix(pair.pest)
    if isinstance(error, TemplateError | InstructionError):
        text = error.problem if len(error.problem) <= 200 else f"{error.problem[:197]}..."
        problems.error(Place(path, error.line), text, error.remedy)
    else:
        problems.error(Place(path), f"cannot be read: {error}", "Correct the file.")


def _report_names(
    file: Instructions, names: Iterable[str], message: str, remedy: str, problems: Problems
) -> None:
    # The line of a name takes a pass over the file, so only names that are shown are looked up.
    found = list(names)
    for name in found[:_SHOWN_NAMES]:
        problems.error(Place(file.file, file.line_of(name)), message.format(name), remedy)
    if len(found) > _SHOWN_NAMES:
        more = f"{len(found) - _SHOWN_NAMES:,} more problems like these: observations of this file"
        problems.error(Place(file.file), more)


def _is_counted(control: ControlFile, variable: str, count: int) -> bool:
    """Whether the section is whole: of one that is cut off, every second name would be missing."""
    return count > 0 and control.control_data.get(variable, count) == count


def _check_width(
    parameter: Parameter, width: int, place: Place, control: ControlFile, problems: Problems
) -> None:
    """A space must hold every value between the bounds, and should hold it well."""
    worst = 17
    for what, value in (
        ("initial value", parameter.initial),
        ("lower bound", parameter.lower),
        ("upper bound", parameter.upper),
    ):
        model_value = value * parameter.scale + parameter.offset
        if not math.isfinite(model_value) or model_value == 0:
            continue
        exponent = int(f"{model_value:.16e}".partition("e")[2])
        digits = count_digits(
            exponent, model_value < 0, width, control.precision, control.decimal_point
        )
        if digits == 0:
            problems.error(
                place,
                f"the space of parameter '{parameter.name}' has {width} characters: its {what} "
                f"{model_value:g} does not fit",
                "Widen the space, or change the parameter's bounds.",
            )
            return
        worst = min(worst, digits)
    if worst < ENOUGH_DIGITS:
        wanted = 13 if control.precision == "single" else 23
        problems.warning(
            place,
            f"the space of parameter '{parameter.name}' has {width} characters: only {worst} "
            f"digits of its value fit",
            f"Widen the space; {wanted} characters hold all digits.",
        )


@functools.lru_cache(maxsize=4096)
def count_digits(
    exponent: int,
    negative: bool,
    width: int,
    precision: Precision = "double",
    decimal_point: DecimalPoint = "point",
) -> int:
    """Significant digits of a number of this decimal exponent that fit; 0: it does not fit."""
    try:
        value = float(f"{'-' if negative else ''}{_PROBE}e{exponent}")
        text = format_number(value, width, precision=precision, decimal_point=decimal_point)
    except NumberError:
        return 0
    mantissa = text.lower().partition("e")[0].lstrip("-+")
    return len(mantissa.replace(".", "").lstrip("0"))
