"""What happens in a session, in words: its events, its batch of runs, times and phi."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

from pestfleet.journal import parse_event

State = dict[str, Any]
Event = dict[str, Any]

SESSION_OVER = "the session is over"  # why every worker leaves at the end


def format_duration(seconds: float) -> str:
    """`0.25 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def format_phi(phi: float) -> str:
    """Phi with five significant digits."""
    return f"{phi:.5g}"


def format_change(phi: float, before: float | None) -> str:
    """How much less phi is than before, in percent; "" where that means nothing."""
    if before is None or not before > 0 or not math.isfinite(phi) or phi == before:
        return ""
    change = 100 * (phi - before) / before
    if abs(change) > 999:
        return f"{phi / before:.3g} times as much"
    return f"{abs(change):.3g} % {'less' if change < 0 else 'more'}"


def count_slots(state: State) -> tuple[int, int]:
    """(busy, all) slots of the workers that are there, by their last heartbeats."""
    slots = [slot for worker in state.get("workers", ()) for slot in worker["slots"]]
    return sum(slot["run"] is not None for slot in slots), len(slots)


def estimate_seconds_left(state: State) -> float | None:
    """Seconds that the batch still needs, from the mean run time; None while nothing is known."""
    batch, mean = state.get("batch", {}), state.get("runs", {}).get("mean_seconds", 0.0)
    left = batch.get("total", 0) - batch.get("done", 0)
    slots = count_slots(state)[1]
    if left <= 0 or not mean or not slots:
        return None
    under_way = [
        min(slot["seconds"], mean)
        for worker in state["workers"]
        for slot in worker["slots"]
        if slot["run"] is not None
    ]
    # Whole rounds of runs, less what the runs under way have behind them on the average.
    rounds = math.ceil(left / slots) if left < 3 * slots else left / slots
    behind = sum(under_way) / len(under_way) if under_way else 0.0
    return float(max(mean * rounds - behind, 0.0))


class Narrator:
    """Tells events in lines. Keeps the engine, and phi of the first and the last iteration."""

    def __init__(self) -> None:
        self.first_phi: float | None = None
        self._last_phi: float | None = None
        self._engine = ""

    def narrate(self, event: Event) -> str | None:
        """One line about an event; None for one that is not worth a line."""
        kind = event["event"]
        if kind == "start":
            known = event.get("known_runs", 0)
            return f"session {event['session']}" + (f", {known:,} runs are known" * bool(known))
        if kind == "engine-started":
            self._engine = event["engine"]
        if kind == "iteration":
            return self._narrate_iteration(event)
        if kind == "batch":
            return f"{event['purpose']}: {event['runs']:,} run{'s' * (event['runs'] != 1)}"
        if kind == "note":
            return str(event["text"])
        if kind == "warn":
            return f"warning: {event['text']}"
        if kind == "worker-joined":
            slots = event["slots"]
            return f"worker {event['worker']} joined ({slots} slot{'s' * (slots != 1)})"
        if kind == "worker-left" and event["reason"] != SESSION_OVER:
            return f"worker {event['worker']} left: {event['reason']}"
        if kind == "worker-refused":
            return f"warning: worker {event['worker']} was refused: {event['reason']}"
        return None

    def _narrate_iteration(self, event: Event) -> str:
        number, phi = event["number"], event["phi"]
        change = format_change(phi, self._last_phi)
        self._last_phi = phi
        if self.first_phi is None:
            self.first_phi = phi
        name = f"iteration {number}: phi" if number else "phi at first"
        if self._engine == "sweep":
            name = "lowest phi"
        elif self._engine == "ies":
            name = name.replace("phi", "mean phi")
        return f"{name} {format_phi(phi)}{f' ({change})' if change else ''}"


def describe_left(seconds: float) -> str:
    """How long the batch still takes, in whole seconds."""
    return f"about {format_duration(max(1, round(seconds)))} left in this batch"


def describe_batch(state: State) -> str:
    """One line about the batch of runs that the engine waits for."""
    batch = state["batch"]
    busy, slots = count_slots(state)
    parts = [f"{batch['done']:,} of {batch['total']:,} runs done"]
    if batch["failed"]:
        parts.append(f"{batch['failed']:,} failed")
    parts.append(f"{busy} of {slots} slots busy")
    left = estimate_seconds_left(state)
    if left is not None:
        parts.append(describe_left(left))
    return f"{state['purpose']}: {', '.join(parts)}"


def narrate_log(lines: Iterable[str]) -> Iterator[str]:
    """A log's lines, with a master's events in words; those that are not worth a line are left out.

    Lines that are no events, as those of workers, come as they are.
    """
    narrator = Narrator()
    for line in lines:
        event = parse_event(line)
        if event is None:
            yield line
            continue
        try:
            told = narrator.narrate(event)
            if event["event"] == "progress":
                told = describe_batch(event)
            elif event["event"] == "end":
                told = f"the session is over: {event['state']}"
            if told is not None:
                yield stamp(told, event["time"])
        except (KeyError, TypeError, ValueError, OverflowError):
            yield line  # somebody else's JSON


def stamp(line: str, when: float) -> str:
    """The line with the time of day. `when`: seconds since 1970."""
    return f"{time.strftime('%H:%M:%S', time.localtime(when))} {line}"
