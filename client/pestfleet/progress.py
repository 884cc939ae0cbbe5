"""How a session shows its progress: a live display, plain lines, or one JSON object a line.

Each display is a context manager; `tell(event)` takes the master's events from any thread.
`look()` gives the state of the session (`Master.snapshot`), and is called after the `start`
event only.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pestfleet.narration import (
    Event,
    Narrator,
    State,
    count_slots,
    describe_batch,
    describe_left,
    estimate_seconds_left,
    format_change,
    format_duration,
    format_phi,
    stamp,
)
from pestfleet.quiet import QuietStream

Look = Callable[[], State]

INTERVAL = 10.0  # seconds between two plain lines about a batch
FIRST = 2.0  # seconds from a batch's begin to the first of them


class Display(AbstractContextManager["Display"], Protocol):
    """Shows a session that runs in this process."""

    def tell(self, event: Event) -> None:
        """Show an event of the session."""
        ...


def render_state(state: State, *, first_phi: float | None = None) -> RenderableType:
    """Iteration, phi, the batch with its bar, slots and times, for a terminal."""
    batch = state["batch"]
    head = Text.assemble(
        (state.get("session", ""), "bold"),
        f"  {state.get('engine', '')} on {state.get('target', '')}",
        f"  {format_duration(int(max(0.0, state['now'] - state['began'])))}",
    )
    lines: list[RenderableType] = [head]
    if "phi" in state:
        change = format_change(state["phi"], first_phi)
        lines.append(
            Text.assemble(
                f"iteration {state['iteration']}   phi ",
                (format_phi(state["phi"]), "bold"),
                f"   {change} than at first" if change else "",
            )
        )
    busy, slots = count_slots(state)
    workers = len(state.get("workers", ()))
    if batch["total"]:
        failed = (f"  {batch['failed']:,} failed", "red") if batch["failed"] else ""
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=batch["total"], completed=batch["done"], width=24),
            Text.assemble(f"{batch['done']:,}/{batch['total']:,} runs", failed),
        )
        lines += [Text(state["purpose"]), bar]
    if state.get("state", "running") != "running":
        return Group(*lines)
    wanted = state.get("workers_wanted", workers)
    missing = f" of {wanted}" if workers < wanted else ""
    left = estimate_seconds_left(state)
    lines.append(
        Text.assemble(
            f"workers {workers}{missing}, slots {busy}/{slots} busy",
            f", {describe_left(left)}" if left is not None else "",
        )
    )
    return Group(*lines)


class LiveDisplay:
    """Renews a few lines at the bottom of a terminal; what stays is written above them."""

    def __init__(self, look: Look, console: Console) -> None:
        self._look = look
        self._console = console
        self._started = False
        self._narrator = Narrator()
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=8, transient=True
        )

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tell(self, event: Event) -> None:
        kind = event["event"]
        line = self._narrator.narrate(event)
        if kind == "start":
            self._started = True
        elif kind == "end":
            self._started = False
        # Batches, and workers that come, are seen in the lines below.
        if line is not None and kind not in ("start", "batch", "worker-joined"):
            style = "yellow" if line.startswith("warning") or kind == "worker-left" else ""
            self._console.print(line, style=style, highlight=False, markup=False)

    def _render(self) -> RenderableType:
        state = self._look() if self._started else {}
        if "batch" not in state:  # one elsewhere, whose state has not come yet
            return Text("")
        return render_state(state, first_phi=self._narrator.first_phi)


class _Ticker:
    """Calls `tick` in a thread of its own: `FIRST` after `restart`, then each `INTERVAL`."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._wake = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def restart(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._over = True
        self._wake.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        wait = INTERVAL
        while not self._over:
            if self._wake.wait(wait):
                self._wake.clear()
                wait = FIRST
            else:
                wait = INTERVAL
                self._tick()


class LineDisplay:
    """Writes few plain lines, each with the time of day: for logs and pipes."""

    def __init__(self, look: Look, stream: TextIO | QuietStream) -> None:
        self._look = look
        self._stream = stream
        self._lock = threading.Lock()
        self._started = False
        self._narrator = Narrator()
        self._ticker = _Ticker(self._tick)

    def __enter__(self) -> LineDisplay:
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ticker.stop()

    def tell(self, event: Event) -> None:
        line = self._narrator.narrate(event)
        if event["event"] == "batch":
            self._started = True
            self._ticker.restart()
        elif event["event"] == "end":
            self._started = False
        if line is not None:
            self._write(line, event.get("time", time.time()))

    def _tick(self) -> None:
        if self._started:
            state = self._look()
            batch = state.get("batch")  # not there: one elsewhere, whose state has not come yet
            if batch and batch["done"] < batch["total"]:
                self._write(describe_batch(state), time.time())

    def _write(self, line: str, when: float) -> None:
        with self._lock:
            self._stream.write(f"{stamp(line, when)}\n")
            self._stream.flush()


class JsonDisplay:
    """Writes each event as one JSON object a line, and a `progress` one from time to time."""

    def __init__(self, look: Look, stream: TextIO | QuietStream) -> None:
        self._look = look
        self._stream = stream
        self._lock = threading.Lock()
        self._started = False
        self._ticker = _Ticker(self._tick)

    def __enter__(self) -> JsonDisplay:
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ticker.stop()

    def tell(self, event: Event) -> None:
        if event["event"] == "batch":
            self._started = True
            self._ticker.restart()
        elif event["event"] == "end":
            self._started = False
        self._write(event)

    def _tick(self) -> None:
        if self._started:
            self._write({"time": time.time(), "event": "progress", **self._look()})

    def _write(self, event: Event) -> None:
        with self._lock:
            self._stream.write(dump_json(event) + "\n")
            self._stream.flush()


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_clean(value), ensure_ascii=False, indent=indent, default=str)


def _clean(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def make_display(
    look: Look, *, console: Console, stream: TextIO | QuietStream, as_json: bool
) -> LiveDisplay | LineDisplay | JsonDisplay:
    """The display that fits: JSON if asked for, live on a terminal, else plain lines."""
    if as_json:
        return JsonDisplay(look, stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(look, console)
    return LineDisplay(look, stream)
