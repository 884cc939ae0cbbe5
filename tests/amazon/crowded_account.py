"""An account in which others have many sessions."""

from __future__ import annotations

from typing import Any

from moto_server import Amazon
from pestfleet.targets.ecs.naming import CLUSTER, OWNER, ROLE, ROLES, SESSION, Names

SHARED = "fleet"  # the cluster of every second session
TASKS = 10  # of each service


def fill(amazon: Amazon, sessions: int) -> list[str]:
    """Ids of sessions, each with four services of ten tasks, and the group of its lease.

    With `run_scheduler` their tasks run.
    """
    ecs = amazon.client("ecs")
    ecs.register_task_definition(
        family="theirs",
        requiresCompatibilities=["FARGATE"],
        networkMode="awsvpc",
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": "main", "image": "none", "essential": True}],
    )
    ecs.create_cluster(clusterName=SHARED)
    subnet = amazon.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    names = [f"theirs-{number:03}" for number in range(sessions)]
    for number, name in enumerate(names):
        _make_session(amazon, ecs, name, subnet, shared=number % 2 == 0)
    return names


def _make_session(amazon: Amazon, ecs: Any, session: str, subnet: str, *, shared: bool) -> None:
    names = Names(session)
    cluster = SHARED if shared else names.cluster
    tags = {SESSION: session, OWNER: "ann"} | ({CLUSTER: SHARED} if shared else {})
    small = [{"key": key, "value": value} for key, value in tags.items()]
    large = [{"Key": key, "Value": value} for key, value in tags.items()]
    amazon.client("scheduler").create_schedule_group(Name=names.schedules, Tags=large)
    if not shared:
        ecs.create_cluster(clusterName=cluster, tags=small)
    for role in ROLES:
        ecs.create_service(
            cluster=cluster,
            serviceName=names.service(role),
            taskDefinition="theirs",
            desiredCount=TASKS,
            launchType="FARGATE",
            networkConfiguration={"awsvpcConfiguration": {"subnets": [subnet]}},
            tags=[*small, {"key": ROLE, "value": role}],
        )
