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
from pestfleet.engines.glm.objective import Phi
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
        if self.estimation.merit.regularizing:
            self._write_rule()
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
        merit = self.estimation.merit
        counted = merit.key(iteration.start.phi)[1]
        record.iteration(
            iteration.number,
            runs=iteration.runs,
            phi=counted,
            name=merit.name(iteration.start.phi),
            groups=iteration.start.phi.groups,
        )
        if merit.regularizing:
            self._write_parts(iteration.start.phi, factor)
        record.write(f"    Derivatives: {'central' if iteration.central else 'forward'} in groups "
                     "that switch")  # fmt: skip
        names = self.estimation.space.names
        for tried in iteration.tried:
            upgrade = tried.upgrade
            phis = None
            if tried.place is not None:
                phis = self._compare(iteration.start.phi, tried.place.phi)
            record.damping(upgrade.damping, upgrade.scale, phis)
            if upgrade.limited_by is not None:
                record.write(
                    f"           shortened by the change limit of {names[upgrade.limited_by]}"
                )
            if upgrade.frozen:
                held = ", ".join(names[j] for j in upgrade.frozen[:10])
                more = f" and {len(upgrade.frozen) - 10} more" if len(upgrade.frozen) > 10 else ""
                record.write(f"           held at a bound: {held}{more}")
        if iteration.best is None:
            name = merit.name(iteration.start.phi)
            limit = (
                f" with a measurement phi up to PHIMACCEPT {self.settings.phimaccept:.7G}"
                if merit.accepts(iteration.start.phi)
                else ""
            )
            record.write(f"    No lower {name}{limit} in this iteration; values stay as they are.")
        else:
            for name, (phi, _) in self._compare(iteration.start.phi, iteration.end.phi).items():
                label = "Lowest phi this iteration"
                if merit.regularizing:
                    label = f"{name} of what is kept"
                record.write(f"    {label:<31s}: {phi:.7G}")
            record.write("")
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
        if self.estimation.merit.regularizing:
            self._write_parts(phi, self.estimation.weight_factor)
        else:
            self.record.write(f"    Phi              : {phi.measurement:.7G}")
        self.record.groups(phi.groups)

    def _write_rule(self) -> None:
        """What decides between two results (see `Merit`)."""
        limit, accept = self.settings.phimlim, self.settings.phimaccept
        self.record.write(
            " Regularization: which upgrade is kept:-",
            f"    Measurement phi above PHIMACCEPT {accept:.7G}: the lowest measurement phi, or",
            "    the lowest regularization phi of those that get it down to PHIMACCEPT.",
            f"    From there on: the lowest regularization phi whose measurement phi is up to "
            f"{accept:.7G}.",
            f"    Each upgrade aims at measurement phi PHIMLIM {limit:.7G}; from there to "
            "PHIMACCEPT, at",
            "    the one that there is. The weight factor is in none of these phi, nor in those of",
            "    groups; it is in the total phi, and in the weights of the .rei and .res files.",
            "",
        )

    def _write_parts(self, phi: Phi, factor: float) -> None:
        self.record.parts(
            measurement=phi.measurement, regularization=phi.regularization, factor=factor
        )

    def _compare(self, start: Phi, phi: Phi) -> dict[str, tuple[float, float]]:
        """Each phi by name, with what it was at the start of the iteration."""
        if not self.estimation.merit.regularizing:
            return {"Phi": (phi.measurement, start.measurement)}
        return {
            "Measurement phi": (phi.measurement, start.measurement),
            "Regularization phi": (phi.regularization, start.regularization),
        }

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
