"""Machines of EC2 below ECS: capacity providers with managed scaling, and places for tasks.

An instance joins its cluster as the agent of Amazon's image does; which cluster that is, an
instance of an Auto Scaling group learns from the capacity provider here, not from user data.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from moto.backends import get_backend

from ecs_state import Task

if TYPE_CHECKING:
    from moto_server import Amazon


def place(amazon: Amazon, task: Task) -> bool:
    """Give a task a place on an instance of its cluster. False: there is none (yet)."""
    ecs = amazon.backend("ecs", region=task.region)
    cores, memory = _read_size(task)
    for instance in ecs.container_instances.get(task.cluster, {}).values():
        if instance.status != "ACTIVE":
            continue
        if task.provider and getattr(instance, "provider", "") != task.provider:
            continue
        left = {one["name"]: one for one in instance.remaining_resources}
        if left["CPU"]["integerValue"] >= cores and left["MEMORY"]["integerValue"] >= memory:
            left["CPU"]["integerValue"] -= cores
            left["MEMORY"]["integerValue"] -= memory
            instance.running_tasks_count += 1
            task.answer["containerInstanceArn"] = instance.container_instance_arn
            return True
    return False


def leave(amazon: Amazon, task: Task) -> None:
    """Give a place back."""
    arn = task.answer.get("containerInstanceArn")
    ecs = amazon.backend("ecs", region=task.region)
    cores, memory = _read_size(task)
    for instance in ecs.container_instances.get(task.cluster, {}).values():
        if instance.container_instance_arn == arn:
            left = {one["name"]: one for one in instance.remaining_resources}
            left["CPU"]["integerValue"] += cores
            left["MEMORY"]["integerValue"] += memory
            instance.running_tasks_count -= 1


def follow_demand(amazon: Amazon) -> None:
    """Make Auto Scaling groups of capacity providers as large as their tasks need."""
    wanted: dict[tuple[str, str, str], list[Task]] = defaultdict(list)
    for (region, cluster), tasks in amazon.state.ecs.tasks.items():
        for task in tasks.values():
            if task.last_status != "STOPPED" and task.answer["launchType"] == "EC2":
                wanted[region, cluster, task.provider].append(task)
    for region, cluster, name in _list_homes(amazon):
        provider = amazon.backend("ecs", region=region).capacity_providers.get(name)
        if provider is not None:
            _follow(amazon, region, cluster, provider, wanted[region, cluster, name])


def _list_homes(amazon: Amazon) -> list[tuple[str, str, str]]:
    """Region, cluster and provider, of the capacity providers that clusters use."""
    backends = get_backend("ecs")
    if amazon.account not in backends:
        return []
    return [
        (region, cluster.name, name)
        for region, backend in list(backends[amazon.account].items())
        for cluster in backend.clusters.values()
        for name in cluster.capacity_providers or ()
        if cluster.status == "ACTIVE" and name in backend.capacity_providers
    ]


def _follow(amazon: Amazon, region: str, cluster: str, provider: Any, tasks: list[Task]) -> None:
    details = provider.auto_scaling_group_provider
    scaling = amazon.backend("autoscaling", region=region)
    name = details["autoScalingGroupArn"].rsplit("/", 1)[-1]
    group = scaling.autoscaling_groups.get(name)
    if group is None:
        return
    ecs = amazon.backend("ecs", region=region)
    present = {state.instance.id for state in group.instance_states}
    known = ecs.container_instances.get(cluster, {})
    for key, instance in list(known.items()):
        gone = getattr(instance, "provider", "") == provider.name
        if gone and instance.ec2_instance_id not in present:
            del known[key]
            for task in tasks:
                if task.answer.get("containerInstanceArn") == instance.container_instance_arn:
                    task.want_stop("TerminationNotice", "Host EC2 instance terminated.")
    joined = {instance.ec2_instance_id for instance in known.values()}
    for one in sorted(present - joined):
        _join(amazon, region, cluster, provider, one)
    if details["managedScaling"].get("status") != "ENABLED":
        return
    fit = _count_fitting(amazon, region, group, tasks)
    needed = math.ceil(len(tasks) / fit) if tasks else 0
    size = max(group.min_size, min(group.max_size, needed))
    if size > group.desired_capacity or (size < group.desired_capacity and not tasks):
        scaling.set_desired_capacity(name, size)


def _join(amazon: Amazon, region: str, cluster: str, provider: Any, instance: str) -> None:
    ecs = amazon.backend("ecs", region=region)
    made = ecs.register_container_instance(cluster, instance)
    made.provider = made.capacity_provider_name = provider.name
    ec2 = amazon.backend("ec2", region=region)
    cores, memory = _find_kind(ec2, ec2.get_instance(instance).instance_type)
    for resources in (made.remaining_resources, made.registered_resources):
        for one in resources:
            if one["name"] == "CPU":
                one["integerValue"] = cores
            elif one["name"] == "MEMORY":
                one["integerValue"] = memory


def _find_kind(ec2: Any, name: str) -> tuple[int, int]:
    """CPU units and MiB that ECS gives out of an instance of this type."""
    kind = next(one for one in ec2.describe_instance_types([name]) if one["InstanceType"] == name)
    memory = kind["MemoryInfo"]["SizeInMiB"]
    return kind["VCpuInfo"]["DefaultVCpus"] * 1024, int(memory * 0.95)


def _count_fitting(amazon: Amazon, region: str, group: Any, tasks: list[Task]) -> int:
    """How many tasks an instance takes."""
    if not tasks:
        return 1
    ec2 = amazon.backend("ec2", region=region)
    cores, memory = _find_kind(ec2, group.instance_type)
    needs = _read_size(tasks[0])
    return max(1, min(cores // max(1, needs[0]), memory // max(1, needs[1])))


def _read_size(task: Task) -> tuple[int, int]:
    """CPU units and MiB of a task."""
    definition = task.definition
    cores = int(
        definition.cpu or sum(one.get("cpu", 0) for one in definition.container_definitions)
    )
    memory = int(
        definition.memory
        or sum(
            one.get("memory") or one.get("memoryReservation") or 0
            for one in definition.container_definitions
        )
    )
    return cores, memory
