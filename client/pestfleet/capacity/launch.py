"""Starts machines for a session, with what they need, and takes it back where none starts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pestfleet.capacity import request as bodies
from pestfleet.capacity.images import MachineImage, find_image
from pestfleet.capacity.keys import find_key_file, make_key_file
from pestfleet.capacity.machines import BATCH, MACHINE, find_group, find_key
from pestfleet.capacity.permissions import list_permissions
from pestfleet.capacity.refusals import (
    QUOTAS,
    Shortage,
    describe_refusal,
    is_shortage,
    propose,
)
from pestfleet.capacity.removal import remove_leftovers
from pestfleet.capacity.request import MachineRequest
from pestfleet.capacity.site import MachineSite
from pestfleet.targets.ecs.access import Cloud, Refused, name_action
from pestfleet_worker.errors import ConfigurationError, PestfleetError

Say = Callable[[str], None]
_PATIENCE = 120.0  # seconds in which all of EC2 hears of a role that has just been made
_PAUSE = 3.0
_UNKNOWN = "made before"  # ids in a plan


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """All that a launch needs to know, found by reading only."""

    request: MachineRequest
    site: MachineSite
    image: MachineImage
    script: str

    def to_dict(self, cloud: Cloud) -> dict[str, Any]:
        """For JSON: session, requests, and the permissions of whoever starts and ends them."""
        return {
            "session": self.request.session,
            "permissions": list_permissions(self.request),
            "requests": self.list_requests(cloud),
        }

    def list_requests(self, cloud: Cloud) -> list[dict[str, Any]]:
        """The requests that `launch` makes, in order, as boto3 has them; ids not yet known are
        words."""
        request, site = self.request, self.site
        tags = bodies.make_machine_tags(request)
        made: list[tuple[str, str, dict[str, Any]]] = []
        if request.join != "none":
            made += [(service, operation, body)
                     for service, operation, body in _role_steps(cloud, self, tags)]  # fmt: skip
        if _needs_group(request, site):
            made.append(("ec2", "create_security_group", bodies.make_group(request, site, tags)))
        if request.ssh:
            ingress = bodies.make_ingress(request, _UNKNOWN)
            made.append(("ec2", "authorize_security_group_ingress", ingress))
            key = bodies.make_key(request, "", tags)
            made.append(("ec2", "import_key_pair", key | {"PublicKeyMaterial": _UNKNOWN}))
        template = bodies.make_template(request, self.image, self.script, tags)
        template["LaunchTemplateData"]["UserData"] = self.script
        made.append(("ec2", "create_launch_template", template))
        groups = [*site.groups, *([_UNKNOWN] if _needs_group(request, site) else [])]
        for start in range(0, request.count, BATCH):
            number = min(BATCH, request.count - start)
            body = bodies.make_run(
                request, template=_UNKNOWN, version="1", subnet=site.subnets[0], groups=groups,
                public=site.public, least=number, most=number, token=_UNKNOWN,
            )  # fmt: skip
            made.append(("ec2", "run_instances", body))
        return [
            {
                "action": name_action(cloud.client(service), operation),
                "operation": operation,
                "parameters": body,
            }
            for service, operation, body in made
        ]


@dataclass(slots=True)
class Launched:
    """What a launch gave: ids of machines, how many are missing, and why."""

    machines: list[str] = field(default_factory=list)
    missing: int = 0
    reasons: list[str] = field(default_factory=list)
    remedy: str = ""


def plan_machines(
    cloud: Cloud, request: MachineRequest, find_site: Callable[[], MachineSite]
) -> MachinePlan:
    """Look at the type, the image and the place. Raises `ConfigurationError`, `TargetError`."""
    architectures, processors = _find_type(cloud, request.kind)
    site = find_site()
    image = find_image(cloud, request.image, architectures[0])
    script = bodies.write_script(
        request, site, region=cloud.region, slots=request.slots or processors
    )
    return MachinePlan(request, site, image, script)


def launch(cloud: Cloud, plan: MachinePlan, *, say: Say = lambda line: None) -> Launched:
    """Start the machines, as many as can be had; nothing stays where none can.

    Raises `Shortage` when there is none at all, `ConfigurationError`, `TargetError`.
    """
    result = Launched()
    try:
        tags = bodies.make_machine_tags(plan.request)
        if plan.request.join != "none":
            _make_role(cloud, plan, tags)
        groups = _make_groups(cloud, plan, tags)
        _make_key(cloud, plan, tags, say)
        template, version = _make_template(cloud, plan, tags)
        _start_all(cloud, plan, result, template=template, version=version, groups=groups)
    except BaseException:
        if result.machines:
            say(f"{len(result.machines)} machines were started before: see pestfleet capacity "
                f"list --session {plan.request.session}")  # fmt: skip
        else:
            _take_back(cloud, plan.request.session, say)
        raise
    if not result.machines:
        _take_back(cloud, plan.request.session, say)
        raise Shortage(
            f"no machine of type {plan.request.kind} could be started:\n  "
            + "\n  ".join(result.reasons),
            code="",
            remedy=result.remedy,
        )
    return result


def _take_back(cloud: Cloud, session: str, say: Say) -> None:
    """Remove what was made for machines, where the session has none; the first error is told."""
    try:
        for line in remove_leftovers(cloud, session):
            say(f"removed {line}")
    except PestfleetError as error:
        say(f"something is left: {error.message}")
        say(f"  pestfleet capacity terminate --session {session} removes it.")


def _find_type(cloud: Cloud, kind: str) -> tuple[list[str], int]:
    """Architectures and processors of a type. Raises `ConfigurationError` for an unknown one."""
    try:
        found = list(
            cloud.find_all("ec2", "describe_instance_types", "InstanceTypes", InstanceTypes=[kind])
        )
    except Refused as error:
        if error.code != "InvalidInstanceType":
            raise
        found = []
    if not found:
        raise ConfigurationError(
            f"there are no machines of type {kind} in {cloud.region}",
            remedy="Such as c7i.4xlarge; aws ec2 describe-instance-types lists them.",
        )
    known = [name for name in found[0]["ProcessorInfo"]["SupportedArchitectures"]
             if name in ("x86_64", "arm64")]  # fmt: skip
    if not known:
        raise ConfigurationError(
            f"machines of type {kind} are neither x86_64 nor arm64",
            remedy="Choose another type with --instances.",
        )
    return known, int(found[0]["VCpuInfo"]["DefaultVCpus"])


def _role_steps(
    cloud: Cloud, plan: MachinePlan, tags: dict[str, str]
) -> list[tuple[str, str, dict[str, Any]]]:
    request = plan.request
    name = request.names.role(MACHINE)
    policy = bodies.make_policy(
        request, plan.site, region=cloud.region, account=cloud.account, partition=cloud.partition
    )
    return [
        ("iam", "create_role", bodies.make_role(request, tags)),
        ("iam", "put_role_policy", policy),
        ("iam", "create_instance_profile", bodies.make_profile(request, tags)),
        ("iam", "add_role_to_instance_profile",
         {"InstanceProfileName": name, "RoleName": name}),
    ]  # fmt: skip


def _make_role(cloud: Cloud, plan: MachinePlan, tags: dict[str, str]) -> None:
    # A profile has room for one role: LimitExceeded says that it has it.
    there = ("EntityAlreadyExists", "LimitExceeded")
    for service, operation, body in _role_steps(cloud, plan, tags):
        try:
            cloud.call(service, operation, **body)
        except Refused as error:
            if error.code not in there or operation == "put_role_policy":
                raise
            if error.code == "LimitExceeded" and operation != "add_role_to_instance_profile":
                raise


def _needs_group(request: MachineRequest, site: MachineSite) -> bool:
    return request.ssh or not site.groups


def _make_groups(cloud: Cloud, plan: MachinePlan, tags: dict[str, str]) -> list[str]:
    request, site = plan.request, plan.site
    if not _needs_group(request, site):
        return list(site.groups)
    body = bodies.make_group(request, site, tags)
    try:
        own = str(cloud.call("ec2", "create_security_group", **body)["GroupId"])
    except Refused as error:
        if error.code != "InvalidGroup.Duplicate":
            raise
        own = find_group(cloud, request.session, body["GroupName"], site.network)
    if request.ssh:
        try:
            cloud.call(
                "ec2", "authorize_security_group_ingress", **bodies.make_ingress(request, own)
            )
        except Refused as error:
            if error.code != "InvalidPermission.Duplicate":
                raise
    return [*site.groups, own]


def _make_key(cloud: Cloud, plan: MachinePlan, tags: dict[str, str], say: Say) -> None:
    request = plan.request
    if not request.ssh:
        return
    name = request.names.group(MACHINE)
    path = find_key_file(name)
    if find_key(cloud, name):
        if path.exists():
            return
        raise ConfigurationError(
            f"the key of the machines of session {request.session} was made on another computer",
            remedy="Start them from there, or leave --ssh out; or terminate the session's "
            "machines, and the key goes with them.",
        )
    cloud.call("ec2", "import_key_pair", **bodies.make_key(request, make_key_file(name), tags))
    say(f"the key for ssh is {path}")


def _make_template(cloud: Cloud, plan: MachinePlan, tags: dict[str, str]) -> tuple[str, str]:
    """The template's id, and its version with these machines."""
    body = bodies.make_template(plan.request, plan.image, plan.script, tags)
    try:
        made = cloud.call("ec2", "create_launch_template", **body)["LaunchTemplate"]
        return made["LaunchTemplateId"], str(made["LatestVersionNumber"])
    except Refused as error:
        if error.code != "InvalidLaunchTemplateName.AlreadyExistsException":
            raise
    del body["TagSpecifications"]
    next_one = cloud.call("ec2", "create_launch_template_version", **body)
    version = next_one["LaunchTemplateVersion"]
    return version["LaunchTemplateId"], str(version["VersionNumber"])


