"""The parts of a session in an account, each as the requests that make it."""

from __future__ import annotations

import json
import math
from typing import Any

from pestfleet.costs.charges import Charge
from pestfleet.store.bucket import make_policy, make_rules
from pestfleet.targets.ecs import policies
from pestfleet.targets.ecs.lease import write_time
from pestfleet.targets.ecs.naming import PATH, REGION, as_list
from pestfleet.targets.ecs.planned import LEASE_MINUTES, POLICY, Ground, Planned, refer

LOG_DAYS = 30
DNS_SECONDS = 10  # how long an address is kept


def plan_lease(ground: Ground) -> list[Planned]:
    """What stops the session's services when nobody renews it: made first, and removed last."""
    names, facts, spec = ground.names, ground.facts, ground.spec
    group = Planned(
        "schedule-group",
        names.schedules,
        "",
        {"Name": names.schedules, "Tags": as_list(ground.tag())},
    )
    role = plan_role(
        ground, "schedule", policies.make_schedule_trust(ground),
        policies.make_schedule_policy(ground),
    )  # fmt: skip
    hours = min(LEASE_MINUTES / 60.0, spec.max_hours or LEASE_MINUTES)
    end = facts.launched + 3600.0 * hours
    targets: dict[str, tuple[str, dict[str, Any]]] = {
        one: (
            "ecs:updateService",
            {"Cluster": ground.cluster, "Service": names.service(one), "DesiredCount": 0},
        )
        for one in ground.roles
    }
    if facts.machine is not None:
        none = {"AutoScalingGroupName": names.cluster, "DesiredCapacity": 0}
        targets["machines"] = ("autoscaling:updateAutoScalingGroup", none)
    schedules = [
        Planned(
            "schedule",
            names.service(one),
            one,
            {
                "Name": names.service(one),
                "GroupName": names.schedules,
                "ScheduleExpression": write_time(end),
                "ScheduleExpressionTimezone": "UTC",
                "FlexibleTimeWindow": {"Mode": "OFF"},
                "State": "ENABLED",
                "ActionAfterCompletion": "NONE",
                "Target": {
                    "Arn": f"arn:{facts.partition}:scheduler:::aws-sdk:{operation}",
                    "RoleArn": ground.name_role("schedule"),
                    "Input": json.dumps(body),
                    "RetryPolicy": {
                        "MaximumRetryAttempts": 185,
                        "MaximumEventAgeInSeconds": 86400,
                    },
                },
            },
        )
        for one, (operation, body) in targets.items()
    ]
    return [group, role, *schedules]


def plan_roles(ground: Ground) -> list[Planned]:
    """Of who starts tasks, of tasks, and of machines."""
    trust = policies.make_task_trust(ground)
    rights = {
        "execution": (trust, policies.make_execution_policy(ground)),
        "master": (trust, policies.make_master_policy(ground)),
        "worker": (trust, policies.make_worker_policy(ground)),
        "instance": (
            policies.make_trust(f"ec2.{ground.facts.suffix}"),
            policies.make_instance_policy(ground),
        ),
    }
    wanted = {"execution", *ground.roles} | ({"instance"} if ground.facts.machine else set())
    return [plan_role(ground, role, *both) for role, both in rights.items() if role in wanted]


def plan_role(ground: Ground, role: str, trust: dict[str, Any], policy: dict[str, Any]) -> Planned:
    """A role of IAM."""
    name = ground.names.role(role)
    body = {
        "RoleName": name,
        "Path": PATH,
        # `resources.finding` reads this where roles are listed without their tags.
        "Description": f"pestfleet {ground.spec.session} {role} in {ground.facts.region}",
        "AssumeRolePolicyDocument": policies.dump(trust),
        "Tags": as_list(ground.tag(role) | {REGION: ground.facts.region}),
    }
    document = {"RoleName": name, "PolicyName": POLICY, "PolicyDocument": policies.dump(policy)}
    return Planned("role", name, role, body, more=(("put_role_policy", document),))


def plan_logs(ground: Ground) -> list[Planned]:
    name = ground.names.logs
    return [
        Planned(
            "log-group",
            name,
            "",
            {"logGroupName": name, "tags": ground.tag()},
            more=(("put_retention_policy", {"logGroupName": name, "retentionInDays": LOG_DAYS}),),
        )
    ]


def plan_repository(ground: Ground) -> list[Planned]:
    """Of ECR, where the session's images are to be in one of its own."""
    facts, name = ground.facts, ground.names.repository
    if facts.name_arn("ecr", f"repository/{name}") not in policies.list_repositories(ground):
        return []
    body = {
        "repositoryName": name,
        "imageTagMutability": "MUTABLE",
        "tags": as_list(ground.tag()),
    }
    charge = Charge("ecr-gb-month", 1.0, "", "its images, about 1 GB")
    return [Planned("repository", name, "", body, charges=(charge,))]


def plan_bucket(ground: Ground) -> list[Planned]:
    """Of all sessions in the account and region; none where the user has named one."""
    if ground.spec.place.amazon.bucket:
        return []
    facts, name = ground.facts, ground.bucket
    body: dict[str, Any] = {"Bucket": name}
    if facts.region != "us-east-1":  # the one region that must not be named
        body["CreateBucketConfiguration"] = {"LocationConstraint": facts.region}
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    policy = policies.dump(make_policy(name, partition=facts.partition))
    owner = {"Bucket": name, "ExpectedBucketOwner": facts.account}
    # As `pestfleet.store.bucket.make_bucket` sends them.
    more = (
        (
            "put_public_access_block",
            {**owner, "PublicAccessBlockConfiguration": dict.fromkeys(closed, True)},
        ),
        ("put_bucket_policy", {**owner, "Policy": policy}),
        (
            "put_bucket_lifecycle_configuration",
            {**owner, "LifecycleConfiguration": {"Rules": make_rules()}},
        ),
    )
    charge = Charge("s3-gb-month", 1.0, "", "case and results, about 1 GB")
    return [Planned("bucket", name, "", body, charges=(charge,), more=more)]


