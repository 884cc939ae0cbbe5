"""The bench's roles, schedules, names, prices and machines."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from ecs_scheduler import EcsScheduler
from moto_server import Amazon
from schedule_runner import run_schedules
from test_bench import TAG, TRUST, make_service


def make_role(amazon: Amazon, name: str, service: str, *statements: dict[str, Any]) -> str:
    iam = amazon.client("iam")
    trust = json.dumps(TRUST).replace("ecs-tasks.amazonaws.com", service)
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    for statement in statements:
        document = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", **statement}}
        iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=json.dumps(document))
    return str(arn)


def make_schedule(amazon: Amazon, role: str, when: datetime) -> None:
    given = {"Cluster": "fleet", "Service": "worker", "DesiredCount": 0}
    amazon.client("scheduler").create_schedule(
        Name="worker",
        GroupName="x",
        ScheduleExpression=f"at({when:%Y-%m-%dT%H:%M:%S})",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={
            "Arn": "arn:aws:scheduler:::aws-sdk:ecs:updateService",
            "RoleArn": role,
            "Input": json.dumps(given),
        },
    )


def test_a_schedule_ends_a_service(amazon: Amazon, scheduler: EcsScheduler) -> None:
    now = datetime.now(UTC)
    stem = f"arn:aws:ecs:eu-central-1:{amazon.account}"
    statement = {"Action": "ecs:UpdateService", "Resource": f"{stem}:service/fleet/*"}
    role = make_role(amazon, "schedule", "scheduler.amazonaws.com", statement)
    with pytest.raises(ClientError, match="Schedule group x does not exist"):
        make_schedule(amazon, role, now)
    client = amazon.client("scheduler")
    client.create_schedule_group(Name="x")
    tasks = make_role(amazon, "tasks", "ecs-tasks.amazonaws.com")
    with pytest.raises(ClientError, match="must allow AWS EventBridge Scheduler"):
        make_schedule(amazon, tasks, now)
    amazon.role_delay = 2
    for _ in range(2):
        with pytest.raises(ClientError, match="must allow AWS EventBridge Scheduler"):
            make_schedule(amazon, role, now)
    make_schedule(amazon, role, now + timedelta(minutes=20))

    make_service(amazon)
    scheduler.wait_for("worker", 2)
    assert run_schedules(amazon) == []
    later = now + timedelta(minutes=21)
    assert run_schedules(amazon, later) == ["worker"]
    scheduler.wait_for("worker", 0)
    assert run_schedules(amazon, later) == []
    assert amazon.list_actions(role) == {"ecs:UpdateService"}
    amazon.client("iam").delete_role_policy(RoleName="schedule", PolicyName="p")
    client.delete_schedule(Name="worker", GroupName="x")
    make_schedule(amazon, role, now - timedelta(minutes=1))
    with pytest.raises(AssertionError, match="may not ecs:UpdateService"):
        run_schedules(amazon)


def test_a_policy_can_be_held_to(amazon: Amazon) -> None:
    allowed = {"Effect": "Allow", "Action": ["ecs:Describe*", "ecs:CreateCluster"], "Resource": "*"}
    amazon.policy = {"Version": "2012-10-17", "Statement": [allowed]}
    ecs = amazon.client("ecs")
    ecs.create_cluster(clusterName="one")
    with pytest.raises(ClientError, match=r"AccessDeniedException.*ecs:TagResource"):
        ecs.create_cluster(clusterName="two", tags=TAG)
    with pytest.raises(ClientError, match=r"AccessDeniedException.*ecs:ListClusters"):
        ecs.list_clusters()
    with pytest.raises(ClientError, match=r"UnauthorizedOperation.*ec2:DescribeVpcs"):
        amazon.client("ec2").describe_vpcs()
    assert amazon.client("sts").get_caller_identity()["Account"] == amazon.account
    allowed["Resource"] = f"arn:aws:ecs:eu-central-1:{amazon.account}:service/one/*"
    assert ecs.describe_services(cluster="one", services=["a"])["failures"]
    with pytest.raises(ClientError, match="not authorized"):
        ecs.describe_services(cluster="two", services=["a"])


def test_a_role_is_held_to_its_policy(amazon: Amazon) -> None:
    statement = {"Action": ["s3:PutObject"], "Resource": "arn:aws:s3:::bench/sessions/one/*"}
    role = make_role(amazon, "task", "ecs-tasks.amazonaws.com", statement)
    place = {"LocationConstraint": "eu-central-1"}
    amazon.client("s3").create_bucket(Bucket="bench", CreateBucketConfiguration=place)
    with amazon.lock:
        key = amazon.make_key(role)
    client = boto3.client("s3", aws_access_key_id=key, aws_secret_access_key="secret")
    client.put_object(Bucket="bench", Key="sessions/one/a", Body=b"x")
    with pytest.raises(ClientError, match=r"AccessDenied.*sessions/two/a"):
        client.put_object(Bucket="bench", Key="sessions/two/a", Body=b"x")
    with pytest.raises(ClientError, match="403"):
        client.head_object(Bucket="bench", Key="sessions/one/a")
    assert amazon.list_actions(role) == {"s3:PutObject", "s3:GetObject"}


def test_tasks_have_names(amazon: Amazon, scheduler: EcsScheduler) -> None:
    client = amazon.client("servicediscovery")
    vpc = amazon.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
    made = client.create_private_dns_namespace(Name="x.internal", Vpc=vpc)
    done = client.get_operation(OperationId=made["OperationId"])["Operation"]
    namespace = done["Targets"]["NAMESPACE"]
    broker = client.create_service(
        Name="broker",
        NamespaceId=namespace,
        DnsConfig={"DnsRecords": [{"Type": "A", "TTL": 10}]},
        HealthCheckCustomConfig={"FailureThreshold": 1},
    )["Service"]
    registries = [{"registryArn": broker["Arn"]}]
    make_service(amazon, "broker", 1, launchType="FARGATE", serviceRegistries=registries)
    (task,) = scheduler.wait_for("broker", 1)
    scheduler.wait_until(lambda: bool(client.list_instances(ServiceId=broker["Id"])["Instances"]))
    (instance,) = client.list_instances(ServiceId=broker["Id"])["Instances"]
    details = task.answer["attachments"][0]["details"]
    address = next(one["value"] for one in details if one["name"] == "privateIPv4Address")
    assert instance["Attributes"]["AWS_INSTANCE_IPV4"] == address
    with pytest.raises(ClientError, match="ResourceInUse"):
        client.delete_service(Id=broker["Id"])
    with pytest.raises(ClientError, match="ResourceInUse"):
        client.delete_namespace(Id=namespace)
    amazon.client("ecs").delete_service(cluster="fleet", service="broker", force=True)
    scheduler.wait_for("broker", 0)
    client.delete_service(Id=broker["Id"])
    client.delete_namespace(Id=namespace)
    assert not [name for name in amazon.snapshot() if "route53" in name or "discovery" in name]


def test_a_security_group_stays_while_it_is_used(amazon: Amazon, scheduler: EcsScheduler) -> None:
    ec2 = amazon.client("ec2")
    subnet = ec2.describe_subnets()["Subnets"][0]
    group = ec2.create_security_group(GroupName="x", Description="x", VpcId=subnet["VpcId"])[
        "GroupId"
    ]
    network = {"awsvpcConfiguration": {"subnets": [subnet["SubnetId"]], "securityGroups": [group],
                                       "assignPublicIp": "ENABLED"}}  # fmt: skip
    amazon.linger = 1.0
    make_service(amazon, count=1, launchType="FARGATE", networkConfiguration=network)
    (task,) = scheduler.wait_for("worker", 1)
    found = ec2.describe_network_interfaces(NetworkInterfaceIds=[task.interface])
    assert found["NetworkInterfaces"][0]["Association"]["PublicIp"].startswith("203.0.113.")
    amazon.client("ecs").delete_service(cluster="fleet", service="worker", force=True)
    scheduler.wait_for("worker", 0)
    with pytest.raises(ClientError, match="DependencyViolation"):
        ec2.delete_security_group(GroupId=group)
    scheduler.wait_until(lambda: not ec2.describe_network_interfaces()["NetworkInterfaces"])
    ec2.delete_security_group(GroupId=group)


def test_prices_have_the_form_of_the_real_ones(amazon: Amazon) -> None:
    client = amazon.client("pricing")
    filters = [
        {"Type": "TERM_MATCH", "Field": "regionCode", "Value": "eu-central-1"},
        {"Type": "TERM_MATCH", "Field": "cputype", "Value": "perCPU"},
    ]
    (text,) = client.get_products(ServiceCode="AmazonECS", Filters=filters)["PriceList"]
    (term,) = json.loads(text)["terms"]["OnDemand"].values()
    (rate,) = term["priceDimensions"].values()
    assert (rate["unit"], rate["pricePerUnit"]) == ("Hrs", {"USD": "0.0465600000"})
    pages = client.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", MaxResults=2)
    assert [len(page["PriceList"]) for page in pages] == [2, 2]


def test_machines_of_ec2_come_with_tasks_and_go(amazon: Amazon, scheduler: EcsScheduler) -> None:
    ec2, ecs = amazon.client("ec2"), amazon.client("ecs")
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    before = amazon.snapshot()
    ec2.create_launch_template(
        LaunchTemplateName="fleet",
        LaunchTemplateData={"ImageId": image, "InstanceType": "c6i.large"},
    )
    groups = amazon.client("autoscaling")
    groups.create_auto_scaling_group(
        AutoScalingGroupName="fleet",
        LaunchTemplate={"LaunchTemplateName": "fleet"},
        MinSize=0,
        MaxSize=3,
        DesiredCapacity=0,
        VPCZoneIdentifier=ec2.describe_subnets()["Subnets"][0]["SubnetId"],
    )
    found = groups.describe_auto_scaling_groups()["AutoScalingGroups"]
    ecs.create_capacity_provider(
        name="machines",
        autoScalingGroupProvider={
            "autoScalingGroupArn": found[0]["AutoScalingGroupARN"],
            "managedScaling": {"status": "ENABLED"},
        },
    )
    ecs.create_cluster(clusterName="fleet", capacityProviders=["machines"])
    ecs.register_task_definition(
        family="worker",
        networkMode="bridge",
        containerDefinitions=[{"name": "main", "image": "none", "cpu": 1024, "memory": 1024}],
    )
    ecs.create_service(
        cluster="fleet",
        serviceName="worker",
        taskDefinition="worker",
        desiredCount=8,
        capacityProviderStrategy=[{"capacityProvider": "machines", "weight": 1}],
    )
    # Two a machine, and no more than three machines.
    scheduler.wait_until(lambda: len(scheduler.list_tasks("worker")) == 6)
    assert len(scheduler.list_tasks("worker", status="PROVISIONING")) == 2
    arns = ecs.list_container_instances(cluster="fleet")["containerInstanceArns"]
    told = ecs.describe_container_instances(cluster="fleet", containerInstances=arns)
    assert [one["runningTasksCount"] for one in told["containerInstances"]] == [2, 2, 2]
    ecs.delete_service(cluster="fleet", service="worker", force=True)
    scheduler.wait_for("worker", 0)
    scheduler.wait_until(lambda: not ecs.list_container_instances(cluster="fleet")[
        "containerInstanceArns"])  # fmt: skip
    groups.delete_auto_scaling_group(AutoScalingGroupName="fleet", ForceDelete=True)
    ecs.delete_cluster(cluster="fleet")
    ecs.delete_capacity_provider(capacityProvider="machines")
    ec2.delete_launch_template(LaunchTemplateName="fleet")
    ecs.deregister_task_definition(taskDefinition="worker:1")
    ecs.delete_task_definitions(taskDefinitions=["worker:1"])
    assert amazon.snapshot() == before
