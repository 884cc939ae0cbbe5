"""The bench itself: what it adds to moto."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from ecs_scheduler import EcsScheduler
from moto_server import Amazon

TAG = [{"key": "pestfleet:session", "value": "x"}]
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ecs-tasks.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}


def make_service(amazon: Amazon, name: str = "worker", count: int = 2, **more: Any) -> None:
    """A service of a task definition with one container; the cluster is `fleet`."""
    ecs = amazon.client("ecs")
    ecs.create_cluster(clusterName="fleet", capacityProviders=["FARGATE", "FARGATE_SPOT"], tags=TAG)
    ecs.register_task_definition(
        family=name,
        requiresCompatibilities=["FARGATE"],
        networkMode="awsvpc",
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": "main", "image": "none", "essential": True}],
    )
    subnets = amazon.client("ec2").describe_subnets()["Subnets"]
    network = {"awsvpcConfiguration": {"subnets": [subnets[0]["SubnetId"]]}}
    given = {"networkConfiguration": network} | (more or {"launchType": "FARGATE"})
    ecs.create_service(
        cluster="fleet",
        serviceName=name,
        taskDefinition=name,
        desiredCount=count,
        tags=TAG,
        **given,
    )


def test_an_account_is_empty_and_is_so_again(amazon: Amazon, scheduler: EcsScheduler) -> None:
    assert amazon.snapshot() == set()
    make_service(amazon)
    scheduler.wait_for("worker", 2)
    there = amazon.snapshot()
    assert {
        "ecs:eu-central-1:cluster/fleet",
        "ecs:eu-central-1:service/fleet/worker ACTIVE",
    } < there
    assert sum(":task/" in name for name in there) == 2
    assert sum(":network-interface/" in name for name in there) == 2
    ecs = amazon.client("ecs")
    with pytest.raises(ClientError, match="ClusterContainsServices"):
        ecs.delete_cluster(cluster="fleet")
    ecs.delete_service(cluster="fleet", service="worker", force=True)
    scheduler.wait_for("worker", 0)
    ecs.delete_cluster(cluster="fleet")
    ecs.deregister_task_definition(taskDefinition="worker:1")
    assert "ecs:eu-central-1:task-definition/worker:1 INACTIVE" in amazon.snapshot()
    ecs.delete_task_definitions(taskDefinitions=["worker:1"])
    scheduler.wait_until(lambda: amazon.snapshot() == set())


def test_services_keep_their_count(amazon: Amazon, scheduler: EcsScheduler) -> None:
    strategy = [
        {"capacityProvider": "FARGATE", "weight": 20, "base": 1},
        {"capacityProvider": "FARGATE_SPOT", "weight": 80},
    ]
    make_service(amazon, count=11, capacityProviderStrategy=strategy)
    tasks = scheduler.wait_for("worker", 11)
    assert sum(task.provider == "FARGATE_SPOT" for task in tasks) == 8
    ecs = amazon.client("ecs")
    told = ecs.describe_services(cluster="fleet", services=["worker"], include=["TAGS"])
    service = told["services"][0]
    assert (service["runningCount"], service["pendingCount"], service["tags"]) == (11, 0, TAG)
    scheduler.wait_until(lambda: "steady state" in get_events(amazon)[0])

    spot = next(task for task in tasks if task.provider == "FARGATE_SPOT")
    scheduler.stop_task(spot.arn, spot=True)
    scheduler.wait_until(lambda: spot.last_status == "STOPPED")
    stopped = ecs.describe_tasks(cluster="fleet", tasks=[spot.arn])["tasks"][0]
    assert (stopped["stopCode"], stopped["desiredStatus"]) == ("SpotInterruption", "STOPPED")
    scheduler.wait_for("worker", 11)


def test_protected_tasks_stay(amazon: Amazon, scheduler: EcsScheduler) -> None:
    make_service(amazon, count=4)
    tasks = scheduler.wait_for("worker", 4)
    ecs = amazon.client("ecs")
    kept = [task.arn for task in tasks[:3]]
    ecs.update_task_protection(cluster="fleet", tasks=kept, protectionEnabled=True)
    ecs.update_service(cluster="fleet", service="worker", desiredCount=1)
    assert {task.arn for task in scheduler.wait_for("worker", 3)} == set(kept)
    scheduler.wait_until(lambda: "unable to scale in" in get_events(amazon)[0])
    ecs.update_task_protection(cluster="fleet", tasks=kept[:2], protectionEnabled=False)
    assert [task.arn for task in scheduler.wait_for("worker", 1)] == kept[2:]


def test_capacity_may_be_short(amazon: Amazon, scheduler: EcsScheduler) -> None:
    scheduler.limits["FARGATE"] = 3
    make_service(amazon, count=5)
    scheduler.wait_for("worker", 3)
    scheduler.wait_until(lambda: "Capacity is unavailable" in get_events(amazon)[0])
    del scheduler.limits["FARGATE"]
    scheduler.wait_for("worker", 5)


def test_tasks_that_do_not_start(amazon: Amazon, scheduler: EcsScheduler) -> None:
    scheduler.failing["worker"] = "CannotPullContainerError: manifest unknown"
    breaker = {"deploymentCircuitBreaker": {"enable": True, "rollback": False}}
    make_service(amazon, launchType="FARGATE", deploymentConfiguration=breaker)
    ecs = amazon.client("ecs")

    def failed() -> bool:
        told = ecs.describe_services(cluster="fleet", services=["worker"])["services"][0]
        return bool(told["deployments"][0]["rolloutState"] == "FAILED")

    scheduler.wait_until(failed)
    arns = ecs.list_tasks(cluster="fleet", desiredStatus="STOPPED")["taskArns"]
    reasons = {
        task["stoppedReason"] for task in ecs.describe_tasks(cluster="fleet", tasks=arns)["tasks"]
    }
    assert reasons == {"CannotPullContainerError: manifest unknown"}


def test_10_000_tasks_come_in_pages(amazon: Amazon, scheduler: EcsScheduler) -> None:
    scheduler.interfaces = False
    make_service(amazon, count=10_000)
    scheduler.wait_for("worker", 10_000)
    ecs = amazon.client("ecs")
    pages = list(ecs.get_paginator("list_tasks").paginate(cluster="fleet"))
    assert [len(page["taskArns"]) for page in pages] == [100] * 100
    arns = [arn for page in pages for arn in page["taskArns"]]
    assert len(set(arns)) == 10_000
    with pytest.raises(ClientError, match="between 1 and 100"):
        ecs.describe_tasks(cluster="fleet", tasks=arns[:101])
    with pytest.raises(ClientError, match="between 1 and 10"):
        ecs.describe_services(cluster="fleet", services=["worker"] * 11)


def get_events(amazon: Amazon) -> list[str]:
    """Of the service `worker`, the newest first; never none."""
    told = amazon.client("ecs").describe_services(cluster="fleet", services=["worker"])
    return [event["message"] for event in told["services"][0]["events"]] or [""]


SERVICES = ["ecs", "ec2", "iam", "s3", "logs", "secretsmanager", "servicediscovery", "ecr",
            "scheduler", "autoscaling", "sts", "resourcegroupstaggingapi", "pricing"]  # fmt: skip
QUESTIONS = {
    "ecs": "list_clusters",
    "ec2": "describe_vpcs",
    "iam": "list_roles",
    "s3": "list_buckets",
    "logs": "describe_log_groups",
    "secretsmanager": "list_secrets",
    "servicediscovery": "list_namespaces",
    "ecr": "describe_repositories",
    "scheduler": "list_schedules",
    "autoscaling": "describe_auto_scaling_groups",
    "sts": "get_caller_identity",
    "resourcegroupstaggingapi": "get_resources",
    "pricing": "get_products",
}


@pytest.mark.parametrize("service", QUESTIONS)
def test_faults_of_each_service(amazon: Amazon, service: str) -> None:
    def ask() -> Any:
        client = amazon.client(service)
        given = {"ServiceCode": "AmazonECS"} if service == "pricing" else {}
        return getattr(client, QUESTIONS[service])(**given)

    ask()
    action = amazon.calls[-1].action
    amazon.faults.at(action, "error", code="AccessDeniedException", message="no", status=400)
    with pytest.raises(ClientError, match=r"AccessDeniedException.*: no$"):
        ask()
    ask()
    amazon.faults.at(2, "throttle")
    ask()
    with pytest.raises(ClientError, match=r"Throttling|SlowDown|RequestLimitExceeded"):
        ask()
    amazon.faults.at(action, "silence")
    with pytest.raises(ConnectionClosedError):
        ask()
    ask()
    assert amazon.count_calls() == {action: 7}


PROGRAM = """
import boto3
boto3.client("ecs").create_cluster(clusterName="one")
print("made", flush=True)
boto3.client("ecs").create_cluster(clusterName="two")
"""


@pytest.mark.parametrize("kind", ["kill", "kill after"])
def test_a_client_is_killed_when_its_request_is_done(amazon: Amazon, kind: Any) -> None:
    amazon.faults.at("ecs:CreateCluster", kind)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert "ecs:eu-central-1:cluster/one" in amazon.snapshot()
    assert "ecs:eu-central-1:cluster/two" not in amazon.snapshot()


def test_an_answer_can_be_lost(amazon: Amazon) -> None:
    amazon.faults.at("ecs:CreateCluster", "lost")
    with pytest.raises(ConnectionClosedError):
        amazon.client("ecs").create_cluster(clusterName="one")
    assert amazon.snapshot() == {"ecs:eu-central-1:cluster/one"}


def test_actions_are_those_of_iam(amazon: Amazon) -> None:
    s3 = amazon.client("s3")
    place = {"LocationConstraint": "eu-central-1"}
    s3.create_bucket(Bucket="bench", CreateBucketConfiguration=place)
    s3.put_object(Bucket="bench", Key="sessions/a b/c", Body=b"x", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket="bench", Key="sessions/a b/c", Body=b"y", IfNoneMatch="*")
    s3.list_objects_v2(Bucket="bench", Prefix="sessions/")
    s3.head_object(Bucket="bench", Key="sessions/a b/c")
    s3.delete_objects(Bucket="bench", Delete={"Objects": [{"Key": "sessions/a b/c"}]})
    s3.put_public_access_block(
        Bucket="bench", PublicAccessBlockConfiguration={"BlockPublicAcls": True}
    )
    arn = amazon.client("iam").create_role(
        RoleName="r", AssumeRolePolicyDocument=json.dumps(TRUST), Tags=[{"Key": "a", "Value": "b"}]
    )["Role"]["Arn"]
    amazon.role_delay = 2
    for _ in range(2):
        with pytest.raises(ClientError, match="Role is not valid"):
            register(amazon, arn)
    register(amazon, arn)
    assert amazon.list_actions() == {
        "s3:CreateBucket",
        "s3:PutObject",
        "s3:ListBucket",
        "s3:GetObject",
        "s3:DeleteObject",
        "s3:PutBucketPublicAccessBlock",
        "iam:CreateRole",
        "iam:TagRole",
        "ecs:RegisterTaskDefinition",
        "iam:PassRole",
    }
    assert amazon.calls[1].parameters["Key"] == "sessions/a b/c"


def register(amazon: Amazon, role: str) -> None:
    amazon.client("ecs").register_task_definition(
        family="a",
        taskRoleArn=role,
        containerDefinitions=[{"name": "main", "image": "none", "memory": 64}],
    )


def test_all_that_is_tagged_is_found(amazon: Amazon) -> None:
    make_service(amazon)
    tags = [{"Key": "pestfleet:session", "Value": "x"}]
    amazon.client("ecr").create_repository(repositoryName="pestfleet/x", tags=tags)
    amazon.client("scheduler").create_schedule_group(Name="x", Tags=tags)
    amazon.client("secretsmanager").create_secret(Name="x", SecretString="s", Tags=tags)
    amazon.client("logs").create_log_group(logGroupName="x", tags={"pestfleet:session": "x"})
    ec2 = amazon.client("ec2")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    amazon.client("servicediscovery").create_private_dns_namespace(
        Name="x.internal", Vpc=vpc, Tags=tags
    )
    ec2.create_security_group(
        GroupName="x", Description="x", VpcId=vpc,
        TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
    )  # fmt: skip
    client = amazon.client("resourcegroupstaggingapi")
    pages = client.get_paginator("get_resources").paginate(
        TagFilters=[{"Key": "pestfleet:session", "Values": ["x"]}], ResourcesPerPage=3
    )
    found = [one["ResourceARN"] for page in pages for one in page["ResourceTagMappingList"]]
    kinds = sorted(
        ":".join(arn.split(":")[2:3] + arn.split(":")[5:6]).split("/")[0] for arn in found
    )
    assert kinds == ["ec2:security-group", "ecr:repository", "ecs:cluster", "ecs:service",
                     "logs:log-group", "scheduler:schedule-group", "secretsmanager:secret",
                     "servicediscovery:namespace"]  # fmt: skip
    assert client.get_resources(ResourceTypeFilters=["ecs:service"])["ResourceTagMappingList"]
