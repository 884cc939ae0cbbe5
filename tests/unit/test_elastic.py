"""Fleets that grow and shrink: the policy, by a simulated clock, and the steps to what it wants."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field

import pytest

from pestfleet.desk import WorkerState
from pestfleet.elastic import Elastic, FleetScaler, Wanted, find_time_left
from pestfleet_worker.messages import SlotState

IDLE = 60.0


def worker(name: str, running: int = 0, *, slots: int = 1) -> WorkerState:
    states = tuple(SlotState(number if number < running else None) for number in range(slots))
    return WorkerState(name, "host", 1, slots, "linux", 0.0, states=states)


def idle_workers(count: int) -> list[WorkerState]:
    return [worker(f"w{number:02}") for number in range(count)]


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_policy(least: int, most: int) -> tuple[Elastic, Time]:
    """A policy that has looked at its fleet for long."""
    clock = Time()
    policy = Elastic(least, most, IDLE, clock=clock)
    policy.decide(0, 1, [])
    clock.now += IDLE + 1
    return policy, clock


def watch(
    policy: Elastic, clock: Time, seconds: int, runs: int, workers: list[WorkerState]
) -> list[Wanted]:
    """What the policy wants in each of these seconds."""
    wanted = []
    for _ in range(seconds):
        clock.now += 1
        wanted.append(policy.decide(runs, 1, workers))
    return wanted


def test_runs_that_wait_bring_workers_at_once() -> None:
    policy, _ = make_policy(4, 50)
    assert policy.decide(0, 1, idle_workers(4)).workers == 4
    assert policy.decide(30, 1, idle_workers(4)).workers == 30
    assert policy.decide(1000, 1, idle_workers(4)).workers == 50


def test_a_worker_has_so_many_slots() -> None:
    policy, _ = make_policy(1, 50)
    assert policy.decide(9, 4, []).workers == 3
    assert policy.decide(8, 4, []).workers == 3  # not fewer at once


def test_fewer_are_wanted_after_a_while_in_which_fewer_were_needed() -> None:
    policy, clock = make_policy(4, 50)
    fleet = idle_workers(30)
    policy.decide(30, 1, fleet)
    after = [w.workers for w in watch(policy, clock, 70, 6, fleet)]
    assert after[:59] == [30] * 59
    assert after[60:] == [6] * 10
    assert watch(policy, clock, 61, 0, fleet)[-1].workers == 4


def test_the_fleet_stays_between_the_batches_of_an_engine() -> None:
    policy, clock = make_policy(2, 40)
    fleet = idle_workers(40)
    seen = set()
    for _ in range(10):
        seen |= {w.workers for w in watch(policy, clock, 90, 40, fleet)}
        seen |= {w.workers for w in watch(policy, clock, 45, 0, fleet)}  # the engine computes
    assert seen == {40}


def test_uneven_batches_keep_what_the_largest_of_a_minute_needs() -> None:
    policy, clock = make_policy(2, 40)
    fleet = idle_workers(40)
    seen = []
    for _ in range(6):
        for runs, seconds in ((30, 10), (0, 5), (3, 20), (0, 5)):
            seen += [w.workers for w in watch(policy, clock, seconds, runs, fleet)]
    assert set(seen) == {30}
    # Only small ones from now on: they are what counts after a minute.
    for _ in range(3):
        seen = [w.workers for w in watch(policy, clock, 20, 3, fleet)]
        seen += [w.workers for w in watch(policy, clock, 10, 0, fleet)]
    assert set(seen[-10:]) == {3}


def test_the_tail_of_a_batch_shrinks_the_fleet_step_by_step() -> None:
    policy, clock = make_policy(1, 20)
    fleet = idle_workers(20)
    wanted = [w.workers for runs in range(20, 0, -1) for w in watch(policy, clock, 30, runs, fleet)]
    assert wanted[0] == 20 and wanted == sorted(wanted, reverse=True)
    assert max(a - b for a, b in itertools.pairwise(wanted)) == 1


def test_idle_workers_are_drained_before_those_that_run_something() -> None:
    policy, _ = make_policy(1, 9)
    fleet = [worker("a", 2, slots=3), worker("b", slots=3), worker("c", 1, slots=3), worker("d")]
    assert policy.decide(5, 3, fleet) == Wanted(2, frozenset({"b", "d"}))


def test_who_is_drained_stays_so_unless_more_are_wanted() -> None:
    policy, _ = make_policy(1, 9)
    fleet = [worker("a", 1), worker("b", 1), worker("c", 1)]
    fleet[1].draining = True
    assert policy.decide(2, 1, fleet).draining == {"b"}
    assert policy.decide(3, 1, fleet).draining == set()


def test_an_idle_worker_goes_before_one_that_is_drained_but_runs_something() -> None:
    policy, _ = make_policy(1, 9)
    fleet = [worker("a"), worker("b", 1), worker("c", 1)]
    fleet[1].draining = True
    assert policy.decide(2, 1, fleet).draining == {"a"}


def run_since(name: str, seconds: float) -> WorkerState:
    return WorkerState(name, "host", 1, 1, "linux", 0.0, states=(SlotState(7, seconds),))


@pytest.mark.parametrize(
    ("seconds", "behind", "wanted"),
    [
        (600.0, 539.0, 1),  # the run takes another 61 s: nobody waits for it
        (600.0, 541.0, 3),  # 59 s: the engine may want more then
        (0.0, 0.0, 3),  # nobody knows what a run takes
    ],
)
def test_nobody_waits_for_runs_that_still_take_long(
    seconds: float, behind: float, wanted: int
) -> None:
    policy, _ = make_policy(1, 3)
    fleet = [run_since("a", behind), worker("b"), worker("c")]
    assert policy.decide(3, 1, fleet, seconds).workers == 3
    assert policy.decide(1, 1, fleet, seconds).workers == wanted
    # What goes is not called back when the run is nearly over.
    fleet = [run_since("a", max(behind, 590.0)), *fleet[1:]]
    assert policy.decide(1, 1, fleet, seconds).workers == wanted


def test_a_run_that_waits_takes_its_whole_time() -> None:
    fleet = [run_since("a", 500.0), run_since("b", 300.0)]
    assert find_time_left(2, fleet, 600.0) == 300.0
    assert find_time_left(3, fleet, 600.0) == 600.0
    assert find_time_left(0, fleet, 600.0) == 0.0
    assert find_time_left(2, fleet, 0.0) < 0.0


def test_after_a_restart_of_the_master_nobody_is_sent_home_for_a_minute() -> None:
    clock = Time()
    policy = Elastic(2, 50, IDLE, clock=clock)
    fleet = idle_workers(20)
    assert [w.workers for w in watch(policy, clock, 59, 0, fleet)] == [20] * 59
    assert watch(policy, clock, 3, 0, fleet)[-1] == Wanted(2, frozenset(w.name for w in fleet[:18]))


def test_a_number_that_the_user_asks_for_stays() -> None:
    policy, clock = make_policy(2, 50)
    policy.decide(40, 1, [])
    policy.fix(7)
    assert policy.decide(40, 1, []).workers == 7
    assert watch(policy, clock, 100, 0, idle_workers(7))[-1] == Wanted(7, frozenset())


@dataclass
class FakeFleet:
    """A desk and a target whose workers do as they are told, at the test's will."""

    workers: dict[str, WorkerState] = field(default_factory=dict)
    scaled: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)

    def drain(self, names: Collection[str]) -> None:
        for one in self.workers.values():
            one.draining = one.name in names
            one.drained = one.drained and one.draining

    def scale(self, workers: int, surplus: Collection[str]) -> None:
        self.scaled.append((workers, tuple(surplus)))

    def join(self, *workers: WorkerState) -> None:
        self.workers |= {worker.name: worker for worker in workers}

    def finish_draining(self, *names: str) -> None:
        for name in names:
            assert self.workers[name].draining
            self.workers[name].drained = True
            self.workers[name].states = ()


