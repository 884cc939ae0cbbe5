"""The rights that a launch needs: a policy of IAM for who launches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pestfleet.targets.ecs.grants import GRANTS, HOME, SAME, USE, Grant
from pestfleet.targets.ecs.naming import SESSION
from pestfleet.targets.ecs.planned import AmazonPlan
from pestfleet.targets.ecs.policies import Policy, allow, make_document

_LABEL = f"aws:RequestTag/{SESSION}"
_OURS = f"aws:ResourceTag/{SESSION}"


def list_actions(kind: str) -> tuple[str, ...]:
    """The actions of IAM to make and remove resources of a kind; looking is in all plans."""
    wanted = SAME.get(kind, kind)
    return tuple(sorted({a for grant in GRANTS if grant.kind == wanted for a in grant.actions}))


def make_launch_policy(plan: AmazonPlan) -> Policy:
    """What who launches this plan, uses its session and removes it must be allowed to do.

    It fits into a managed policy of IAM (6144 letters) where machines and network are not the
    session's own; else into one of a role (10240), or into two.
    """
    kinds = {SAME.get(one.kind, one.kind) for one in plan.resources} | {""}
    if plan.spec.place.master == "here":
        kinds.add(HOME)
    parts: dict[str, _Part] = defaultdict(_Part)
    for grant in (*GRANTS, *USE):
        if grant.kind in kinds:
            _add(parts, plan, grant)
    return make_document(
        [
            allow(
                sid,
                sorted(part.actions),
                sorted(part.resources) or "*",
                _condition(plan, part.condition),
            )
            for sid, part in sorted(parts.items())
        ]
    )


@dataclass(slots=True)
class _Part:
    """A statement as it grows."""

    actions: set[str] = field(default_factory=set)
    resources: set[str] = field(default_factory=set)  # none: all
    condition: str = ""


def _add(parts: dict[str, _Part], plan: AmazonPlan, grant: Grant) -> None:
    """Grants that differ in nothing but their resources become one: a policy has a longest size.

    That gives nobody more, for actions of a service that stand beside each other are for different
    types of its resources.
    """
    together = {"labelled": "Make", "ours": "Change"}
    if grant.condition:
        part = parts[together.get(grant.condition, grant.sid)]
        part.condition = grant.condition
        part.actions |= set(grant.actions)
        part.resources |= {_name(plan, one) for one in grant.resources if one != "*"}
        return
    everywhere = grant.resources == ("*",)
    for action in grant.actions:
        service = action.partition(":")[0]
        parts["Everywhere" if everywhere else service.capitalize()].actions.add(action)
    for resource in () if everywhere else grant.resources:
        service = resource.partition(":")[0]
        parts[service.capitalize()].resources.add(_name(plan, resource))


def _name(plan: AmazonPlan, resource: str) -> str:
    """`ecs:cluster/a` as an ARN; buckets and roles have no region, and buckets no account."""
    if resource == "*":
        return resource
    cluster = "pestfleet-*" if plan.cluster == plan.names.cluster else plan.cluster
    service, _, rest = resource.partition(":")
    rest = rest.replace("{cluster}", cluster).replace("{bucket}", plan.bucket)
    if service == "s3":
        return f"arn:{plan.partition}:s3:::{rest.lstrip(':')}"
    region = "" if service == "iam" else plan.region
    return f"arn:{plan.partition}:{service}:{region}:{plan.account}:{rest}"


def _condition(plan: AmazonPlan, kind: str) -> dict[str, Any] | None:
    if kind == "labelled":
        return {"Null": {_LABEL: "false"}}
    if kind == "ours":
        return {"Null": {_OURS: "false"}}
    if kind == "made":
        return {"StringEquals": {"ec2:CreateAction": _list_makers(plan)}}
    if kind == "passed":
        services = ["ecs-tasks.amazonaws.com", "scheduler.amazonaws.com"]
        if any(plan.find("instance-profile")):
            suffix = ".cn" if plan.partition == "aws-cn" else ""
            services.append(f"ec2.amazonaws.com{suffix}")
        return {"StringEquals": {"iam:PassedToService": services}}
    if kind == "linked":
        services = ["ecs.amazonaws.com"]
        if any(plan.find("auto-scaling-group")):
            services += ["autoscaling.amazonaws.com", "spot.amazonaws.com"]
        return {"StringEquals": {"iam:AWSServiceName": services}}
    if kind == "cluster":
        return {"ArnLike": {"ecs:cluster": _name(plan, "ecs:cluster/{cluster}")}}
    if kind == "template":
        return {"ArnLike": {"ec2:LaunchTemplate": _name(plan, "ec2:launch-template/*")}}
    return None


def _list_makers(plan: AmazonPlan) -> list[str]:
    """The requests of EC2 that tag what they make."""
    makers = {
        "security-group": "CreateSecurityGroup",
        "vpc": "CreateVpc",
        "subnet": "CreateSubnet",
        "route-table": "CreateRouteTable",
        "vpc-endpoint": "CreateVpcEndpoint",
        "launch-template": "CreateLaunchTemplate",
    }
    found = [action for kind, action in makers.items() if any(plan.find(kind))]
    return found + (["RunInstances"] if any(plan.find("launch-template")) else [])


def read_actions(policies: Iterable[Policy]) -> set[str]:
    """All actions that policies allow."""
    return {
        action
        for policy in policies
        for statement in policy["Statement"]
        for action in statement["Action"]
    }
