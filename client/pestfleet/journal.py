"""The journal of a session: everything that happened, one JSON object a line.

Appended and flushed event by event, so that another process can read it at any time and a
killed master leaves at most its last line incomplete; readers pass over such a line. A `run`
event has its vectors as base64 of little-endian float64: enough to never make the run again.

Events (`event`; every one has `time`, seconds since 1970):
    start, engine-started, iteration, note, warn, worker-joined, worker-left, worker-refused,
    batch (purpose, runs), run (id, parameters, observations | failure, worker, seconds,
    name: the user's for it, kit_lost: why the kit of a failed one was not kept), end
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pestfleet_worker.messages import Failure, Result, Run

logger = logging.getLogger(__name__)

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class Journal:
    """Writes a journal. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file: TextIO = path.open("a", encoding="utf-8", newline="\n")
        if self._file.tell():
            self._file.write("\n")  # a line that a killed master left incomplete ends here

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. Raises OSError when the disk is full."""
        line = _ENCODER.encode({"time": round(time.time(), 3), "event": event, **fields})
        with self._lock:
            if not self._file.closed:
                self._file.write(line + "\n")
                self._file.flush()

    def write_run(self, run: Run, result: Result, *, name: str = "", kit_lost: str = "") -> None:
        """Append a finished run.

        `name`: what the user calls it; `kit_lost`: why the kit that came with it was not kept.
        """
        outcome: dict[str, Any] = {}
        if result.failure is None:
            outcome["observations"] = _to_text(result.observations)
        else:
            failure = result.failure
            outcome["failure"] = {
                name: value
                for name in ("reason", "message", "file", "line", "exit_code", "signal", "log")
                if (value := getattr(failure, name)) not in ("", None, 0) or name == "message"
            }
        outcome |= {"name": name} if name else {}
        outcome |= {"kit_lost": kit_lost} if kit_lost else {}
        self.write(
            "run",
            id=run.id,
            worker=result.worker,
            slot=result.slot,
            seconds=round(result.seconds, 6),
            parameters=_to_text(run.parameters),
            **outcome,
        )

    def close(self) -> None:
        """Close the file, whatever becomes of what a full disk did not take."""
        with self._lock:
            try:
                self._file.close()
            except OSError as error:
                logger.error("the journal's last lines are lost: %s", error)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a journal, oldest first; incomplete lines are passed over."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            event = parse_event(line)
            if event is not None:
                yield event


def parse_event(line: str) -> dict[str, Any] | None:
    """The event of a line of a journal or a master's log; None for a line that is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and {"event", "time"} <= event.keys() else None


def read_finished_runs(path: Path) -> dict[bytes, bytes]:
    """Parameters -> observations of every run that the journal has as successful."""
    finished: dict[bytes, bytes] = {}
    for event in read_journal(path):
        if event["event"] == "run" and "observations" in event:
            try:
                parameters = _from_text(event["parameters"])
                finished[parameters] = _from_text(event["observations"])
            except (KeyError, TypeError, ValueError):
                logger.warning("a damaged run in %s is made again", path)
    return finished


def failure_of(event: dict[str, Any]) -> Failure:
    """The failure in a `run` event."""
    return Failure(**{"reason": "worker-error", **event["failure"]})


def _to_text(vector: bytes) -> str:
    return base64.b64encode(vector).decode("ascii")


def _from_text(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