def make_scaler(least: int, most: int, *, size: int) -> tuple[FleetScaler, FakeFleet, Time]:
    policy, clock = make_policy(least, most)
    fleet = FakeFleet()
    scaler = FleetScaler(policy, size=size, slots=1, drain=fleet.drain, scale=fleet.scale)
    return scaler, fleet, clock


def step(scaler: FleetScaler, fleet: FakeFleet, clock: Time, runs: int, seconds: int = 1) -> None:
    for _ in range(seconds):
        clock.now += 1
        scaler.step(runs, list(fleet.workers.values()))


def test_workers_are_ended_as_they_become_empty_and_never_others() -> None:
    scaler, fleet, clock = make_scaler(2, 6, size=2)
    step(scaler, fleet, clock, 6)
    assert fleet.scaled == [(6, ())]
    fleet.join(*(worker(f"w{number}", 1) for number in range(6)))
    step(scaler, fleet, clock, 6, seconds=100)
    step(scaler, fleet, clock, 2, seconds=61)
    assert [w.name for w in fleet.workers.values() if w.draining] == ["w0", "w1", "w2", "w3"]
    assert fleet.scaled == [(6, ())], "all still run something"
    fleet.finish_draining("w1")
    step(scaler, fleet, clock, 2, seconds=3)
    fleet.finish_draining("w0", "w2")  # w1 is still on its way out
    step(scaler, fleet, clock, 2, seconds=3)
    assert fleet.scaled == [(6, ()), (5, ("w1",)), (3, ("w0", "w1", "w2"))]
    for name in ("w0", "w1", "w2"):
        del fleet.workers[name]
    fleet.finish_draining("w3")
    step(scaler, fleet, clock, 2, seconds=3)
    assert fleet.scaled[3:] == [(2, ("w3",))]


def test_more_runs_call_drained_workers_back() -> None:
    scaler, fleet, clock = make_scaler(1, 4, size=4)
    fleet.join(*(worker(f"w{number}", 1) for number in range(4)))
    step(scaler, fleet, clock, 1, seconds=61)
    fleet.finish_draining("w0")
    step(scaler, fleet, clock, 1)
    assert fleet.scaled == [(3, ("w0",))]
    step(scaler, fleet, clock, 5)
    assert fleet.scaled[1:] == [(4, ())]
    assert not any(w.draining for w in fleet.workers.values())


def test_workers_that_never_came_are_not_waited_for() -> None:
    scaler, fleet, clock = make_scaler(1, 40, size=1)
    step(scaler, fleet, clock, 40)
    fleet.join(*(worker(f"w{number}") for number in range(3)))  # no machine for the others
    step(scaler, fleet, clock, 40, seconds=30)
    step(scaler, fleet, clock, 2, seconds=62)
    assert fleet.scaled[0] == (40, ()) and fleet.scaled[-1] == (3, ())


def test_a_fleet_that_is_slow_to_come_is_not_given_up_while_it_is_needed() -> None:
    scaler, fleet, clock = make_scaler(1, 40, size=1)
    step(scaler, fleet, clock, 40, seconds=600)
    assert fleet.scaled == [(40, ())]
