"""What an engine needs of a case and of the user's options, told before a session is made.

The embedded engines are asked by their own readers of options and of the case, so that what
they would refuse in a session is refused here, with the same words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pestfleet import engines
from pestfleet.checks.observations import report_no_weight
from pestfleet.checks.parameters import report_not_adjustable
from pestfleet.checks.problem import Problem, Problems
from pestfleet.control.keywords import (
    control_variables,
    describe_expected,
    find_nearest,
    pestpp_options,
)
from pestfleet.control.model import ControlFile, Place
from pestfleet.engines.programs import OPEN_OPTIONS
from pestfleet_worker.errors import CaseError, ConfigurationError

if TYPE_CHECKING:
    from pestfleet.engines.base import Job, RunSet

T = TypeVar("T")
_PLACE = re.compile(r"(?P<file>(?:[A-Za-z]:)?[^:]+?)(?::(?P<line>\d+))?: (?P<rest>.+)", re.DOTALL)


def check_options(engine: str, options: Mapping[str, str], control: ControlFile) -> list[Problem]:
    """What keeps `engine` from working with this case (errors), or what it ignores (warnings).

    Raises `ConfigurationError` for an engine that does not exist, and for one of the user's
    `options` that it does not have or whose value is wrong. Nothing is written or started.
    """
    engines.check_name(engine)
    given = {key.strip().lstrip("+").strip().lower(): value for key, value in options.items()}
    if engine == "glm":
        return _check_glm(control, given)
    if engine in ("ies", "sweep"):
        _refuse_unknown(engine, given)
        return (_check_ies if engine == "ies" else _check_sweep)(control, given)
    if engine in ("beopest", "pest_hp"):
        from pestfleet.engines.classic import refuse_options

        refuse_options(engine, given)
    if engine.startswith("pestpp-"):
        _check_program(engine, given)
    return []


def add_problems(problems: Sequence[Problem], found: Sequence[Problem]) -> list[Problem]:
    """`problems` with those of an engine, and nothing told twice: see the comments."""
    said = {(problem.place, problem.message) for problem in found}
    wrong = {p.place for p in problems if p.severity == "error" and p.place.line}
    kept = [problem for problem in problems if (problem.place, problem.message) not in said]
    # One mistake in a line is enough to tell, in the words of the general checks.
    return kept + [problem for problem in found if problem.place not in wrong]


def _check_glm(control: ControlFile, options: Mapping[str, str]) -> list[Problem]:
    from pestfleet.engines.glm.objective import build_objective
    from pestfleet.engines.glm.settings import read_settings
    from pestfleet.engines.glm.space import build_space

    problems = Problems()
    settings = _attempt(lambda: read_settings(control, options), control, problems)
    report_no_weight(control, problems.error)
    if settings is not None:
        if settings.noptmax != 0:
            report_not_adjustable(control, problems.error)
        if settings.unused:
            message = f"the engine glm does not use: {', '.join(settings.unused)}"
            problems.warning(Place(control.path), message, "The other settings count.")
    tied_bounds = settings is not None and settings.enforce_tied_bounds
    space = _attempt(
        lambda: build_space(control, enforce_tied_bounds=tied_bounds), control, problems
    )
    if space is not None and not problems.errors:
        _attempt(lambda: build_objective(control, space), control, problems)
    return problems


def _check_ies(control: ControlFile, options: Mapping[str, str]) -> list[Problem]:
    from pestfleet.engines.ies.measurements import make_measurements
    from pestfleet.engines.ies.parameters import make_parameter_space
    from pestfleet.engines.ies.settings import read_settings

    problems = Problems()
    if control.mode in ("prediction", "pareto"):
        problems.error(
            Place(control.path),
            f"PESTMODE is {control.mode}, which the embedded engine ies does not have",
            "Set PESTMODE to estimation.",
        )
    job = _make_job(control, options, problems)
    settings = _attempt(lambda: read_settings(job), control, problems)
    if settings is None:
        return problems
    if settings.iterations != 0:
        report_not_adjustable(control, problems.error)
    if (
        settings.iterations > 0
        and not report_no_weight(control, problems.error)
        and not any(observation.weight > 0 for observation in control.observations)
    ):
        message = "no observation has a weight above 0, and ies does not use prior information"
        problems.error(Place(control.path), message, "Give the measured values a weight.")
    for what, path in (
        ("covariance matrix of the parameters", settings.prior_covariance),
        ("parameter ensemble", settings.parameter_ensemble),
        ("observation ensemble", settings.observation_ensemble),
    ):
        if path is not None and not path.is_file():
            message = f"the {what}, '{path.name}', does not exist"
            problems.error(Place(path), message, "Correct the name, or add the file to the case.")
    _attempt(
        lambda: make_parameter_space(control, enforce_bounds=settings.enforce_bounds),
        control,
        problems,
    )
    _attempt(lambda: make_measurements(control, no_noise=settings.no_noise), control, problems)
    return problems


def _check_sweep(control: ControlFile, options: Mapping[str, str]) -> list[Problem]:
    from pestfleet.engines.sweep import check_input

    problems = Problems()
    job = _make_job(control, options, problems)
    _attempt(lambda: check_input(job), control, problems)
    return problems


def _check_program(engine: str, options: Mapping[str, str]) -> None:
    """PEST++ itself tells of names that are new to us; those that look like a slip are refused."""
    known = pestpp_options() | control_variables() | OPEN_OPTIONS
    for written, value in options.items():
        name = written.replace("-", "_")
        if name in known:
            _refuse_value(name, value)
        elif near := find_nearest(name, known, likeness=0.9):
            raise ConfigurationError(
                f"the engine {engine} has no option {written!r}", remedy=f"Did you mean {near}?"
            )


def _refuse_unknown(engine: str, options: Mapping[str, str]) -> None:
    known = pestpp_options() | control_variables()
    for name, value in options.items():
        if name not in known:
            near = find_nearest(name, known, likeness=0.7)
            remedy = "Its options have the names that they have in PEST++."
            raise ConfigurationError(
                f"the engine {engine} has no option {name!r}",
                remedy=f"Did you mean {near}?" if near else remedy,
            )
        _refuse_value(name, value)


def _refuse_value(name: str, value: str) -> None:
    if expected := describe_expected(name, value):
        raise ConfigurationError(
            f"engine option {name}={value}: it must be {expected}", remedy="Correct the option."
        )


class _NoRuns:
    """In place of a runner, where no run is made."""

    slots = 1

    def run(self, parameters: Any, *, purpose: str, names: Sequence[str] = ()) -> RunSet:
        raise NotImplementedError(purpose)


class _Notes:
    """In place of a report: warnings become problems."""

    def __init__(self, place: Place, problems: Problems) -> None:
        self._place = place
        self._problems = problems

    def iteration(self, number: int, *, phi: float, **detail: float | int | str) -> None:
        raise NotImplementedError(number)

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self._problems.warning(self._place, text, "The other settings count.")


def _make_job(control: ControlFile, options: Mapping[str, str], problems: Problems) -> Job:
    from pestfleet.engines.base import Job

    notes = _Notes(Place(control.path), problems)
    return Job(control, _NoRuns(), notes, output=control.path.parent, options=options)


def _attempt(make: Callable[[], T], control: ControlFile, problems: Problems) -> T | None:
    """What `make` gives; None, with a problem added, where the case does not allow it."""
    try:
        return make()
    except CaseError as error:
        problems.append(_to_problem(error, control))
        return None


def _to_problem(error: CaseError, control: ControlFile) -> Problem:
    match = _PLACE.fullmatch(error.message)
    if match is None or not Path(match["file"]).suffix:
        return Problem("error", Place(control.path), error.message, error.remedy)
    file = Path(match["file"])
    if file.parent == Path() and (control.path.parent / file).exists():
        file = control.path.parent / file
    place = Place(file, int(match["line"] or 0))
    return Problem("error", place, match["rest"], error.remedy)
