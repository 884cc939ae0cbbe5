"""The health file: young while the worker is connected with the broker.

A container's health check looks at its age alone, so that it starts no Python.
"""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger(__name__)

NAME = "alive"


class HealthFile:
    """The file `alive` in a worker's scratch folder. It is no reason to fail, ever."""

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / NAME
        self._hidden = False

    def hide(self, hidden: bool) -> None:
        """Have none: a worker that waits for its end does not count as ready."""
        if hidden != self._hidden:
            self._hidden = hidden
            if hidden:
                self.remove()

    def touch(self) -> None:
        """There is a connection now."""
        if self._hidden:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as error:
            logger.warning("%s cannot be touched: %s", self.path, error)

    def remove(self) -> None:
        """The worker ends, or waits for its end."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s stays: %s", self.path, error)