def _start_all(
    cloud: Cloud, plan: MachinePlan, result: Launched, *, template: str, version: str,
    groups: list[str],
) -> None:  # fmt: skip
    def start(subnet: str, least: int, most: int) -> int:
        body = bodies.make_run(
            plan.request, template=template, version=version, subnet=subnet, groups=groups,
            public=plan.site.public, least=least, most=most, token=uuid.uuid4().hex,
        )  # fmt: skip
        found = _run_patiently(cloud, body)["Instances"]
        result.machines += [instance["InstanceId"] for instance in found]
        return len(found)

    left = plan.request.count
    while left:
        some = min(BATCH, left)
        got = _start_batch(plan, result, some, start)
        left -= got
        if got < some:
            break
    result.missing = left


def _start_batch(
    plan: MachinePlan, result: Launched, count: int, start: Callable[[str, int, int], int]
) -> int:
    """How many of `count` could be started: in one zone if one has room for all."""
    left = count
    for whole in (True, False):
        for subnet in plan.site.subnets:
            try:
                left -= start(subnet, left if whole else 1, left)
            except Refused as error:
                _note(plan, result, error, subnet)
                if error.code in QUOTAS:
                    return count - _start_fewer(plan, result, left, subnet, start)
            if not left:
                return count
        if count == 1:
            break  # one machine is all or nothing
    return count - left


