"""Draining: what a worker does with it, and how the desk keeps both in step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pestfleet.desk import Desk, DeskEvents
from pestfleet_worker import draining
from pestfleet_worker.draining import Drainage
from pestfleet_worker.health import Health
from pestfleet_worker.messages import (
    Announce,
    CaseSpec,
    Drain,
    Heartbeat,
    Limits,
    RunConfig,
    SlotState,
    decode,
    encode,
)

SPEC = CaseSpec("case", "d", ("p",), ("o",), (), (), ("./model",))
CONFIG = RunConfig("s", "queue", SPEC, Limits(), "/case", heartbeat=1.0, master_timeout=5.0)


class Consumer:
    """Celery's; calls back when the test wants it."""

    def __init__(self) -> None:
        self.consuming = True
        self.calls: list[Callable[[], None]] = []

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        self.calls.append(lambda: function(*arguments))

    def cancel_task_queue(self, queue: str) -> None:
        assert queue == "runs"
        self.consuming = False

    def add_task_queue(self, queue: str) -> None:
        assert queue == "runs"
        self.consuming = True


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_draining_worker_takes_nothing_and_is_drained_when_it_has_nothing() -> None:
    consumer, drainage = Consumer(), Drainage("runs")
    assert not drainage.update(busy=False) and not drainage.drained
    drainage.switch(True, consumer)
    consumer.calls.pop()()
    assert drainage.active and not consumer.consuming
    assert not drainage.update(busy=True) and not drainage.drained
    assert drainage.update(busy=False) and drainage.drained
    assert not drainage.update(busy=False), "told twice"
    drainage.switch(False, consumer)
    consumer.calls.pop()()
    assert consumer.consuming and not drainage.drained and not drainage.active


def test_what_is_wanted_last_counts_in_whatever_order_celery_calls_back() -> None:
    consumer, drainage = Consumer(), Drainage("runs")
    drainage.switch(True, consumer)
    drainage.switch(False, consumer)
    for call in reversed(consumer.calls):
        call()
    assert consumer.consuming


def test_a_drained_worker_that_nobody_ends_leaves() -> None:
    clock = Time()
    drainage = Drainage("runs", clock=clock)
    drainage.switch(True, Consumer())
    clock.now += 2 * draining.PATIENCE
    assert not drainage.forgotten, "it has had runs"
    drainage.update(busy=False)
    clock.now += draining.PATIENCE - 1
    assert not drainage.forgotten
    clock.now += 2
    assert drainage.forgotten


def test_a_worker_that_waits_for_its_end_does_not_count_as_ready(tmp_path: Path) -> None:
    health = Health(tmp_path)
    health.touch()
    health.hide(True)
    health.touch()
    assert not health.path.exists()
    health.hide(False)
    health.touch()
    assert health.path.exists()


@pytest.mark.parametrize(
    "message",
    [Drain(("a", "b")), Drain(()), Heartbeat("w", (SlotState(),), 1, draining=True, drained=True)],
)
def test_messages_arrive_as_they_were_sent(message: Any) -> None:
    assert decode(encode(message)) == message


class Told:
    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.desk = Desk(
            CONFIG,
            lambda worker, message: self.sent.append((worker, message)),
            DeskEvents(lambda w: None, lambda w, r: None, lambda w, r: None),
        )
        for name in ("a", "b"):
            self.desk.receive(Announce(name, "host", 1, 1, "linux", {}))
        self.sent.clear()

    def flags(self) -> dict[str, tuple[bool, bool]]:
        return {w.name: (w.draining, w.drained) for w in self.desk.workers}


def beat(worker: str, *, draining: bool = False, drained: bool = False) -> Heartbeat:
    return Heartbeat(worker, (SlotState(),), 0, draining, drained)


def test_the_desk_tells_each_worker_once_and_again_where_it_was_not_heard() -> None:
    told = Told()
    told.desk.drain({"a"})
    assert told.sent == [("a", Drain(("a",)))]
    assert told.flags() == {"a": (True, False), "b": (False, False)}
    told.desk.drain({"a"})
    told.desk.receive(beat("a", draining=True))
    told.desk.receive(beat("b"))
    assert len(told.sent) == 1
    told.desk.receive(beat("a"))  # it had no connection just then
    assert told.sent[1:] == [("a", Drain(("a",)))]
    told.desk.receive(beat("a", draining=True, drained=True))
    assert told.flags()["a"] == (True, True)


def test_a_worker_that_is_called_back_does_not_count_as_drained() -> None:
    told = Told()
    told.desk.drain({"a"})
    told.desk.receive(beat("a", draining=True, drained=True))
    told.desk.drain(())
    told.desk.receive(beat("a", draining=True, drained=True))  # it does not know yet
    assert told.flags()["a"] == (False, False)
    assert told.sent[1:] == [("a", Drain(())), ("a", Drain(()))]


def test_workers_that_a_master_before_has_drained_work_again() -> None:
    told = Told()
    told.desk.receive(beat("other", draining=True, drained=True))
    assert told.sent == [("other", Drain(()))]
    assert told.flags()["other"] == (False, False)


def test_a_worker_that_comes_back_over_a_new_connection_stays_drained() -> None:
    told = Told()
    told.desk.drain({"a"})
    told.desk.receive(beat("a", draining=True, drained=True))
    told.desk.receive(Announce("a", "host", 1, 1, "linux", {}))
    assert told.flags()["a"] == (True, True)
