"""sweep: one run for each parameter set of a file, with the options and output of pestpp-swp.

PEST++ manual, "PESTPP-SWP"; columns and failed rows of the output as pestpp-swp 5.2 writes them.
Values are written with as many digits as they need to come back bit-equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pestfleet.control.model import ControlFile
from pestfleet.engines.base import Job, Matrix, RunSet, Vector
from pestfleet.engines.ies.options import Options
from pestfleet.files.ensembles import BINARY_SUFFIXES, CsvEnsemble, read_ensemble
from pestfleet.files.parameters import read_par
from pestfleet_worker.errors import CaseError

FAILED_VALUE = "-1e+100"  # what pestpp-swp writes for each observation of a run that failed
CHUNK = 500
RUNS_PER_SLOT = 50  # in a chunk at least, so that slots do not wait for each other
RATIO_TOLERANCE = 1e-6
_SOURCE_NAMES = ("sweep_parameter_csv_file", "sweep_par_csv", "sweep_parameter_file")

Row = tuple[str, Sequence[float]]


def run(job: Job) -> dict[str, Any]:
    """Make the runs of `++sweep_parameter_csv_file` and write `++sweep_output_csv_file`.

    The input is CSV (read in pieces), `.jcb`, `.jco` or `.bin`, or one or more `.par` files
    (separated by commas, with * and ? if you like). The output goes to `job.output`, row by row as
    chunks finish. Values outside of bounds are run as they are, after a warning.

    Returns: engine, runs, failed_runs, phi_best, best (run name), file, parameters {}.
    Raises `CaseError` with file, line and column for an input that cannot be used.
    """
    options = Options(job)
    source = options.get_text(*_SOURCE_NAMES, default="sweep_in.csv")
    target = options.get_text(
        "sweep_output_csv_file", "sweep_obs_csv", "sweep_output_file", default="sweep_out.csv"
    )
    forgive = options.get_flag("sweep_forgive", default=False)
    with_regularization = options.get_flag("sweep_include_regul_phi", default=False)
    options.get_integer("sweep_chunk", default=CHUNK)  # chunks follow the slots
    ignored = options.not_asked()
    if ignored:
        job.report.warn(f"sweep does not honour these options: {', '.join(ignored)}")
    name = Path(target.replace("\\", "/")).name
    if Path(name).suffix.lower() in BINARY_SUFFIXES:
        name = Path(name).with_suffix(".csv").name
        job.report.warn(f"sweep writes CSV only: {name} instead of {target}")

    columns, rows, total = _open_source(job, source)
    if not total:
        raise CaseError(f"{source}: no parameter set in it", remedy="Add a row for each run.")
    sets = _ParameterSets(job, source, columns, forgive=forgive)
    objective = _Objective(job.control, with_regularization=with_regularization)
    chunk = max(CHUNK, RUNS_PER_SLOT * job.runner.slots)
    done = failed = 0
    best = (float("inf"), "")
    job.output.mkdir(parents=True, exist_ok=True)
    with (job.output / name).open("w", encoding="utf-8", newline="\n") as file:
        file.write(objective.make_header())
        while part := list(islice(rows, chunk)):
            values = sets.fill(part)
            purpose = f"runs {done + 1} to {done + len(part)} of {total}"
            result = job.runner.run(values, purpose=purpose, names=[name for name, _ in part])
            _warn_about_failures(job, part, result)
            for i, (run_name, _) in enumerate(part):
                if i in result.failures:
                    failed += 1
                    file.write(objective.make_failed_row(done + i, run_name))
                    continue
                line, phi = objective.make_row(
                    done + i, run_name, result.observations[i], values[i]
                )
                file.write(line)
                if phi < best[0]:
                    best = (phi, run_name)
            file.flush()
            done += len(part)
    summary: dict[str, Any] = {
        "engine": "sweep",
        "runs": done,
        "failed_runs": failed,
        "file": name,
        "files": [name],
        "parameters": {},
    }
    if failed:
        summary["incomplete"] = f"{failed} of {done} runs of the sweep failed"
    if failed < done:
        summary |= {"phi": best[0], "best": best[1]}
        job.report.iteration(0, phi=best[0], runs=done, failed=failed)
    return summary


def count_sets(job: Job) -> int:
    """The parameter sets of the input. Raises `CaseError` where it cannot be read."""
    source = Options(job).get_text(*_SOURCE_NAMES, default="sweep_in.csv")
    return _open_source(job, source)[2]


def check_input(job: Job) -> None:
    """Raise `CaseError` where the input is not there or lacks columns.

    Rows of a table are not read: only `run` takes the time for that.
    """
    options = Options(job)
    source = options.get_text(*_SOURCE_NAMES, default="sweep_in.csv")
    forgive = options.get_flag("sweep_forgive", default=False)
    folder = job.control.path.parent
    path = folder / source.replace("\\", "/")
    if source.lower().endswith(".par"):
        columns, _ = _read_par_files(folder, source)
    elif path.suffix.lower() not in BINARY_SUFFIXES:
        columns = _open_table(job, path).columns
    elif path.is_file():
        return
    else:
        raise CaseError(f"{path}: no such file", remedy=f"Correct {_SOURCE_NAMES[0]}.")
    _ParameterSets(job, source, columns, forgive=forgive)


def _warn_about_failures(job: Job, part: Sequence[Row], result: RunSet) -> None:
    """One warning for each reason, with the names of the runs."""
    by_reason: dict[str, list[str]] = {}
    for row, why in sorted(result.failures.items()):
        by_reason.setdefault(why, []).append(part[row][0])
    for why, names in by_reason.items():
        job.report.warn(f"{len(names)} of {len(part)} runs failed ({_shorten(names)}): {why}")


def _open_source(job: Job, source: str) -> tuple[tuple[str, ...], Iterator[Row], int]:
    """Parameter names of the columns; the rows, read when they are asked for; their number.

    A CSV file is read through once before, so that a mistake in it shows before the first run.
    """
    folder = job.control.path.parent
    if source.lower().endswith(".par"):
        columns, sets = _read_par_files(folder, source)
        return columns, iter(sets), len(sets)
    path = folder / source.replace("\\", "/")
    if path.suffix.lower() in BINARY_SUFFIXES:
        ensemble = read_ensemble(path)
        pairs = zip(ensemble.realizations, ensemble.values.tolist(), strict=True)
        return ensemble.columns, iter(pairs), len(ensemble.realizations)
    table = _open_table(job, path)
    total = sum(1 for _ in table.rows())
    return table.columns, ((name, values) for _, name, values in table.rows()), total


def _open_table(job: Job, path: Path) -> CsvEnsemble:
    table = CsvEnsemble(path)
    if table.first in {parameter.name for parameter in job.control.parameters}:
        raise CaseError(
            f"{path}:1: the first column is parameter {table.first!r}; it must name the runs",
            remedy="Put a column with run names or numbers first.",
        )
    return table


def _read_par_files(folder: Path, source: str) -> tuple[tuple[str, ...], list[Row]]:
    """Each file is a run, named as the file without `.par`."""
    paths: list[Path] = []
    for word in (word.strip().replace("\\", "/") for word in source.split(",")):
        found = [folder / word]
        if set(word) & set("*?["):
            pattern = folder.absolute() / word
            found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
        if not found:
            raise CaseError(
                f"{folder / word}: no such file", remedy="Correct sweep_parameter_csv_file."
            )
        paths += found
    columns: tuple[str, ...] = ()
    rows: list[Row] = []
    for path in paths:
        values = {entry.name: entry.value for entry in read_par(path).values}
        if not rows:
            columns = tuple(values)
        if set(values) != set(columns):
            odd = sorted(set(values) ^ set(columns))
            raise CaseError(
                f"{path}: not the same parameters as in {paths[0].name}: {_shorten(odd)}",
                remedy="Give every .par file the same parameters.",
            )
        row = [values[name] for name in columns]
        if not np.isfinite(row).all():
            odd = [name for name in columns if not np.isfinite(values[name])]
            raise CaseError(
                f"{path}: not a finite number for {_shorten(odd)}", remedy="Write numbers there."
            )
        rows.append((path.stem, row))
    return columns, rows


class _ParameterSets:
    """From the columns of the input to all parameters of the control file."""

    def __init__(self, job: Job, source: str, columns: tuple[str, ...], *, forgive: bool) -> None:
        parameters = job.control.parameters
        index = {parameter.name: i for i, parameter in enumerate(parameters)}
        self._job = job
        self._source = source
        self._initial = np.array([parameter.initial for parameter in parameters])
        self._lower = np.array([parameter.lower for parameter in parameters])
        self._upper = np.array([parameter.upper for parameter in parameters])
        self._free = np.array([p.transform in ("none", "log") for p in parameters])
        self._told = np.zeros(len(parameters), dtype=bool)
        self._taken = [i for i, name in enumerate(columns) if name in index]
        self._places = [index[columns[i]] for i in self._taken]
        self._tied = [
            (i, index[parameter.tied_to], parameter.initial)
            for i, parameter in enumerate(parameters)
            if parameter.transform == "tied" and parameter.tied_to in index
        ]
        self._altered = False
        unknown = [name for name in columns if name not in index]
        if unknown:
            job.report.warn(
                f"{source}: columns that are no parameters are ignored: {_shorten(unknown)}"
            )
        present = set(columns)
        missing = [p.name for p in parameters if p.name not in present]
        needed = [name for name in missing if self._free[index[name]]]
        if needed and not forgive:
            raise CaseError(
                f"{source}: no column for {_shorten(needed)}",
                remedy="Add the columns, or set sweep_forgive(true) to take the control file's "
                "initial values.",
            )
        if needed:
            job.report.warn(
                f"{source}: no column for {_shorten(needed)}; the control file's values are used"
            )

    def fill(self, rows: Sequence[Row]) -> Matrix:
        """(runs, all parameters). Values that the input gives are not changed in any bit.

        A tied parameter keeps its ratio to its parent: where the input's value does not, it is
        changed, as pestpp-swp does.
        """
        values = np.tile(self._initial, (len(rows), 1))
        values[:, self._places] = np.array([row[1] for row in rows])[:, self._taken]
        for child, parent, initial in self._tied:
            wanted = values[:, parent] * (initial / self._initial[parent])
            given = child in self._places
            wrong = ~np.isclose(values[:, child], wanted, rtol=RATIO_TOLERANCE, atol=0.0)
            if given and wrong.any() and not self._altered:
                self._altered = True
                self._job.report.warn(
                    f"{self._source}: tied parameters that do not keep the control file's ratio "
                    "to their parent are changed, such as "
                    f"{self._job.control.parameters[child].name}"
                )
            values[:, child] = np.where(wrong | (not given), wanted, values[:, child])
        self._warn_about_bounds(rows, values)
        return values

    def _warn_about_bounds(self, rows: Sequence[Row], values: Matrix) -> None:
        """Say once for each parameter that it is outside of its bounds, and in which run first."""
        outside = ((values < self._lower) | (values > self._upper)) & self._free & ~self._told
        new = outside.any(axis=0)
        if new.any():
            self._told |= new
            names = [self._job.control.parameters[i].name for i in np.flatnonzero(new)]
            first = rows[int(outside.any(axis=1).argmax())][0]
            self._job.report.warn(
                f"{self._source}: values of {_shorten(names)} are outside of their bounds, first "
                f"in run {first}; they are run as they are"
            )


class _Objective:
    """Objective function and rows of the output file.

    As pestpp-swp: prior information and groups that begin with `regul` count only with
    sweep_include_regul_phi(true); other prior information then counts as measurement.
    """

    def __init__(self, control: ControlFile, *, with_regularization: bool) -> None:
        self._control = control
        self._observed = np.array([o.value for o in control.observations])
        self._weights = np.array([o.weight for o in control.observations])
        self._priors = control.priors if with_regularization else ()
        self._groups = control.observation_groups
        number = {name: i for i, name in enumerate(self._groups)}
        self._group_of = np.array([number[o.group] for o in control.observations], dtype=np.intp)
        self._prior_group = np.array([number[p.group] for p in self._priors], dtype=np.intp)
        self._regularizing = np.array([name.startswith("regul") for name in self._groups])
        self._with_regularization = with_regularization
        self._index = {parameter.name: i for i, parameter in enumerate(control.parameters)}

    def make_header(self) -> str:
        names = [o.name for o in self._control.observations]
        first = ["run_id", "input_run_id", "failed_flag", "phi", "meas_phi", "regul_phi"]
        return ",".join([*first, *self._groups, *names]) + "\n"

    def make_row(
        self, number: int, name: str, observations: Vector, parameters: Vector
    ) -> tuple[str, float]:
        """The line of a run that worked, and its phi."""
        groups = self._sum_groups(observations, parameters)
        regularization = float(groups[self._regularizing].sum())
        measurement = float(groups[~self._regularizing].sum())
        phi = measurement + regularization
        numbers = [phi, measurement, regularization, *groups.tolist(), *observations.tolist()]
        return f"{number},{_quote(name)},0,{','.join(map(repr, numbers))}\n", phi

    def make_failed_row(self, number: int, name: str) -> str:
        """The line of a run that failed: no phi, and a value for each observation all the same."""
        empty = [""] * (3 + len(self._groups))
        cells = [*empty, *[FAILED_VALUE] * len(self._observed)]
        return f"{number},{_quote(name)},1,{','.join(cells)}\n"

    def _sum_groups(self, observations: Vector, parameters: Vector) -> Vector:
        squares = ((observations - self._observed) * self._weights) ** 2
        groups = np.zeros(len(self._groups))
        np.add.at(groups, self._group_of, squares)
        if not self._with_regularization:
            groups[self._regularizing] = 0.0
        for group, prior in zip(self._prior_group, self._priors, strict=True):
            total = 0.0
            for factor, parameter, log in prior.terms:
                value = parameters[self._index[parameter]]
                total += factor * float(np.log10(value) if log else value)
            groups[group] += ((total - prior.value) * prior.weight) ** 2
        return groups


def _quote(name: str) -> str:
    """A run name as one CSV cell."""
    if any(character in name for character in ',"\r\n'):
        return '"' + name.replace('"', '""') + '"'
    return name


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
