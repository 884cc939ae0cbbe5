"""Patience with a cloud: what is not yet so, or still in use, is asked again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pestfleet.targets.ecs.access import Refused
from pestfleet_worker.errors import TargetError

T = TypeVar("T")

FIRST, LONGEST = 1.0, 10.0  # seconds between two tries
ROLE_SECONDS = 120.0  # until all of Amazon knows a new role, usually some 10
GONE_SECONDS = 600.0  # until tasks have ended (they may take 120) and left their network

# What a request is refused with soon after what it builds on was made, or removed.
_NOT_YET = re.compile(
    r"assume|trust|role.*(invalid|not (valid|exist|found|authorized))|invalid iam instance profile"
    r"|instance ?profile.*not|service.linked role|draining|scheduled for deletion|OperationAborted"
    r"|UpdateInProgress|ResourceInUse|Invalid(VpcID|Group|GroupId|SubnetID|RouteTableI[Dd]"
    r"|LaunchTemplate\w*)\.NotFound|ConcurrentModification|InconsistentState|OperationInProgress"
    r"|NamespaceNotFound",
    re.IGNORECASE | re.DOTALL,
)


def is_not_yet(error: Refused) -> bool:
    """May the same request be granted some seconds later?"""
    return not error.denied and bool(_NOT_YET.search(f"{error.code}: {error.said}"))


def insist(
    act: Callable[[], T], *, when: Callable[[Refused], bool], seconds: float = GONE_SECONDS
) -> T:
    """What `act` gives, which is asked again while it is refused and `when` says so."""
    deadline = time.monotonic() + seconds
    pause = FIRST
    while True:
        try:
            return act()
        except Refused as error:
            if not when(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST)


def wait_until(
    done: Callable[[], Any], what: str, *, seconds: float = GONE_SECONDS, remedy: str = ""
) -> None:
    """Raises `TargetError` where it is not `done` within so many seconds."""
    deadline = time.monotonic() + seconds
    pause = FIRST
    while not done():
        if time.monotonic() + pause > deadline:
            raise TargetError(f"{what} takes longer than {seconds:.0f} seconds", remedy=remedy)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST)


def has_code(*words: str) -> Callable[[Refused], bool]:
    """Has the error code one of these words in it?"""
    return lambda error: any(word in error.code for word in words)
