"""What would go wrong with a launch, found before anything is made. Only reading requests."""

from __future__ import annotations

import logging
import math
from typing import Any

from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.causes import DEMAND_QUOTA, SPOT_QUOTA
from pestfleet.targets.ecs.plan import AmazonPlan
from pestfleet_worker.errors import ConfigurationError, TargetError

logger = logging.getLogger(__name__)

MOST_TASKS = 5000  # of a service (ECS developer guide, "Amazon ECS service quotas")


def check_launch(cloud: Cloud, plan: AmazonPlan) -> list[str]:
    """Can this plan work in the account? Returns warnings.

    Raises `TargetError` for what cannot work as the account is, `ConfigurationError` for what
    works nowhere, and `Unreachable`.
    """
    spec = plan.spec
    most = max(spec.workers, spec.most)
    if most > MOST_TASKS:
        raise ConfigurationError(
            f"{most:,} workers are more than a service of ECS can have, which is {MOST_TASKS:,}",
            remedy="Ask for fewer, with more --slots each.",
        )
    if spec.place.amazon.cluster:
        _check_cluster(cloud, plan)
    warnings = check_addresses(cloud, plan)
    if not spec.place.amazon.instances:
        warnings += check_quotas(cloud, plan)
    return warnings


def _check_cluster(cloud: Cloud, plan: AmazonPlan) -> None:
    """Is the shared cluster there, and has it what tasks are to run on?"""
    name = plan.cluster
    answer = cloud.call("ecs", "describe_clusters", clusters=[name])
    found = [one for one in answer.get("clusters") or () if one.get("status") == "ACTIVE"]
    if not found:
        raise TargetError(
            f"there is no cluster {name} in region {cloud.region}",
            remedy="Check amazon.cluster and --region, or leave amazon.cluster out: then the "
            "session has one of its own.",
        )
    there = set(found[0].get("capacityProviders") or ())
    wanted = {
        str(part["capacityProvider"])
        for service in plan.find("service")
        for part in service.body.get("capacityProviderStrategy") or ()
    }
    missing = sorted(name for name in wanted & {"FARGATE", "FARGATE_SPOT"} if name not in there)
    if missing:
        raise TargetError(
            f"the cluster {name} has no capacity provider {' and '.join(missing)}",
            remedy=f"Add it: aws ecs put-cluster-capacity-providers --cluster {name} "
            "--capacity-providers FARGATE FARGATE_SPOT --default-capacity-provider-strategy []; "
            "or leave amazon.cluster out.",
        )


def check_addresses(cloud: Cloud, plan: AmazonPlan) -> list[str]:
    """Each task takes an address of a subnet."""
    if plan.network.made or not plan.network.subnets:
        return []
    found = cloud.find_all(
        "ec2", "describe_subnets", "Subnets", SubnetIds=list(plan.network.subnets)
    )
    free = sum(int(one.get("AvailableIpAddressCount", 0)) for one in found)
    spec = plan.spec
    others = sum(1 for _ in plan.find("service")) - 1
    can = free - others
    least, wanted = max(1, spec.place.least), max(spec.workers, spec.most)
    names = ", ".join(plan.network.subnets)
    if can < least:
        raise TargetError(
            f"the subnets {names} have {free:,} free addresses: too few for {least:,} workers",
            remedy="Name larger ones: amazon.subnets.",
        )
    if can < wanted:
        return [
            f"the subnets {names} have {free:,} free addresses: enough for {can:,} of "
            f"{wanted:,} workers"
        ]
    return []


def check_quotas(cloud: Cloud, plan: AmazonPlan) -> list[str]:
    """Fargate gives an account so many vCPUs, of each kind. What others use of them is not seen."""
    spec = plan.spec
    vcpus = {role: _read_vcpus(plan, role) for role in ("broker", "master", "tunnel", "worker")}
    each = vcpus.pop("worker")
    others = sum(vcpus.values())
    kind, _, percent = spec.place.amazon.capacity.partition(":")
    demand = {"spot": 0.0, "ondemand": 1.0}.get(kind, float(percent or 0) / 100)
    wanted, least = max(spec.workers, spec.most), max(1, spec.place.least)
    warnings = []
    can = 0
    for code, share, more, words in (
        (DEMAND_QUOTA, demand, others, "Fargate"),
        (SPOT_QUOTA, 1.0 - demand, 0.0, "Fargate Spot"),
    ):
        asked = math.ceil(wanted * share)
        if not asked and not more:
            continue
        quota = read_quota(cloud, code)
        if quota is None:
            can += asked
            continue
        fits = max(0, min(asked, int((quota - more) / each))) if each else asked
        can += fits
        if fits < asked or quota < more:
            warnings.append(
                f"the account's quota of {quota:g} vCPUs of {words} is enough for {fits:,} of "
                f"{asked:,} workers with {each:g} each; ask for more: aws service-quotas "
                f"request-service-quota-increase --service-code fargate --quota-code {code} "
                f"--desired-value {math.ceil(asked * each + more)} --region {cloud.region}"
            )
    if can < least:
        raise TargetError(
            warnings[0] if warnings else "the account's quotas allow too few workers",
            remedy="Or ask for fewer or smaller workers, another --capacity, or another --region.",
        )
    return warnings


def read_quota(cloud: Cloud, code: str) -> float | None:
    """How many vCPUs of Fargate the account may have; None where that is not to be seen."""
    try:
        answer = cloud.call(
            "service-quotas", "get_service_quota", ServiceCode="fargate", QuotaCode=code
        )
        return float(answer["Quota"]["Value"])
    except (Refused, KeyError) as error:
        logger.info("quota %s is not looked at: %s", code, error)
        return None


def _read_vcpus(plan: AmazonPlan, role: str) -> float:
    task: dict[str, Any] = next(
        (one.body for one in plan.find("task-definition") if one.role == role), {}
    )
    return int(task.get("cpu") or 0) / 1024
