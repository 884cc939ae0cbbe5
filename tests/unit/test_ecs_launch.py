"""A launch on ECS: what is looked at, pushed and sent before tasks start, and the dry run."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.placement import AmazonPlace, Placement
from pestfleet.session import Session
from pestfleet.settings import ImageSettings
from pestfleet.targets.ecs import launch as module
from pestfleet.targets.ecs import registry
from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.checks import check_addresses, check_launch, check_quotas
from pestfleet.targets.ecs.fleet import EcsFleet
from pestfleet.targets.ecs.launch import Launch, describe, is_running, make_host
from pestfleet.targets.ecs.plan import Facts, Network, make_plan
from pestfleet.targets.ecs.planned import AmazonPlan
from pestfleet.targets.ecs.registry import name_images, push_images, read_images, take_images
from pestfleet.targets.ecs.results import fetch, has_begun
from pestfleet_worker.errors import ConfigurationError, SessionError, TargetError
from session_files import make_session

REGION, ACCOUNT = "eu-central-1", "123456789012"
ECR = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/pestfleet/s1"


def make_spec(workers: int = 4, *, least: int = 1, **amazon: Any) -> SessionSpec:
    place = Placement(master="there", least=least, amazon=AmazonPlace(region=REGION, **amazon))
    return SessionSpec(
        "s1", "/case/case.pst", "d" * 64, "glm", "ecs", workers, 1, place=place, max_hours=2.0
    )


def plan_session(workers: int = 4, *, least: int = 1, **amazon: Any) -> AmazonPlan:
    spec = make_spec(workers, least=least, **amazon)
    facts = Facts(ACCOUNT, REGION, "aws", Network("vpc-1", ("subnet-1", "subnet-2")))
    return make_plan(spec, name_images(spec, ImageSettings(), facts, broker=True), facts)


class FakeCloud:
    """Answers by operation, and what was asked."""

    region, account = REGION, ACCOUNT

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        self.asked.append(operation)
        answer = self.answers.get(operation, {})
        if callable(answer):
            answer = answer(**parameters)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    def find_all(self, service: str, operation: str, key: str, **_: Any) -> Iterator[Any]:
        self.asked.append(operation)
        yield from self.answers.get(operation, ())


# -- looking before a launch -------------------------------------------------------------------


def make_subnets(*free: int) -> list[dict[str, Any]]:
    return [{"AvailableIpAddressCount": count} for count in free]


def test_each_task_needs_an_address() -> None:
    cloud: Any = FakeCloud(describe_subnets=make_subnets(4, 3))
    assert check_addresses(cloud, plan_session(5)) == []
    (warning,) = check_addresses(cloud, plan_session(6))
    assert "7 free addresses: enough for 5 of 6 workers" in warning
    with pytest.raises(TargetError, match="too few for 6 workers"):
        check_addresses(cloud, plan_session(8, least=6))


def quotas(demand: float, spot: float) -> Any:
    codes = {"L-3032A538": demand, "L-36FBB829": spot}
    return lambda ServiceCode, QuotaCode: {"Quota": {"Value": codes[QuotaCode]}}


def test_quotas_of_both_kinds_are_read() -> None:
    cloud: Any = FakeCloud(get_service_quota=quotas(6.0, 100.0))
    assert check_quotas(cloud, plan_session(50)) == []
    (warning,) = check_quotas(cloud, plan_session(120))
    assert "100 vCPUs of Fargate Spot is enough for 100 of 120 workers" in warning
    assert "--quota-code L-36FBB829 --desired-value 120 --region eu-central-1" in warning
    with pytest.raises(TargetError, match="is enough for 100 of 120"):
        check_quotas(cloud, plan_session(120, least=101))


def test_on_demand_shares_its_quota_with_master_and_broker() -> None:
    cloud: Any = FakeCloud(get_service_quota=quotas(6.0, 100.0))
    (warning,) = check_quotas(cloud, plan_session(10, capacity="ondemand"))
    assert "6 vCPUs of Fargate is enough for 4 of 10 workers" in warning
    mixed = check_quotas(cloud, plan_session(10, capacity="mixed:50"))
    assert "enough for 4 of 5 workers" in mixed[0]


def test_quotas_that_are_not_to_be_seen_are_passed_over() -> None:
    denied = Refused("servicequotas:GetServiceQuota", "AccessDeniedException", "no")
    cloud: Any = FakeCloud(get_service_quota=denied)
    assert check_quotas(cloud, plan_session(500)) == []


@pytest.mark.parametrize(
    ("clusters", "words"),
    [
        ([], "there is no cluster ours"),
        ([{"status": "INACTIVE"}], "there is no cluster ours"),
        (
            [{"status": "ACTIVE", "capacityProviders": ["FARGATE"]}],
            "no capacity provider FARGATE",
        ),
    ],
)
def test_a_shared_cluster_must_do(clusters: list[Any], words: str) -> None:
    cloud: Any = FakeCloud(
        describe_clusters={"clusters": clusters}, describe_subnets=make_subnets(99)
    )
    with pytest.raises(TargetError, match=words):
        check_launch(cloud, plan_session(cluster="ours"))


def test_a_service_has_so_many_tasks_at_most() -> None:
    cloud: Any = FakeCloud()
    with pytest.raises(ConfigurationError, match=r"6,000 workers .* 5,000"):
        check_launch(cloud, plan_session(6000))


# -- images ------------------------------------------------------------------------------------


class FakeEngine:
    """A Docker engine: which names its images were given, pushed under, and lost again."""

    def __init__(self) -> None:
        self.images = self
        self.tagged: list[str] = []
        self.removed: list[str] = []
        self.logins: list[Any] = []

    def get(self, name: str) -> FakeEngine:
        return self

    def tag(self, repository: str, tag: str) -> None:
        self.tagged.append(f"{repository}:{tag}")

    def push(self, name: str, *, tag: str, auth_config: Any, **_: Any) -> Iterator[Any]:
        self.logins.append(auth_config)
        yield {"aux": {"Digest": f"sha256:{tag}"}}

    def remove(self, name: str, *, noprune: bool) -> None:
        self.removed.append(name)

    def close(self) -> None: ...


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    made = FakeEngine()
    monkeypatch.setattr("pestfleet.images.engine.connect_engine", lambda: made)
    return made


def test_images_go_to_ecr_with_a_login_that_nobody_sees(engine: FakeEngine) -> None:
    token = base64.b64encode(b"AWS:password").decode()
    cloud: Any = FakeCloud(
        get_authorization_token={"authorizationData": [{"authorizationToken": token}]}
    )
    said: list[str] = []
    named = read_images(plan_session())
    assert named == {role: f"{ECR}:{role}" for role in ("broker", "master", "worker")}
    pushed = push_images(cloud, {"worker": "w:1", "master": "m:1"}, named, said.append, ours=True)
    assert pushed == {"worker": f"{ECR}@sha256:worker", "master": f"{ECR}@sha256:master"}
    assert engine.tagged == engine.removed == [f"{ECR}:worker", f"{ECR}:master"]
    assert engine.logins[0] == {"username": "AWS", "password": "password"}
    assert cloud.asked == ["get_authorization_token"]
    assert "password" not in "".join(said)


def test_a_registry_of_the_users_has_docker_s_own_login(engine: FakeEngine) -> None:
    cloud: Any = FakeCloud()
    push_images(cloud, {"worker": "r.example/w:1"}, {"worker": "r.example/w:1"}, print, ours=False)
    assert (engine.logins, engine.removed, cloud.asked) == ([None], [], [])


def test_images_are_named_for_one_registry() -> None:
    image = ImageSettings(registry="r.example/team", broker="rabbitmq:3.13")
    facts = Facts(ACCOUNT, REGION, "aws", Network("vpc-1", ("subnet-1",)))
    named = name_images(make_spec(), image, facts, broker=True)
    assert named.worker == f"r.example/team/pestfleet-case-case:{'d' * 12}"
    assert named.broker == "r.example/team/rabbitmq:3.13"
    assert named.master.startswith("r.example/team/pestfleet-master:")
    assert named.tunnel == ""


def test_tasks_have_the_images_that_were_pushed() -> None:
    plan = take_images(plan_session(), {"worker": "x@sha256:1", "master": "x@sha256:2"})
    assert read_images(plan) == {
        "worker": "x@sha256:1", "master": "x@sha256:2", "broker": f"{ECR}:broker",
    }  # fmt: skip
    # The first container of each task, too.
    used = {
        container["image"]
        for task in plan.find("task-definition")
        for container in task.body["containerDefinitions"]
    }
    assert used == set(read_images(plan).values())


@pytest.mark.parametrize(("kind", "name"), [("amd64", "X86_64"), ("arm64", "ARM64")])
def test_images_must_be_for_one_processor(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine(FakeEngine):
        kinds = {"w:1": kind, "m:1": kind, "odd:1": "s390x"}  # noqa: RUF012

        def get(self, image: str) -> Any:
            return type("Image", (), {"attrs": {"Architecture": self.kinds[image]}})

    monkeypatch.setattr("pestfleet.images.engine.connect_engine", Engine)
    assert registry.check_platform({"worker": "w:1", "master": "m:1"}) == name
    with pytest.raises(ConfigurationError, match="s390x"):
        registry.check_platform({"worker": "w:1", "master": "odd:1"})


# -- files -------------------------------------------------------------------------------------


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[EcsFleet]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        fleet = EcsFleet(Cloud(boto3.Session(region_name=REGION), REGION), "s1")
        fleet.cloud.call(
            "s3",
            "create_bucket",
            Bucket=fleet.bucket,
            CreateBucketConfiguration={"LocationConstraint": REGION},
        )
        yield fleet


def make_launch(tmp_path: Path, fleet: EcsFleet) -> Launch:
    place = Placement(master="there", amazon=AmazonPlace(region=REGION))
    session = Session(make_session(tmp_path, "s1", target="ecs", place=place))
    return Launch(session, session.spec, ImageSettings(), "", fleet)


def list_files(fleet: EcsFleet) -> set[str]:
    prefix = f"{fleet.store.prefix}files/"
    return {found.key.removeprefix(prefix) for found in fleet.store.store.find(prefix)}


def test_a_session_is_sent_and_comes_back(tmp_path: Path, fleet: EcsFleet) -> None:
    launch = make_launch(tmp_path, fleet)
    module._send_files(launch, lambda text: None)
    assert list_files(fleet) == {"session.json"}
    assert not fetch(fleet, tmp_path / "other")  # no master has begun
    fleet.store.store.write(f"{fleet.store.prefix}files/journal.jsonl", b"{}\n")
    assert fetch(fleet, tmp_path / "other")
    other = SessionFolder(tmp_path / "other")
    assert other.read_spec() == launch.spec
    assert {path.name for path in other.case.iterdir()} == {
        path.name for path in launch.session.folder.case.iterdir()
    }


def test_a_session_that_goes_on_has_what_it_had_but_its_end(
    tmp_path: Path, fleet: EcsFleet
) -> None:
    launch = make_launch(tmp_path, fleet)
    folder = launch.session.folder
    folder.journal.write_text('{"event": "run"}\n')
    store, prefix = fleet.store, f"{fleet.store.prefix}files/"
    for name in ("ended", "state.json"):
        store.store.write(prefix + name, b"1 130")
    store.request_stop()
    module._send_files(launch, lambda text: None)  # all went with down --discard-results
    assert list_files(fleet) == {"session.json", "journal.jsonl"}
    assert store.take_requests() == {}

    store.store.write(f"{prefix}journal.jsonl", b"longer than ours is\n")
    module._send_files(launch, lambda text: None)
    content = store.store.read(f"{prefix}journal.jsonl")
    assert content is not None and content.data == b"longer than ours is\n"

    # What earlier launches cost goes on; that by the hour does not, and ends no lease.
    cost = {"usd": 12.0, "usd_an_hour": 7.0}
    store.store.write(f"{prefix}state.json", json.dumps({"state": "died", "cost": cost}).encode())
    module._send_files(launch, lambda text: None)
    assert store.read_state()["cost"] == {"usd": 12.0, "usd_an_hour": 0.0}


def test_an_account_without_a_bucket_has_no_files(fleet: EcsFleet) -> None:
    fleet.cloud.call("s3", "delete_bucket", Bucket=fleet.bucket)
    assert not has_begun(fleet.store)
    assert not fleet.has_files()


# -- who hosts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("desired", "runs"),
    [
        ({"broker": 1, "master": 1, "worker": 3}, True),
        ({"broker": 1, "master": 1}, False),  # its launch was cut off
        ({"broker": 0, "master": 0, "worker": 0}, False),
        ({}, False),
    ],
)
def test_a_session_that_runs_is_followed(desired: dict[str, int], runs: bool) -> None:
    class Fleet:
        def services(self) -> dict[str, Any]:
            return {role: {"desiredCount": number} for role, number in desired.items()}

    assert is_running(Fleet()) is runs  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "files", "words", "remedy"),
    [
        (
            ["log group /pestfleet/s1"],
            False,
            "has resources in region",
            "pestfleet down s1 --on ecs",
        ),
        ([], True, "results of another session s1 are kept", "--discard-results"),
    ],
)
def test_an_id_that_is_in_use_is_refused(
    tmp_path: Path,
    fleet: EcsFleet,
    monkeypatch: pytest.MonkeyPatch,
    parts: list[str],
    files: bool,
    words: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(module, "connect", lambda where: fleet.cloud)
    monkeypatch.setattr(EcsFleet, "list_parts", lambda self, **_: parts)
    monkeypatch.setattr(EcsFleet, "has_files", lambda self: files)
    session = make_launch(tmp_path, fleet).session
    with pytest.raises(SessionError, match=words) as caught:
        make_host(
            session, image=ImageSettings(), broker_url="", on_event=lambda _: None, resume=False
        )
    assert remedy in caught.value.remedy


# -- the dry run -------------------------------------------------------------------------------


def test_a_dry_run_without_credentials_has_placeholders_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    folder = make_session(tmp_path, "s1")
    spec = replace(make_spec(), control_file=folder.read_spec().control_file)
    shown = json.loads(describe(spec, tmp_path / "s1", image=ImageSettings(), broker_url=""))
    assert shown["note"].startswith("account and network are placeholders: no credentials")
    assert shown["account"] == "0" * 12
    kinds = [one["kind"] for one in shown["resources"]]
    assert kinds[0] == "schedule-group"  # what stops all else comes first
    assert kinds.index("schedule") < kinds.index("service")
    actions = {a for statement in shown["policy"]["Statement"] for a in statement["Action"]}
    assert {"ecs:CreateService", "scheduler:CreateSchedule", "s3:PutObject"} <= actions
    assert {"fargate-spot-vcpu-hour", "secret-month"} <= {c["item"] for c in shown["charges"]}


def test_a_plan_shows_no_secret() -> None:
    text = json.dumps(plan_session().to_json())
    assert "SecretString" not in text
