"""A Runner that evaluates a Python function in this process, and friends, for engine tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pestfleet.control.model import (
    ControlFile,
    Mode,
    Observation,
    Parameter,
    ParameterGroup,
    PriorInformation,
)
from pestfleet.engines.base import Job, Matrix, RunSet, Vector

Function = Callable[[Vector], Sequence[float] | Vector]
Fail = Callable[[int, Vector], bool]


class FunctionRunner:
    """Evaluates `function(model_values) -> observations`, both vectors in the control file's order.

    `function` gets what a model would get: `value * scale + offset`. `fail(number, parameters)`
    says which runs fail; `number` counts runs from 0 over the life of the runner, `parameters`
    are as the engine gave them. `asked` keeps every batch as (purpose, matrix), a copy.
    """

    def __init__(
        self,
        control: ControlFile,
        function: Function,
        *,
        fail: Fail | None = None,
        slots: int = 4,
    ) -> None:
        self._control = control
        self._function = function
        self._fail = fail
        self._slots = slots
        self._scale = np.array([p.scale for p in control.parameters])
        self._offset = np.array([p.offset for p in control.parameters])
        self.asked: list[tuple[str, Matrix]] = []
        self.runs = 0
        self.failed = 0

    @property
    def slots(self) -> int:
        return self._slots

    def run(self, parameters: Matrix, *, purpose: str, names: Sequence[str] = ()) -> RunSet:
        assert len(names) in (0, len(parameters))
        assert parameters.ndim == 2
        assert parameters.shape[1] == len(self._control.parameters)
        assert np.isfinite(parameters).all()
        assert purpose
        self.asked.append((purpose, parameters.copy()))
        observations = np.full((len(parameters), len(self._control.observations)), np.nan)
        failures: dict[int, str] = {}
        for row, values in enumerate(parameters):
            number = self.runs
            self.runs += 1
            if self._fail is not None and self._fail(number, values):
                self.failed += 1
                failures[row] = f"run {number} was told to fail"
                continue
            observations[row] = self._function(values * self._scale + self._offset)
        return RunSet(observations=observations, failures=failures)


@dataclass
class ListReport:
    """A Report that keeps what it was told."""

    iterations: list[tuple[int, float, dict[str, float | int | str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def iteration(self, number: int, *, phi: float, **detail: float | int | str) -> None:
        self.iterations.append((number, phi, detail))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def make_parameter(name: str, initial: float, **changes: object) -> Parameter:
    """A parameter with wide bounds, a relative change limit and group `pargp`."""
    values: dict[str, object] = {
        "transform": "none",
        "change_limit": "relative",
        "lower": -1e10,
        "upper": 1e10,
        "group": "pargp",
    } | changes
    if values["transform"] == "log" and values["lower"] == -1e10:
        values["lower"] = 1e-10
    return Parameter(name=name, initial=initial, **values)  # type: ignore[arg-type]


def make_control(
    parameters: Mapping[str, float] | Iterable[Parameter],
    observations: Mapping[str, float] | Iterable[float | Observation],
    *,
    groups: Iterable[ParameterGroup] = (),
    priors: Iterable[PriorInformation] = (),
    control_data: Mapping[str, float | str] | None = None,
    options: Mapping[str, str] | None = None,
    mode: Mode = "estimation",
    name: str = "case",
    **changes: object,
) -> ControlFile:
    """A ControlFile without files.

    `parameters`: {name: initial value} or `Parameter`s. `observations`: {name: value}, plain
    values (named o1, o2, …) with weight 1 in group `obsgp`, or `Observation`s. Groups that are
    named but not given get the default derivative settings. `changes`: further fields.
    """
    if isinstance(parameters, Mapping):
        pars = tuple(make_parameter(n, v) for n, v in parameters.items())
    else:
        pars = tuple(parameters)
    if isinstance(observations, Mapping):
        obs = tuple(Observation(n, v, 1.0, "obsgp") for n, v in observations.items())
    else:
        obs = tuple(
            o if isinstance(o, Observation) else Observation(f"o{i}", float(o), 1.0, "obsgp")
            for i, o in enumerate(observations, start=1)
        )
    given = {g.name: g for g in groups}
    for p in pars:
        given.setdefault(p.group, ParameterGroup(p.group))
    pi = tuple(priors)
    names = dict.fromkeys([*(o.group for o in obs), *(p.group for p in pi)])
    return ControlFile(
        path=Path(f"{name}.pst"),
        version=1,
        mode=mode,
        parameters=pars,
        groups=tuple(given.values()),
        observations=obs,
        observation_groups=tuple(names),
        priors=pi,
        commands=(),
        templates=(),
        instructions=(),
        control_data=dict(control_data or {}),
        options=dict(options or {}),
        **changes,  # type: ignore[arg-type]
    )


def make_job(
    control: ControlFile,
    function: Function,
    output: Path,
    *,
    fail: Fail | None = None,
    slots: int = 4,
    options: Mapping[str, str] | None = None,
) -> tuple[Job, FunctionRunner, ListReport]:
    """A Job with a `FunctionRunner` and a `ListReport`, and these two."""
    runner = FunctionRunner(control, function, fail=fail, slots=slots)
    report = ListReport()
    job = Job(
        control=control, runner=runner, report=report, output=output, options=dict(options or {})
    )
    return job, runner, report
