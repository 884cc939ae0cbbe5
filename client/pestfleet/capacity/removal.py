"""Ends machines, and removes what was made for them when the last of a session is gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from pestfleet.capacity.keys import remove_key_file
from pestfleet.capacity.machines import (
    MACHINE,
    list_machines,
    read_states,
    split,
)
from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.naming import ROLE, SESSION, Names
from pestfleet.targets.ecs.resources.waiting import has_code, insist
from pestfleet_worker.errors import TargetError

logger = logging.getLogger(__name__)

WAIT = 900.0  # seconds for a machine to end
_PAUSE = 5.0
_GONE = ("NoSuchEntity", "InvalidGroup.NotFound", "InvalidKeyPair.NotFound",
         "InvalidLaunchTemplateId.NotFound", "InvalidLaunchTemplateId.NotFoundException",
         "InvalidLaunchTemplateName.NotFoundException")  # fmt: skip

Say = Callable[[str], None]


def remove_machines(cloud: Cloud, session: str, *, say: Say = lambda line: None) -> list[str]:
    """End all machines of a session that this package started, and remove all that was made for
    them; what was removed, in words.

    Machines that an Auto Scaling group keeps go with that. Raises `TargetError`.
    """
    own = [machine for machine in list_machines(cloud, session) if machine.role == MACHINE]
    ids = [machine.id for machine in own]
    for some in split(ids):
        cloud.call("ec2", "terminate_instances", InstanceIds=list(some))
    if ids:
        say(f"waiting for the end of {len(ids)} machines")
        wait_for_end(cloud, ids)
    return [f"machine {name}" for name in ids] + remove_leftovers(cloud, session)


def wait_for_end(cloud: Cloud, ids: Sequence[str], *, patience: float = WAIT) -> None:
    """Return when these machines are gone. Raises `TargetError` when that takes too long."""
    end = time.monotonic() + patience
    left = list(ids)
    while left:
        states = read_states(cloud, left)
        left = [name for name, state in states.items() if state != "terminated"]
        if left and time.monotonic() > end:
            raise TargetError(
                f"{len(left)} machines have not ended for {patience / 60:.0f} minutes: "
                f"{', '.join(left[:5])}",
                remedy="Look again with pestfleet capacity list, and terminate them again.",
            )
        if left:
            time.sleep(_PAUSE)


def remove_leftovers(cloud: Cloud, session: str) -> list[str]:
    """What was made for a session's machines, when it has none any more; says what it removed.

    Safe to repeat, also after a launch that was killed. Raises `TargetError`.
    """
    if any(machine.role == MACHINE for machine in list_machines(cloud, session)):
        return []
    return [
        *_remove_templates(cloud, session),
        *_remove_keys(cloud, session),
        *_remove_groups(cloud, session),
        *_remove_role(cloud, session),
    ]


def list_leftovers(cloud: Cloud) -> list[str]:
    """Sessions of which something is left for machines, whether they have any or not."""
    tagged = [{"Name": f"tag:{ROLE}", "Values": [MACHINE]}]
    found = [
        *cloud.find_all("ec2", "describe_launch_templates", "LaunchTemplates", Filters=tagged),
        *cloud.find_all("ec2", "describe_security_groups", "SecurityGroups", Filters=tagged),
        *(cloud.call("ec2", "describe_key_pairs", Filters=tagged).get("KeyPairs") or ()),
    ]
    tags = [tag for item in found for tag in item.get("Tags") or ()]
    return sorted({tag["Value"] for tag in tags if tag["Key"] == SESSION})


def make_filters(session: str) -> list[dict[str, object]]:
    """Filters of EC2 for what was made for a session's machines."""
    return [
        {"Name": f"tag:{SESSION}", "Values": [session]},
        {"Name": f"tag:{ROLE}", "Values": [MACHINE]},
    ]


def _remove_templates(cloud: Cloud, session: str) -> list[str]:
    found = cloud.find_all(
        "ec2", "describe_launch_templates", "LaunchTemplates", Filters=make_filters(session)
    )
    removed = []
    for template in list(found):
        if _remove(cloud, "ec2", "delete_launch_template",
                   LaunchTemplateId=template["LaunchTemplateId"]):  # fmt: skip
            removed.append(f"launch template {template['LaunchTemplateName']}")
    return removed


def _remove_keys(cloud: Cloud, session: str) -> list[str]:
    found = cloud.call("ec2", "describe_key_pairs", Filters=make_filters(session))
    removed = []
    for key in found.get("KeyPairs") or ():
        if _remove(cloud, "ec2", "delete_key_pair", KeyName=key["KeyName"]):
            removed.append(f"key pair {key['KeyName']}")
    if remove_key_file(Names(session).group(MACHINE)):
        removed.append("its private key here")
    return removed


def _remove_groups(cloud: Cloud, session: str) -> list[str]:
    found = cloud.find_all(
        "ec2", "describe_security_groups", "SecurityGroups", Filters=make_filters(session)
    )
    removed = []
    for group in list(found):
        remove = partial(_remove, cloud, "ec2", "delete_security_group", GroupId=group["GroupId"])
        # The network interfaces of machines that have ended go a little later.
        if insist(remove, when=has_code("DependencyViolation"), seconds=WAIT):
            removed.append(f"security group {group['GroupName']}")
    return removed


def _remove_role(cloud: Cloud, session: str) -> list[str]:
    name = Names(session).role(MACHINE)
    removed = []
    roles = _list_roles(cloud, name)
    for role in roles or ():
        _remove(cloud, "iam", "remove_role_from_instance_profile",
                InstanceProfileName=name, RoleName=role)  # fmt: skip
    if roles is not None and _remove(
        cloud, "iam", "delete_instance_profile", InstanceProfileName=name
    ):
        removed.append(f"instance profile {name}")
    try:
        policies = list(cloud.find_all("iam", "list_role_policies", "PolicyNames", RoleName=name))
    except Refused as error:
        if error.denied:
            logger.warning("whether the role %s is left is not known: %s", name, error.message)
        elif error.code not in _GONE:
            raise
        return removed
    for policy in policies:
        _remove(cloud, "iam", "delete_role_policy", RoleName=name, PolicyName=policy)
    if _remove(cloud, "iam", "delete_role", RoleName=name):
        removed.append(f"role {name}")
    return removed


def _list_roles(cloud: Cloud, profile: str) -> list[str] | None:
    """Roles of an instance profile; None where there is none, or we may not look."""
    try:
        found = cloud.call("iam", "get_instance_profile", InstanceProfileName=profile)
    except Refused as error:
        # Machines that join no session have no role, and who has only such may not look for one.
        if error.denied:
            logger.warning("whether %s is left is not known: %s", profile, error.message)
        elif error.code not in _GONE:
            raise
        return None
    return [role["RoleName"] for role in found["InstanceProfile"]["Roles"]]


def _remove(cloud: Cloud, service: str, operation: str, **parameters: object) -> bool:
    """False when it was gone already."""
    try:
        cloud.call(service, operation, **parameters)
    except Refused as error:
        if error.code not in _GONE:
            raise
        return False
    return True
