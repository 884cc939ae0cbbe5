"""A session's resources in an account of moto's: made, found, removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from amazon_account import (
    REGION,
    list_account,
    make_secrets,
    make_spec,
    open_account,
    plan_in,
)
from pestfleet.targets.ecs import resources
from pestfleet.targets.ecs.access import Cloud, Refused, Unreachable
from pestfleet.targets.ecs.grants import IMPLIED, USE
from pestfleet.targets.ecs.naming import SESSION
from pestfleet.targets.ecs.permissions import read_actions
from pestfleet.targets.ecs.plan import AmazonPlan
from pestfleet.targets.ecs.resources import Found, waiting
from pestfleet_worker.errors import TargetError

# What goes with another, or stays.
UNFOUND = {"schedule", "bucket", "security-group-ingress", "security-group-egress"}
MACHINES = {"network": "make", "instances": "c7i.4xlarge"}


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(waiting, "FIRST", 0.01)
    monkeypatch.setattr(waiting, "LONGEST", 0.01)
    with open_account() as account:
        yield account


def apply(cloud: Cloud, plan: AmazonPlan) -> list[str]:
    said: list[str] = []
    resources.apply(cloud, plan, make_secrets(plan), said.append)
    return said


def refuse(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, error: Callable[[str, str, Any], Any]
) -> None:
    """`error` gets each request, and raises or not, before the request is made."""
    call = cloud.call

    def judge(service: str, operation: str, /, **parameters: Any) -> Any:
        error(service, operation, parameters)
        return call(service, operation, **parameters)

    monkeypatch.setattr(cloud, "call", judge)


def name_kinds(found: list[Found]) -> set[str]:
    return {one.kind for one in found}


@pytest.mark.parametrize(
    "amazon",
    [
        {"network": "make"},
        {"network": "make", "instances": "c7i.4xlarge", "capacity": "mixed:20"},
        {"network": "make", "cluster": "shared"},
    ],
    ids=["fargate", "machines", "shared"],
)
def test_a_session_leaves_nothing_but_the_bucket(cloud: Cloud, amazon: dict[str, Any]) -> None:
    if "cluster" in amazon:
        cloud.call("ecs", "create_cluster", clusterName="shared", capacityProviders=["FARGATE"])
    before = list_account(cloud)
    plan = plan_in(cloud, make_spec(**amazon))

    apply(cloud, plan)
    found = resources.find_all(cloud, "s1")
    removed = resources.remove_all(cloud, "s1")

    planned = {(one.kind, one.name) for one in plan.resources if one.kind not in UNFOUND}
    assert {(one.kind, one.name.removesuffix(":1")) for one in found} == planned
    assert all(one.tags[SESSION] == "s1" for one in found)
    assert {one.kind for one in found if one.costs} >= {"service", "vpc-endpoint", "secret"}
    assert sorted(removed) == sorted(map(str, found))
    left = [one for one in list_account(cloud) if one not in before]
    assert [one for one in left if plan.bucket not in one] == []
    assert resources.find_all(cloud, "s1") == []


def test_what_costs_by_the_hour_goes_first_and_the_lease_last(cloud: Cloud) -> None:
    apply(cloud, plan_in(cloud, make_spec(**MACHINES)))

    removed = resources.remove_all(cloud, "s1")

    kinds = [text.rpartition(" ")[0] for text in removed]
    assert kinds[:4] == ["service", "service", "service", "auto scaling group"]
    lease = kinds.index("schedule group")
    assert set(kinds[lease + 1 :]) == {"role"}


def test_a_launch_that_is_repeated_makes_nothing_twice(cloud: Cloud) -> None:
    plan = plan_in(cloud, make_spec(**MACHINES))
    apply(cloud, plan)
    first = [one for one in list_account(cloud) if "task-definition" not in one]

    said = apply(cloud, plan)

    assert [one for one in list_account(cloud) if "task-definition" not in one] == first
    made = {text.split()[1] for text in said if text.startswith("making")}
    assert made == {"schedule", "security", "task"}  # schedules and rules are put there again


class Killed(BaseException):
    """The process is killed."""


# Those whose making or removal has more than one step, or that others hold on to.
@pytest.mark.parametrize(
    "kind",
    ["role", "security-group", "vpc-endpoint", "dns-namespace", "instance-profile",
     "auto-scaling-group", "capacity-provider", "service"],
)  # fmt: skip
def test_what_a_killed_launch_made_is_removed(
    cloud: Cloud, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after the request that makes the first of a kind."""
    from pestfleet.targets.ecs.resources.catalogue import KINDS

    before = list_account(cloud)
    plan = plan_in(cloud, make_spec(**MACHINES))
    wanted = KINDS[kind].service, KINDS[kind].operation
    call = cloud.call

    def kill(service: str, operation: str, /, **parameters: Any) -> Any:
        answer = call(service, operation, **parameters)
        if (service, operation) == wanted:
            raise Killed
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(cloud, "call", kill)
        with pytest.raises(Killed):
            apply(cloud, plan)
    assert list_account(cloud) != before

    resources.remove_all(cloud, "s1")

    left = [one for one in list_account(cloud) if one not in before]
    assert [one for one in left if plan.bucket not in one] == []


