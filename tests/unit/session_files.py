"""Session folders as a master would leave them, made without a fleet."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.journal import Journal
from pestfleet_worker.messages import Failure, Result, Run, pack_vector

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "oude-korendijk"
CASE = "oude-korendijk"


def make_session(root: Path, name: str = "s1", **changes: Any) -> SessionFolder:
    """A session of the example that has its copy of the case, and has done nothing yet."""
    values: dict[str, Any] = {
        "control_file": str(EXAMPLE / f"{CASE}.pst"),
        "digest": "0" * 64,
        "engine": "glm",
        "target": "local",
        "workers": 2,
        "slots": 1,
    }
    folder = SessionFolder(root / name)
    folder.create(SessionSpec(session=name, **values | changes))
    shutil.copytree(EXAMPLE, folder.case)
    return folder


def write_events(folder: SessionFolder, *events: dict[str, Any]) -> None:
    """Append to the journal."""
    journal = Journal(folder.journal)
    for event in events:
        journal.write(**event)
    journal.close()


def write_runs(folder: SessionFolder, outcomes: list[Failure | None], *, purpose: str) -> None:
    """Append a batch of runs, of which those with a failure failed; ids count from 1."""
    journal = Journal(folder.journal)
    journal.write("batch", purpose=purpose, runs=len(outcomes), known=0)
    for number, failure in enumerate(outcomes, start=1):
        observations = b"" if failure else pack_vector([1.0, 2.0])
        journal.write_run(
            Run(number, pack_vector([0.5, number])),
            Result(number, "local-1", 0, 0.25 * number, observations, failure),
        )
    journal.close()


def make_state(**changes: Any) -> dict[str, Any]:
    """state.json of a session that works on a Jacobian with two workers."""
    workers = [
        {
            "name": f"local-{number}",
            "host": "here",
            "process": number,
            "platform": "linux/x86_64",
            "finished": 3,
            "silent_seconds": 0.1,
            "slots": [{"run": 40 + number if number == 1 else None, "seconds": 2.5}],
        }
        for number in (1, 2)
    ]
    state: dict[str, Any] = {
        "session": "s1",
        "state": "running",
        "engine": "glm",
        "target": "local",
        "case": f"{CASE}.pst",
        "began": 1000.0,
        "now": 1012.0,
        "iteration": 2,
        "phi": 25.0,
        "purpose": "Jacobian, iteration 3",
        "batch": {"total": 20, "done": 12, "failed": 1, "known": 0},
        "runs": {"made": 40, "failed": 1, "mean_seconds": 10.0},
        "workers_wanted": 2,
        "workers": workers,
    }
    return state | changes
