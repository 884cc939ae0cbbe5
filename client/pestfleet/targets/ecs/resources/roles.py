"""IAM: roles with one policy each, and the profile that gives a role to machines."""

from __future__ import annotations

from collections.abc import Iterator

from pestfleet.targets.ecs.naming import as_dict
from pestfleet.targets.ecs.planned import POLICY
from pestfleet.targets.ecs.resources.kinds import Found, Kind, Search, ask, use

ROLES = ("schedule", "execution", "master", "worker", "instance")
_MISSING = ("NoSuchEntity",)


def _find_roles(search: Search, roles: tuple[str, ...]) -> Iterator[Found]:
    for role in roles:
        name = search.names.role(role)
        answer = ask(search.cloud, "iam", "get_role", _MISSING, RoleName=name)
        if answer is not None:
            found = answer["Role"]
            yield Found("role", name, found["Arn"], as_dict(found.get("Tags")), ident=name)


def _find(search: Search) -> Iterator[Found]:
    return _find_roles(search, ROLES)


def _remove(search: Search, found: Found) -> None:
    cloud, name = search.cloud, found.ident
    ask(cloud, "iam", "delete_role_policy", _MISSING, RoleName=name, PolicyName=POLICY)
    ask(cloud, "iam", "delete_role", _MISSING, RoleName=name)


def _find_profile(search: Search) -> Iterator[Found]:
    name = search.names.role("instance")
    answer = ask(search.cloud, "iam", "get_instance_profile", _MISSING, InstanceProfileName=name)
    if answer is not None:
        found = answer["InstanceProfile"]
        tags = as_dict(found.get("Tags"))
        yield Found("instance-profile", name, found["Arn"], tags, ident=name)


def _remove_profile(search: Search, found: Found) -> None:
    cloud, name = search.cloud, found.ident
    answer = ask(cloud, "iam", "get_instance_profile", _MISSING, InstanceProfileName=name)
    for role in (answer or {}).get("InstanceProfile", {}).get("Roles", ()):
        names = {"InstanceProfileName": name, "RoleName": role["RoleName"]}
        ask(cloud, "iam", "remove_role_from_instance_profile", _MISSING, **names)
    ask(cloud, "iam", "delete_instance_profile", _MISSING, InstanceProfileName=name)


KINDS = (
    Kind(
        "role",
        "iam",
        "create_role",
        use("RoleName"),
        _find,
        _remove,
        exists=("EntityAlreadyExists",),
    ),
    Kind(
        "instance-profile",
        "iam",
        "create_instance_profile",
        use("InstanceProfileName"),
        _find_profile,
        _remove_profile,
        exists=("EntityAlreadyExists",),
        fine=("^LimitExceeded",),  # a profile has one role: it has ours
    ),
)
