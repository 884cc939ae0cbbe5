"""Rights: those that a plan prints are enough for all that is done, and none of them is idle."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compose_shell import Terminal
from ecs_scheduler import EcsScheduler
from moto_server import Amazon
from played_master import play_master
from quick_shell import ON, Ended, QuickShell, open_quick_shell
from schedule_runner import run_schedules

MACHINES = ("--instances", "c7i.4xlarge", "--capacity", "spot")

# What nobody asks for here, though real services want it: who does, or when.
_PUSH = "the Docker engine, to push images"
_PULL = "the agent of ECS, to pull images"
_AGENT = "the agent of ECS on a machine"
OF_OTHERS = {
    "ec2:RunInstances": "EC2 Auto Scaling, of who makes a group with a launch template",
    "ecr:BatchCheckLayerAvailability": _PUSH,
    "ecr:BatchGetImage": _PUSH,
    "ecr:CompleteLayerUpload": _PUSH,
    "ecr:GetDownloadUrlForLayer": _PUSH,
    "ecr:InitiateLayerUpload": _PUSH,
    "ecr:PutImage": _PUSH,
    "ecr:UploadLayerPart": _PUSH,
    "iam:CreateServiceLinkedRole": "ECS and others, for the first time in an account",
    "route53:ChangeResourceRecordSets": "Cloud Map, of who takes a name out of a domain",
    "s3:AbortMultipartUpload": "after a large file could not be sent",
    "scheduler:DeleteSchedule": "EventBridge Scheduler, of who removes a group with schedules",
    "secretsmanager:PutSecretValue": "a master at home, when it has a tunnel to it",
    "ssm:GetParameters": "EC2, of who names an image by a parameter",
}
OF_ROLES = {
    "execution": {"ecr:BatchGetImage": _PULL, "ecr:GetDownloadUrlForLayer": _PULL},
    "master": {"s3:AbortMultipartUpload": "after a large file could not be sent"},
    "instance": {
        "ecs:DeregisterContainerInstance": _AGENT,
        "ecs:DiscoverPollEndpoint": _AGENT,
        "ecs:Poll": _AGENT,
        "ecs:RegisterContainerInstance": _AGENT,
        "ecs:StartTelemetrySession": _AGENT,
        "ecs:SubmitAttachmentStateChanges": _AGENT,
        "ecs:SubmitContainerStateChange": _AGENT,
        "ecs:SubmitTaskStateChange": _AGENT,
        "ecs:UpdateContainerInstancesState": _AGENT,
    },
}


@pytest.fixture
def shell(
    amazon: Amazon, scheduler: EcsScheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[QuickShell]:
    with open_quick_shell(amazon, tmp_path, monkeypatch) as made:
        yield made


@dataclass(slots=True)
class Rights:
    """Actions that policies allow, and those that were asked for."""

    allowed: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)

    def add(self, policy: dict[str, Any], used: set[str]) -> None:
        self.allowed |= {
            action for statement in policy["Statement"] for action in statement["Action"]
        }
        self.used |= used


def check(ended: Ended) -> Ended:
    assert ended.code == 0, ended.text
    return ended


def find_policies(planned: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Role -> what it is allowed, of the roles that a plan makes."""
    found = {}
    for one in planned["resources"]:
        if one["kind"] == "role":
            (policy,) = [request["put_role_policy"] for request in one["then"]]
            found[one["name"].rpartition("-")[2]] = policy["PolicyDocument"]
    return found


