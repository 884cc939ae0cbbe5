"""What a launch of machines asks for, and what it leaves where it fails."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any

import pytest

from capacity_account import (
    REGION,
    SECRET,
    Account,
    account,
    launch_session,
    run_cli,
)
from pestfleet.capacity import images
from pestfleet.capacity.images import MachineImage
from pestfleet.capacity.machines import await_machines
from pestfleet.capacity.removal import list_leftovers, remove_machines
from pestfleet.capacity.request import MachineRequest, make_template
from pestfleet.targets.base import Where
from pestfleet.targets.ecs.access import Cloud, Refused, connect
from pestfleet_worker.errors import TargetError

__all__ = ["account"]

PLAIN = ("run", "--session", "s1", "--instances", "c5.large", "--join", "none")
SSH = ("--ssh", "--allow-from", "203.0.113.7/32")
WORKERS = ("run", "--session", "s1", "--instances", "c5.large")
GIVEN = ["cluster pestfleet-s1", "group pestfleet-s1-worker"]


def open_cloud() -> Cloud:
    return connect(Where(region=REGION))


def read_template(account: Account) -> dict[str, Any]:
    body: dict[str, Any] = account.find("create_launch_template")[0]
    return body


def read_script(account: Account) -> str:
    data = read_template(account)["LaunchTemplateData"]["UserData"]
    return base64.b64decode(data).decode()


def read_statements(account: Account) -> dict[str, str]:
    """Action -> resource, of the machines' role."""
    document = json.loads(account.find("put_role_policy")[0]["PolicyDocument"])
    return {
        action: statement["Resource"]
        for statement in document["Statement"]
        for action in (
            [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        )
    }


def test_machines_are_such_as_they_should_be(account: Account) -> None:
    launch_session()
    assert run_cli(*WORKERS, *SSH, "--disk", "100").exit_code == 0
    template = read_template(account)
    data = template["LaunchTemplateData"]
    assert data["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
    }
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    (disk,) = data["BlockDeviceMappings"]
    assert disk["Ebs"] == {
        "VolumeType": "gp3",
        "Encrypted": True,
        "DeleteOnTermination": True,
        "VolumeSize": 100,
    }
    (run,) = account.find("run_instances")
    assert run["InstanceMarketOptions"]["SpotOptions"]["SpotInstanceType"] == "one-time"
    (ingress,) = account.find("authorize_security_group_ingress")
    (rule,) = ingress["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) == (22, 22, "tcp")
    assert [one["CidrIp"] for one in rule["IpRanges"]] == ["203.0.113.7/32"]
    # All that is made carries the session from its first moment on.
    for body in (
        *template["TagSpecifications"],
        *data["TagSpecifications"],
        *account.find("create_security_group")[0]["TagSpecifications"],
        *account.find("import_key_pair")[0]["TagSpecifications"],
        *account.find("create_role"),
        *account.find("create_instance_profile"),
    ):
        assert {"Key": "pestfleet:session", "Value": "s1"} in body["Tags"]
        assert {"Key": "pestfleet:role", "Value": "machine"} in body["Tags"]
    tagged = {one["ResourceType"] for one in data["TagSpecifications"]}
    assert tagged == {"instance", "volume", "network-interface"}


def test_nothing_that_is_asked_of_amazon_holds_a_secret(account: Account) -> None:
    launch_session()
    result = run_cli(*WORKERS, *SSH)
    script = read_script(account)
    asked = f"{account.requests!r}{script}{result.output}"
    assert "pestfleet/s1/worker" in script  # its name
    for word in ("hunter2", SECRET, "PRIVATE KEY", "BEGIN"):
        assert word not in asked.replace("END_OF_WORK", "")


def test_a_worker_may_do_what_it_does_and_no_more(account: Account) -> None:
    launch_session()
    run_cli(*WORKERS)
    statements = read_statements(account)
    stem = f"{REGION}:123456789012"
    secret = statements.pop("secretsmanager:GetSecretValue")
    assert secret.startswith(f"arn:aws:secretsmanager:{stem}:secret:pestfleet/s1/worker-")
    repository = f"arn:aws:ecr:{stem}:repository/pestfleet/s1"
    logs = f"arn:aws:logs:{stem}:log-group:/pestfleet/s1:log-stream:*"
    assert statements == {
        "ecr:GetAuthorizationToken": "*",
        "ecr:BatchGetImage": repository,
        "ecr:GetDownloadUrlForLayer": repository,
        "logs:CreateLogStream": logs,
        "logs:PutLogEvents": logs,
    }


def test_an_image_of_another_registry_needs_no_rights(account: Account) -> None:
    launch_session(image="ghcr.io/me/wells@sha256:0123")
    run_cli(*WORKERS)
    assert not [action for action in read_statements(account) if action.startswith("ecr")]
    assert "docker login" not in read_script(account)


def test_a_member_of_the_cluster_may_be_one_of_that_cluster_only(account: Account) -> None:
    launch_session()
    assert run_cli(*WORKERS, "--join", "cluster").exit_code == 0
    script = read_script(account)
    assert "ECS_CLUSTER=pestfleet-s1\n" in script
    assert "ECS_AWSVPC_BLOCK_IMDS=true\n" in script
    statements = read_statements(account)
    assert statements.pop("ecs:DiscoverPollEndpoint") == "*"
    assert {resource.split(":", 5)[5] for resource in statements.values()} == {
        "cluster/pestfleet-s1",
        "container-instance/pestfleet-s1/*",
        "service/pestfleet-s1/pestfleet-s1-worker",
    }
    assert not any(action.startswith(("secretsmanager", "s3")) for action in statements)


def test_machines_of_their_user_have_no_role(account: Account) -> None:
    run_cli(*PLAIN)
    assert account.find("create_role") == []
    assert "IamInstanceProfile" not in read_template(account)["LaunchTemplateData"]
    assert "KeyName" not in read_template(account)["LaunchTemplateData"]
    assert account.find("authorize_security_group_ingress") == []
    interface = account.find("run_instances")[0]["NetworkInterfaces"][0]
    assert interface["AssociatePublicIpAddress"] is False


def test_a_second_launch_is_another_version_of_the_template(account: Account) -> None:
    run_cli(*PLAIN)
    assert run_cli(*PLAIN, "--max-hours", "5").exit_code == 0
    assert [body["LaunchTemplate"]["Version"] for body in account.find("run_instances")] == [
        "1", "2"
    ]  # fmt: skip
    (second,) = account.find("create_launch_template_version")
    assert "OnBootSec=18000\n" in base64.b64decode(
        second["LaunchTemplateData"]["UserData"]
    ).decode()  # fmt: skip


def list_operations(account: Account, *arguments: str) -> list[str]:
    """The operations of a launch that goes well, each with a request of its own."""
    assert run_cli(*arguments).exit_code == 0
    made = account.writing
    run_cli("terminate", "--session", "s1", "--yes")
    return made


def test_a_launch_that_fails_anywhere_leaves_nothing(account: Account) -> None:
    launch_session()
    operations = list_operations(account, *WORKERS, *SSH)
    assert len(operations) == 9
    before = account.list_things()
    for which in range(len(operations)):
        seen: Counter[str] = Counter()

        def refuse(
            name: str, body: dict[str, Any], which: int = which, seen: Counter[str] = seen
        ) -> str | None:
            if seen["met"] or name not in operations:
                return None
            seen["all"] += 1
            seen["met"] = seen["all"] == which + 1
            return "UnauthorizedOperation" if seen["met"] else None

        account.refuse = refuse
        result = run_cli(*WORKERS, *SSH)
        account.refuse = None
        assert result.exit_code == TargetError.exit_code, operations[which]
        assert operations[which] in result.stderr
        assert account.list_things() == before, operations[which]


def test_what_a_killed_launch_left_is_removed_by_its_session(account: Account) -> None:
    launch_session()
    before = account.list_things()

    def die(name: str, body: dict[str, Any]) -> str | None:
        if name in ("run_instances", "delete_launch_template"):
            raise MemoryError  # nothing of ours handles that
        return None

    account.refuse = die
    with pytest.raises(MemoryError):
        run_cli(*WORKERS, *SSH)
    account.refuse = None
    assert len(account.list_things()) == len(before) + 5
    assert list_leftovers(open_cloud()) == ["s1"]
    assert run_cli("terminate", "--session", "s1", "--yes").exit_code == 0
    assert account.list_things() == before
    assert list_leftovers(open_cloud()) == []


def test_all_machines_of_a_session_go_with_all_that_was_made_for_them(account: Account) -> None:
    run_cli(*PLAIN, *SSH, "--count", "2")
    removed = remove_machines(open_cloud(), "s1")
    assert len(removed) == 6
    assert account.list_things() == []
    assert remove_machines(open_cloud(), "s1") == []


def test_a_full_zone_gives_way_to_the_next(account: Account) -> None:
    zones = {one["SubnetId"]: one["AvailabilityZone"]
             for one in account.ec2.describe_subnets()["Subnets"]}  # fmt: skip

    def refuse(name: str, body: dict[str, Any]) -> str | None:
        if name != "run_instances":
            return None
        full = zones[body["NetworkInterfaces"][0]["SubnetId"]].endswith("a")
        return "InsufficientInstanceCapacity" if full else None

    account.refuse = refuse
    result = run_cli(*PLAIN, "--count", "3")
    assert result.exit_code == 0
    assert "of 3 machines were started" not in result.stderr
    placed = {machine["Placement"]["AvailabilityZone"] for machine in account.find_machines()}
    assert placed == {f"{REGION}b"}


def test_fewer_machines_than_asked_for_are_taken_and_told(account: Account) -> None:
    left = [2]  # machines that Amazon still has, in all zones

    def refuse(name: str, body: dict[str, Any]) -> str | None:
        if name != "run_instances":
            return None
        if body["MinCount"] > left[0]:
            return "InsufficientInstanceCapacity"
        left[0] -= body["MinCount"]  # moto starts the least that will do
        return None

    account.refuse = refuse
    result = run_cli(*PLAIN, "--count", "5", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (len(report["machines"]), report["missing"]) == (2, 3)
    assert "2 of 5 machines were started" in result.stderr
    assert "Amazon has no more machines of type c5.large there now" in result.stderr
    assert "--on-demand" in result.stderr


@pytest.mark.parametrize(
    ("code", "remedy"),
    [("VcpuLimitExceeded", "--spot"), ("MaxSpotInstanceCountExceeded", "--on-demand")],
)
def test_a_quota_is_used_up_to_its_end(account: Account, code: str, remedy: str) -> None:
    left = [5]

    def refuse(name: str, body: dict[str, Any]) -> str | None:
        if name != "run_instances":
            return None
        if body["MaxCount"] > left[0]:
            return code
        left[0] -= body["MaxCount"]
        return None

    account.refuse = refuse
    result = run_cli(*PLAIN, "--count", "12")
    assert result.exit_code == 0
    assert len(account.find_machines()) == 5
    assert "quota" in result.stderr
    assert remedy in result.stderr


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("InsufficientInstanceCapacity", "no more machines of type c5.large"),
        ("MaxSpotInstanceCountExceeded", "quota of spot machines"),
        ("VcpuLimitExceeded", "quota of processors"),
        ("Unsupported", "are not to be had there"),
    ],
)
def test_no_machine_at_all_is_an_error_that_leaves_nothing(
    account: Account, code: str, message: str
) -> None:
    account.refuse = lambda name, body: code if name == "run_instances" else None
    result = run_cli(*PLAIN, *SSH, "--count", "4")
    assert result.exit_code == TargetError.exit_code
    assert message in result.stderr
    assert code in result.stderr
    assert account.list_things() == []


def test_a_machine_that_has_no_room_to_start_again_is_told(account: Account) -> None:
    run_cli(*PLAIN, "--on-demand")
    run_cli("stop", "1")
    account.refuse = lambda name, body: (
        "InsufficientInstanceCapacity" if name == "start_instances" else None
    )
    result = run_cli("start", "1")
    assert result.exit_code == TargetError.exit_code
    assert "Amazon has no more machines" in result.stdout
    assert "another type" in result.stderr


def test_a_role_that_ec2_has_not_heard_of_yet_is_waited_for(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_session()
    refusals = [3]
    call = Cloud.call

    def late(self: Cloud, service: str, operation: str, **parameters: Any) -> Any:
        if operation == "run_instances" and refusals[0]:
            refusals[0] -= 1
            said = "Value (pestfleet-s1-machine) for parameter iamInstanceProfile.name is invalid."
            raise Refused("ec2:RunInstances", "InvalidParameterValue", said)
        return call(self, service, operation, **parameters)

    monkeypatch.setattr(Cloud, "call", late)
    assert run_cli(*WORKERS).exit_code == 0
    assert len(account.find_machines()) == 1


def test_machines_that_are_not_seen_yet_are_waited_for(account: Account) -> None:
    run_cli(*PLAIN)
    machine = account.find_machines()[0]["InstanceId"]
    assert [one.id for one in await_machines(open_cloud(), [machine])] == [machine]
    assert await_machines(open_cloud(), ["i-0123"], patience=0.0) == []


@pytest.mark.parametrize("arguments", [WORKERS, (*WORKERS, "--join", "cluster"), PLAIN])
def test_the_permissions_of_a_plan_are_those_that_are_used(
    account: Account, arguments: tuple[str, ...]
) -> None:
    launch_session()
    permissions = set(json.loads(run_cli(*arguments, *SSH, "--dry-run").stdout)["permissions"])
    cloud = open_cloud()
    account.done.clear()
    run_cli(*arguments, *SSH, "--on-demand")
    run_cli(*arguments, *SSH, "--on-demand")
    for change in ("stop", "start", "terminate"):
        run_cli(change, "--session", "s1", "--yes")
    services = ("ec2", "iam", "ecs", "ssm")
    names = {
        operation: f"{service}:{name}"
        for service in services
        for operation, name in cloud.client(service).meta.method_to_api_mapping.items()
        if operation in account.done
    }
    used = set(names.values())
    assert used <= permissions
    # What tags and passes on a role is no operation of its own, prices are asked of others.
    implied = {"ec2:CreateTags", "ec2:DescribeSpotPriceHistory", "pricing:GetProducts"}
    if arguments is not PLAIN:
        implied |= {"iam:PassRole", "iam:TagRole", "iam:TagInstanceProfile"}
    assert permissions - used <= implied


def test_all_disks_of_an_image_are_encrypted() -> None:
    image = MachineImage(
        "ami-1", "wells", "x86_64", "", 30, "/dev/sda1", {"/dev/sda1": 10, "/dev/sdf": 20}, "yours"
    )
    request = MachineRequest("s1", 1, "c5.large", 1.0, join="none", disk=40)
    body = make_template(request, image, "", {})
    disks = body["LaunchTemplateData"]["BlockDeviceMappings"]
    assert {one["DeviceName"]: one["Ebs"]["VolumeSize"] for one in disks} == {
        "/dev/sda1": 40,
        "/dev/sdf": 20,
    }
    assert all(one["Ebs"]["Encrypted"] for one in disks)


def test_an_image_is_for_machines_of_its_own_kind(account: Account) -> None:
    cloud = open_cloud()
    arm = images.find_recommended(cloud, ["arm64"])[0]
    result = run_cli(*PLAIN, "--image", arm.id)
    assert "is for arm64, and that type of machine is x86_64" in result.stderr
    assert images.find_image(cloud, "", "arm64").id == arm.id