def plan_secrets(ground: Ground) -> list[Planned]:
    return [
        Planned(
            "secret",
            ground.names.secret(role),
            role,
            {
                "Name": ground.names.secret(role),
                "Description": f"pestfleet {ground.spec.session} {role}",
                "Tags": as_list(ground.tag(role)),
            },
            charges=(Charge("secret-month", 1.0, "", f"the secret of {role}"),),
        )
        for role in ground.roles
    ]


def list_named(ground: Ground) -> list[str]:
    """The roles that others find by a name in the session's domain."""
    found = [role for role in ground.roles if role in ("broker", "tunnel")]
    if ground.spec.mode == "agent" and "master" in ground.roles:
        found.append("master")
    return found


def plan_names(ground: Ground) -> list[Planned]:
    """The session's domain, where one is needed."""
    names = ground.names
    roles = list_named(ground)
    if not roles:
        return []
    space = Planned(
        "dns-namespace",
        names.domain,
        "",
        {
            "Name": names.domain,
            "Vpc": ground.vpc,
            "Properties": {"DnsProperties": {"SOA": {"TTL": DNS_SECONDS}}},
            "Tags": as_list(ground.tag()),
        },
        charges=(Charge("dns-zone-month", 1.0, "", "names of broker and others in the VPC"),),
    )
    records = {
        "RoutingPolicy": "MULTIVALUE",
        "DnsRecords": [{"Type": "A", "TTL": DNS_SECONDS}],
    }
    services = [
        Planned(
            "dns-service",
            f"{role}.{names.domain}",
            role,
            {
                "Name": role,
                "NamespaceId": space.reference,
                "DnsConfig": records,
                "HealthCheckCustomConfig": {"FailureThreshold": 1},
                "Tags": as_list(ground.tag(role)),
            },
        )
        for role in roles
    ]
    return [space, *services]


def plan_cluster(ground: Ground) -> list[Planned]:
    """None where it is shared."""
    if ground.spec.place.amazon.cluster:
        return []
    name = ground.names.cluster
    body = {
        "clusterName": name,
        "capacityProviders": ["FARGATE", "FARGATE_SPOT"],
        "settings": [{"name": "containerInsights", "value": "disabled"}],  # it costs
        "tags": as_list(ground.tag(), key="key", value="value"),
    }
    return [Planned("cluster", name, "", body)]


def plan_services(ground: Ground) -> list[Planned]:
    """What runs tasks, and keeps them running."""
    return [_plan_service(ground, role) for role in ground.roles]


def _plan_service(ground: Ground, role: str) -> Planned:
    names, network, spec = ground.names, ground.facts.network, ground.spec
    machines = role == "worker" and ground.facts.machine is not None
    body: dict[str, Any] = {
        "cluster": ground.cluster,
        "serviceName": names.service(role),
        "taskDefinition": refer("task-definition", names.family(role)),
        "desiredCount": spec.workers if role == "worker" else 1,
        "capacityProviderStrategy": choose_capacity(ground, role),
        "networkConfiguration": {
            "awsvpcConfiguration": {
                "subnets": ground.subnets,
                "securityGroups": [refer("security-group", names.group(role))],
                # A task on a machine of EC2 cannot have one.
                "assignPublicIp": "ENABLED" if network.public and not machines else "DISABLED",
            }
        },
        # There is never a second broker, or a second master, beside one that is to go.
        "deploymentConfiguration": {"minimumHealthyPercent": 0, "maximumPercent": 100},
        # No task is moved between zones for the sake of balance: that would stop runs.
        "availabilityZoneRebalancing": "DISABLED",
        "schedulingStrategy": "REPLICA",
        "enableECSManagedTags": True,
        "propagateTags": "SERVICE",
        "enableExecuteCommand": False,
        "tags": as_list(ground.tag(role), key="key", value="value"),
    }
    if machines:
        # Full machines, so that others become empty and go.
        body["placementStrategy"] = [{"type": "binpack", "field": "memory"}]
    else:
        body["platformVersion"] = "LATEST"
    if role in list_named(ground):
        space = refer("dns-service", f"{role}.{names.domain}")
        body["serviceRegistries"] = [{"registryArn": space}]
    return Planned("service", names.service(role), role, body)


def choose_capacity(ground: Ground, role: str) -> list[dict[str, Any]]:
    """The capacity provider strategy of a role: only workers are worth a risk."""
    if role != "worker":
        return [{"capacityProvider": "FARGATE", "weight": 1}]
    if ground.facts.machine is not None:
        return [{"capacityProvider": ground.names.cluster, "weight": 1}]
    kind, _, percent = ground.spec.place.amazon.capacity.partition(":")
    demand = {"spot": 0, "ondemand": 100}.get(kind, int(percent or 0))
    step = math.gcd(demand, 100)  # small weights mix small fleets, too
    shares = {"FARGATE": demand, "FARGATE_SPOT": 100 - demand}
    return [
        {"capacityProvider": name, "weight": share // step}
        for name, share in shares.items()
        if share
    ]
