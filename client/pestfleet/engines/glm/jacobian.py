"""The Jacobian: which runs it takes, and its columns out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pestfleet.control.model import ControlFile, ParameterGroup
from pestfleet.engines.base import Matrix, Report, Runner, Vector
from pestfleet.engines.glm.differences import (
    count_points,
    find_increment,
    find_slope,
    place_points,
    turn_points,
)
from pestfleet.engines.glm.space import ParameterSpace
from pestfleet_worker.errors import RunsFailedError

Change = tuple[int, float] | None  # adjustable parameter's number and value; None: no change

_MOST_ELEMENTS = 20_000_000  # of a batch's parameters: 160 MB


@dataclass(frozen=True, slots=True)
class Jacobian:
    """Derivatives of observations with respect to adjustable parameters in estimated space.

    `matrix`: (observations, adjustable). `outputs`: (observations,) at `values`.
    `central`: made with central derivatives where groups switch.
    """

    values: Vector
    outputs: Vector
    matrix: Matrix
    central: bool


@dataclass(frozen=True, slots=True)
class Differentiator:
    """Makes Jacobians of one case."""

    control: ControlFile
    space: ParameterSpace
    runner: Runner
    report: Report

    def differentiate(
        self, values: Vector, outputs: Vector | None, *, central: bool, purpose: str
    ) -> Jacobian:
        """The Jacobian at `values`. Without `outputs` there, their run is in the same batch.

        Raises `RunsFailedError` when the run at `values` fails, or all the others.
        """
        points = self._plan(values, central=central)
        changes: list[Change] = [] if outputs is not None else [None]
        first = len(changes)
        changes += [(j, x) for j, xs in enumerate(points) for x in xs]
        made = self._make_runs(values, changes, purpose=purpose)
        if outputs is None:
            outputs, failure = made[0]
            if failure:
                raise RunsFailedError(
                    f"the run with the initial values failed: {failure}",
                    remedy="Correct the case until one run works: pestfleet check --run.",
                )
        good: list[list[tuple[float, Vector]]] = [[] for _ in points]
        reasons: dict[int, str] = {}
        for change, (observations, failure) in zip(changes[first:], made[first:], strict=True):
            assert change is not None
            if failure:
                reasons[change[0]] = failure
            else:
                good[change[0]].append((change[1], observations))
        lost = [j for j in range(len(points)) if not good[j]]
        if lost:
            self._retry(lost, points, values, good, reasons, purpose=purpose)
        matrix = np.zeros((len(outputs), len(points)))
        for j, found in enumerate(good):
            if found:
                matrix[:, j] = self._slope(j, values, outputs, found)
        return Jacobian(values=values.copy(), outputs=outputs, matrix=matrix, central=central)

    def _plan(self, values: Vector, *, central: bool) -> list[list[float]]:
        groups = {g.name: g for g in self.control.groups}
        largest: dict[str, float] = {}
        for value, p in zip(values, self.space.parameters, strict=True):
            largest[p.group] = max(largest.get(p.group, 0.0), abs(float(value)))
        plan = []
        for j, p in enumerate(self.space.parameters):
            group = groups.get(p.group, ParameterGroup(p.group))
            number = count_points(group, switched=central)
            increment = find_increment(
                group, value=values[j], largest=largest[p.group], points=number
            )
            if values[j] + increment == values[j]:
                increment = group.increment * (abs(p.initial) or 1.0)
                self.report.warn(
                    f"parameter {p.name}: the increment of its group {p.group} is 0 at the value "
                    f"{values[j]:g}; {increment:g} is used. Give the group a DERINCLB."
                )
            plan.append(
                place_points(
                    value=float(values[j]),
                    lower=float(self.space.lower[j]),
                    upper=float(self.space.upper[j]),
                    increment=float(increment),
                    points=number,
                )
            )
        return plan

    def _retry(
        self,
        lost: list[int],
        points: list[list[float]],
        values: Vector,
        good: list[list[tuple[float, Vector]]],
        reasons: dict[int, str],
        *,
        purpose: str,
    ) -> None:
        """Try the other side for parameters without any run; warn of those that stay without."""
        space = self.space
        second = [
            (j, x)
            for j in lost
            for x in turn_points(
                points[j],
                value=float(values[j]),
                lower=float(space.lower[j]),
                upper=float(space.upper[j]),
            )
        ]
        made = self._make_runs(values, second, purpose=f"{purpose}, failed runs again")
        for (j, x), (observations, failure) in zip(second, made, strict=True):
            if not failure:
                good[j].append((x, observations))
        still = [j for j in lost if not good[j]]
        if len(still) == len(points):
            raise RunsFailedError(
                f"{purpose}: all runs with a changed parameter failed; the first: "
                f"{reasons[still[0]]}",
                remedy="See the session's log for what the model said.",
            )
        for j in still:
            self.report.warn(
                f"{purpose}: all runs for parameter {space.parameters[j].name} failed, its "
                f"derivatives are taken as 0 and it stays as it is: {reasons[j]}"
            )

    def _make_runs(
        self, values: Vector, changes: Sequence[Change], *, purpose: str
    ) -> list[tuple[Vector, str]]:
        """A run for each change of `values`: its observations, and '' or why it failed.

        One batch, or several where the matrix of parameters would be very large.
        """
        size = max(1, _MOST_ELEMENTS // len(self.space.full_initial))
        results: list[tuple[Vector, str]] = []
        for start in range(0, len(changes), size):
            part = changes[start : start + size]
            rows = np.tile(values, (len(part), 1))
            for row, change in enumerate(part):
                if change is not None:
                    rows[row, change[0]] = change[1]
            made = self.runner.run(self.space.expand(rows), purpose=purpose)
            results += [
                (observations, made.failures[row] or "unknown" if row in made.failures else "")
                for row, observations in enumerate(made.observations)
            ]
        return results

    def _slope(
        self, j: int, values: Vector, outputs: Vector, found: list[tuple[float, Vector]]
    ) -> Vector:
        log = bool(self.space.log[j])
        middle = float(values[j])
        offsets = np.array([0.0, *(_distance(x, middle, log=log) for x, _ in found)])
        name = self.space.parameters[j].group
        method = next((g.central_method for g in self.control.groups if g.name == name), "")
        return find_slope(
            offsets=offsets, outputs=np.array([outputs, *(o for _, o in found)]), method=method
        )


def _distance(x: float, middle: float, *, log: bool) -> float:
    return float(np.log10(x / middle)) if log else x - middle
