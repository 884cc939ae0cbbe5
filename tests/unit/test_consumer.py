"""The end of Celery's loop in a worker that leaves; the loop is a fake that a test turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state

from hosting import wait_for
from pestfleet_worker.consumer import end_loop

PATIENCE = 60.0


class FakeHub:
    """Keeps what its loop is to do; `turn` does it."""

    def __init__(self) -> None:
        self.due: list[Callable[[], Any]] = []

    def call_soon(self, callback: Callable[[], Any]) -> None:
        self.due.append(callback)

    def turn(self) -> None:
        while self.due:
            self.due.pop(0)()


class FakeRun:
    """A request of Celery's, as far as it is looked at."""

    acknowledged = False


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr(state, "should_stop", None)
    return FakeHub()


@pytest.fixture
def run() -> FakeRun:
    made = FakeRun()
    state.reserved_requests.add(made)
    return made


def end(hub: FakeHub, patience: float = PATIENCE) -> threading.Thread:
    def work() -> None:
        end_loop(SimpleNamespace(hub=hub), 12, patience=patience)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_the_loop_ends_when_a_run_in_hand_is_acknowledged(hub: FakeHub, run: FakeRun) -> None:
    thread = end(hub)
    wait_for(lambda: hub.due, what="the first turn")
    hub.turn()
    time.sleep(0.1)
    assert state.should_stop is None and not hub.due, "the run is not acknowledged"

    # Celery asks its loop to acknowledge, and forgets the run.
    acknowledged: list[int | None] = []
    hub.call_soon(lambda: acknowledged.append(state.should_stop))
    run.acknowledged = True
    state.reserved_requests.discard(run)
    wait_for(lambda: len(hub.due) == 2, what="the last turn")
    assert state.should_stop is None
    hub.turn()
    thread.join(PATIENCE)
    assert acknowledged == [None] and state.should_stop == 12
    assert hub.due, "the loop is woken"


@pytest.mark.parametrize("turning", [True, False])
def test_patience_ends(hub: FakeHub, run: FakeRun, turning: bool) -> None:
    """Also that with a loop which has no connection, and does not turn."""
    thread = end(hub, patience=0.2)
    while turning and thread.is_alive():
        hub.turn()
    thread.join(PATIENCE)
    assert state.should_stop == 12


def test_the_end_of_a_session_awaits_nothing(hub: FakeHub, run: FakeRun) -> None:
    end_loop(SimpleNamespace(hub=hub), 0, patience=0.0)
    assert state.should_stop == 0 and len(hub.due) == 1


def test_a_loop_that_has_not_begun(hub: FakeHub) -> None:
    end_loop(None, 12, patience=PATIENCE)
    assert state.should_stop == 12
