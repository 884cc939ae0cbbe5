"""The table of slots in `pestfleet status`."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from pestfleet.cli.status import SLOTS, render_status


def make_status(workers: int, *, silent: int) -> dict[str, Any]:
    """Of a session with so many workers of two slots; the one of a number is silent."""
    made = [
        {
            "name": f"w{number}",
            "host": f"h{number}",
            "finished": 3,
            "silent_seconds": 8.0 if number == silent else 0.2,
            "slots": [{"run": number, "seconds": 1.0}, {"run": None, "seconds": 0.0}],
        }
        for number in range(workers)
    ]
    return {
        "session": "many",
        "state": "running",
        "engine": "sweep",
        "case": "case.pst",
        "began": 0.0,
        "now": 10.0,
        "purpose": "runs",
        "batch": {"total": 10, "done": 1, "failed": 0, "known": 0},
        "runs": {"made": 1, "failed": 0, "known": 0, "mean_seconds": 1.0},
        "workers": made,
    }


def show(status: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(render_status(status))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_all_slots_are_shown() -> None:
    text = show(make_status(SLOTS // 2, silent=7))
    assert text.count("idle") == SLOTS // 2
    assert "run 7, 1" in text and text.count("(silent for 8") == 2
    assert "more slots" not in text


def test_of_very_many_slots_the_silent_ones_are_shown_first() -> None:
    text = show(make_status(1000, silent=999))
    assert text.count("idle") == SLOTS // 2
    assert text.index("w999") < text.index("w0 ")
    assert f"and {2000 - SLOTS:,} more slots; --json has all" in text