def _start_fewer(
    plan: MachinePlan, result: Launched, left: int, subnet: str,
    start: Callable[[str, int, int], int],
) -> int:  # fmt: skip
    """Start what a quota still lets through, by halving; how many are left then."""
    some = left // 2
    while some:
        try:
            left -= start(subnet, some, some)
            some = min(some, left)
        except Refused as error:
            _note(plan, result, error, subnet)
            if error.code not in QUOTAS:
                return left
            some //= 2
    return left


def _note(plan: MachinePlan, result: Launched, error: Refused, subnet: str) -> None:
    """Keep the reason of a shortage. Raises any other refusal."""
    if not is_shortage(error):
        raise error
    kind = plan.request.kind
    reason = describe_refusal(error, kind=kind, where=subnet)
    if reason not in result.reasons:
        result.reasons.append(reason)
    result.remedy = propose(error.code, kind=kind, spot=plan.request.spot)


def _run_patiently(cloud: Cloud, body: dict[str, Any]) -> dict[str, Any]:
    """Repeat while EC2 has not heard of the profile that was made a moment ago."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return cloud.call("ec2", "run_instances", **body)
        except Refused as error:
            unknown = error.code == "InvalidParameterValue" and "iaminstanceprofile" in (
                error.said.lower().replace(" ", "")
            )
            if not unknown or time.monotonic() > end:
                raise
        time.sleep(_PAUSE)
