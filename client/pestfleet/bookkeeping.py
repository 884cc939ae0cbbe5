"""What a master keeps on disk beside its journal: the case, its state for others, and its log."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet_worker.slots import MARKER, SlotError, prepare_slot

logger = logging.getLogger(__name__)

STATE_INTERVAL = 0.5  # seconds between two states on disk


def keep_case(folder: SessionFolder, spec: SessionSpec) -> None:
    """Have a copy of the case as it was at launch. Raises `SlotError` where it cannot be made."""
    if folder.case.exists():
        return
    draft = folder.path / "case.draft"  # a copy that was not finished must not be taken
    try:
        if draft.exists():
            shutil.rmtree(draft)
        prepare_slot(Path(spec.control_file).parent, draft)
        (draft / MARKER).unlink()  # no part of the case, and of its digest
        draft.replace(folder.case)
    except OSError as error:
        raise SlotError(
            f"cannot copy the case to {folder.case}: {error}",
            remedy="Check the space and the permissions there.",
        ) from error


@contextmanager
def keep_state(folder: SessionFolder, snapshot: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Write the state again and again for as long as the context lasts.

    Raises `OSError` where the first one cannot be written; later it is only logged.
    """
    over = threading.Event()

    def keep() -> None:
        while not over.wait(STATE_INTERVAL):
            try:
                folder.write_state(snapshot())
            except Exception as error:  # the next one may do
                logger.warning("state.json cannot be written: %s", error)

    folder.write_state(snapshot())
    thread = threading.Thread(target=keep, name="state", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """What both distributions log goes into this file for as long as the context lasts."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    with ExitStack() as stack:
        stack.callback(handler.close)
        for name in ("pestfleet", "pestfleet_worker"):
            log = logging.getLogger(name)
            stack.callback(log.removeHandler, handler)
            stack.callback(log.setLevel, log.level)
            log.setLevel(logging.INFO)
            log.addHandler(handler)
        yield