def test_of_who_launches_and_of_the_roles(
    shell: QuickShell, scheduler: EcsScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three lives, in which nothing is allowed but what the plan of each says."""
    caller, roles = Rights(), dict[str, Rights]()
    for name, more in {"plain": ("--capacity", "mixed:50"), "made": MACHINES}.items():
        if name == "made":
            monkeypatch.delenv("PESTFLEET_AMAZON__PUBLIC")
            monkeypatch.setenv("PESTFLEET_AMAZON__NETWORK", "make")
        plan = limit(shell, name, *more)
        live(shell, scheduler, name, *more)
        caller.add(plan["policy"], shell.amazon.list_actions())
        stem = f"arn:aws:iam::{shell.amazon.account}:role/pestfleet/pestfleet-{name}"
        for role, policy in find_policies(plan).items():
            used = shell.amazon.list_actions(f"{stem}-{role}")
            roles.setdefault(role, Rights()).add(policy, used)
    monkeypatch.delenv("PESTFLEET_AMAZON__NETWORK")
    monkeypatch.setenv("PESTFLEET_AMAZON__PUBLIC", "true")
    monkeypatch.setenv("PESTFLEET_AMAZON__ALLOW_FROM", "203.0.113.7/32")
    plan = limit(shell, "home", "--master", "here")
    live_at_home(shell, scheduler)
    caller.add(plan["policy"], shell.amazon.list_actions())

    assert caller.used - caller.allowed == set()
    assert caller.allowed - caller.used == set(OF_OTHERS)
    assert set(roles) == {"schedule", "execution", "master", "worker", "instance"}
    for role, rights in roles.items():
        assert rights.used - rights.allowed == set(), role
        assert rights.allowed - rights.used == set(OF_ROLES.get(role, ())), role


def test_a_launch_with_one_right_less_says_which(shell: QuickShell) -> None:
    plan = limit(shell, "less")
    for statement in plan["policy"]["Statement"]:
        if "ecs:CreateService" in statement["Action"]:
            statement["Action"].remove("ecs:CreateService")
    ended = shell.launch("less")
    assert ended.code == 7
    assert "Amazon refuses ecs:CreateService for the service pestfleet-less-broker" in ended.text
    assert "You need the permission ecs:CreateService" in ended.text
    assert all(name.startswith("s3:") for name in shell.list_left())


def limit(shell: QuickShell, session: str, *more: str) -> dict[str, Any]:
    """The plan of a session; from now on nothing is allowed but what it says."""
    shell.amazon.policy = None
    plan = shell.plan(session, *more)
    shell.amazon.policy = plan["policy"]
    shell.amazon.calls.clear()
    return plan


def live(shell: QuickShell, scheduler: EcsScheduler, name: str, *more: str) -> None:
    """A life with everything that a user does."""
    check(shell.launch(name, *more))
    (worker, *_) = scheduler.wait_for(f"pestfleet-{name}-worker", 2)
    protect(shell.amazon, worker)
    fetch_as_agent(shell.amazon, worker)
    with play_master(shell.amazon, scheduler, name, shell.folder / f"task-{name}") as master:
        shell.wait_for_text("runs made", "status", name)
        for words in (
            ("logs", name, *ON),
            ("logs", name, worker.id, *ON),
            ("scale", "3", name, *ON),
            ("sessions", *ON),
            ("orphans", "--all-regions"),
        ):
            check(shell.run_elsewhere(*words))
        check(shell.run_elsewhere("stop", name, *ON))
        master.wait()
    run_schedules(shell.amazon, datetime.now(UTC) + timedelta(hours=2))
    check(shell.run_elsewhere("results", name, *ON, "--fetch"))
    leave_address(shell.amazon)
    check(shell.remove(name))
    assert shell.list_left() == set()


def leave_address(amazon: Amazon) -> None:
    """Of a task that ECS did not take out of Cloud Map."""
    with amazon.lock:
        cloud_map = amazon.backend("servicediscovery")
        (service,) = cloud_map.services.values()
        cloud_map.register_instance(service.id, "left", "", {"AWS_INSTANCE_IPV4": "10.0.0.9"})


def protect(amazon: Amazon, task: Any) -> None:
    """What a worker asks the agent of ECS for, and that with the rights of the task's role."""
    ecs = open_as(amazon, "ecs", task.definition.task_role_arn)
    asked = {"cluster": task.cluster, "tasks": [task.arn]}
    ecs.update_task_protection(**asked, protectionEnabled=True)
    ecs.get_task_protection(**asked)
    ecs.update_task_protection(**asked, protectionEnabled=False)


def fetch_as_agent(amazon: Amazon, task: Any) -> None:
    """What the agent of ECS gets for a task, with the rights of the execution role."""
    role = task.definition.execution_role_arn
    secrets = open_as(amazon, "secretsmanager", role)
    for container in task.definition.container_definitions:
        for secret in container.get("secrets") or ():
            secrets.get_secret_value(SecretId=secret["valueFrom"])
    open_as(amazon, "ecr", role).get_authorization_token()
    logs = open_as(amazon, "logs", role)
    (options,) = {
        json.dumps(one["logConfiguration"]["options"])
        for one in task.definition.container_definitions
    }
    group = json.loads(options)["awslogs-group"]
    prefix = json.loads(options)["awslogs-stream-prefix"]
    stream = {"logGroupName": group, "logStreamName": f"{prefix}/worker/{task.id}"}
    logs.create_log_stream(**stream)
    now = int(datetime.now(UTC).timestamp() * 1000)
    logs.put_log_events(**stream, logEvents=[{"timestamp": now, "message": "hello"}])


def open_as(amazon: Amazon, service: str, role: str) -> Any:
    """boto3's client with the rights of a role."""
    import boto3

    with amazon.lock:
        key = amazon.make_key(role)
    return boto3.client(
        service,
        endpoint_url=amazon.url,
        region_name=amazon.region,
        aws_access_key_id=key,
        aws_secret_access_key="secret",
    )


def live_at_home(shell: QuickShell, scheduler: EcsScheduler) -> None:
    """A life of which the broker is never reached: Ctrl-C ends it."""
    terminal = Terminal(shell.folder)
    with ExitStack() as stack:
        stack.callback(terminal.close)
        words = ("--engine", "glm", "--workers", "2", "--master", "here", "--no-cache", "--json")
        command = terminal.start("run", str(shell.case), "--session", "home", *words, *ON)
        scheduler.wait_for("pestfleet-home-worker", 2)
        (broker,) = scheduler.wait_for("pestfleet-home-broker", 1)
        with shell.amazon.lock:
            broker.answer["healthStatus"] = "HEALTHY"
        asked = "ec2:DescribeNetworkInterfaces"
        command.wait_for(lambda: asked in shell.amazon.list_actions(), "the broker's address")
        command.send(signal.SIGINT)
        command.wait(130)
    assert shell.list_left() == set()
