"""An account of Amazon for unit tests: moto's, in this process; and plans for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto import mock_aws

from pestfleet.folder import SessionSpec
from pestfleet.placement import AmazonPlace, Placement
from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.facts import gather_facts
from pestfleet.targets.ecs.plan import AmazonPlan, Facts, Machine, Network, make_plan, name_images

REGION, ACCOUNT = "eu-central-1", "123456789012"
LAUNCHED = 1_800_000_000.0  # 2027-01-15T08:00:00Z
MACHINE = Machine("c7i.4xlarge", 16, 32768, 8)
FOUND = Network("vpc-1", ("subnet-1", "subnet-2"), blocks=("10.0.0.0/16",))
MADE = Network("", (), made=True, blocks=("10.83.0.0/18",), zones=("a", "b"))


def make_spec(
    session: str = "s1",
    *,
    master: str = "there",
    tunnel: bool = False,
    mode: str = "queue",
    workers: int = 3,
    max_hours: float = 5.0,
    **amazon: Any,
) -> SessionSpec:
    place = Placement(master=master, tunnel=tunnel, amazon=AmazonPlace(**amazon))
    return SessionSpec(
        session=session,
        control_file="/cases/a/a.pst",
        digest="0" * 64,
        engine="glm",
        target="ecs",
        workers=workers,
        slots=1,
        mode=mode,
        max_hours=max_hours,
        place=place,
    )


def make_facts(network: Network = FOUND, **more: Any) -> Facts:
    known: dict[str, Any] = {
        "caller": f"arn:aws:sts::{ACCOUNT}:assumed-role/modellers/ann",
        "launched": LAUNCHED,
        "folder": "/home/ann/.pestfleet/s1",
    }
    return Facts(ACCOUNT, REGION, "aws", network, **(known | more))


def list_image_roles(spec: SessionSpec, *, broker: bool = True) -> list[str]:
    there = spec.place.master == "there"
    behind = spec.place.tunnel and spec.mode == "queue"
    wanted = {
        "worker": True,
        "master": there,
        "broker": broker and not behind,
        "tunnel": spec.place.tunnel,
    }
    return [role for role, is_wanted in wanted.items() if is_wanted]


def plan_for(spec: SessionSpec, facts: Facts | None = None, *, broker: bool = True) -> AmazonPlan:
    """A plan with images in the session's own repository."""
    facts = facts or make_facts()
    return make_plan(spec, name_images(spec, facts, list_image_roles(spec, broker=broker)), facts)


def plan_in(cloud: Cloud, spec: SessionSpec, **more: Any) -> AmazonPlan:
    """A plan from what is in the account."""
    return plan_for(spec, gather_facts(cloud, spec, **more))


def make_secrets(plan: AmazonPlan) -> dict[str, str]:
    return {one.role: f'{{"key": "of {one.role}"}}' for one in plan.find("secret")}


@contextmanager
def open_account(region: str = REGION) -> Iterator[Cloud]:
    """A new account of moto's, with its default VPC. The environment has credentials for it."""
    with mock_aws():
        yield Cloud(boto3.Session(region_name=region), region)


# What lists everything of a kind: service, operation, key of the answer.
_LISTS = (
    ("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups"),
    ("ec2", "describe_launch_templates", "LaunchTemplates"),
    ("ec2", "describe_route_tables", "RouteTables"),
    ("ec2", "describe_security_groups", "SecurityGroups"),
    ("ec2", "describe_security_group_rules", "SecurityGroupRules"),
    ("ec2", "describe_subnets", "Subnets"),
    ("ec2", "describe_vpc_endpoints", "VpcEndpoints"),
    ("ec2", "describe_vpcs", "Vpcs"),
    ("ecr", "describe_repositories", "repositories"),
    ("ecs", "list_clusters", "clusterArns"),
    ("ecs", "list_task_definitions", "taskDefinitionArns"),
    ("iam", "list_instance_profiles", "InstanceProfiles"),
    ("iam", "list_roles", "Roles"),
    ("logs", "describe_log_groups", "logGroups"),
    ("s3", "list_buckets", "Buckets"),
    ("scheduler", "list_schedule_groups", "ScheduleGroups"),
    ("scheduler", "list_schedules", "Schedules"),
    ("secretsmanager", "list_secrets", "SecretList"),
    ("servicediscovery", "list_namespaces", "Namespaces"),
    ("servicediscovery", "list_services", "Services"),
)


def list_account(cloud: Cloud) -> list[str]:
    """All that there is in the account, by boto3 itself."""
    found = []
    for service, operation, key in _LISTS:
        answer = getattr(cloud.client(service), operation)()
        found += [f"{operation}: {_name_one(cloud, one)}" for one in answer[key] if _is_there(one)]
    ecs = cloud.client("ecs")
    inactive = ecs.list_task_definitions(status="INACTIVE")["taskDefinitionArns"]
    found += [f"inactive: {arn}" for arn in inactive]
    clusters = ecs.describe_clusters(clusters=ecs.list_clusters()["clusterArns"])["clusters"]
    providers = ecs.describe_capacity_providers(capacityProviders=["pestfleet-s1"])
    found += [f"provider: {one['name']}" for one in providers["capacityProviders"]]
    gone = {one["clusterArn"] for one in clusters if one["status"] == "INACTIVE"}
    return sorted(text for text in found if not any(text.endswith(arn) for arn in gone))


def _is_there(one: Any) -> bool:
    return not (isinstance(one, dict) and one.get("State") == "deleted")


def _name_one(cloud: Cloud, one: Any) -> str:
    if isinstance(one, str):
        return one
    keys = [key for key in one if key.lower().endswith(("arn", "id", "name"))]
    return " ".join(str(one[key]) for key in sorted(keys))
