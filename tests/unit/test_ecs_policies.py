"""What the roles of a session may do, and who launches one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amazon_account import ACCOUNT, MACHINE, MADE, make_facts, make_spec, plan_for
from pestfleet.targets.ecs.grants import GRANTS, HOME, IMPLIED, SAME, USE
from pestfleet.targets.ecs.permissions import list_actions, read_actions
from pestfleet.targets.ecs.plan import AmazonPlan
from pestfleet.targets.ecs.resources.catalogue import KINDS

Policy = dict[str, Any]
PLANS = {
    "fargate": plan_for(make_spec()),
    "machines": plan_for(make_spec(instances="c7i.4xlarge"), make_facts(machine=MACHINE)),
    "made": plan_for(make_spec(network="make"), make_facts(MADE)),
    "shared": plan_for(make_spec(cluster="shared", bucket="theirs")),
}


def read_role(plan: AmazonPlan, role: str) -> tuple[Policy, Policy]:
    """What a role may do, and who may take it."""
    (one,) = [one for one in plan.find("role") if one.role == role]
    ((_, body),) = one.more
    return json.loads(body["PolicyDocument"]), json.loads(one.body["AssumeRolePolicyDocument"])


def list_rights(policy: Policy) -> dict[str, list[str]]:
    """Action -> resources."""
    found: dict[str, list[str]] = {}
    for statement in policy["Statement"]:
        resources = statement["Resource"]
        for action in statement["Action"]:
            found.setdefault(action, []).extend(
                [resources] if isinstance(resources, str) else resources
            )
    return found


def test_who_starts_tasks_reads_this_sessions_secrets_alone() -> None:
    rights = list_rights(read_role(PLANS["fargate"], "execution")[0])

    place = f"arn:aws:secretsmanager:eu-central-1:{ACCOUNT}:secret:pestfleet/s1/"
    assert rights == {
        "logs:CreateLogStream": [LOGS := f"arn:aws:logs:eu-central-1:{ACCOUNT}:log-group:"
                                 "/pestfleet/s1:log-stream:*"],
        "logs:PutLogEvents": [LOGS],
        "secretsmanager:GetSecretValue": [
            f"{place}{role}-??????" for role in ("broker", "master", "worker")
        ],
        "ecr:GetAuthorizationToken": ["*"],
        "ecr:BatchGetImage": [IMAGES := f"arn:aws:ecr:eu-central-1:{ACCOUNT}:repository/"
                              "pestfleet/s1"],
        "ecr:GetDownloadUrlForLayer": [IMAGES],
    }  # fmt: skip


def test_a_master_has_its_part_of_the_bucket() -> None:
    policy, _ = read_role(PLANS["fargate"], "master")
    rights = list_rights(policy)
    bucket = f"arn:aws:s3:::pestfleet-{ACCOUNT}-eu-central-1"

    assert rights["s3:PutObject"] == [f"{bucket}/sessions/s1/*", f"{bucket}/cache/*"]
    assert rights["s3:DeleteObject"] == [f"{bucket}/sessions/s1/*"]
    assert f"{bucket}/blobs/*" in rights["s3:GetObject"]
    (listing,) = [one for one in policy["Statement"] if one["Action"] == ["s3:ListBucket"]]
    assert listing["Condition"]["StringLike"]["s3:prefix"][0] == "sessions/s1/*"
    assert rights["iam:PassRole"] == [
        f"arn:aws:iam::{ACCOUNT}:role/pestfleet/pestfleet-s1-schedule"
    ]
    assert all(
        arn.split("/")[-1].startswith("pestfleet-s1-") for arn in rights["ecs:UpdateService"]
    )
    assert not [action for action in rights if action.startswith(("ec2:", "secretsmanager:"))]


@pytest.mark.parametrize("name", PLANS)
def test_a_worker_may_ask_to_be_left_alone_and_nothing_else(name: str) -> None:
    rights = list_rights(read_role(PLANS[name], "worker")[0])

    cluster = PLANS[name].cluster
    tasks = [f"arn:aws:ecs:eu-central-1:{ACCOUNT}:task/{cluster}/*"]
    assert rights == {"ecs:UpdateTaskProtection": tasks, "ecs:GetTaskProtection": tasks}


def test_the_lease_may_stop_what_the_session_has() -> None:
    fargate = list_rights(read_role(PLANS["fargate"], "schedule")[0])
    machines = list_rights(read_role(PLANS["machines"], "schedule")[0])

    assert set(fargate) == {"ecs:UpdateService"}
    assert set(machines) == {"ecs:UpdateService", "autoscaling:UpdateAutoScalingGroup"}
    assert machines["autoscaling:UpdateAutoScalingGroup"][0].endswith("/pestfleet-s1")


@pytest.mark.parametrize("role", ["execution", "master", "worker", "schedule"])
def test_roles_are_for_services_of_this_account(role: str) -> None:
    _, trust = read_role(PLANS["fargate"], role)

    (statement,) = trust["Statement"]
    service = "scheduler" if role == "schedule" else "ecs-tasks"
    assert statement["Principal"] == {"Service": f"{service}.amazonaws.com"}
    assert statement["Condition"]["StringEquals"]["aws:SourceAccount"] == ACCOUNT


@pytest.mark.parametrize("name", PLANS)
def test_the_launch_policy_has_what_each_resource_needs(name: str) -> None:
    plan = PLANS[name]
    allowed = read_actions([plan.policy])

    for one in plan.resources:
        assert set(one.actions) == set(list_actions(one.kind)) <= allowed
    sids = [one["Sid"] for one in plan.policy["Statement"]]
    assert len(sids) == len(set(sids))
    assert all(sid.isalnum() for sid in sids)
    # The longest that IAM takes as a managed policy; and as one of a role.
    longest = 6144 if name in ("fargate", "shared") else 10240
    assert len(json.dumps(plan.policy, separators=(",", ":"))) <= longest


def test_the_launch_policy_is_of_the_plan() -> None:
    found = read_actions([PLANS["fargate"].policy])

    assert not {"ec2:CreateVpc", "ec2:CreateVpcEndpoint", "ec2:RunInstances"} & found
    assert "ec2:CreateVpc" in read_actions([PLANS["made"].policy])
    assert "ec2:RunInstances" in read_actions([PLANS["machines"].policy])
    shared = read_actions([PLANS["shared"].policy])
    assert not {"ecs:CreateCluster", "ecs:DeleteCluster", "s3:CreateBucket"} & shared
    rights = list_rights(PLANS["shared"].policy)
    assert rights["s3:PutObject"] == ["arn:aws:s3:::theirs", "arn:aws:s3:::theirs/*"]
    assert (
        f"arn:aws:ecs:eu-central-1:{ACCOUNT}:service/shared/pestfleet-*"
        in (rights["ecs:CreateService"])
    )


@pytest.mark.parametrize("name", PLANS)
def test_what_changes_something_is_held_to_names_or_tags(name: str) -> None:
    """ "*" only for what IAM knows no resources for, or where a condition holds it."""
    reading = ("Describe", "List", "Get")
    free = {"ecs:DeregisterTaskDefinition", "servicediscovery:CreatePrivateDnsNamespace"}
    for statement in PLANS[name].policy["Statement"]:
        if statement["Resource"] != "*" or "Condition" in statement:
            continue
        for action in set(statement["Action"]) - IMPLIED - free:
            assert action.partition(":")[2].startswith(reading), action


def test_ids_are_held_by_tags() -> None:
    for statement in PLANS["made"].policy["Statement"]:
        changing = {a for a in statement["Action"] if a.startswith(("ec2:Delete", "ec2:Revoke"))}
        if changing:
            condition = {"Null": {"aws:ResourceTag/pestfleet:session": "false"}}
            assert statement["Condition"] == condition


def test_every_right_is_for_a_kind_that_there_is() -> None:
    kinds = {grant.kind for grant in (*GRANTS, *USE)} - {"", HOME}

    assert kinds <= set(KINDS)
    assert set(SAME) <= set(KINDS)
    assert set(SAME.values()) <= kinds
    assert {action for grant in GRANTS for action in grant.actions} >= IMPLIED


def test_other_partitions_have_names_of_their_own() -> None:
    facts = make_facts()
    china = type(facts)(
        ACCOUNT, "cn-north-1", "aws-cn", facts.network, caller=facts.caller, launched=1.0
    )
    plan = plan_for(make_spec(), china)

    assert "arn:aws:" not in json.dumps(plan.to_json())
    images = [
        container["image"]
        for one in plan.find("task-definition")
        for container in one.body["containerDefinitions"]
    ]
    assert all(".amazonaws.com.cn/" in image for image in images)
