"""Starts, stops and ends machines, in batches; who asks says which, and this says what became of
each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pestfleet.capacity.machines import Machine, split, write_time
from pestfleet.capacity.refusals import describe_refusal, is_shortage, propose
from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.naming import EXPIRES

START, STOP, TERMINATE = "start", "stop", "terminate"
DONE = {START: "started", STOP: "stopped", TERMINATE: "terminated"}
_OPERATIONS = {
    START: "start_instances",
    STOP: "stop_instances",
    TERMINATE: "terminate_instances",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a machine: `done`, or a `reason` why not. `error`: the reason is none of the
    machine's own state, so that what was asked for is not so. `remedy`: what to do about it."""

    machine: Machine
    done: bool
    reason: str = ""
    error: bool = False
    remedy: str = ""


def find_obstacle(machine: Machine, change: str) -> Outcome | None:
    """Why a machine is left as it is; None where it can be changed."""
    if machine.group:
        return Outcome(
            machine, False, f"the Auto Scaling group {machine.group} would replace it", True,
            "Use pestfleet scale or pestfleet down for its session.",
        )  # fmt: skip
    state = machine.state
    if change == TERMINATE:
        return None
    if state == "shutting-down":
        return Outcome(machine, False, "it is being terminated", True)
    if machine.spot:
        return Outcome(
            machine, False, f"a spot machine cannot be {DONE[change]}: it ends for good", True,
            "Terminate it, and run another when you need one; or run --on-demand.",
        )  # fmt: skip
    if change == STOP and state in ("stopping", "stopped"):
        return Outcome(machine, False, f"it is {state} already")
    if change == START and state in ("pending", "running"):
        return Outcome(machine, False, f"it is {state} already")
    if change == START and state == "stopping":
        return Outcome(
            machine, False, "it is stopping still", True, "Start it again when it is stopped."
        )
    return None


def change_machines(cloud: Cloud, machines: Sequence[Machine], change: str) -> list[Outcome]:
    """Start, stop or terminate these, 50 a request. Refusals are outcomes, machine by machine.

    Raises `Unreachable`, `ConfigurationError`, and `Refused` where we may not.
    """
    outcomes = [outcome for machine in machines if (outcome := find_obstacle(machine, change))]
    obstructed = {outcome.machine.id for outcome in outcomes}
    free = [machine for machine in machines if machine.id not in obstructed]
    for some in split(free):
        outcomes += _change_batch(cloud, some, change)
    if change == START:
        _renew_expiry(cloud, [outcome.machine for outcome in outcomes if outcome.done])
    order = {machine.id: place for place, machine in enumerate(machines)}
    return sorted(outcomes, key=lambda outcome: order[outcome.machine.id])


def _change_batch(cloud: Cloud, machines: Sequence[Machine], change: str) -> list[Outcome]:
    """EC2 refuses a request as a whole for the sake of one machine: then each goes by itself."""
    try:
        ids = [machine.id for machine in machines]
        cloud.call("ec2", _OPERATIONS[change], InstanceIds=ids)
    except Refused as error:
        if error.denied:
            raise
        if len(machines) > 1:
            return [
                outcome
                for machine in machines
                for outcome in _change_batch(cloud, [machine], change)
            ]
        return [_explain(machines[0], error)]
    return [Outcome(machine, True) for machine in machines]


def _explain(machine: Machine, error: Refused) -> Outcome:
    if is_shortage(error):
        reason = describe_refusal(error, kind=machine.kind, where=machine.zone)
        remedy = propose(error.code, kind=machine.kind, spot=False)
        return Outcome(machine, False, reason, True, remedy)
    if error.code == "OperationNotPermitted":
        return Outcome(
            machine, False, error.said, True, "Its protection must be taken away first, in EC2."
        )
    return Outcome(machine, False, f"{error.said or error.code} ({error.code})", True)


def _renew_expiry(cloud: Cloud, machines: Sequence[Machine]) -> None:
    """A machine that is started again has its hours anew."""
    by_hours: dict[float, list[str]] = {}
    for machine in machines:
        if machine.expires > machine.launched > 0:
            # The tag is a whole second, and was written shortly before the machine's start.
            hours = round((machine.expires - machine.launched) / 3600, 1)
            by_hours.setdefault(hours, []).append(machine.id)
    for hours, ids in by_hours.items():
        end = write_time(time.time() + hours * 3600)
        for some in split(ids):
            tag = {"Key": EXPIRES, "Value": end}
            cloud.call("ec2", "create_tags", Resources=list(some), Tags=[tag])


def end_machines(
    cloud: Cloud, machines: Sequence[Machine], *, say: Callable[[str], None] = lambda line: None
) -> tuple[list[Outcome], list[str]]:
    """Terminate these and wait for it; then remove what was made for sessions that have none left.

    Returns the outcomes, and what else was removed. Raises as `change_machines` does, and
    `TargetError` when a machine does not end.
    """
    from pestfleet.capacity.removal import remove_leftovers, wait_for_end

    outcomes = change_machines(cloud, machines, TERMINATE)
    ended = [outcome.machine for outcome in outcomes if outcome.done]
    if ended:
        say(f"waiting for the end of {len(ended)} machine{'' if len(ended) == 1 else 's'}")
        wait_for_end(cloud, [machine.id for machine in ended])
    sessions = dict.fromkeys(machine.session for machine in ended)
    return outcomes, [line for session in sessions for line in remove_leftovers(cloud, session)]