def test_a_role_that_is_not_known_yet_is_waited_for(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(cloud, make_spec(network="make"))
    refusals = {
        "create_schedule": Refused(
            "scheduler:CreateSchedule", "ValidationException",
            "The execution role you provide must allow AWS EventBridge Scheduler to assume it."),
        "create_service": Refused(
            "ecs:CreateService", "InvalidParameterException",
            "Unable to assume the service linked role."),
        "register_task_definition": Refused(
            "ecs:RegisterTaskDefinition", "ClientException", "Role is not valid"),
    }  # fmt: skip

    def error(service: str, operation: str, parameters: Any) -> None:
        if operation in refusals and service != "servicediscovery":
            raise refusals.pop(operation)

    refuse(cloud, monkeypatch, error)

    apply(cloud, plan)

    assert refusals == {}
    assert "service" in name_kinds(resources.find_all(cloud, "s1"))


@pytest.mark.parametrize(
    ("code", "said", "remedy"),
    [
        ("AccessDeniedException", "not authorized to perform: iam:PassRole", "permission"),
        ("VpcLimitExceeded", "The maximum number of VPCs has been reached.", "quota"),
        ("InsufficientInstanceCapacity", "none", "--capacity ondemand"),
    ],
)
def test_a_refusal_names_the_resource_and_the_remedy(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, code: str, said: str, remedy: str
) -> None:
    plan = plan_in(cloud, make_spec(network="make"))

    def error(service: str, operation: str, parameters: Any) -> None:
        if operation == "create_vpc":
            raise Refused("ec2:CreateVpc", code, said, remedy="You need the permission.")

    refuse(cloud, monkeypatch, error)

    with pytest.raises(TargetError, match=r"ec2:CreateVpc for the vpc pestfleet-s1") as caught:
        apply(cloud, plan)
    assert remedy in caught.value.remedy


def test_silence_names_the_resource(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_in(cloud, make_spec(network="make"))

    def error(service: str, operation: str, parameters: Any) -> None:
        if operation == "create_role":
            raise Unreachable("Amazon does not answer iam:CreateRole", remedy="Look.")

    refuse(cloud, monkeypatch, error)

    with pytest.raises(Unreachable, match=r"for the role pestfleet-s1-schedule"):
        apply(cloud, plan)


def test_what_is_of_another_is_neither_used_nor_removed(cloud: Cloud) -> None:
    trust = '{"Version":"2012-10-17","Statement":[]}'
    role = {"RoleName": "pestfleet-s1-worker", "AssumeRolePolicyDocument": trust}
    cloud.call("iam", "create_role", **role)
    plan = plan_in(cloud, make_spec(network="make"))

    with pytest.raises(TargetError, match="is there already, and is not of session s1"):
        apply(cloud, plan)
    resources.remove_all(cloud, "s1")

    assert cloud.call("iam", "get_role", RoleName="pestfleet-s1-worker")


def test_a_role_of_the_same_session_in_another_region_stays(cloud: Cloud) -> None:
    apply(cloud, plan_in(cloud, make_spec(network="make")))
    other = cloud.elsewhere("eu-west-1")

    assert resources.find_all(other, "s1") == []
    assert resources.find_tagged(other) == {}
    assert resources.remove_all(other, "s1") == []
    assert "role" in name_kinds(resources.find_all(cloud, "s1"))


def test_removal_goes_on_past_errors_and_names_what_is_left(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(cloud, plan_in(cloud, make_spec(network="make")))

    def error(service: str, operation: str, parameters: Any) -> None:
        if operation == "delete_log_group":
            raise Refused("logs:DeleteLogGroup", "AccessDenied", "no", remedy="Ask for it.")

    with monkeypatch.context() as patch:
        refuse(cloud, patch, error)
        with pytest.raises(TargetError, match="log group /pestfleet/s1") as caught:
            resources.remove_all(cloud, "s1")

    assert "Ask for it." in caught.value.remedy
    assert "pestfleet down s1" in caught.value.remedy
    assert name_kinds(resources.find_all(cloud, "s1")) == {"log-group"}
    resources.remove_all(cloud, "s1")
    assert resources.find_all(cloud, "s1") == []


def test_the_lease_stays_while_a_service_does(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(cloud, plan_in(cloud, make_spec(network="make")))

    def error(service: str, operation: str, parameters: Any) -> None:
        if (service, operation) == ("ecs", "delete_service"):
            raise Refused("ecs:DeleteService", "ServerException", "broken", status=500)

    refuse(cloud, monkeypatch, error)

    with pytest.raises(TargetError):
        resources.remove_all(cloud, "s1")
    assert {"service", "schedule-group", "role"} <= name_kinds(resources.find_all(cloud, "s1"))


def test_removal_ends_where_amazon_does_not_answer(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(cloud, plan_in(cloud, make_spec(network="make")))
    asked = []

    def error(service: str, operation: str, parameters: Any) -> None:
        asked.append(operation)
        if operation.startswith("delete"):
            raise Unreachable("no answer")

    refuse(cloud, monkeypatch, error)

    with pytest.raises(TargetError, match="no answer"):
        resources.remove_all(cloud, "s1")
    assert len([name for name in asked if name.startswith("delete")]) == 2


def test_what_is_kept_is_kept(cloud: Cloud) -> None:
    apply(cloud, plan_in(cloud, make_spec(network="make")))

    resources.remove_all(cloud, "s1", keep={"log-group"})

    assert name_kinds(resources.find_all(cloud, "s1")) == {"log-group"}


def test_secrets_are_brought_up_to_date(cloud: Cloud) -> None:
    plan = plan_in(cloud, make_spec(network="make"))
    apply(cloud, plan)

    secrets = make_secrets(plan) | {"worker": '{"broker-url": "new"}'}
    resources.apply(cloud, plan, secrets, lambda text: None)

    answer = cloud.call("secretsmanager", "get_secret_value", SecretId="pestfleet/s1/worker")
    assert answer["SecretString"] == '{"broker-url": "new"}'


def test_tasks_get_the_secret_that_was_made(cloud: Cloud) -> None:
    apply(cloud, plan_in(cloud, make_spec(network="make")))

    secret = cloud.call("secretsmanager", "describe_secret", SecretId="pestfleet/s1/worker")
    task = cloud.call("ecs", "describe_task_definition", taskDefinition="pestfleet-s1-worker")
    containers = task["taskDefinition"]["containerDefinitions"]
    names = [one["valueFrom"] for container in containers for one in container.get("secrets", ())]
    assert names == [secret["ARN"]]


def test_a_part_of_a_plan_can_be_made_before_the_rest(cloud: Cloud) -> None:
    plan = plan_in(cloud, make_spec(network="make"))
    first = [one for one in plan.resources if one.kind in ("schedule-group", "role", "schedule")]

    resources.apply(cloud, replace(plan, resources=first), {}, lambda text: None)
    assert name_kinds(resources.find_all(cloud, "s1")) == {"schedule-group", "role"}
    apply(cloud, plan)
    assert "service" in name_kinds(resources.find_all(cloud, "s1"))


def test_the_bucket_goes_when_nothing_is_in_it(cloud: Cloud) -> None:
    plan = plan_in(cloud, make_spec(network="make"))
    apply(cloud, plan)
    s3 = cloud.client("s3")
    closed = s3.get_public_access_block(Bucket=plan.bucket)["PublicAccessBlockConfiguration"]
    assert all(closed.values())
    (bucket,) = plan.find("bucket")
    for operation, body in bucket.more:
        if operation == "put_bucket_policy":
            policy = s3.get_bucket_policy(Bucket=plan.bucket)["Policy"]
            assert json.loads(policy) == json.loads(body["Policy"])
    s3.delete_bucket_policy(Bucket=plan.bucket)  # moto takes every request for one without TLS
    s3.put_object(Bucket=plan.bucket, Key="sessions/s1/files/a", Body=b"a")

    assert not resources.remove_bucket(cloud)
    s3.delete_object(Bucket=plan.bucket, Key="sessions/s1/files/a")
    assert resources.remove_bucket(cloud)
    assert s3.list_buckets()["Buckets"] == []


def test_groups_let_in_only_who_needs_it(cloud: Cloud) -> None:
    apply(cloud, plan_in(cloud, make_spec(network="make", mode="agent")))

    groups = {
        one["GroupName"].removeprefix("pestfleet-s1-"): one
        for one in cloud.client("ec2").describe_security_groups()["SecurityGroups"]
    }

    def list_ports(role: str, key: str) -> set[int]:
        return {rule["FromPort"] for rule in groups[role][key]}

    assert list_ports("worker", "IpPermissions") == set()
    assert list_ports("broker", "IpPermissions") == {5671}
    assert list_ports("master", "IpPermissions") == {4004}
    assert list_ports("worker", "IpPermissionsEgress") == {443, 53, 5671, 4004}
    assert list_ports("broker", "IpPermissionsEgress") == {443, 53}
    anywhere = [
        rule["FromPort"]
        for role in ("worker", "broker", "master")
        for rule in groups[role]["IpPermissionsEgress"]
        if any(block["CidrIp"] == "0.0.0.0/0" for block in rule["IpRanges"])
    ]
    assert set(anywhere) == {443}


def test_sessions_are_told_from_their_tags(cloud: Cloud) -> None:
    apply(cloud, plan_in(cloud, make_spec(network="make")))
    second = plan_in(cloud, make_spec("Second.One", network="make"))
    apply(cloud, second)
    lease = [one for one in second.resources if one.kind == "schedule-group"]
    third = plan_in(cloud, make_spec("third", network="make"))
    resources.apply(cloud, replace(third, resources=third.resources[:1]), {}, lambda text: None)
    assert lease
    cloud.calls.clear()

    found = resources.find_tagged(cloud)

    assert set(found) == {"s1", "Second.One", "third"}
    assert {"service", "cluster", "secret", "log-group", "vpc", "role", "schedule-group"} <= (
        name_kinds(found["Second.One"])
    )
    service = next(one for one in found["s1"] if one.kind == "service")
    assert service.name.startswith("pestfleet-s1-")
    assert service.costs
    # Pages, and one request for the session that has its lease alone.
    assert cloud.calls["scheduler:ListTagsForResource"] == 1
    assert cloud.calls["iam:ListRoles"] == 1
    assert cloud.calls["tag:GetResources"] <= 3


@pytest.mark.parametrize("amazon", [{"network": "make"}, MACHINES], ids=["fargate", "machines"])
def test_the_policy_has_every_action_and_no_other(cloud: Cloud, amazon: dict[str, Any]) -> None:
    plan = plan_in(cloud, make_spec(**amazon))
    for _ in range(2):
        apply(cloud, plan)
    resources.find_all(cloud, "s1")
    resources.find_tagged(cloud)
    resources.remove_all(cloud, "s1")
    resources.remove_bucket(cloud)

    allowed = read_actions([plan.policy])
    made = set(cloud.calls)

    assert made <= allowed
    # What others of us use, and what needs what moto does not have: tasks, machines that run.
    elsewhere = {action for grant in USE for action in grant.actions}
    tasks = {"ecs:StopTask", "servicediscovery:DeregisterInstance"}
    machines = {"ec2:TerminateInstances", "ecs:DeregisterContainerInstance"}
    assert allowed - made - IMPLIED - elsewhere <= tasks | machines
    for one in plan.resources:
        assert set(one.actions) <= allowed


def test_regions_are_apart(cloud: Cloud) -> None:
    assert cloud.region == REGION
    apply(cloud, plan_in(cloud, make_spec(network="make")))

    with pytest.raises(TargetError, match="is not of session s1 in eu-west-1"):
        other = cloud.elsewhere("eu-west-1")
        apply(other, plan_in(other, make_spec(network="make")))
