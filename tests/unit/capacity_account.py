"""An account of moto's for tests of machines: what was asked of it, and refusals of choice."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner, Result
from moto import mock_aws
from moto.ec2.models import amis

from pestfleet.cli.main import cli
from pestfleet.costs import prices
from pestfleet.costs.prices import read_table
from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.naming import Names

REGION = "eu-central-1"
SECRET = "amqps://worker:hunter2@broker:5671/s1"
READING = ("describe_", "get_", "list_")

Request = tuple[str, dict[str, Any]]
# What a request is refused with: (operation, parameters) -> error code, "" or None for not at all.
Refusal = Callable[[str, dict[str, Any]], str | None]


@functools.cache
def _share_session() -> Any:
    """EC2's model takes a second to read: one session reads it for all commands and tests."""
    return boto3.Session(region_name=REGION, aws_access_key_id="a", aws_secret_access_key="b")


@dataclass
class Account:
    """`requests`: all that were made, pages left out. `refuse`: see `Refusal`."""

    requests: list[Request] = field(default_factory=list)
    refuse: Refusal | None = None
    done: set[str] = field(default_factory=set)  # operations, also paged ones

    @property
    def ec2(self) -> Any:
        return _share_session().client("ec2")

    @property
    def writing(self) -> list[str]:
        """Operations that change something, in order."""
        return [name for name, _ in self.requests if not name.startswith(READING)]

    def find(self, operation: str) -> list[dict[str, Any]]:
        """The parameters of these requests."""
        return [body for name, body in self.requests if name == operation]

    def find_machines(self, *states: str) -> list[dict[str, Any]]:
        """Machines as moto has them, the ended ones left out."""
        wanted = states or ("pending", "running", "stopping", "stopped")
        pages = self.ec2.get_paginator("describe_instances").paginate()
        return [
            machine
            for page in pages
            for reservation in page["Reservations"]
            for machine in reservation["Instances"]
            if machine["State"]["Name"] in wanted
        ]

    def list_things(self) -> list[str]:
        """All that a launch can make, by name; what every account has is left out."""
        iam = _share_session().client("iam")
        ec2 = self.ec2
        return sorted(
            [
                *(f"machine {machine['InstanceId']}" for machine in self.find_machines()),
                *(f"template {one['LaunchTemplateName']}"
                  for one in ec2.describe_launch_templates()["LaunchTemplates"]),
                *(f"key {one['KeyName']}" for one in ec2.describe_key_pairs()["KeyPairs"]),
                *(f"group {one['GroupName']}"
                  for one in ec2.describe_security_groups()["SecurityGroups"]
                  if one["GroupName"] != "default"),
                *(f"role {one['RoleName']}" for one in iam.list_roles()["Roles"]),
                *(f"profile {one['InstanceProfileName']}"
                  for one in iam.list_instance_profiles()["InstanceProfiles"]),
            ]
        )  # fmt: skip


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """Credentials, folders of the user's, and an empty account."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shared = _share_session()
    monkeypatch.setattr(boto3, "Session", lambda **_: shared)
    made = Account()
    call, find_all = Cloud.call, Cloud.find_all

    def note(operation: str, parameters: dict[str, Any]) -> None:
        made.done.add(operation)
        code = made.refuse(operation, parameters) if made.refuse is not None else None
        if code:
            raise Refused(operation, code, f"{operation} is made to fail")

    def call_noted(self: Cloud, service: str, operation: str, **parameters: Any) -> Any:
        note(operation, parameters)
        made.requests.append((operation, parameters))
        return call(self, service, operation, **parameters)

    def find_noted(
        self: Cloud, service: str, operation: str, key: str, **parameters: Any
    ) -> Iterator[Any]:
        note(operation, parameters)
        yield from find_all(self, service, operation, key, **parameters)

    monkeypatch.setattr(Cloud, "call", call_noted)
    monkeypatch.setattr(Cloud, "find_all", find_noted)
    # Prices are asked of two more services, which has tests of its own.
    monkeypatch.setattr(prices, "find_prices", lambda region, items, _: read_table(region, items))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    # More than a thousand, which moto makes anew for each test.
    monkeypatch.setattr(amis, "AMIS", [])
    with mock_aws():
        yield made


def run_cli(*arguments: str, answer: str | None = None) -> Result:
    """`pestfleet capacity …`; a defect is raised."""
    result = CliRunner().invoke(cli, ["--traceback", "capacity", *arguments], input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def launch_session(name: str = "s1", *, image: str = "") -> None:
    """A session on ECS, as far as its machines see it: workers' service, task, secret."""
    names = Names(name)
    ec2, ecs, secrets = map(_share_session().client, ("ec2", "ecs", "secretsmanager"))
    secret = secrets.create_secret(Name=names.secret("worker"), SecretString=SECRET)["ARN"]
    subnets = [one["SubnetId"] for one in ec2.describe_subnets()["Subnets"]]
    network = ec2.describe_subnets()["Subnets"][0]["VpcId"]
    group = ec2.create_security_group(
        GroupName=names.group("worker"), Description="workers", VpcId=network
    )["GroupId"]
    image = image or f"123456789012.dkr.ecr.{REGION}.amazonaws.com/{names.repository}:worker"
    ecs.create_cluster(clusterName=names.cluster)
    ecs.register_task_definition(
        family=names.family("worker"),
        containerDefinitions=[
            {
                "name": "secrets",
                "image": image,
                "essential": False,
                "memory": 512,
                "entryPoint": ["/opt/pestfleet/bin/python", "-m", "pestfleet_worker.unpack"],
                "command": ["/secrets"],
                "secrets": [{"name": "PESTFLEET_SECRET_FILES", "valueFrom": secret}],
            },
            {
                "name": "worker",
                "image": image,
                "essential": True,
                "memory": 512,
                "command": ["--session", name, "--slots", "1"],
                "environment": [
                    {"name": "PESTFLEET_BROKER_FILE", "value": "/secrets/broker-url"},
                    {"name": "NOTE", "value": "it's $HOME"},
                ],
                "logConfiguration": {
                    "logDriver": "awslogs",
                    "options": {
                        "awslogs-group": names.logs,
                        "awslogs-region": REGION,
                        "awslogs-stream-prefix": "worker",
                    },
                },
            },
        ],
    )
    ecs.create_service(
        cluster=names.cluster,
        serviceName=names.service("worker"),
        taskDefinition=names.family("worker"),
        desiredCount=2,
        networkConfiguration={
            "awsvpcConfiguration": {
                "subnets": subnets,
                "securityGroups": [group],
                "assignPublicIp": "ENABLED",
            }
        },
    )
