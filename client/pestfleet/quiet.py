"""Output streams that must not do harm when nobody reads them any more."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, TextIO


class QuietStream:
    """An output stream that goes silent once it cannot be written.

    A closed pipe (`| head`), a terminal that is gone or a full disk must not end a session, which
    is worth more than its display. Everything else is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._silent = False

    def write(self, text: str) -> int:
        """Never raises for a stream that is gone."""
        if not self._silent:
            try:
                return self._stream.write(text)
            except (OSError, ValueError):  # ValueError: it is closed
                self._fall_silent()
        return len(text)

    def flush(self) -> None:
        """Never raises for a stream that is gone."""
        if not self._silent:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._fall_silent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fall_silent(self) -> None:
        self._silent = True
        discard(self._stream)


def discard(stream: TextIO) -> None:
    """Send what is left in the stream's buffer, and all that follows, to nowhere.

    Else Python would fail to flush it at the end of the process (Python's documentation of the
    module signal, "Note on SIGPIPE").
    """
    with suppress(OSError, ValueError):  # it may have no file descriptor, or a closed one
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
