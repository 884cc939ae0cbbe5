"""What the roles of a session may do: as little as they need.

Each function gives a policy document of IAM. The actions and their resources are those of the
service authorization reference.
"""

from __future__ import annotations

import json
from typing import Any

from pestfleet.targets.ecs.planned import Ground

VERSION = "2012-10-17"

Policy = dict[str, Any]


def allow(
    sid: str, actions: list[str], resources: list[str] | str, condition: Policy | None = None
) -> Policy:
    """A statement."""
    statement: Policy = {
        "Sid": sid,
        "Effect": "Allow",
        "Action": actions,
        "Resource": resources,
    }
    return statement | ({"Condition": condition} if condition else {})


def make_document(statements: list[Policy]) -> Policy:
    return {"Version": VERSION, "Statement": statements}


def dump(document: Policy) -> str:
    """As requests want it."""
    return json.dumps(document, separators=(",", ":"))


def make_trust(service: str, condition: Policy | None = None) -> Policy:
    """A service of Amazon may take the role."""
    statement: Policy = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
    }
    return make_document([statement | ({"Condition": condition} if condition else {})])


def make_task_trust(ground: Ground) -> Policy:
    """Tasks of this account and region."""
    facts = ground.facts
    return make_trust(
        "ecs-tasks.amazonaws.com",
        {
            "StringEquals": {"aws:SourceAccount": facts.account},
            "ArnLike": {"aws:SourceArn": facts.name_arn("ecs", "*")},
        },
    )


def make_schedule_trust(ground: Ground) -> Policy:
    """The session's group of schedules."""
    facts = ground.facts
    group = facts.name_arn("scheduler", f"schedule-group/{ground.names.schedules}")
    return make_trust(
        "scheduler.amazonaws.com",
        {"StringEquals": {"aws:SourceAccount": facts.account, "aws:SourceArn": group}},
    )


def make_execution_policy(ground: Ground) -> Policy:
    """Of who starts tasks: their image, their secrets, their log."""
    names, facts = ground.names, ground.facts
    secrets = [
        # Secrets Manager adds a hyphen and six letters to each name.
        facts.name_arn("secretsmanager", f"secret:{names.secret(role)}-??????")
        for role in ground.roles
    ]
    statements = [
        allow(
            "Logs",
            ["logs:CreateLogStream", "logs:PutLogEvents"],
            [facts.name_arn("logs", f"log-group:{names.logs}:log-stream:*")],
        ),
        allow("Secrets", ["secretsmanager:GetSecretValue"], secrets),
    ]
    if repositories := list_repositories(ground):
        statements += [
            allow("Registry", ["ecr:GetAuthorizationToken"], "*"),
            allow(
                "Images",
                ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                repositories,
            ),
        ]
    return make_document(statements)


def list_repositories(ground: Ground) -> list[str]:
    """The ARNs of ECR's repositories that the images are in."""
    facts = ground.facts
    found = set()
    images = ground.images
    for image in (images.worker, images.broker, images.master, images.tunnel):
        host, _, path = image.partition("/")
        words = host.split(".")
        if len(words) >= 6 and words[1:3] == ["dkr", "ecr"]:
            name = path.partition("@")[0].rpartition(":")[0] or path.partition("@")[0]
            found.add(f"arn:{facts.partition}:ecr:{words[3]}:{words[0]}:repository/{name}")
    return sorted(found)


def make_master_policy(ground: Ground) -> Policy:
    """Of the master: its part of the bucket, its services, its lease."""
    names, facts, session = ground.names, ground.facts, ground.spec.session
    bucket = f"arn:{facts.partition}:s3:::{ground.bucket}"
    return make_document(
        [
            allow(
                "Session",
                ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
                [f"{bucket}/sessions/{session}/*"],
            ),
            allow("Case", ["s3:GetObject"], [f"{bucket}/blobs/*"]),
            allow("Cache", ["s3:GetObject", "s3:PutObject"], [f"{bucket}/cache/*"]),
            allow(
                "Files",
                ["s3:ListBucket"],
                [bucket],
                {"StringLike": {"s3:prefix": [f"sessions/{session}/*", "blobs/*", "cache/*"]}},
            ),
            allow(
                "Services",
                ["ecs:UpdateService"],
                [ground.name_service(role) for role in ground.roles],
            ),
            allow(
                "Lease",
                ["scheduler:GetSchedule", "scheduler:UpdateSchedule"],
                [facts.name_arn("scheduler", f"schedule/{names.schedules}/*")],
            ),
            allow(
                "LeaseRole",
                ["iam:PassRole"],
                [ground.name_role("schedule")],
                {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}},
            ),
        ]
    )


def make_worker_policy(ground: Ground) -> Policy:
    """Of workers: to be left alone while they have a run."""
    actions = ["ecs:UpdateTaskProtection", "ecs:GetTaskProtection"]
    tasks = ground.facts.name_arn("ecs", f"task/{ground.cluster}/*")
    return make_document([allow("Protection", actions, [tasks])])


def make_schedule_policy(ground: Ground) -> Policy:
    """Of the lease: to stop the session's services, and its machines."""
    services = [ground.name_service(role) for role in ground.roles]
    statements = [allow("Services", ["ecs:UpdateService"], services)]
    if ground.facts.machine is not None:
        group = f"autoScalingGroup:*:autoScalingGroupName/{ground.names.cluster}"
        statements.append(
            allow(
                "Machines",
                ["autoscaling:UpdateAutoScalingGroup"],
                [ground.facts.name_arn("autoscaling", group)],
            )
        )
    return make_document(statements)


def make_instance_policy(ground: Ground) -> Policy:
    """Of machines: what the agent of ECS on them asks for."""
    facts = ground.facts
    cluster = facts.name_arn("ecs", f"cluster/{ground.cluster}")
    machines = facts.name_arn("ecs", f"container-instance/{ground.cluster}/*")
    mine = {"ArnEquals": {"ecs:cluster": cluster}}
    return make_document(
        [
            allow("Discover", ["ecs:DiscoverPollEndpoint"], "*"),
            allow(
                "Register",
                ["ecs:RegisterContainerInstance", "ecs:DeregisterContainerInstance"],
                [cluster],
            ),
            allow(
                "Work",
                [
                    "ecs:Poll",
                    "ecs:StartTelemetrySession",
                    "ecs:UpdateContainerInstancesState",
                    "ecs:SubmitContainerStateChange",
                    "ecs:SubmitTaskStateChange",
                    "ecs:SubmitAttachmentStateChanges",
                ],
                [cluster, machines],
                mine,
            ),
        ]
    )
