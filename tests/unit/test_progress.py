"""How a session's progress is shown."""

from __future__ import annotations

import io
import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from pestfleet import progress
from pestfleet.narration import (
    Narrator,
    count_slots,
    describe_batch,
    estimate_seconds_left,
    format_change,
    format_duration,
    narrate_log,
)
from pestfleet.progress import (
    JsonDisplay,
    LineDisplay,
    LiveDisplay,
    dump_json,
    make_display,
    render_state,
)


def make_state(**changes: Any) -> dict[str, Any]:
    slots = [{"run": 12, "seconds": 3.0}, {"run": None, "seconds": 0.0}]
    state: dict[str, Any] = {
        "session": "s1",
        "state": "running",
        "engine": "glm",
        "target": "local",
        "began": 1000.0,
        "now": 1065.0,
        "iteration": 2,
        "phi": 25.0,
        "purpose": "Jacobian, iteration 3",
        "batch": {"total": 20, "done": 12, "failed": 1, "known": 0},
        "runs": {"made": 40, "failed": 1, "mean_seconds": 10.0},
        "workers_wanted": 2,
        "workers": [{"name": "local-1", "slots": slots}, {"name": "local-2", "slots": slots}],
    }
    return state | changes


def render(renderable: Any, *, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(renderable)
    return stream.getvalue()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.254, "0.25 s"),
        (9.99, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("phi", "before", "text"),
    [
        (25.0, 100.0, "75 % less"),
        (110.0, 100.0, "10 % more"),
        (1e6, 1.0, "1e+06 times as much"),
        (5.0, None, ""),
        (5.0, 0.0, ""),
        (5.0, 5.0, ""),
        (math.nan, 5.0, ""),
    ],
)
def test_changes_of_phi(phi: float, before: float | None, text: str) -> None:
    assert format_change(phi, before) == text


def test_slots_are_counted_over_all_workers() -> None:
    assert count_slots(make_state()) == (2, 4)
    assert count_slots({}) == (0, 0)


def test_time_left_counts_rounds_and_what_is_under_way() -> None:
    # 8 runs on 4 slots are 2 rounds of 10 s; runs under way are 3 s old.
    assert estimate_seconds_left(make_state()) == pytest.approx(17.0)
    # A run that takes longer than the mean does not make the rest shorter than nothing.
    slots = [{"run": 1, "seconds": 50.0}]
    state = make_state(
        workers=[{"name": "w", "slots": slots}], batch={"total": 1, "done": 0, "failed": 0}
    )
    assert estimate_seconds_left(state) == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": []},
        {"runs": {"made": 0, "failed": 0, "mean_seconds": 0.0}},
        {"batch": {"total": 4, "done": 4, "failed": 0, "known": 0}},
    ],
)
def test_time_left_is_unknown(changes: dict[str, Any]) -> None:
    assert estimate_seconds_left(make_state(**changes)) is None


def test_events_in_lines() -> None:
    narrator = Narrator()
    events: list[tuple[dict[str, Any], str | None]] = [
        (
            {"event": "start", "session": "s1", "known_runs": 1234},
            "session s1, 1,234 runs are known",
        ),
        ({"event": "engine-started", "engine": "glm"}, None),
        ({"event": "batch", "purpose": "Jacobian", "runs": 1}, "Jacobian: 1 run"),
        ({"event": "worker-joined", "worker": "w", "slots": 2}, "worker w joined (2 slots)"),
        ({"event": "iteration", "number": 0, "phi": 200.0}, "phi at first 200"),
        ({"event": "iteration", "number": 1, "phi": 50.0}, "iteration 1: phi 50 (75 % less)"),
        ({"event": "iteration", "number": 2, "phi": 75.0}, "iteration 2: phi 75 (50 % more)"),
        ({"event": "note", "text": "hello"}, "hello"),
        ({"event": "warn", "text": "oh"}, "warning: oh"),
        ({"event": "worker-left", "worker": "w", "reason": "silent"}, "worker w left: silent"),
        ({"event": "worker-left", "worker": "w", "reason": "the session is over"}, None),
        (
            {"event": "worker-refused", "worker": "w", "reason": "old"},
            "warning: worker w was refused: old",
        ),
    ]
    assert [narrator.narrate(event) for event, _ in events] == [line for _, line in events]
    assert narrator.first_phi == 200.0


def test_a_sweep_has_no_iterations() -> None:
    narrator = Narrator()
    narrator.narrate({"event": "engine-started", "engine": "sweep"})
    assert narrator.narrate({"event": "iteration", "number": 0, "phi": 3.0}) == "lowest phi 3"


def test_a_log_in_words() -> None:
    clock = time.strftime("%H:%M:%S", time.localtime(5.0))
    events: list[dict[str, Any]] = [
        {"time": 5.0, "event": "start", "session": "s1"},
        {"time": 5.0, "event": "run", "id": 1},
        {"time": 5.0, "event": "progress", **make_state()},
        {"time": "noon", "event": "note", "text": "of another program"},
        {"time": 5.0, "event": "end", "state": "finished"},
    ]
    lines = [dump_json(event) for event in events]
    told = list(narrate_log(["{broken", *lines, "pestfleet: error"]))
    assert told == [
        "{broken",
        f"{clock} session s1",
        f"{clock} {describe_batch(make_state())}",
        lines[3],
        f"{clock} the session is over: finished",
        "pestfleet: error",
    ]


