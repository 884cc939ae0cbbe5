"""The life of machines, as a user sees it; EC2 is moto's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from capacity_account import REGION, Account, account, launch_session, run_cli
from pestfleet.capacity import changes
from pestfleet_worker.errors import ConfigurationError, SessionError, TargetError

__all__ = ["account"]

PLAIN = ("--instances", "c5.large", "--join", "none")
SSH = ("--ssh", "--allow-from", "203.0.113.7/32")


def run_machines(*arguments: str, session: str = "s1", count: int = 1) -> None:
    result = run_cli("run", "--session", session, "--count", str(count), *PLAIN, *arguments)
    assert result.exit_code == 0, result.output


def list_numbers(*arguments: str) -> dict[int, str]:
    """Number -> id, as the list has them."""
    rows = json.loads(run_cli("list", "--json", *arguments).stdout)
    return {row["number"]: row["id"] for row in rows}


def test_whole_life_by_number(account: Account) -> None:
    run_machines("--on-demand", *SSH, count=3)
    numbers = list_numbers()
    assert list(numbers) == [1, 2, 3]

    assert run_cli("stop", "1,3").exit_code == 0
    stopped = {machine["InstanceId"] for machine in account.find_machines("stopped")}
    assert stopped == {numbers[1], numbers[3]}
    assert run_cli("start", "3").exit_code == 0
    assert [one["InstanceId"] for one in account.find_machines("stopped")] == [numbers[1]]

    assert run_cli("terminate", "2-3", answer="y\n").exit_code == 0
    assert list_numbers() == {1: numbers[1]}
    assert "key pestfleet-s1-machine" in account.list_things()
    result = run_cli("terminate", "1", "--yes")
    assert "removed launch template pestfleet-s1-machine" in result.output
    assert account.list_things() == []


def test_whole_life_by_session(account: Account) -> None:
    run_machines("--on-demand", session="s1", count=2)
    run_machines("--on-demand", session="s2")
    for change in ("stop", "start"):
        assert run_cli(change, "--session", "s1").exit_code == 0
    assert len(account.find("stop_instances")[0]["InstanceIds"]) == 2
    result = run_cli("terminate", "--session", "s1", "--yes", "--json")
    assert len(json.loads(result.stdout)["terminated"]) == 2
    assert {row for row in account.list_things() if "s1" in row} == set()
    assert len(list_numbers("--session", "s2")) == 1

    assert run_cli("terminate", "--all", answer="n\n").exit_code == 1
    assert len(account.find_machines()) == 1
    assert run_cli("terminate", "--all", answer="y\n").exit_code == 0
    assert account.list_things() == []


def test_a_list_shows_what_there_is(account: Account) -> None:
    assert "there is no machine" in run_cli("list").output
    run_machines("--spot", session="b")
    run_machines("--on-demand", session="a")
    text = run_cli("list").stdout
    lines = [line for line in text.splitlines() if "i-" in line]
    assert [re.split(r"\s{2,}", line.strip())[:6] for line in lines] == [
        ["2", account_id(account, "a"), "a", "running", "c5.large", f"{REGION}a"],
        ["1", account_id(account, "b"), "b", "running", "c5.large", f"{REGION}a"],
    ]
    assert "on demand" in lines[0]
    assert "spot" in lines[1]
    assert "0.0970" in lines[0]  # of the table: moto has no prices
    row = json.loads(run_cli("list", "--session", "a", "--json").stdout)[0]
    assert (row["spot"], row["owner"], row["state"]) == (False, "moto", "running")
    assert row["expires"] == pytest.approx(row["launched"] + 72 * 3600, abs=60)


def account_id(account: Account, session: str) -> str:
    (found,) = [
        machine["InstanceId"]
        for machine in account.find_machines()
        if {"Key": "pestfleet:session", "Value": session} in machine["Tags"]
    ]
    return str(found)


def test_a_spot_machine_cannot_be_stopped(account: Account) -> None:
    run_machines("--spot")
    result = run_cli("stop", "1")
    assert result.exit_code == TargetError.exit_code
    assert "a spot machine cannot be stopped" in result.stdout
    assert "--on-demand" in result.stderr
    assert account.find("stop_instances") == []


def test_changes_go_in_batches_of_50(account: Account) -> None:
    run_machines("--on-demand", count=101)
    sizes = [body["MaxCount"] for body in account.find("run_instances")]
    assert sizes == [50, 50, 1]
    for change in ("stop", "start", "terminate"):
        assert run_cli(change, "--session", "s1", "--yes").exit_code == 0
        batches = account.find(f"{change}_instances")
        assert [len(body["InstanceIds"]) for body in batches] == [50, 50, 1]
    assert account.list_things() == []


def test_a_machine_that_cannot_be_changed_keeps_none_of_the_others_back(account: Account) -> None:
    run_machines("--on-demand", count=3)
    numbers = list_numbers()
    account.refuse = lambda name, body: (
        "OperationNotPermitted"
        if name == "terminate_instances" and numbers[2] in body["InstanceIds"]
        else None
    )
    result = run_cli("terminate", "1-3", "--yes")
    assert result.exit_code == TargetError.exit_code
    assert f"left 2 {numbers[2]}" in result.stdout
    assert "protection" in result.stderr
    assert list_numbers() == {2: numbers[2]}
    assert "template pestfleet-s1-machine" in account.list_things()  # it has a machine still


def test_machines_of_others_are_left_alone(account: Account) -> None:
    body = {"ImageId": "ami-078b9e98c4449bf43", "MinCount": 1, "MaxCount": 1}
    foreign = account.ec2.run_instances(**body)["Instances"][0]["InstanceId"]
    tags = [{"Key": "pestfleet:session", "Value": "s1"},
            {"Key": "aws:autoscaling:groupName", "Value": "pestfleet-s1"}]  # fmt: skip
    kept = account.ec2.run_instances(
        **body, TagSpecifications=[{"ResourceType": "instance", "Tags": tags}]
    )["Instances"][0]["InstanceId"]
    result = run_cli("terminate", foreign, "--yes")
    assert result.exit_code == SessionError.exit_code
    assert "pestfleet has not made it" in result.stderr
    result = run_cli("terminate", kept, "--yes")
    assert result.exit_code == TargetError.exit_code
    assert "Auto Scaling group pestfleet-s1 would replace it" in result.stdout
    assert len(account.find_machines()) == 2


def test_a_dry_run_changes_nothing(account: Account) -> None:
    result = run_cli("run", "--session", "s1", *PLAIN, *SSH, "--dry-run")
    plan = json.loads(result.stdout)
    assert [one["operation"] for one in plan["requests"]] == [
        "create_security_group", "authorize_security_group_ingress", "import_key_pair",
        "create_launch_template", "run_instances",
    ]  # fmt: skip
    assert account.writing == []
    run_machines("--on-demand")
    before = account.list_things()
    del account.requests[:]
    for change in ("stop", "terminate"):
        assert "would" in run_cli(change, "1", "--dry-run").stdout
    assert account.writing == []
    assert account.list_things() == before


def test_images_have_numbers_that_run_takes(account: Account) -> None:
    run_machines("--on-demand")
    machine = account.find_machines()[0]["InstanceId"]
    own = account.ec2.create_image(InstanceId=machine, Name="wells-1")["ImageId"]
    rows = {row["id"]: row for row in json.loads(run_cli("images", "--json").stdout)}
    assert next(iter(rows)) == own
    assert {row["whose"] for name, row in rows.items() if name != own} == {"amazon"}
    assert {row["architecture"] for row in rows.values()} == {"x86_64", "arm64"}
    number = str(rows[own]["number"])
    assert f"  {number}   {own}" in run_cli("images").stdout
    for name in (number, own, "wells-1"):
        run_machines("--image", name, session="s2")
        assert account.find_machines()[-1]["ImageId"]  # moto takes that of the request only
        template = [*account.find("create_launch_template"),
                    *account.find("create_launch_template_version")][-1]  # fmt: skip
        assert template["LaunchTemplateData"]["ImageId"] == own


def test_session_that_runs_on_ecs_gets_workers(account: Account) -> None:
    launch_session()
    result = run_cli("run", "--session", "s1", "--instances", "c5.xlarge", "--count", "2")
    assert result.exit_code == 0, result.output
    interface = account.find("run_instances")[0]["NetworkInterfaces"][0]
    assert interface["AssociatePublicIpAddress"] is True  # as the session's tasks have it
    groups = {one["GroupId"]: one["GroupName"]
              for one in account.ec2.describe_security_groups()["SecurityGroups"]}  # fmt: skip
    assert [groups[name] for name in interface["Groups"]] == ["pestfleet-s1-worker"]
    assert run_cli("terminate", "--session", "s1", "--yes").exit_code == 0
    assert account.list_things() == ["group pestfleet-s1-worker"]  # the session's own


def test_a_machine_that_is_started_again_has_its_hours_anew(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_machines("--on-demand", "--max-hours", "10")
    row = json.loads(run_cli("list", "--json").stdout)[0]
    run_cli("stop", "1")
    later = row["launched"] + 50 * 3600
    monkeypatch.setattr(changes, "time", SimpleNamespace(time=lambda: later))
    run_cli("start", "1")
    row = json.loads(run_cli("list", "--json").stdout)[0]
    assert row["expires"] == pytest.approx(later + 10 * 3600, abs=400)  # kept to a tenth of an hour


def test_the_key_is_its_users_alone_and_goes_with_the_last_machine(
    account: Account, tmp_path: Path
) -> None:
    run_machines(*SSH)
    key = tmp_path / "home" / ".pestfleet" / "keys" / "pestfleet-s1-machine.pem"
    assert key.read_text(encoding="ascii").startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert key.stat().st_mode & 0o777 == 0o600
    sent = account.find("import_key_pair")[0]["PublicKeyMaterial"]
    assert sent.startswith(b"ssh-ed25519 ")
    first = key.read_bytes()
    run_machines(*SSH)  # the same key opens the others
    assert key.read_bytes() == first
    run_cli("terminate", "--session", "s1", "--yes")
    assert not key.exists()
    run_machines(*SSH)
    key.unlink()
    result = run_cli("run", "--session", "s1", *PLAIN, *SSH)
    assert result.exit_code == ConfigurationError.exit_code
    assert "was made on another computer" in result.stderr
    assert len(account.find_machines()) == 1  # what was there is there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", *PLAIN, "--ssh"), "--ssh needs to know from where"),
        (("run", *PLAIN, "--ssh", "--allow-from", "0.0.0.0/0"), "the whole world"),
        (("run", *PLAIN, "--ssh", "--allow-from", "home"), "no CIDR block"),
        (("run", *PLAIN, "--allow-from", "203.0.113.7/32"), "--allow-from is for ssh"),
        (("run", "--join", "worker", "--instances", "c5.large"), "need a session"),
        (("run", "--join", "none"), "no type of machine"),
        (("run", "--join", "none", "--instances", "c5.tiny"), "no machines of type c5.tiny"),
        (("run", *PLAIN, "--image", "ami-0123"), "there is no image ami-0123"),
        (("run", *PLAIN, "--image", "7"), "has shown a number 7"),
        (("run", *PLAIN, "--disk", "3"), "smaller than the image"),
        (("run", *PLAIN, "--max-hours", "0"), "a number of hours above 0"),
        (("run", *PLAIN, "--subnet", "subnet-1"), "subnet-1"),
        (("stop", "1"), "has shown a number 1"),
        (("stop", "3-1"), "no range"),
        (("stop", "first"), "neither a number"),
        (("stop", "i-0123"), "there is no machine i-0123"),
    ],
)
def test_mistakes_are_told(account: Account, arguments: tuple[str, ...], message: str) -> None:
    result = run_cli(*arguments)
    assert result.exit_code in (
        ConfigurationError.exit_code, SessionError.exit_code, TargetError.exit_code
    )  # fmt: skip
    assert message in result.stderr
    assert account.list_things() == []


def test_a_session_that_is_not_there_gets_no_machines(account: Account) -> None:
    result = run_cli("run", "--session", "s9", "--instances", "c5.large")
    assert result.exit_code == SessionError.exit_code
    assert "session s9 has no workers on ECS" in result.stderr


def test_it_must_be_said_which_machines(account: Account) -> None:
    assert run_cli("stop").exit_code == 2
    assert run_cli("stop", "1", "--all").exit_code == 2
