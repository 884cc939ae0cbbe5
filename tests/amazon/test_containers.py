"""The bench's tasks with containers: registered by hand, run as written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import docker
import pytest

from ecs_containers import ContainerHost
from ecs_scheduler import EcsScheduler
from moto_server import Amazon
from test_bench import TRUST

pytestmark = pytest.mark.docker

# The main container: it says what it can do, protects itself, and ends when it is told to.
MAIN = r"""
import json, os, signal, sys, time, urllib.request
print("secret", open("/secrets/word").read(), os.environ.get("WORD", "-"), flush=True)
for path in ("/secrets/other", "/other"):
    try:
        open(path, "w")
    except OSError as error:
        print(path, error.strerror, flush=True)
print("user", os.getuid(), flush=True)
def protect(on):
    request = urllib.request.Request(
        os.environ["ECS_AGENT_URI"] + "/task-protection/v1/state", method="PUT",
        data=json.dumps({"ProtectionEnabled": on}).encode(),
        headers={"Content-Type": "application/json"})
    answer = json.load(urllib.request.urlopen(request))
    print("protected", answer["protection"]["ProtectionEnabled"], flush=True)
def end(*_):
    print("told to end", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
protect(True)
while True:
    time.sleep(0.1)
"""
INIT = r"""
import os
os.umask(0o077)
open("/secrets/word", "w").write(os.environ["WORD"])
print("written")
"""


@pytest.fixture
def fleet(amazon: Amazon, worker_image: str) -> Fleet:
    return Fleet(amazon, worker_image)


class Fleet:
    """What a service needs, made by hand."""

    def __init__(self, amazon: Amazon, image: str) -> None:
        self.amazon = amazon
        self.image = image
        self.ecs = amazon.client("ecs")
        amazon.client("logs").create_log_group(logGroupName="/fleet")
        self.secret = amazon.client("secretsmanager").create_secret(
            Name="fleet/worker", SecretString="sesame"
        )["ARN"]
        logs = f"arn:aws:logs:eu-central-1:{amazon.account}:log-group:/fleet:*"
        self.execution = self.make_role(
            "execution",
            {"Action": ["logs:CreateLogStream", "logs:PutLogEvents"], "Resource": logs},
            {"Action": "secretsmanager:GetSecretValue", "Resource": self.secret},
        )
        self.role = self.make_role("task", {"Action": "ecs:UpdateTaskProtection", "Resource": "*"})
        self.ecs.create_cluster(clusterName="fleet", capacityProviders=["FARGATE", "FARGATE_SPOT"])

    def make_role(self, name: str, *statements: dict[str, Any]) -> str:
        iam = self.amazon.client("iam")
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(TRUST))
        allowed = [{"Effect": "Allow", **statement} for statement in statements]
        document = json.dumps({"Version": "2012-10-17", "Statement": allowed})
        iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=document)
        return str(arn["Role"]["Arn"])

    def register(self, **more: Any) -> None:
        def write(name: str, program: str, **further: Any) -> dict[str, Any]:
            options = {
                "awslogs-group": "/fleet",
                "awslogs-region": "eu-central-1",
                "awslogs-stream-prefix": "worker",
            }
            return {
                "name": name,
                "image": self.image,
                "entryPoint": ["python3", "-c"],
                "command": [program],
                "user": "10001",
                "readonlyRootFilesystem": True,
                "logConfiguration": {"logDriver": "awslogs", "options": options},
                **further,
            }

        mount = {"sourceVolume": "secrets", "containerPath": "/secrets"}
        self.ecs.register_task_definition(
            family="worker",
            requiresCompatibilities=["FARGATE"],
            networkMode="awsvpc",
            cpu="1024",
            memory="2048",
            executionRoleArn=self.execution,
            taskRoleArn=self.role,
            volumes=[{"name": "secrets"}],
            containerDefinitions=[
                write(
                    "secrets",
                    INIT,
                    essential=False,
                    secrets=[{"name": "WORD", "valueFrom": self.secret}],
                    mountPoints=[mount],
                ),
                write(
                    "main",
                    MAIN,
                    essential=True,
                    stopTimeout=20,
                    dependsOn=[{"containerName": "secrets", "condition": "SUCCESS"}],
                    mountPoints=[mount | {"readOnly": True}],
                )
                | more,
            ],
        )

    def run(self, count: int) -> None:
        subnets = self.amazon.client("ec2").describe_subnets()["Subnets"]
        network = {"awsvpcConfiguration": {"subnets": [subnets[0]["SubnetId"]]}}
        self.ecs.create_service(
            cluster="fleet",
            serviceName="worker",
            taskDefinition="worker",
            desiredCount=count,
            capacityProviderStrategy=[{"capacityProvider": "FARGATE_SPOT", "weight": 1}],
            networkConfiguration=network,
        )

    def read_log(self, task: Any, container: str = "main") -> list[str]:
        logs = self.amazon.client("logs")
        name = f"worker/{container}/{task.id}"
        try:
            found = logs.get_log_events(logGroupName="/fleet", logStreamName=name)
        except logs.exceptions.ResourceNotFoundException:
            return []
        return [event["message"] for event in found["events"]]


def test_a_service_runs_as_written(
    amazon: Amazon,
    fleet: Fleet,
    container_scheduler: EcsScheduler,
    container_host: ContainerHost,
    docker_engine: docker.DockerClient,
) -> None:
    scheduler = container_scheduler
    fleet.register()
    fleet.run(2)
    first, second = scheduler.wait_for("worker", 2)
    wait_for_line(scheduler, fleet, first, "protected True")
    wait_for_line(scheduler, fleet, second, "protected True")
    assert fleet.read_log(first) == [
        "secret sesame -",
        "/secrets/other Read-only file system",
        "/other Read-only file system",
        "user 10001",
        "protected True",
    ]
    scheduler.wait_until(lambda: bool(fleet.read_log(first, "secrets")))
    assert fleet.read_log(first, "secrets") == ["written"]
    assert "ecs:UpdateTaskProtection" in amazon.list_actions(fleet.role)

    # Both are protected, so none goes.
    fleet.ecs.update_service(cluster="fleet", service="worker", desiredCount=1)
    scheduler.wait_until(lambda: "protected tasks" in read_events(fleet)[0])
    assert len(scheduler.list_tasks("worker")) == 2
    fleet.ecs.update_task_protection(cluster="fleet", tasks=[first.arn], protectionEnabled=False)
    assert scheduler.wait_for("worker", 1) == [second]
    assert fleet.read_log(first)[-1] == "told to end"
    told = fleet.ecs.describe_tasks(cluster="fleet", tasks=[first.arn])["tasks"][0]
    assert {one["name"]: one["exitCode"] for one in told["containers"]} == {
        "main": 0,
        "secrets": 0,
    }

    # Spot asks no protection; another takes the place.
    scheduler.stop_task(second.arn, spot=True)
    scheduler.wait_until(lambda: second.last_status == "STOPPED")
    assert fleet.read_log(second)[-1] == "told to end"
    (third,) = scheduler.wait_for("worker", 1)
    assert set(container_host.find_containers(third)) == {"secrets", "main"}
    assert not container_host.find_containers(second)
    fleet.ecs.delete_service(cluster="fleet", service="worker", force=True)
    scheduler.wait_for("worker", 0)


def wait_for_line(scheduler: EcsScheduler, fleet: Fleet, task: Any, line: str) -> None:
    scheduler.wait_until(lambda: line in fleet.read_log(task))


def read_events(fleet: Fleet) -> list[str]:
    told = fleet.ecs.describe_services(cluster="fleet", services=["worker"])["services"][0]
    return [event["message"] for event in told["events"]] or [""]


def break_image(fleet: Fleet) -> None:
    fleet.register(image="no/such:image")


def break_secret(fleet: Fleet) -> None:
    fleet.register()
    fleet.amazon.client("secretsmanager").delete_secret(
        SecretId=fleet.secret, ForceDeleteWithoutRecovery=True
    )


def break_rights(fleet: Fleet) -> None:
    fleet.register()
    fleet.amazon.client("iam").delete_role_policy(RoleName="execution", PolicyName="p")


def break_group(fleet: Fleet) -> None:
    fleet.register()
    fleet.amazon.client("logs").delete_log_group(logGroupName="/fleet")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (break_image, "CannotPullContainerError"),
        (break_secret, "ResourceInitializationError: unable to pull secrets"),
        (break_rights, "AccessDeniedException"),
        (break_group, "The specified log group does not exist"),
    ],
)
def test_tasks_that_do_not_start_say_why(
    fleet: Fleet, container_scheduler: EcsScheduler, spoil: Callable[[Fleet], None], reason: str
) -> None:
    spoil(fleet)
    fleet.run(1)
    container_scheduler.wait_until(
        lambda: any(
            reason in task.answer["stoppedReason"]
            and task.answer["stopCode"] == "TaskFailedToStart"
            for task in container_scheduler.list_tasks("worker", status="STOPPED")
        )
    )
    fleet.ecs.delete_service(cluster="fleet", service="worker", force=True)
    container_scheduler.wait_for("worker", 0)


def test_images_are_pushed_and_pulled(
    amazon: Amazon,
    fleet: Fleet,
    container_scheduler: EcsScheduler,
    docker_engine: docker.DockerClient,
) -> None:
    ecr = amazon.client("ecr")
    uri = ecr.create_repository(repositoryName="pestfleet/x")["repository"]["repositoryUri"]
    docker_engine.images.get(fleet.image).tag(uri, "worker")
    token = ecr.get_authorization_token()["authorizationData"][0]
    assert token["proxyEndpoint"].endswith(uri.partition("/")[0])
    keys = {"username": "AWS", "password": "x"}
    docker_engine.images.push(uri, "worker", auth_config=keys)
    docker_engine.images.remove(f"{uri}:worker")
    found = ecr.describe_images(repositoryName="pestfleet/x")["imageDetails"]
    assert [image["imageTags"] for image in found] == [["worker"]]
    document = {"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": ["ecr:*", "logs:*", "secretsmanager:*"], "Resource": "*"}
    ]}  # fmt: skip
    amazon.client("iam").put_role_policy(
        RoleName="execution", PolicyName="p", PolicyDocument=json.dumps(document)
    )
    fleet.register(image=f"{uri}:worker")
    fleet.run(1)
    container_scheduler.wait_for("worker", 1)
    ecr.delete_repository(repositoryName="pestfleet/x", force=True)
    assert not amazon.snapshot() & {"ecr:eu-central-1:repository/pestfleet/x"}