def test_a_batch_in_a_line() -> None:
    assert describe_batch(make_state()) == (
        "Jacobian, iteration 3: 12 of 20 runs done, 1 failed, 2 of 4 slots busy, "
        "about 17 s left in this batch"
    )


@pytest.mark.parametrize("width", [60, 80, 160])
def test_state_on_a_terminal(width: int) -> None:
    text = render(render_state(make_state(), first_phi=100.0), width=width)
    for part in ("s1", "glm on local", "1 min 5 s", "iteration 2", "phi 25", "75 % less than at"):
        assert part in text
    assert "Jacobian, iteration 3" in text
    assert "12/20 runs  1 failed" in text
    assert "slots 2/4 busy" in text
    assert len(text.splitlines()) == 5


def test_missing_workers_are_told() -> None:
    assert "workers 1 of 2," in render(
        render_state(make_state(workers=[{"name": "w", "slots": []}]))
    )


def test_a_session_that_has_ended_has_no_workers() -> None:
    assert "workers" not in render(render_state(make_state(state="died")))


def test_lines_are_few_and_carry_the_time() -> None:
    stream = io.StringIO()
    with LineDisplay(make_state, stream) as display:
        display.tell({"event": "start", "session": "s1", "time": 0.0})
        display.tell({"event": "batch", "purpose": "Jacobian", "runs": 3, "time": 0.0})
        display.tell({"event": "end", "state": "finished", "time": 0.0})
    clock = time.strftime("%H:%M:%S", time.localtime(0.0))
    assert stream.getvalue() == f"{clock} session s1\n{clock} Jacobian: 3 runs\n"


def test_lines_tell_a_long_batch_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.01)
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    stream = io.StringIO()
    with LineDisplay(make_state, stream) as display:
        display.tell({"event": "batch", "purpose": "Jacobian", "runs": 20})
        wait_for(lambda: stream.getvalue().count("12 of 20 runs done") >= 2)
        display.tell({"event": "end", "state": "finished"})
        quiet = stream.getvalue().count("\n") + 1  # one may be under way
    assert stream.getvalue().count("\n") <= quiet


def test_json_lines_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.01)
    stream = io.StringIO()
    events = [
        {"event": "start", "session": "s1", "time": 1.0},
        {"event": "batch", "purpose": "two\nlines", "runs": 3, "time": 2.0},
        {"event": "iteration", "number": 1, "phi": math.nan, "time": 3.0},
    ]
    with JsonDisplay(make_state, stream) as display:
        for event in events:
            display.tell(event)
        wait_for(lambda: '"progress"' in stream.getvalue())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [line for line in lines if line["event"] != "progress"]
    assert told == [events[0], events[1], events[2] | {"phi": None}]
    shown = next(line for line in lines if line["event"] == "progress")
    assert shown["batch"]["done"] == 12


def test_json_is_strict() -> None:
    text = dump_json({"a": [math.inf, (1.5, {"b": math.nan})], "c": "é"})
    assert text == '{"a": [null, [1.5, {"b": null}]], "c": "é"}'


def test_live_display_shows_the_state_and_keeps_iterations() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    looks = 0

    def look() -> dict[str, Any]:
        nonlocal looks
        looks += 1
        return make_state()

    with LiveDisplay(look, console) as display:
        assert looks == 0  # there is no state before the start
        display.tell({"event": "start", "session": "s1", "known_runs": 0})
        display.tell({"event": "iteration", "number": 0, "phi": 100.0})
        display.tell({"event": "warn", "text": "[bold]not markup[/bold]"})
        wait_for(lambda: "75 % less than at first" in stream.getvalue())
        display.tell({"event": "end", "state": "finished"})
    text = stream.getvalue()
    assert "phi at first 100" in text
    assert "warning: [bold]not markup[/bold]" in text
    assert "12/20 runs" in text


def test_a_session_elsewhere_whose_state_has_not_come_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events come by another way than its state, and the first of them before that."""
    monkeypatch.setattr(progress, "FIRST", 0.01)
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    looks: list[dict[str, Any]] = []

    def look() -> dict[str, Any]:
        looks.append({"session": "s1", "state": "running"} if len(looks) < 5 else make_state())
        return looks[-1]

    live, lines = io.StringIO(), io.StringIO()
    console = Console(file=live, force_terminal=True, width=100, color_system=None)
    for display in (LiveDisplay(look, console), LineDisplay(look, lines)):
        looks.clear()
        with display:
            display.tell({"event": "start", "session": "s1", "time": 0.0})
            display.tell({"event": "batch", "purpose": "Jacobian", "runs": 20, "time": 0.0})
            wait_for(lambda: len(looks) > 6)
    assert "12/20 runs" in live.getvalue()
    assert "12 of 20 runs done" in lines.getvalue()


def test_the_display_fits_the_terminal() -> None:
    stream = io.StringIO()

    def choose(*, terminal: bool, as_json: bool = False) -> object:
        console = Console(file=stream, force_terminal=terminal)
        return make_display(make_state, console=console, stream=stream, as_json=as_json)

    assert isinstance(choose(terminal=True, as_json=True), JsonDisplay)
    assert isinstance(choose(terminal=False), LineDisplay)


def test_a_terminal_gets_the_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), force_terminal=True)
    display = make_display(make_state, console=console, stream=io.StringIO(), as_json=False)
    assert isinstance(display, LiveDisplay)
