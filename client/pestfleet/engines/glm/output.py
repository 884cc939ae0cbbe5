"""The files that an estimation leaves: PEST's and PEST++'s, by their usual names."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pestfleet.control.model import ControlFile
from pestfleet.engines.base import Vector
from pestfleet.engines.glm.estimation import Estimation, Iteration, Place
from pestfleet.engines.glm.settings import Settings
from pestfleet.engines.glm.statistics import Statistics, find_limits
from pestfleet.files.matrix import write_jcb, write_jco, write_text
from pestfleet.files.parameters import ParameterValue, write_par
from pestfleet.files.record import ParameterChange, Record
from pestfleet.files.residuals import write_rei, write_res


@dataclass(slots=True)
class Output:
    """Writes into `folder`, all names start with the case's. `files`: what is there so far."""

    folder: Path
    control: ControlFile
    settings: Settings
    estimation: Estimation
    record: Record = field(init=False)
    files: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files = []
        self.record = Record(self._path("rec"))
        self._start_table("iobj", self._phi_columns())
        self._start_table("ipar", ["iteration", *(p.name for p in self.control.parameters)])

    def write_head(self) -> None:
        control, space = self.control, self.estimation.space
        self.record.title(control.name, control.mode)
        used = len(self.estimation.objective.used)
        self.record.settings(
            "Case dimensions",
            {
                "Number of parameters": len(control.parameters),
                "Number of adjustable parameters": len(space.parameters),
                "Number of parameter groups": len(control.groups),
                "Number of observations": len(control.observations),
                "Number of prior estimates": len(control.priors),
                "Rows with a weight": used,
            },
        )
        values = dataclasses.asdict(self.settings)
        unused = values.pop("unused")
        self.record.settings("Settings", values)
        if unused:
            self.record.write(f" Options that are not used: {', '.join(unused)}", "")
        self.record.table(
            "Parameter definitions",
            ("Name", "Trans", "Limit", "Initial", "Lower", "Upper", "Group", "Scale", "Offset"),
            [
                (p.name, p.transform, p.change_limit, p.initial, p.lower, p.upper, p.group,
                 p.scale, p.offset)
                for p in control.parameters
            ],
        )  # fmt: skip

    def write_place(self, number: int, place: Place) -> None:
        """Values and residuals after iteration `number` (0: initial): they are the best so far."""
        factor = self.estimation.weight_factor
        values = self._values(place)
        for kind in ("par", f"{number}.par"):
            write_par(
                self._path(kind),
                values,
                precision=self.control.precision,
                decimal_point=self.control.decimal_point,
            )
        table = self.estimation.objective.table(place.simulated, factor)
        write_rei(self._path("rei"), table, iteration=number)
        phi = place.phi
        row = [number, self.estimation.runner.runs, phi.total(factor), phi.measurement]
        self._add_row("iobj", [*row, phi.regularization, *phi.groups.values()])
        self._add_row("ipar", [number, *(v.value for v in values)])

    def write_iteration(self, iteration: Iteration) -> None:
        """What the iteration tried and did, into the record; then the files of its end."""
        record, factor = self.record, iteration.weight_factor
        start = iteration.start.phi.total(factor)
        record.iteration(
            iteration.number, runs=iteration.runs, phi=start, groups=iteration.start.phi.groups
        )
        if self.estimation.merit.regularizing:
            record.write(
                f"    Regularization weight factor   : {factor:.7G}",
                f"    Measurement phi                : {iteration.start.phi.measurement:.7G}",
                f"    Regularization phi             : {iteration.start.phi.regularization:.7G}",
            )
        record.write(f"    Derivatives: {'central' if iteration.central else 'forward'} in groups "
                     "that switch")  # fmt: skip
        names = self.estimation.space.names
        for tried in iteration.tried:
            upgrade = tried.upgrade
            phi = None if tried.place is None else tried.place.phi.total(factor)
            record.damping(upgrade.damping, upgrade.scale, phi, start)
            if upgrade.limited_by is not None:
                record.write(
                    f"           shortened by the change limit of {names[upgrade.limited_by]}"
                )
            if upgrade.frozen:
                held = ", ".join(names[j] for j in upgrade.frozen[:10])
                more = f" and {len(upgrade.frozen) - 10} more" if len(upgrade.frozen) > 10 else ""
                record.write(f"           held at a bound: {held}{more}")
        if iteration.best is None:
            record.write("    No lower phi in this iteration; values stay as they are.")
        else:
            phi_end = iteration.end.phi.total(factor)
            record.write(f"    Lowest phi this iteration      : {phi_end:.7G}", "")
            old, new = self._values(iteration.start), self._values(iteration.end)
            pairs = zip(old, new, strict=True)
            record.changes([ParameterChange(a.name, a.value, b.value) for a, b in pairs])
        self.write_place(iteration.number, iteration.end)

    def write_jacobian(self) -> None:
        jacobian, objective = self.estimation.jacobian, self.estimation.objective
        matrix = objective.extend(jacobian.matrix, jacobian.values)
        names = self.estimation.space.names
        write_jco(self._path("jco"), matrix, objective.names, names)
        write_jcb(self._path("jcb"), matrix, objective.names, names)

    def write_statistics(self, statistics: Statistics) -> None:
        estimation = self.estimation
        space, names = estimation.space, estimation.space.names
        write_text(self._path("post.cov"), statistics.covariance, names)
        self._write_uncertainty(statistics)
        lower, upper = find_limits(space, statistics)
        self.record.write("", f" Parameter uncertainty: {statistics.method}", "")
        self.record.table(
            "Adjustable parameters",
            ("Name", "Estimated value", "95% lower limit", "95% upper limit"),
            list(zip(names, map(float, estimation.best.values), map(float, lower),
                     map(float, upper), strict=True)),
        )  # fmt: skip
        self.record.write(
            " Limits are for a model that is linear near the estimate, and are not cut at bounds.",
            " Below, log-transformed parameters are in log10.",
            "",
        )
        self.record.matrix("Parameter covariance matrix", names, statistics.covariance)
        self.record.matrix("Parameter correlation matrix", names, statistics.correlation)
        variance = statistics.reference_variance if statistics.degrees_of_freedom > 0 else 0.0
        table = estimation.objective.table(estimation.best.simulated, estimation.weight_factor)
        write_res(self._path("res"), table, reference_variance=variance)

    def write_end(self, reason: str) -> None:
        phi = self.estimation.best.phi
        self.record.write("", f" OPTIMISATION COMPLETE: {reason}.")
        self.record.write(f"    Total model calls: {self.estimation.runner.runs}")
        self.record.write(f"    Phi              : {phi.total(self.estimation.weight_factor):.7G}")
        self.record.groups(phi.groups)

    def _write_uncertainty(self, statistics: Statistics) -> None:
        """PEST++'s parameter uncertainty summary: log10 for log-transformed, 95 % bounds."""
        space = self.estimation.space
        columns = [
            f"{which}_{what}"
            for which in ("prior", "post")
            for what in ("mean", "stdev", "lower_bound", "upper_bound")
        ]
        self._start_table("par.usum.csv", ["name", *columns])
        lower, upper = space.estimate(space.lower), space.estimate(space.upper)
        with self._path("par.usum.csv").open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            for j, name in enumerate(space.names):
                mean, half = statistics.mean[j], statistics.half_width[j]
                prior = (
                    statistics.prior_mean[j],
                    statistics.prior_deviation[j],
                    lower[j],
                    upper[j],
                )
                post = (mean, statistics.deviation[j], mean - half, mean + half)
                writer.writerow([name, *(repr(float(x)) for x in (*prior, *post))])

    def _values(self, place: Place) -> list[ParameterValue]:
        full: Vector = self.estimation.space.expand(place.values[np.newaxis, :])[0]
        pairs = zip(self.control.parameters, full, strict=True)
        return [ParameterValue(p.name, float(v), p.scale, p.offset) for p, v in pairs]

    def _phi_columns(self) -> list[str]:
        """PEST++'s `.iobj`; groups without any row have a column too, of zeros."""
        names = self.estimation.objective.group_names
        return ["iteration", "model_runs_completed", "total_phi", "measurement_phi",
                "regularization_phi", *names]  # fmt: skip

    def _path(self, kind: str) -> Path:
        name = f"{self.control.name}.{kind}"
        if name not in self.files:
            self.files.append(name)
        return self.folder / name

    def _start_table(self, kind: str, columns: list[str]) -> None:
        with self._path(kind).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(columns)

    def _add_row(self, kind: str, row: list[float]) -> None:
        with self._path(kind).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow([repr(x) if isinstance(x, float) else x
                                                            for x in row])  # fmt: skip
