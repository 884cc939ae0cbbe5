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
from pestfleet.kits import list_kits
from pestfleet.result_files import (
    Tables,
    find_home,
    read_ensembles,
    read_fit,
    read_phi_history,
    read_sensitivities,
    read_sweep,
)
from pestfleet_worker.errors import SessionError

if TYPE_CHECKING:
    import pandas


def read_results(folder: SessionFolder) -> Tables:
    """Tables of results by name. Raises `SessionError` or `CaseError` for damaged files.

    All engines: `iterations` (number, phi and the engine's detail; number 0: initial values).

    `glm`, `pestpp-glm` and others that end with one set of parameters (`beopest`, `pest_hp`,
    `pestpp-opt`, …):
    `parameters` (name, group, transform, initial, value, lower95, upper95, lower_bound,
    upper_bound) and `observations` (name, group, measured, modelled, residual, weight; residual
    is measured minus modelled).

    `ies`, `pestpp-ies`: the same two, where `value` and `modelled` are medians of the last
    ensemble, and `lower95` and `upper95` its 2.5 and 97.5 percentiles; observations have `noise`,
    its standard deviation, too. `prior_parameters`, `posterior_parameters`,
    `prior_observations`, `posterior_observations` (index: realization); `phi` (index: iteration;
    a column for each realization, NaN once it is dropped); `forecasts` (name, group, written: the
    value in the control file, and median, lower95, upper95 of prior and posterior), where the
    control file names some or has at most three observations without weight.

    `sweep`, `pestpp-swp`: `sweep`, the engine's output table; observations of failed runs are NaN.

    `pestpp-sen`: `sensitivities`, see `result_files.read_sensitivities`.
    """
    spec = folder.read_spec()
    control = read_control_of(folder, spec)
    home = find_home(folder.results, folder.case, control.name)
    tables: Tables = {}
    if spec.engine in ("sweep", "pestpp-swp"):
        tables |= read_sweep(home, control, _name_sweep_files(folder, spec, control))
    elif spec.engine in ("ies", "pestpp-ies"):
        tables |= read_ensembles(home, control)
    elif spec.engine == "pestpp-sen":
        tables |= read_sensitivities(home, control)
    else:
        tables |= read_fit(home, control)
    tables["iterations"] = read_iterations(folder)
    if tables["iterations"].empty:
        history = read_phi_history(home, control)
        if history is not None:
            tables["iterations"] = history
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

    Columns: id, name (the user's, "" where it has none), time (seconds since 1970), purpose,
    worker, slot, seconds, failed, reason, message, file, line, exit_code, signal, log, kit (is
    there one of this failed run?). `failed`: only failed or only successful ones.
    """
    import pandas

    names = ["id", "name", "time", "purpose", "worker", "slot", "seconds", "failed"]
    details = ["reason", "message", "file", "line", "exit_code", "signal", "log"]
    columns = [*names, *details, "kit"]
    rows = []
    kits = list_kits(folder)
    purpose = ""
    for event in _read_events(folder):
        if event["event"] == "batch":
            purpose = event["purpose"]
        if event["event"] != "run":
            continue
        row = {"purpose": purpose, "name": "", **event, "failed": "failure" in event}
        row["kit"] = row["failed"] and event.get("id") in kits
        if failed is not None and row["failed"] != failed:
            continue
        if row["failed"]:
            failure = failure_of(event)
            row |= {name: getattr(failure, name) for name in details}
        rows.append([row.get(name) for name in columns])
    return pandas.DataFrame(rows, columns=columns)


def plot_results(folder: SessionFolder, path: Path) -> Path:
    """Write a PNG of the fit and of phi. Raises `SessionError` when there is nothing to draw."""
    from pestfleet.plots import draw_results

    spec = folder.read_spec()
    title = f"{Path(spec.control_file).stem}, {spec.engine}"
    figure = draw_results(read_results(folder), title=title)
    if figure is None:
        raise SessionError(
            f"session {folder.name} has no results that can be drawn",
            remedy=f"See how far it is: pestfleet status {folder.name}",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _read_events(folder: SessionFolder) -> Iterator[dict[str, Any]]:
    return read_journal(folder.journal) if folder.journal.exists() else iter(())


def _name_sweep_files(folder: SessionFolder, spec: SessionSpec, control: ControlFile) -> list[str]:
    """Names that the output of a sweep may have; the engine's own word comes first."""
    names = ("sweep_output_csv_file", "sweep_obs_csv", "sweep_output_file")
    written = [options[name] for options in (spec.options, control.options) for name in names
               if name in options]  # fmt: skip
    said = read_summary(folder).get("file")
    found = [said] if isinstance(said, str) else []
    return [*found, *(Path(name).name for name in written), "sweep_out.csv"]
