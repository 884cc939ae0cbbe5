"""Results of a session as data frames and as a picture; also while the session runs.

What the tables are made of: the engine's files in `results/`, the control file as it was at
launch, and the journal. A table whose files are not there yet is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pestfleet.control.model import ControlFile
from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.journal import failure_of, read_journal
from pestfleet_worker.errors import SessionError

if TYPE_CHECKING:
    import pandas

Tables = dict[str, "pandas.DataFrame"]

_FAILED_VALUE = -1e100  # observation of a failed run in the output of a sweep


def read_results(folder: SessionFolder) -> Tables:
    """Tables of results by name. Raises `SessionError` or `CaseError` for damaged files.

    All engines: `iterations` (number, phi and the engine's detail; number 0: initial values).

    `glm`:
    `parameters` (name, group, transform, initial, value, lower95, upper95, lower_bound,
    upper_bound) and `observations` (name, group, measured, modelled, residual, weight; residual
    is measured minus modelled).

    `ies`: the same two, where `value` and `modelled` are medians of the last ensemble, and
    `lower95` and `upper95` its 2.5 and 97.5 percentiles; `prior_parameters`,
    `posterior_parameters`, `prior_observations`, `posterior_observations` (index: realization)
    and `phi` (index: iteration; a column for each realization, NaN once it is dropped).

    `sweep`: `sweep`, the engine's output table; observations of failed runs are NaN.
    """
    spec = folder.read_spec()
    control = read_control_of(folder, spec)
    tables: Tables = {}
    if spec.engine == "sweep":
        tables |= _read_sweep(folder, spec, control)
    elif spec.engine == "ies":
        tables |= _read_ies(folder, control)
    else:
        tables |= _read_glm(folder, control)
    tables["iterations"] = read_iterations(folder)
    return tables


def read_control_of(folder: SessionFolder, spec: SessionSpec) -> ControlFile:
    """The session's control file as it was at launch; the user's own before that was copied."""
    from pestfleet.control.reader import read_control

    original = Path(spec.control_file)
    copy = folder.case / original.name
    return read_control(copy if copy.exists() else original)


def read_summary(folder: SessionFolder) -> dict[str, Any]:
    """What the engine returned when the session last ended; {} when it has not."""
    summary: dict[str, Any] = {}
    for event in _read_events(folder):
        if event["event"] == "end":
            summary = event.get("summary") or {}
    return summary


def read_iterations(folder: SessionFolder) -> pandas.DataFrame:
    """One row an iteration; one that was done again after a resume counts once, as the last."""
    import pandas

    rows: dict[int, dict[str, Any]] = {}
    for event in _read_events(folder):
        if event["event"] == "iteration":
            number = event["number"]
            # An iteration that is done again takes those after it along.
            rows = {known: row for known, row in rows.items() if known < number}
            rows[number] = {
                name: value for name, value in event.items() if name not in ("time", "event")
            }
    return pandas.DataFrame(list(rows.values()), columns=None if rows else ["number", "phi"])


def read_runs(folder: SessionFolder, *, failed: bool | None = None) -> pandas.DataFrame:
    """One row a finished run, in the order in which they finished.

    Columns: id, time (seconds since 1970), purpose, worker, slot, seconds, failed, reason,
    message, file, line, exit_code, signal, log. `failed`: only failed or only successful ones.
    """
    import pandas

    names = ["id", "time", "purpose", "worker", "slot", "seconds", "failed"]
    details = ["reason", "message", "file", "line", "exit_code", "signal", "log"]
    rows = []
    purpose = ""
    for event in _read_events(folder):
        if event["event"] == "batch":
            purpose = event["purpose"]
        if event["event"] != "run":
            continue
        row = {"purpose": purpose, **event, "failed": "failure" in event}
        if failed is not None and row["failed"] != failed:
            continue
        if row["failed"]:
            failure = failure_of(event)
            row |= {name: getattr(failure, name) for name in details}
        rows.append([row.get(name) for name in (*names, *details)])
    return pandas.DataFrame(rows, columns=[*names, *details])


def plot_results(folder: SessionFolder, path: Path) -> Path:
    """Write a PNG of the fit and of phi. Raises `SessionError` when there is nothing to draw."""
    from pestfleet.plots import draw_results

    spec = folder.read_spec()
    title = f"{Path(spec.control_file).stem}, {spec.engine}"
    figure = draw_results(read_results(folder), title=title)
    if figure is None:
        raise SessionError(
            f"session {folder.name} has no results to draw yet",
            remedy=f"See how far it is: pestfleet status {folder.name}",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _read_events(folder: SessionFolder) -> Iterator[dict[str, Any]]:
    return read_journal(folder.journal) if folder.journal.exists() else iter(())


def _list_parameters(control: ControlFile) -> pandas.DataFrame:
    import pandas

    rows = [(p.name, p.group, p.transform, p.initial, p.lower, p.upper) for p in control.parameters]
    columns = ["name", "group", "transform", "initial", "lower_bound", "upper_bound"]
    return pandas.DataFrame(rows, columns=columns)


def _arrange(parameters: pandas.DataFrame) -> pandas.DataFrame:
    first = ["name", "group", "transform", "initial", "value", "lower95", "upper95"]
    return parameters[[*first, "lower_bound", "upper_bound"]]


def _read_glm(folder: SessionFolder, control: ControlFile) -> Tables:
    import pandas

    from pestfleet.files.parameters import read_par
    from pestfleet.files.residuals import read_residuals

    tables: Tables = {}
    par, rei, summary = (
        folder.results / f"{control.name}{suffix}" for suffix in (".par", ".rei", ".par.usum.csv")
    )
    if par.exists():
        parameters = _list_parameters(control)
        values = {entry.name: entry.value for entry in read_par(par).values}
        parameters["value"] = parameters["name"].map(values)
        parameters["lower95"] = parameters["upper95"] = float("nan")
        if summary.exists():
            _add_limits(parameters, summary)
        tables["parameters"] = _arrange(parameters)
    if rei.exists():
        rows = [
            (r.name, r.group, r.measured, r.modelled, r.residual, r.weight)
            for r in read_residuals(rei)
        ]
        columns = ["name", "group", "measured", "modelled", "residual", "weight"]
        tables["observations"] = pandas.DataFrame(rows, columns=columns)
    return tables


def _add_limits(parameters: pandas.DataFrame, path: Path) -> None:
    """95 % limits from `<case>.par.usum.csv`, where log-transformed parameters are log10."""
    import numpy as np

    table = _read_csv(path)
    table.index = table.index.str.lower()
    log = (parameters["transform"] == "log").to_numpy()
    for ours, theirs in (("lower95", "post_lower_bound"), ("upper95", "post_upper_bound")):
        limits = parameters["name"].map(table[theirs]).to_numpy(dtype=float)
        with np.errstate(over="ignore"):
            limits[log] = np.power(10.0, limits[log])
        parameters[ours] = limits


def _read_ies(folder: SessionFolder, control: ControlFile) -> Tables:
    import pandas

    tables: Tables = {}
    for what, suffix in (("parameters", "par"), ("observations", "obs")):
        ensembles = _find_ensembles(folder.results, control.name, suffix)
        if ensembles:
            tables[f"prior_{what}"] = _read_csv(ensembles[0])
            tables[f"posterior_{what}"] = _read_csv(ensembles[-1])
    if "posterior_parameters" in tables:
        parameters = _list_parameters(control)
        _add_quantiles(parameters, tables["posterior_parameters"], "value")
        tables["parameters"] = _arrange(parameters)
    if "posterior_observations" in tables:
        rows = [(o.name, o.group, o.value, o.weight) for o in control.observations]
        observations = pandas.DataFrame(rows, columns=["name", "group", "measured", "weight"])
        _add_quantiles(observations, tables["posterior_observations"], "modelled")
        observations["residual"] = observations["measured"] - observations["modelled"]
        names = ["name", "group", "measured", "modelled", "residual", "weight"]
        tables["observations"] = observations[[*names, "lower95", "upper95"]]
    phi = folder.results / f"{control.name}.phi.actual.csv"
    if phi.exists():
        statistics = ["total_runs", "mean", "standard_deviation", "min", "max"]
        tables["phi"] = _read_csv(phi).drop(columns=statistics, errors="ignore")
    return tables


def _add_quantiles(table: pandas.DataFrame, ensemble: pandas.DataFrame, median: str) -> None:
    quantiles = ensemble.quantile([0.5, 0.025, 0.975])
    for column, (_, values) in zip(
        (median, "lower95", "upper95"), quantiles.iterrows(), strict=True
    ):
        table[column] = table["name"].map(values)


def _find_ensembles(results: Path, case: str, suffix: str) -> list[Path]:
    """`<case>.<iteration>.<suffix>.csv` by iteration."""
    found = {}
    for path in results.glob(f"*.{suffix}.csv"):
        label = path.name.removesuffix(f".{suffix}.csv").removeprefix(f"{case}.")
        if label.isdecimal() or label == "base":
            found[int(label) if label.isdecimal() else 0] = path
    return [found[number] for number in sorted(found)]


def _read_sweep(folder: SessionFolder, spec: SessionSpec, control: ControlFile) -> Tables:
    names = ("sweep_output_csv_file", "sweep_obs_csv", "sweep_output_file")
    written = [options[name] for options in (spec.options, control.options) for name in names
               if name in options]  # fmt: skip
    name = read_summary(folder).get("file") or Path((written or ["sweep_out.csv"])[0]).name
    path = folder.results / name
    if not path.exists():
        return {}
    table = _read_csv(path, index=None)
    observations = [o.name for o in control.observations]
    # A chunk that is being written now may end in the middle of a line.
    table = table[table[observations[-1]].notna()]
    table[observations] = table[observations].mask(table[observations] == _FAILED_VALUE)
    return {"sweep": table.reset_index(drop=True)}


def _read_csv(path: Path, *, index: int | None = 0) -> pandas.DataFrame:
    import pandas

    try:
        return pandas.read_csv(path, index_col=index, float_precision="round_trip")
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise SessionError(
            f"{path} cannot be read: {error}",
            remedy="While the session runs, try again; else resume it: the file is made again.",
        ) from error
