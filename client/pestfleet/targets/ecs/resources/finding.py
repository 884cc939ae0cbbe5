"""Finds what is in an account, of one session or of all."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.naming import PATH, REGION, ROLE, SESSION, Names, as_dict
from pestfleet.targets.ecs.resources.catalogue import REMOVAL
from pestfleet.targets.ecs.resources.kinds import Found, Kind, Search, open_search

logger = logging.getLogger(__name__)

_THREADS = 8
_PAGE = 100  # resources, the most that GetResources gives

# What is looked for by tags: all but tasks, of which there may be ten thousand, and their
# definitions, which cost nothing.
_TYPES = ("ec2", "ecr", "ecs:cluster", "ecs:service", "logs", "secretsmanager")

# Service and type as ARNs write them -> our kind.
_KINDS = {
    "ecr:repository": "repository",
    "ecs:cluster": "cluster",
    "ecs:service": "service",
    "logs:log-group": "log-group",
    "secretsmanager:secret": "secret",
}
_COST = {"repository", "service", "log-group", "secret", "instance",
         "vpc-endpoint", "volume"}  # fmt: skip

# How we describe roles, which no list gives with their tags; see `parts.plan_role`.
_ABOUT = re.compile(r"pestfleet (\S+) (\S+) in (\S+)")


def find_in(search: Search, kind: Kind) -> list[Found]:
    """What a session has of a kind. What only has its name is not the session's."""
    return [
        found
        for found in kind.find(search)
        if found.tags.get(SESSION) == search.session
        and found.tags.get(REGION, search.cloud.region) == search.cloud.region
    ]


def find_all(cloud: Cloud, session: str) -> list[Found]:
    """All that a session has in the account, also half-made, in the order of removal.

    It takes some forty requests, whatever the size of the fleet: each thing is asked for by its
    name, or by its tag in EC2, so that what was made a moment ago is seen, too.
    """
    search = open_search(cloud, session)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda kind: find_in(search, kind), REMOVAL))
    return [one for some in found for one in some]


def find_tagged(cloud: Cloud) -> dict[str, list[Found]]:
    """Session -> what is tagged as its in this region, without tasks and their definitions.

    One request for each 100 tagged resources (Resource Groups Tagging API, which may be some
    minutes late), one for each 100 clusters, one for the machines, one for each 100 groups of
    schedules, one for each 100 roles, and one for each session of which there is nothing but its
    group of schedules.
    """
    tagged = cloud.find_all(
        "resourcegroupstaggingapi",
        "get_resources",
        "ResourceTagMappingList",
        TagFilters=[{"Key": SESSION}],
        ResourceTypeFilters=list(_TYPES),
        ResourcesPerPage=_PAGE,
    )
    there = [_read(one["ResourceARN"], as_dict(one.get("Tags"))) for one in tagged]
    ended = _find_ended(cloud, there)
    sessions: dict[str, list[Found]] = defaultdict(list)
    for found in there:
        if found.arn not in ended:
            sessions[found.tags[SESSION]].append(found)
    for role in _list_roles(cloud):
        sessions[role.tags[SESSION]].append(role)
    for group in _list_groups(cloud, {Names(name).schedules: name for name in sessions}):
        sessions[group.tags[SESSION]].append(group)
    return dict(sessions)


def _find_ended(cloud: Cloud, found: list[Found]) -> set[str]:
    """ARNs of clusters and machines that were removed: their tags are found for some time yet."""
    ended: set[str] = set()
    clusters = [one.arn for one in found if one.kind == "cluster"]
    machines = {one.ident: one.arn for one in found if one.kind == "instance"}
    try:
        for start in range(0, len(clusters), _PAGE):
            asked = clusters[start : start + _PAGE]
            answer = cloud.call("ecs", "describe_clusters", clusters=asked)
            told = answer.get("clusters") or ()
            ended |= set(asked) - {one["clusterArn"] for one in told if one["status"] != "INACTIVE"}
        if machines:
            tagged = {"Name": "tag-key", "Values": [SESSION]}
            gone = {"Name": "instance-state-name", "Values": ["terminated"]}
            filters = [tagged, gone]
            told = cloud.find_all("ec2", "describe_instances", "Reservations", Filters=filters)
            for some in told:
                ended |= {machines.get(one["InstanceId"], "") for one in some["Instances"]}
    except Refused as error:
        logger.info("what is gone is not told from what is there: %s", error)
    return ended


def _list_roles(cloud: Cloud) -> Iterator[Found]:
    """IAM knows no regions: each role says which it is for."""
    for one in cloud.find_all("iam", "list_roles", "Roles", PathPrefix=PATH):
        about = _ABOUT.fullmatch(one.get("Description", ""))
        if about and about[3] == cloud.region:
            tags = {SESSION: about[1], ROLE: about[2], REGION: about[3]}
            yield Found("role", one["RoleName"], one["Arn"], tags, ident=one["RoleName"])


def _list_groups(cloud: Cloud, known: dict[str, str]) -> Iterator[Found]:
    """`known`: names of groups -> their session."""
    groups = cloud.find_all(
        "scheduler",
        "list_schedule_groups",
        "ScheduleGroups",
        NamePrefix="pestfleet-",
        MaxResults=_PAGE,
    )
    for one in groups:
        name, arn = one["Name"], one["Arn"]
        tags = {SESSION: known[name]} if name in known else _ask_tags(cloud, arn)
        if SESSION in tags and one.get("State") != "DELETING":
            yield Found("schedule-group", name, arn, tags, ident=name)


def _ask_tags(cloud: Cloud, arn: str) -> dict[str, str]:
    return as_dict(cloud.call("scheduler", "list_tags_for_resource", ResourceArn=arn).get("Tags"))


def _read(arn: str, tags: dict[str, str]) -> Found:
    """An ARN as a resource of ours."""
    service, tail = arn.split(":", 5)[2::3]
    what, rest = re.split("[:/]", tail, maxsplit=1)
    kind = what if service == "ec2" else _KINDS.get(f"{service}:{what}", f"{service}-{what}")
    name: Any = tags.get("Name") or rest
    if kind == "service":
        name = rest.rpartition("/")[2]
    return Found(kind, str(name), arn, tags, kind in _COST, rest)
