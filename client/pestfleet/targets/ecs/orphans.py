"""What is left in an account: all that has a session's tag, half-made things too, by region."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pestfleet.targets.base import Where
from pestfleet.targets.ecs.access import Cloud, Refused, connect
from pestfleet.targets.ecs.fleet import read_time
from pestfleet.targets.ecs.naming import EXPIRES, FOLDER, OWNER
from pestfleet.targets.ecs.resources import Found, find_tagged
from pestfleet.targets.ecs.sessions import describe_services, find_state, open_regions
from pestfleet_worker.errors import ConfigurationError, PestfleetError

logger = logging.getLogger(__name__)

ANY_REGION = "us-east-1"  # which knows all others
_THREADS = 8
MACHINES = "machines only"  # state of a session that has nothing but EC2 machines


@dataclass(frozen=True, slots=True)
class Orphan:
    """A session's resources in a region. Times are in seconds since 1970, 0.0 where unknown.

    `began`: its oldest resource of which that is known; `expires`: its limit of hours.
    `parts`: kind -> how many; `costs`: those that cost money by the hour or month.
    """

    session: str
    region: str
    state: str
    runs: bool
    owner: str
    folder: str
    began: float
    expires: float
    parts: dict[str, int]
    costs: dict[str, int]

    @property
    def remedy(self) -> str:
        """The command that removes it."""
        return f"pestfleet down {self.session} --on ecs --region {self.region}"


def find_orphans(
    where: Where, *, everywhere: bool = False
) -> tuple[list[Orphan], dict[str, PestfleetError]]:
    """The oldest first; and region -> why it could not be looked at.

    `where.region`: one or several (`a,b`); `everywhere`: all that the account has enabled. Raises
    `ConfigurationError` without region or credentials, and the error where no region answers.
    """
    clouds = list_regions(where) if everywhere else open_regions(where)
    problems: dict[str, PestfleetError] = {}

    def look(cloud: Cloud) -> list[Orphan]:
        try:
            return _look(cloud)
        except ConfigurationError:
            raise
        except PestfleetError as error:
            problems[cloud.region] = error
            return []

    with ThreadPoolExecutor(_THREADS) as pool:
        found = [orphan for some in pool.map(look, clouds) for orphan in some]
    if problems and len(problems) == len(clouds):
        raise next(iter(problems.values()))
    found.sort(key=lambda orphan: (orphan.began or float("inf"), orphan.region, orphan.session))
    return found, problems


def list_regions(where: Where) -> list[Cloud]:
    """The account in each region that it has enabled."""
    try:
        first = connect(Where(region=where.region.partition(",")[0], profile=where.profile))
    except ConfigurationError:
        first = connect(Where(region=ANY_REGION, profile=where.profile))
    answer = first.call("ec2", "describe_regions", AllRegions=False)
    names = sorted(one["RegionName"] for one in answer.get("Regions") or ())
    return [first.elsewhere(name) for name in names]


def _look(cloud: Cloud) -> list[Orphan]:
    tagged = find_tagged(cloud)
    if not tagged:
        return []
    services = describe_services(cloud, tagged)
    groups = _read_groups(cloud)
    return [
        _describe(cloud.region, name, found, services.get(name, {}), groups)
        for name, found in tagged.items()
    ]


def _read_groups(cloud: Cloud) -> dict[str, float]:
    """When the groups of schedules were made: the first thing of each launch."""
    try:
        found = cloud.find_all(
            "scheduler",
            "list_schedule_groups",
            "ScheduleGroups",
            NamePrefix="pestfleet-",
            MaxResults=100,
        )
        return {str(one["Name"]): read_time(one.get("CreationDate")) for one in found}
    except Refused as error:
        logger.info("the age of half-made sessions is not known: %s", error)
        return {}


def _describe(
    region: str,
    name: str,
    found: Sequence[Found],
    services: Mapping[str, Any],
    groups: Mapping[str, float],
) -> Orphan:
    times = [read_time(one.get("createdAt")) for one in services.values()]
    times += [groups.get(one.name, 0.0) for one in found if one.kind == "schedule-group"]
    state = find_state(services)
    if all(one.kind in _OF_MACHINES for one in found):
        state = MACHINES
    return Orphan(
        session=name,
        region=region,
        state=state,
        runs=state in ("running", MACHINES),
        owner=_find_tag(found, OWNER),
        folder=_find_tag(found, FOLDER),
        began=min((time for time in times if time), default=0.0),
        expires=_read_expiry(_find_tag(found, EXPIRES)),
        parts=dict(Counter(one.kind for one in found)),
        costs=dict(Counter(one.kind for one in found if one.costs)),
    )


# What machines have that were started by hand: pestfleet capacity.
_OF_MACHINES = (
    *("instance", "volume", "key-pair", "network-interface", "security-group"),
    *("launch-template", "spot-instances-request", "role", "instance-profile"),
)


def _find_tag(found: Sequence[Found], tag: str) -> str:
    return next((one.tags[tag] for one in found if one.tags.get(tag)), "")


def _read_expiry(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else 0.0
    except ValueError:
        return 0.0
