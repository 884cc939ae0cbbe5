"""How far a session is, as plain data: what `state.json` has and the display shows."""

from __future__ import annotations

import time
from typing import Any

from pestfleet.desk import WorkerState
from pestfleet.folder import SessionSpec
from pestfleet.ledger import Counts
from pestfleet.runner import Batch


def take_snapshot(
    spec: SessionSpec,
    *,
    state: str,
    began: float,
    iteration: dict[str, Any],
    batch: Batch,
    counts: Counts,
    workers: list[WorkerState],
    wanted: int,
    cost: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """`state`: running, finished, stopped or failed; `began`: seconds since 1970.

    `iteration`: number, phi and detail of the last one, or {}. `wanted`: workers that the session
    wants now. `cost`: so far, see `pestfleet.costs.meter.Meter.to_json`; None where it is free.
    """
    if not batch.total and counts.requested:  # an engine that asks for single runs
        purpose = f"runs of {spec.engine}"
        batch = Batch(purpose, counts.requested, counts.answered, counts.failed, counts.known)
    return {
        "session": spec.session,
        "state": state,
        "engine": spec.engine,
        "target": spec.target,
        "case": spec.control_file,
        "began": began,
        "now": time.time(),
        **iteration,
        "purpose": batch.purpose,
        "batch": {
            "total": batch.total,
            "done": batch.done,
            "failed": batch.failed,
            "known": batch.known,
        },
        "runs": {
            "made": counts.made,
            "failed": counts.failed,
            "known": counts.known,
            "mean_seconds": counts.mean_seconds,
        },
        "workers_wanted": wanted,
        "workers_most": spec.most,
        "workers": [_describe(worker) for worker in workers],
        **({} if cost is None else {"cost": cost}),
    }


def _describe(worker: WorkerState) -> dict[str, Any]:
    return {
        "name": worker.name,
        "host": worker.host,
        "process": worker.process,
        "platform": worker.platform,
        "finished": worker.finished,
        "draining": worker.draining,
        "silent_seconds": round(time.monotonic() - worker.heard, 1),
        "slots": [{"run": state.run, "seconds": round(state.seconds, 1)} for state in worker.states]
        or [{"run": None, "seconds": 0.0}] * worker.slots,
    }
