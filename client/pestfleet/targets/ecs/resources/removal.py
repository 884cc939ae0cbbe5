"""Removes all that a session has in the account, from any machine."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from pestfleet.targets.ecs.access import Cloud, Refused, Unreachable
from pestfleet.targets.ecs.resources.catalogue import REMOVAL, RUNNING
from pestfleet.targets.ecs.resources.finding import find_in
from pestfleet.targets.ecs.resources.kinds import Found, Kind, Search, open_search
from pestfleet_worker.errors import PestfleetError, TargetError

_LEASE = ("schedule-group", "role")
_MOST_SILENCES = 2


class _Removal:
    """What went, what did not, and why."""

    def __init__(self, search: Search, say: Callable[[str], None]) -> None:
        self.search = search
        self.say = say
        self.removed: list[str] = []
        self.errors: list[tuple[str, str, PestfleetError]] = []  # kind, what, why
        self._silences = 0

    @property
    def silent(self) -> bool:
        """Has Amazon not answered several times in a row?"""
        return self._silences >= _MOST_SILENCES

    def attempt(self, kind: Kind, what: str, act: Callable[[], None]) -> bool:
        """Do it; what goes wrong is kept."""
        try:
            act()
        except PestfleetError as error:
            self._silences = self._silences + 1 if isinstance(error, Unreachable) else 0
            self.errors.append((kind.name, what, error))
            return False
        self._silences = 0
        return True

    def clear(self, kind: Kind) -> None:
        """Remove all of a kind."""
        found: list[Found] = []

        def look() -> None:
            kind.settle(self.search)
            found.extend(find_in(self.search, kind))
            if found:
                kind.prepare(self.search, found)

        self.attempt(kind, f"looking for each {kind.name.replace('-', ' ')}", look)
        remove = kind.remove
        if remove is None:
            return
        for one in found:
            if self.silent:
                self.errors.append((kind.name, str(one), self.errors[-1][2]))
            elif self.attempt(kind, str(one), partial(remove, self.search, one)):
                self.removed.append(str(one))
                self.say(f"removed {one}")


def remove_all(
    cloud: Cloud,
    session: str,
    *,
    keep: Collection[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Remove all of a session, but the kinds of `keep` (such as log-group); says what went.

    What costs most goes first. It goes on past an error, and raises `TargetError` at the end that
    names all that is left; then the lease stays, too, where it may have something to stop. The
    bucket, which sessions share, is not touched.
    """
    removal = _Removal(open_search(cloud, session), say)
    for kind in REMOVAL:
        runs = any(name in RUNNING for name, _, _ in removal.errors)
        if kind.name in keep or (runs and kind.name in _LEASE):
            continue
        removal.clear(kind)
        if removal.silent:
            break
    if removal.errors:
        raise _tell(session, removal)
    return removal.removed


def _tell(session: str, removal: _Removal) -> TargetError:
    lines = [f"  {what}: {getattr(error, 'message', error)}" for _, what, error in removal.errors]
    errors = [error for _, _, error in removal.errors if error.remedy]
    # What an administrator must do helps most.
    errors.sort(key=lambda error: not (isinstance(error, Refused) and error.denied))
    again = f"Remove the rest with pestfleet down {session}."
    return TargetError(
        f"not all of session {session} is removed:\n" + "\n".join(dict.fromkeys(lines)),
        remedy=" ".join([*(error.remedy for error in errors[:1]), again]),
    )
