"""What an engine's end means: its exit code, and what is in its files.

PEST++ ends with exit code 0 although runs failed: pestpp-swp and pestpp-sen even when all of them
did. A failed run's observations are -1e+100 (pestpp-swp) or -1e+30 in its files.
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pestfleet.control.model import ControlFile
from pestfleet.engines.base import Job
from pestfleet.engines.pestpp.control_copy import FLEET_OPTIONS, find_aliases
from pestfleet.engines.pestpp.progress import PhiReader, RunCounts
from pestfleet_worker.errors import CaseError, PestfleetError, RunsFailedError
from pestfleet_worker.slots import MARKER

FAILED_VALUE = -1e29  # what is below stands for a failed run
_TAIL_BYTES, _TAIL_LINES = 16384, 20
_REASONS = 3
_NO_DERIVATIVE = b"Parameters whose perturbation runs failed while computing jacobian"
_UNWANTED = (".rns", ".rnj", ".rst")  # run storage: large, and of no use without the master


@dataclass(frozen=True, slots=True)
class Ending:
    """What is known when the engine has ended. `folder`: its own; `output`: its standard output."""

    folder: Path
    output: Path
    code: int
    counts: RunCounts
    phi: PhiReader | None
    failures: Mapping[str, int]  # why runs failed -> how many


def summarize(job: Job, ending: Ending) -> dict[str, Any]:
    """The summary of an engine that came to its end.

    Has engine, runs, failed_runs, files, exit_code; iterations, phi, phi_initial, realizations,
    file, best where the engine has them; `incomplete` where results are missing.
    Raises `CaseError` for what the engine refuses in the case, `RunsFailedError` where failed
    runs ended it or left nothing of use, `PestfleetError` when it was killed.
    """
    counts = ending.counts
    files = keep_files(job.control, ending.folder, job.output)
    if ending.code != 0:
        raise describe_failure(job, ending)
    summary: dict[str, Any] = {
        "engine": job.engine,
        "exit_code": ending.code,
        "runs": counts.asked,
        "failed_runs": counts.failed,
        "files": files,
        "parameters": {},
    }
    if ending.phi is not None and ending.phi.phi is not None:
        summary |= {
            "iterations": max(ending.phi.number, 0),
            "phi": ending.phi.phi,
            "phi_initial": ending.phi.first_phi,
        }
    if counts.asked and not counts.done:
        raise RunsFailedError(
            f"all {counts.asked} runs of {job.engine} failed, although it ended with exit code 0"
            f"{list_failures(ending.failures)}",
            remedy=_WHERE_FAILURES.format(output=ending.output),
        )
    missing = _find_missing(job, ending, summary)
    if missing:
        summary["incomplete"] = missing
    if counts.failed:
        job.report.warn(
            f"{counts.failed} of {counts.asked} runs failed{list_failures(ending.failures)}"
        )
    return summary


def list_failures(failures: Mapping[str, int]) -> str:
    """The most frequent reasons, a line each."""
    often = sorted(failures.items(), key=lambda item: -item[1])[:_REASONS]
    return "".join(f"\n  {count} times: {why}" for why, count in often)


_WHERE_FAILURES = (
    "Why each run failed: pestfleet runs --failed; in agent mode the workers' logs "
    "(pestfleet logs). The engine's output is in {output}."
)


def describe_failure(job: Job, ending: Ending) -> PestfleetError:
    """The error for an engine that did not end well, with the last lines of its output."""
    said = "".join(f"\n  | {line}" for line in read_tail(ending.output))
    counts = ending.counts
    if ending.code < 0:
        name = _name_signal(-ending.code)
        if name == "SIGABRT":  # how a C++ program ends by an error that it does not catch
            return CaseError(
                f"{job.engine} ended itself after {counts.done} runs{said}",
                remedy="The lines above say why, often in the first of them.",
            )
        return PestfleetError(
            f"{job.engine} was killed by {name} after {counts.done} runs{said}",
            remedy="Out of memory, perhaps. A resumed session makes no finished run again.",
        )
    failed = max(counts.failed, counts.batch_failed)
    if failed:
        return RunsFailedError(
            f"{job.engine} gave up with exit code {ending.code}; "
            f"{failed} of {counts.asked} runs had failed{list_failures(ending.failures)}{said}",
            remedy=_WHERE_FAILURES.format(output=ending.output),
        )
    return CaseError(
        f"{job.engine} gave up with exit code {ending.code}{said}",
        remedy=f"Its output is in {ending.output}, its record beside it (.rec).",
    )


def find_unknown_options(ending: Ending) -> frozenset[str]:
    """Those of our options that the engine refused, as versions before 5.2.23 do."""
    if ending.code == 0 or ending.counts.asked:
        return frozenset()
    words = " ".join(_clean_tail(ending.output)).lower().replace(",", " ")
    if "were not accepted" not in words:
        return frozenset()
    return frozenset(words.split()) & FLEET_OPTIONS.keys()


def _find_missing(job: Job, ending: Ending, summary: dict[str, Any]) -> str:
    """A line that says which results are missing; "" when none are. Adds to the summary."""
    counts = ending.counts
    name = job.control.name
    if job.engine == "pestpp-swp":
        return _judge_sweep(job, ending, summary)
    if ending.phi is not None and ending.phi.realizations:
        left = summary["realizations"] = ending.phi.realizations[-1]
        prior = ending.folder / f"{name}.0.par.csv"
        all_realizations = max(_count_rows(prior), *ending.phi.realizations)
        if left == all_realizations:
            return ""  # only steps that were tried have failed, if anything has
        return f"{all_realizations - left} of {all_realizations} realizations were dropped"
    if job.engine == "pestpp-glm":
        if not (ending.folder / f"{name}.rec").exists():
            return f"{job.engine} wrote no {name}.rec"
        broken = _count_lines(ending.folder / f"{name}.rec", _NO_DERIVATIVE)
        if broken:
            return f"derivatives are missing in Jacobian matrices ({broken}): their runs failed"
        if not counts.asked:
            return f"{job.engine} ended without a run"
        return ""
    return f"{counts.failed} of {counts.asked} runs failed" if counts.failed else ""


def _judge_sweep(job: Job, ending: Ending, summary: dict[str, Any]) -> str:
    given = {**job.control.options, **{key.lower(): text for key, text in job.options.items()}}
    names = find_aliases("sweep_output_csv_file") & given.keys()
    name = next((given[name].strip("'\"") for name in names), "sweep_out.csv")
    path = ending.folder / name
    counts = ending.counts
    if path.suffix.lower() != ".csv":  # binary: the engine's own counts must do
        summary["file"] = path.name
        return f"{counts.failed} of {counts.asked} runs failed" if counts.failed else ""
    if not path.exists():
        return f"{job.engine} wrote no {name}"
    summary["file"] = path.name
    rows = failed = 0
    best = (float("inf"), "")
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            rows += 1
            if _is_failed(row):
                failed += 1
                continue
            phi = float(row.get("phi") or "inf")
            best = min(best, (phi, row.get("input_run_id") or ""))
    summary |= {"runs": rows, "failed_runs": failed}
    if best[1]:
        summary |= {"phi": best[0], "best": best[1]}
        job.report.iteration(0, phi=best[0], runs=rows, failed=failed)
    return f"{failed} of {rows} runs of the sweep failed" if failed else ""


def _is_failed(row: dict[str, str]) -> bool:
    if (row.get("failed_flag") or "0").strip() not in ("0", ""):
        return True
    last = next(reversed(row.values()), "") or ""
    try:
        return float(last) < FAILED_VALUE
    except ValueError:
        return True  # the line is cut off


# -- files ------------------------------------------------------------------------------------


def keep_files(control: ControlFile, folder: Path, output: Path) -> list[str]:
    """Put what the engine has written into the results; returns the names.

    Files are linked where that goes: ensembles can be large, and both folders are the session's.
    """
    case = control.path.parent
    unwanted = {pair.model for pair in (*control.templates, *control.instructions)}
    kept = []
    for path in sorted(folder.iterdir()):
        if path.name == MARKER or path.suffix in _UNWANTED or not path.is_file():
            continue
        if path.name in unwanted or path.suffix == ".pst" or _is_same(path, case / path.name):
            continue
        target = output / path.name
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)
        kept.append(path.name)
    return kept


def _is_same(path: Path, original: Path) -> bool:
    try:
        old = original.stat()
    except OSError:
        return False
    new = path.stat()
    return (old.st_mtime_ns, old.st_size) == (new.st_mtime_ns, new.st_size)


def read_tail(path: Path) -> list[str]:
    """The last lines of an output that say something; repeated progress is left out."""
    return list(_clean_tail(path))[-_TAIL_LINES:]


def _clean_tail(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    for line in text.split("\n"):
        last = line.rstrip("\r").rpartition("\r")[2].rstrip()  # what a terminal would show
        if last.strip():
            yield last


def _count_rows(path: Path) -> int:
    """Rows below the header of a CSV file; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return max(sum(1 for line in file if line.strip()) - 1, 0)


def _count_lines(path: Path, text: bytes) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if text in line)


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
