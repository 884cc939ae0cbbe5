"""The slots of a worker: their folders, which of them is free, and what becomes of them."""

from __future__ import annotations

import logging
import queue
from pathlib import Path

from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.messages import RunConfig
from pestfleet_worker.runs import Slot

logger = logging.getLogger(__name__)


class Workplace:
    """All slots of one worker process."""

    def __init__(self, scratch: Path, *, name: str, process: str, count: int) -> None:
        """`process`: of this process alone, for a worker of the same name may still be there."""
        self.count = count
        self.slots: list[Slot] = []
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._scratch = scratch
        self._stem = f"{name}-{process[:8]}"

    def directory_of(self, slot: int) -> Path:
        # Side by side: all slots in a scratch folder share the case's big files.
        return self._scratch / f"{self._stem}-{slot}"

    def prepare(self, config: RunConfig, *, source: Path, mark: str) -> None:
        """Copy the case for each slot. `mark`: what processes that a slot starts carry."""
        for number in range(self.count):
            slot = Slot(
                config.case,
                source=source,
                directory=self.directory_of(number),
                limits=config.limits,
                worker_id=mark,
            )
            self.slots.append(slot)  # first: what a failure leaves half made is removed too
            slot.prepare()
            self.free.put(number)

    def remove(self) -> None:
        for slot in self.slots:
            try:
                slot.close()
            except OSError as error:  # a process that does not end in time still writes there
                logger.warning("%s stays: %s", slot.directory, error)


def find_source(config: RunConfig, own: Path | None) -> Path:
    """The case's folder: that of the run config, else our own. Raises `ConfigurationError`."""
    source = Path(config.source) if config.source else own
    if source is None:
        raise ConfigurationError(
            "the run config names no case folder and this worker has none of its own",
            remedy="Start the worker with --case FOLDER, or from an image with the case in it.",
        )
    return source
