"""One run of a case with its initial values, on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pestfleet.case import Case
from pestfleet.settings import Settings
from pestfleet_worker.errors import CaseError
from pestfleet_worker.messages import Limits

if TYPE_CHECKING:
    from pestfleet_worker.runs import Outcome


def pack_initial_values(case: Case) -> bytes:
    """The vector of a run with the initial values, as the model gets it."""
    return case.model_values(case.initial_values()).astype("<f8").tobytes()


def make_initial_run(case: Case, settings: Settings) -> Outcome:
    """Run the model with the initial values in a temporary slot.

    Of the settings count scratch, time limit and threads. Raises `CaseError` where no run can be
    made, such as on Windows, and `ConfigurationError`.
    """
    try:
        from pestfleet_worker.runs import Slot
    except ImportError as error:  # Windows
        raise CaseError(f"no run can be made here: {error}") from error
    if settings.scratch:
        Path(settings.scratch).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="pestfleet-check-", dir=settings.scratch or None
    ) as scratch:
        slot = Slot(
            case.spec,
            source=case.folder.resolve(),
            directory=Path(scratch) / "slot",
            limits=Limits(settings.time_limit, settings.threads),
            worker_id=Path(scratch).name,
        )
        slot.prepare()
        try:
            return slot.execute(pack_initial_values(case))
        finally:
            slot.close()
