"""Which machines are meant, by numbers, ids, a session, or all."""

from __future__ import annotations

from collections.abc import Sequence

from pestfleet.capacity.machines import (
    Machine,
    find_machines,
    list_machines,
    read_machines,
)
from pestfleet.capacity.numbers import Numbers, parse_selection
from pestfleet.targets.ecs.access import Cloud
from pestfleet_worker.errors import ConfigurationError, SessionError


def choose_machines(
    cloud: Cloud, words: Sequence[str], *, session: str = "", everything: bool = False
) -> list[Machine]:
    """The machines that `words` name; without words those of the session, or all.

    A range of numbers means those of it that are there still, and all of one session: the list that
    somebody has before them may have shown that session only. Raises `ConfigurationError`,
    `SessionError`, `TargetError`.
    """
    if everything or not words:
        return list_machines(cloud, "" if everything else session)
    numbers = Numbers(cloud, "machines")
    single: list[str] = []
    ranges: list[str] = []
    for choice in parse_selection(words):
        if isinstance(choice, str):
            single.append(choice)
        elif choice[0] == choice[1]:
            single.append(numbers.find(choice[0]))
        else:
            ranges += numbers.find_between(*choice)
    chosen = {machine.id: machine for machine in find_machines(cloud, single)} if single else {}
    other = [machine for machine in chosen.values() if session and machine.session != session]
    if other:
        raise SessionError(
            f"the machine {other[0].id} is of session {other[0].session}, not of {session}",
            remedy=f"See pestfleet capacity list --session {session}.",
        )
    between = [
        machine
        for machine in read_machines(cloud, ranges).values()
        if machine.session and session in ("", machine.session)
    ]
    sessions = sorted({machine.session for machine in between})
    if len(sessions) > 1:
        raise ConfigurationError(
            f"that range of numbers has machines of the sessions {', '.join(sessions[:5])}",
            remedy="Add --session to mean one of them, or name single numbers.",
        )
    chosen |= {machine.id: machine for machine in between}
    if not chosen:
        raise SessionError(
            "none of these machines is there any more", remedy="See pestfleet capacity list."
        )
    return sorted(chosen.values(), key=lambda one: (one.session, one.launched, one.id))
