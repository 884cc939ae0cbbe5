"""Reads a PEST control file, version 1 or 2, and tells every problem of it at once.

The forms: PEST manual part I, chapter 4 (version 1); PEST++ users' manual, sections "Keyword and
External File Control File Format" (version 2) and "PEST++ control variables" (`++` lines). Both
forms may be mixed section by section, as PEST++ and pyEMU allow.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

from pestfleet.checks.problem import Problems
from pestfleet.control import variables as v
from pestfleet.control.model import (
    Command,
    ControlFile,
    FilePair,
    Mode,
    ParameterGroup,
    Place,
    PriorInformation,
)
from pestfleet.control.prior import PRIOR_COLUMNS, read_priors
from pestfleet.control.records import (
    GROUP_COLUMNS,
    OBSERVATION_COLUMNS,
    OBSERVATION_GROUP_COLUMNS,
    PAIR_COLUMNS,
    PARAMETER_COLUMNS,
    read_groups,
    read_observation_groups,
    read_observations,
    read_pairs,
    read_parameters,
)
from pestfleet.control.sections import Section, Sections, add_option, split_sections
from pestfleet.control.tables import Columns, Rows, read_rows
from pestfleet.control.tokens import read_text, strip_comment
from pestfleet_worker.errors import CaseError

_VARIABLE_SECTIONS = {
    "control data": v.CONTROL_DATA,
    "automatic user intervention": v.AUTOMATIC_USER_INTERVENTION,
    "singular value decomposition": v.SINGULAR_VALUE_DECOMPOSITION,
    "lsqr": v.LSQR,
    "sensitivity reuse": v.SENSITIVITY_REUSE,
    "predictive analysis": v.PREDICTIVE_ANALYSIS,
    "regularization": v.REGULARIZATION,
    "pareto": v.PARETO,
}
_MODES: dict[str, Mode] = {
    "est": "estimation", "pre": "prediction", "reg": "regularization", "par": "pareto",
}  # fmt: skip
_IGNORED_SECTIONS = {
    "svd assist": "pestfleet estimates the parameters themselves, not super parameters.",
    "derivatives command line": "pestfleet gets derivatives by finite differences.",
}


def read_control(path: Path) -> ControlFile:
    """Read a control file.

    Raises `CaseError` for the first error in it; `read_control_with_problems` tells all.
    """
    control, problems = read_control_with_problems(path)
    errors = problems.errors
    if control is None or errors:
        first = errors[0]
        more = f" (errors in all: {len(errors)})" if len(errors) > 1 else ""
        raise CaseError(f"{first.place}: {first.message}{more}", remedy=first.remedy)
    return control


def read_control_with_problems(path: Path) -> tuple[ControlFile | None, Problems]:
    """Read a control file with all its problems; None if it is not a control file at all.

    A control file that comes with errors is what could be read of it: fit for further checks,
    not for a run.
    """
    problems = Problems()
    text = read_text(path, problems)
    if text is None:
        return None, problems
    with _without_collector():
        sections = split_sections(text, path, problems)
        control = _Reader(path, sections, problems).read() if sections else None
    return control, problems


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause the garbage collector, which would walk 500,000 new records again and again."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


class _Reader:
    """One reading of a control file."""

    def __init__(self, path: Path, sections: Sections, problems: Problems) -> None:
        self.path = path
        self.sections = sections
        self.problems = problems
        self.control_data: dict[str, float | str] = {}
        self.tables: list[FilePair] = []

    def read(self) -> ControlFile:
        keyword = self._read_variables()
        listed = any(section.external for section in self.sections.by_title.values())
        is_version2 = keyword or listed or "version=2" in self.sections.header.replace(" ", "")
        parameters = read_parameters(
            rows := self._rows("parameter data", PARAMETER_COLUMNS, required=True),
            inline=self._is_inline("parameter data"),
            problems=self.problems,
        )
        observations = read_observations(
            observation_rows := self._rows("observation data", OBSERVATION_COLUMNS, required=True),
            inline=self._is_inline("observation data"),
            problems=self.problems,
        )
        groups = read_groups(
            self._rows("parameter groups", GROUP_COLUMNS, required=not is_version2),
            inline=self._is_inline("parameter groups"),
            problems=self.problems,
        )
        priors = self._read_priors()
        group_names, covariances = self._read_observation_groups(not is_version2)
        templates, instructions = self._read_pairs(is_version2)
        if not keyword:
            self._check_counts(
                npar=len(parameters) if rows.complete else None,
                nobs=len(observations) if observation_rows.complete else None,
                npargp=len(groups),
                nprior=len(priors),
                nobsgp=len(group_names),
            )
        if is_version2:
            # Groups that are nowhere defined have default settings in version 2.
            known = {group.name for group in groups}
            used = dict.fromkeys(p.group for p in parameters if p.group not in known)
            groups += [ParameterGroup(name) for name in used]
            used = dict.fromkeys(o.group for o in observations) | dict.fromkeys(
                prior.group for prior in priors
            )
            group_names += [name for name in used if name not in group_names]
        self._note_ignored()
        return ControlFile(
            path=self.path,
            version=2 if is_version2 else 1,
            mode=self._read_mode(),
            parameters=tuple(parameters),
            groups=tuple(groups),
            observations=tuple(observations),
            observation_groups=tuple(group_names),
            priors=tuple(priors),
            commands=tuple(self._read_commands()),
            templates=tuple(templates),
            instructions=tuple(instructions),
            precision=cast(Literal["single", "double"], self.control_data.get("precis", "double")),
            decimal_point=cast(
                Literal["point", "nopoint"], self.control_data.get("dpoint", "point")
            ),
            control_data=self.control_data,
            options=self.sections.options,
            option_places=self.sections.option_places,
            external_files=tuple(self.tables),
            observation_covariances=covariances,
            parameter_data=rows.extra,
            observation_data=observation_rows.extra,
        )

    def _is_inline(self, title: str) -> bool:
        section = self.sections.get(title)
        return section is None or not section.external

    def _rows(self, title: str, columns: Columns, *, required: bool = False) -> Rows:
        section = self.sections.get(title)
        if section is None:
            if required:
                self._report_missing_section(title)
            return Rows(complete=False)
        rows = read_rows(section, columns, self.path, self.problems)
        self.tables += rows.files
        return rows

    def _report_missing_section(self, title: str) -> None:
        self.problems.error(
            Place(self.path, self.sections.last_line),
            f"the section '* {title}' is missing",
            "Add the section; if the file ends too early, restore it.",
        )

    def _read_variables(self) -> bool:
        """Fill `control_data`; True if it is given by keywords."""
        keyword = False
        if self.sections.get("control data") is None:
            self._report_missing_section("control data")
        for title, table in _VARIABLE_SECTIONS.items():
            section = self.sections.get(title)
            if section is None:
                continue
            if section.keyword:
                keyword = True
                with self.problems.limited("lines of '* control data keyword'"):
                    self._read_keywords(section)
                continue
            self.control_data |= v.read_variables(
                title,
                table,
                section.lines,
                path=self.path,
                start=section.line,
                problems=self.problems,
            )
        return keyword

    def _read_keywords(self, section: Section) -> None:
        known = v.variables_by_name()
        plus = next(iter(self.sections.option_places.values()), None)
        if plus is not None:
            message = "'++' options stand beside '* control data keyword': PEST++ refuses that"
            self.problems.warning(plus, message, "Write 'key value' in that section instead.")
        seen: dict[str, int] = {}
        for number, text in section.lines:
            place = Place(self.path, number)
            key, _, rest = strip_comment(text).replace("\t", " ").partition(" ")
            key, value = key.lower(), rest.strip().strip("'\"")
            variable = known.get(key)
            if not value:
                self.problems.error(place, f"'{key}' has no value", "Write 'key value'.")
                continue
            if variable is None:
                add_option(key, value, place, self.sections, self.problems)
                continue
            if key in seen:
                message = f"'{key}' is given twice, first at line {seen[key]}: the last one counts"
                self.problems.warning(place, message, "Remove one of them.")
            seen[key] = number
            converted = v.convert(variable, value)
            if converted is None:
                message = f"{key.upper()} is '{value}', not {v.describe_kind(variable)}"
                self.problems.error(place, message, "Correct the value.")
            else:
                self.control_data[key] = converted

    def _read_mode(self) -> Mode:
        word = str(self.control_data.get("pestmode", "estimation"))
        mode = _MODES.get(word[:3])
        section = self.sections.get("control data")
        line = section.line if section else 0
        if mode is None:
            if section and not section.keyword and section.lines:
                line = section.lines[0][0]
            message = f"PESTMODE is '{word}'"
            remedy = "It must be estimation, prediction, regularization or pareto."
            self.problems.error(Place(self.path, line), message, remedy)
            return "estimation"
        if mode in ("regularization", "pareto") and not (section and section.keyword):
            needed = self.sections.get(mode)
            if needed is None:
                message = f"PESTMODE is {mode}, but there is no section '* {mode}'"
                remedy = "Add the section, or set PESTMODE to estimation."
                self.problems.error(Place(self.path, line), message, remedy)
        return mode

    def _read_priors(self) -> list[PriorInformation]:
        if float(self.control_data.get("nprior", 0)) < 0:
            section = self.sections.get("prior information") or self.sections.get("control data")
            message = "NPRIOR is negative: prior information in indexed form is not supported"
            remedy = "Write each equation with parameter names, and NPRIOR positive."
            self.problems.error(Place(self.path, section.line if section else 0), message, remedy)
            return []
        rows = self._rows("prior information", PRIOR_COLUMNS)
        return read_priors(
            rows, inline=self._is_inline("prior information"), problems=self.problems
        )

    def _read_observation_groups(self, required: bool) -> tuple[list[str], dict[str, str]]:
        rows = self._rows("observation groups", OBSERVATION_GROUP_COLUMNS, required=required)
        places, covariances = read_observation_groups(rows, self.problems)
        seen: dict[str, Place] = {}
        for name, place in places:
            if name in seen:
                message = f"the observation group '{name}' is there twice, first at line "
                message += str(seen[name].line)
                self.problems.error(place, message, "Remove one of them.")
            seen.setdefault(name, place)
            if name in covariances:
                self.tables.append(FilePair(covariances[name].replace("\\", "/"), "", place))
        return list(seen), covariances

    def _read_commands(self) -> list[Command]:
        section = self.sections.get("model command line")
        if section is None:
            self._report_missing_section("model command line")
            return []
        commands = [Command(text, Place(self.path, number)) for number, text in section.lines]
        if not commands:
            message = "the section '* model command line' is empty"
            remedy = "Write the command that runs the model, for example: python3 model.py"
            self.problems.error(Place(self.path, section.line), message, remedy)
        count = self.control_data.get("numcom")
        if isinstance(count, int) and count > len(commands) and commands:
            message = f"NUMCOM is {count}, but the model commands are {len(commands)}"
            self.problems.error(Place(self.path, section.line), message, "Make them agree.")
        return commands

    def _read_pairs(self, is_version2: bool) -> tuple[list[FilePair], list[FilePair]]:
        both = self.sections.get("model input/output")
        apart = any(self.sections.get(title) for title in ("model input", "model output"))
        if not (is_version2 or both or apart):
            self._report_missing_section("model input/output")
            return [], []
        pairs: dict[str, list[FilePair]] = {}
        for title, variable in (("model input", "ntplfle"), ("model output", "ninsfle")):
            section = self.sections.get(title)
            if section is None:
                if both is None:
                    self._report_missing_section(title)
                pairs[title] = []
                continue
            if both is not None:
                message = f"'* {title}' stands beside '* model input/output'"
                self.problems.error(Place(self.path, section.line), message, "Keep one form only.")
            rows = read_rows(section, PAIR_COLUMNS, self.path, self.problems)
            self.tables += rows.files
            pairs[title] = read_pairs(rows, self.problems)
            if rows.complete:
                self._check_count(variable, len(pairs[title]), section.line, title)
        if both is not None:
            inputs, outputs = self._split_pairs(both)
            return inputs + pairs["model input"], outputs + pairs["model output"]
        return pairs["model input"], pairs["model output"]

    def _split_pairs(self, section: Section) -> tuple[list[FilePair], list[FilePair]]:
        """Of `* model input/output` the first NTPLFLE lines are templates."""
        rows = read_rows(section, PAIR_COLUMNS, self.path, self.problems)
        pairs = read_pairs(rows, self.problems)
        templates = self.control_data.get("ntplfle")
        instructions = self.control_data.get("ninsfle")
        if isinstance(templates, int) and isinstance(instructions, int):
            if templates + instructions == len(pairs) and templates >= 0:
                return pairs[:templates], pairs[templates:]
            self.problems.error(
                Place(self.path, section.line),
                f"NTPLFLE is {templates} and NINSFLE is {instructions}, but '* model "
                f"input/output' has {len(pairs)} lines",
                "Make them agree.",
            )
        elif self.sections.get("control data") is not None:
            message = "NTPLFLE and NINSFLE are not known, so templates and instruction files "
            message += "are told apart by '.ins'"
            self.problems.warning(
                Place(self.path, section.line), message, "Use '* model input' and '* model output'."
            )
        is_instruction = [pair.pest.lower().endswith(".ins") for pair in pairs]
        return (
            [pair for pair, ins in zip(pairs, is_instruction, strict=True) if not ins],
            [pair for pair, ins in zip(pairs, is_instruction, strict=True) if ins],
        )

    def _check_counts(self, **counts: int | None) -> None:
        titles = {
            "npar": "parameter data",
            "nobs": "observation data",
            "npargp": "parameter groups",
            "nprior": "prior information",
            "nobsgp": "observation groups",
        }
        for name, count in counts.items():
            section = self.sections.get(titles[name])
            if count is not None and (section is not None or name == "nprior"):
                self._check_count(name, count, section.line if section else 0, titles[name])

    def _check_count(self, variable: str, count: int, line: int, title: str) -> None:
        said = self.control_data.get(variable)
        if isinstance(said, int) and said != count and not (variable == "nprior" and said < 0):
            message = f"{variable.upper()} is {said:,}, but '* {title}' has "
            message += "1 entry" if count == 1 else f"{count:,} entries"
            self.problems.error(
                Place(self.path, line), message, f"Correct {variable.upper()}, or the section."
            )

    def _note_ignored(self) -> None:
        for title, why in _IGNORED_SECTIONS.items():
            section = self.sections.get(title)
            if section is not None:
                message = f"the section '* {title}' is ignored"
                self.problems.warning(Place(self.path, section.line), message, why)
