"""Waiting on a machine that sleeps, by clocks that the test sets."""

from __future__ import annotations

from threading import Event
from types import SimpleNamespace

import pytest

from pestfleet.targets import clocks


class Nap(Event):
    """Each wait of the machine takes longer by the time of day than by the monotonic clock."""

    def __init__(self, *, asleep: float) -> None:
        super().__init__()
        self.asleep = asleep
        self.day = 1e9
        self.awake = 50.0

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.awake += timeout
        self.day += timeout + self.asleep
        return self.is_set()


@pytest.mark.parametrize(
    ("asleep", "awake"), [(0.0, 300.0), (1000.0, clocks.GLANCE), (-10.0, 300.0), (1.0, 150.0)]
)
def test_sleep_does_not_prolong_it(
    monkeypatch: pytest.MonkeyPatch, asleep: float, awake: float
) -> None:
    nap = Nap(asleep=asleep)
    times = SimpleNamespace(time=lambda: nap.day, monotonic=lambda: nap.awake)
    monkeypatch.setattr(clocks, "time", times)
    assert not clocks.wait_awake(nap, 300.0)
    assert nap.awake - 50.0 == pytest.approx(awake)


def test_it_ends_when_it_is_over() -> None:
    over = Event()
    over.set()
    assert clocks.wait_awake(over, 300.0)
    assert clocks.wait_awake(over, 0.0)
    assert not clocks.wait_awake(Event(), 0.0)
