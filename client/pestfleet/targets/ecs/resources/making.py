"""Makes what a plan has, one after the other; it is safe to repeat after it was cut off."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from pestfleet.targets.ecs.access import Cloud, Refused, Unreachable
from pestfleet.targets.ecs.lease import write_time
from pestfleet.targets.ecs.planned import LEASE_MINUTES, AmazonPlan, Planned, refer
from pestfleet.targets.ecs.resources.catalogue import KINDS
from pestfleet.targets.ecs.resources.finding import find_in
from pestfleet.targets.ecs.resources.kinds import Body, Kind, Search
from pestfleet.targets.ecs.resources.waiting import ROLE_SECONDS, insist, is_not_yet
from pestfleet.targets.ecs.tasks import UNKNOWN
from pestfleet_worker.errors import TargetError

Say = Callable[[str], None]

_QUOTA = re.compile(r"quota|limit.?exceeded|too many|maximum number", re.IGNORECASE)
_CAPACITY = re.compile(r"insufficient|capacity.*(not|un)available|unsupported", re.IGNORECASE)


def apply(
    cloud: Cloud,
    plan: AmazonPlan,
    secrets: Mapping[str, str],
    say: Say,
) -> None:
    """Make all of a plan, or of the part of it that `plan` has. `secrets`: role -> its text.

    Raises `TargetError` that names the resource and the remedy; what was made until then stays,
    and is found and removed as all else.
    """
    search = Search(cloud, plan.spec.session, plan.cluster)
    made = _Made(search, plan, secrets, say)
    for name, group in groupby(plan.resources, key=lambda one: one.kind):
        kind = KINDS[name]
        idents = [made.make(kind, one) for one in group]
        with _naming(name.replace("-", " ")):
            kind.ready(search, idents)


class _Made:
    """What is there, by reference."""

    def __init__(
        self, search: Search, plan: AmazonPlan, secrets: Mapping[str, str], say: Say
    ) -> None:
        self._search = search
        self._secrets = secrets
        self._say = say
        # From now, for images may have taken an hour; but not beyond the session's own end.
        self._lease = min(time.time() + 60.0 * LEASE_MINUTES, plan.latest)
        self._idents: dict[str, str] = {}
        self._found: dict[str, dict[str, str]] = {}  # kind -> name -> id

    def make(self, kind: Kind, planned: Planned) -> str:
        """Make one, or take the one that is there; its id."""
        what = _name(planned)
        with _naming(what):
            return self._make(kind, planned, what)

    def _make(self, kind: Kind, planned: Planned, what: str) -> str:
        cloud = self._search.cloud
        body = self._resolve(planned.body)
        if planned.kind == "secret":
            body["SecretString"] = self._secrets[planned.role]
        elif planned.kind == "schedule":
            body["ScheduleExpression"] = write_time(self._lease)
        if kind.make is not None:
            self._say(f"looking for {what}")
            return kind.make(cloud, body)
        ident = "" if kind.fresh else self._look(kind).get(planned.name, "")
        there = bool(ident)
        if not there:
            self._say(f"making {what}")
            try:
                answer = self._call(kind, kind.operation, body)
                ident = kind.identify(cloud, body, answer)
            except Refused as error:
                if not _matches(error, kind.exists):
                    raise
                there, ident = True, self._take(kind, planned, what)
        if there and kind.renew is not None:
            renew = kind.renew
            insist(lambda: renew(cloud, body), when=is_not_yet, seconds=ROLE_SECONDS)
        self._idents[planned.reference] = ident
        for operation, parameters in planned.more:
            self._call(kind, operation, self._resolve(parameters), fine=kind.fine)
        return ident

    def _call(self, kind: Kind, operation: str, body: Body, *, fine: tuple[str, ...] = ()) -> Body:
        """A request that waits for what it builds on. `fine`: refusals that are none."""

        def call() -> Body:
            try:
                return self._search.cloud.call(kind.service, operation, **body)
            except Refused as error:
                if _matches(error, fine):
                    return {}
                raise

        return insist(
            call,
            when=lambda error: is_not_yet(error) and not _matches(error, kind.exists),
            seconds=ROLE_SECONDS,
        )

    def _look(self, kind: Kind) -> dict[str, str]:
        if kind.name not in self._found:
            found = find_in(self._search, kind)
            self._found[kind.name] = {one.name: one.ident for one in found}
        return self._found[kind.name]

    def _take(self, kind: Kind, planned: Planned, what: str) -> str:
        """The id of what is there by the answer, though we did not see it."""
        self._found.pop(kind.name, None)
        found = self._look(kind)
        if found or kind.remove is not None:
            if planned.name not in found:
                session = self._search.session
                raise TargetError(
                    f"{what} is there already, and is not of session {session} in "
                    f"{self._search.cloud.region}",
                    remedy="Choose another --session, or remove it.",
                )
            return found[planned.name]
        return planned.name

    def _resolve(self, value: Any) -> Any:
        """With ids in place of references."""
        if isinstance(value, Mapping):
            return {key: self._resolve(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._resolve(part) for part in value]
        if isinstance(value, str):
            if value.startswith("@"):
                return ",".join(self._idents[word] for word in value.split(","))
            if value.endswith(UNKNOWN) and ":secret:" in value:
                name = value.partition(":secret:")[2].removesuffix(UNKNOWN)
                return self._idents[refer("secret", name)]
        return value


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Errors within name the resource, too."""
    try:
        yield
    except Refused as error:
        raise _explain(error, what) from error
    except Unreachable as error:
        raise Unreachable(f"{error.message} (for the {what})", remedy=error.remedy) from error


def _matches(error: Refused, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, f"{error.code}: {error.said}") for pattern in patterns)


def _name(planned: Planned) -> str:
    return f"{planned.kind.replace('-', ' ')} {planned.name}"


def _explain(error: Refused, what: str) -> TargetError:
    """With the resource, and what to do."""
    text = f"{error.code}: {error.said}"
    remedy = error.remedy
    if _QUOTA.search(text):
        remedy = (
            "The account has a quota for this (Service Quotas in the console): ask for a higher "
            "one, or remove what is not needed: pestfleet orphans."
        )
    elif _CAPACITY.search(text):
        remedy = (
            "Amazon has none of these now: try --capacity ondemand, other zones "
            "(amazon.subnets), or another size (--instances)."
        )
    elif is_not_yet(error):
        remedy = f"It was tried for {ROLE_SECONDS:.0f} seconds; launch again."
    return TargetError(
        f"Amazon refuses {error.action} for the {what}: {error.said or error.code} ({error.code})",
        remedy=remedy,
    )
