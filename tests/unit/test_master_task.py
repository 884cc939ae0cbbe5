"""`pestfleet host` in a task of ECS: store, claim, lease, end of the session; moto is Amazon."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pestfleet.cli import hosting
from pestfleet.cli.main import cli
from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.placement import AmazonPlace, Placement
from pestfleet.session import Session
from pestfleet.store import SessionStore, Store, mirror
from pestfleet.store.mirror import Pace
from pestfleet.targets.base import FleetPlan, Site, Where
from pestfleet.targets.ecs import master_task
from pestfleet.targets.ecs.access import Cloud, connect
from pestfleet.targets.ecs.lease import read_time, write_time
from pestfleet.targets.ecs.master_task import GRACE, STARTS, find_latest
from pestfleet.targets.service_workers import ServiceWorkers
from pestfleet_worker.errors import (
    Interrupted,
    LimitReached,
    PestfleetError,
    RunsFailedError,
    SentAway,
    SessionError,
)
from session_files import EXAMPLE, make_session

CLUSTER = GROUP = "pestfleet-s1"
ROLES = ("worker", "broker", "master")
PLACE = Placement(master="there", amazon=AmazonPlace(region="eu-central-1", profile="of-home"))


class Account:
    """What a launch leaves for the master: services with their leases, and the session's files."""

    def __init__(self, cloud: Cloud, home: Path) -> None:
        self.cloud = cloud
        self.ecs, self.scheduler = cloud.client("ecs"), cloud.client("scheduler")
        cloud.client("s3").create_bucket(
            Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        self.ecs.create_cluster(clusterName=CLUSTER)
        self.ecs.register_task_definition(
            family="f", containerDefinitions=[{"name": "a", "image": "b", "memory": 64}]
        )
        self.scheduler.create_schedule_group(Name=GROUP)
        target = {
            "Arn": "arn:aws:scheduler:::aws-sdk:ecs:updateService",
            "RoleArn": "arn:aws:iam::1:role/r",
        }
        for role in ROLES:
            name = f"pestfleet-s1-{role}"
            self.ecs.create_service(
                cluster=CLUSTER, serviceName=name, taskDefinition="f", desiredCount=2
            )
            self.scheduler.create_schedule(
                Name=name,
                GroupName=GROUP,
                ScheduleExpression=write_time(time.time() + 60),
                FlexibleTimeWindow={"Mode": "OFF"},
                Target=target,
            )
        self.store = SessionStore(Store("s3://bucket"), "s1")
        folder = make_session(home, target="ecs", place=PLACE, cache="/home/me/cache", budget=9.0)
        self.store.put_case(folder)
        self.store.push(folder)

    @property
    def counts(self) -> list[int]:
        """Tasks that are wanted of worker, broker and master."""
        names = [f"pestfleet-s1-{role}" for role in ROLES]
        found = self.ecs.describe_services(cluster=CLUSTER, services=names)["services"]
        wanted = {one["serviceName"]: one["desiredCount"] for one in found}
        return [wanted[name] for name in names]

    def read_lease(self, role: str) -> float:
        found = self.scheduler.get_schedule(GroupName=GROUP, Name=f"pestfleet-s1-{role}")
        return read_time(found["ScheduleExpression"])


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        yield Account(connect(Where()), tmp_path / "home")


class Task:
    """A task of ECS after the other, each with an empty disk. `act` is what its master does."""

    def __init__(self, account: Account, folder: Path) -> None:
        self.account = account
        self._folder = folder
        self._number = 0
        self.act: Callable[[Session], None] = lambda session: None
        self.hosted: list[Session] = []
        self.site: Site | None = None
        self.counts: list[int] = []  # of the account, when the master had ended

    def host(self, *words: str) -> Result:
        self._number += 1
        root = self._folder / str(self._number)
        return CliRunner().invoke(
            cli,
            ["host", str(root / "s1/case/oude-korendijk.pst"), "--session", "s1",
             "--sessions", str(root), "--on", "ecs", "--keep-workers", "--workers", "3..9",
             "--store", "s3://bucket", "--ecs", CLUSTER, "--lease", GROUP, "--no-cache", *words],
        )  # fmt: skip

    def host_session(
        self,
        session: Session,
        make_host: Callable[[Any], Any],
        *,
        as_json: bool,
        keep_workers: bool,
    ) -> None:
        assert as_json and keep_workers
        self.hosted.append(session)
        make_host(None)
        self.act(session)


class FakeMaster:
    """Is told that it is to end."""

    interrupted = False

    def interrupt(self) -> None:
        self.interrupted = True

    def warn(self, text: str) -> None:
        raise ValueError("its journal is closed")


@pytest.fixture
def master() -> FakeMaster:
    return FakeMaster()


@pytest.fixture
def task(
    account: Account, tmp_path: Path, master: FakeMaster, monkeypatch: pytest.MonkeyPatch
) -> Task:
    task = Task(account, tmp_path / "tasks")

    def make_master(session: Session, *, site: Site, **_: Any) -> FakeMaster:
        task.site = site
        return master

    monkeypatch.setenv("PESTFLEET_BROKER", "amqp://u:p@host//")
    monkeypatch.setattr(hosting, "host_session", task.host_session)
    monkeypatch.setattr(Session, "make_master", make_master)
    return task


def finish(session: Session) -> None:
    """What a master leaves."""
    (session.folder.results / "a.par").write_text("result")
    session.folder.write_state({"state": "finished"})


def raise_(error: Exception) -> Callable[[Session], None]:
    def act(session: Session) -> None:
        raise error

    return act


def test_a_session_comes_from_the_store_and_ends_there(task: Task, account: Account) -> None:
    def act(session: Session) -> None:
        finish(session)
        assert account.counts == [2, 2, 2]
        assert account.store.read_claim() is not None

    task.act = act
    began = time.time()
    result = task.host("--max-hours", "2", "--idle-minutes", "7")
    assert result.exit_code == 0, result.output
    (session,) = task.hosted
    spec = session.spec
    assert (spec.workers, spec.most, spec.max_hours, spec.idle_minutes) == (3, 9, 2.0, 7.0)
    assert (spec.budget, spec.cache, spec.engine) == (0.0, "none", "glm")
    assert (session.folder.case / "oude-korendijk.pst").read_bytes() == (
        EXAMPLE / "oude-korendijk.pst"
    ).read_bytes()
    assert task.site is not None and task.site.began == pytest.approx(began, abs=60)
    assert account.counts == [0, 0, 0]
    assert account.store.read_ended() == "1 0"
    assert account.store.read_state() == {"state": "finished"}
    assert account.store.store.read("sessions/s1/files/results/a.par") is not None
    claim = account.store.read_claim()
    assert claim is not None and claim.free


def test_the_lease_is_renewed_while_the_master_works(task: Task, account: Account) -> None:
    leases: list[float] = []

    def act(session: Session) -> None:
        deadline = time.monotonic() + 60
        while min(map(account.read_lease, ROLES)) < time.time() + 600:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        leases.extend(map(account.read_lease, ROLES))

    task.act = act
    assert task.host().exit_code == 0
    assert len(leases) == 3


def test_its_workers_are_a_service(task: Task, tmp_path: Path) -> None:
    assert task.host("--launch", "ab").exit_code == 0
    plan = FleetPlan("s1", tmp_path, tmp_path, "amqp://h//", 3, 1, tmp_path)
    assert task.site is not None
    target = task.site.make_target(plan)
    assert isinstance(target, ServiceWorkers)
    assert target.describe() == ["3 workers of service pestfleet-s1-worker join by themselves"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (RunsFailedError("too many"), 5),
        (Interrupted("pestfleet stop"), 130),
        (LimitReached("its hours"), 130),
    ],
)
def test_a_task_that_is_started_after_the_end_ends_the_services_again(
    error: PestfleetError | None, code: int, task: Task, account: Account
) -> None:
    if error is not None:
        task.act = raise_(error)
    assert task.host("--launch", "a").exit_code == code
    assert account.counts == [0, 0, 0] and account.store.read_ended() == f"a {code}"
    account.ecs.update_service(cluster=CLUSTER, service="pestfleet-s1-master", desiredCount=1)
    again = task.host("--launch", "a")
    assert again.exit_code == code and "has ended already" in again.stderr
    assert len(task.hosted) == 1 and account.counts == [0, 0, 0]
    task.act = finish
    assert task.host("--launch", "b").exit_code == 0
    assert len(task.hosted) == 2 and account.store.read_ended() == "b 0"


def test_a_master_that_is_moved_leaves_the_session_to_the_next_one(
    task: Task, account: Account
) -> None:
    def act(session: Session) -> None:
        (session.folder.results / "half.txt").write_text("half of it")
        raise SentAway("by a signal")

    task.act = act
    assert task.host().exit_code == 12
    assert account.counts == [2, 2, 2] and account.store.read_ended() == ""
    assert task.site is not None
    began = task.site.began

    def go_on(session: Session) -> None:
        assert (session.folder.results / "half.txt").read_text() == "half of it"

    task.act = go_on
    assert task.host().exit_code == 0
    assert task.site.began == began, "hours count from the first master"
    assert account.counts == [0, 0, 0]


def test_a_master_that_dies_again_and_again_ends_the_session(
    task: Task, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master_task, "STARTS", 2)
    assert STARTS > 2
    task.act = raise_(SentAway("by a signal"))
    for _ in range(4):
        assert task.host().exit_code == 12
    task.act = raise_(SessionError("no space left"))
    for _ in range(2):
        assert task.host().exit_code == 8
        assert account.counts == [2, 2, 2]
    last = task.host()
    assert last.exit_code == 8 and "has begun 2 times and died each time" in last.stderr
    assert account.counts == [0, 0, 0] and account.store.read_ended() == "1 8"
    assert len(task.hosted) == 6
    task.act = finish
    assert task.host("--launch", "2").exit_code == 0, "another launch has its own count"


def test_there_is_one_master_at_a_time(
    task: Task, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SessionStore(Store("s3://bucket"), "s1")
    other.claim("task-other")
    monkeypatch.setattr(master_task, "PATIENCE", 0.0)
    result = task.host()
    assert result.exit_code == 8 and "has a master: task-other" in result.stderr
    assert task.hosted == [] and account.counts == [2, 2, 2]


def test_who_is_the_master_no_more_ends_and_touches_nothing(
    task: Task, account: Account, master: FakeMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "Pace", lambda: Pace(claim=0.2))

    def act(session: Session) -> None:
        found = account.store.store.read("sessions/s1/claim")
        assert found is not None
        claim = {**json.loads(found.data), "holder": "task-other", "word": "other"}
        account.store.store.write("sessions/s1/claim", json.dumps(claim).encode())
        deadline = time.monotonic() + 120
        while not master.interrupted:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        finish(session)

    task.act = act
    result = task.host()
    assert result.exit_code == 8 and "taken session s1 over: task-other" in result.stderr
    assert account.counts == [2, 2, 2] and account.store.read_ended() == ""


def test_a_session_that_the_store_does_not_have_is_refused(task: Task, account: Account) -> None:
    account.store.remove()
    result = task.host()
    assert result.exit_code == 7 and "session s1 has no case in the store" in result.stderr
    assert task.hosted == [] and account.counts == [2, 2, 2]


@pytest.mark.parametrize(
    "words",
    [("--store", "s3://b"), ("--ecs", "c"), ("--lease", "g"), ("--ecs", "c", "--store", "s3://b")],
)
def test_options_of_a_task_belong_together(words: tuple[str, ...], tmp_path: Path) -> None:
    common = ["host", "case", "--session", "s1", "--broker", "amqp://u:p@host//"]
    result = CliRunner().invoke(cli, [*common, *words])
    assert result.exit_code == 4 and "belong together" in result.stderr


def test_workers_are_in_one_place(task: Task) -> None:
    result = task.host("--workers-job", "j")
    assert result.exit_code == 4 and "or in a service of ECS" in result.stderr


def make_spec(**limits: float) -> SessionSpec:
    return SessionSpec("s1", "/a.pst", "d", "glm", "ecs", 2, 1, **limits)  # type: ignore[arg-type]


def test_no_lease_goes_far_beyond_the_limits() -> None:
    cost = {"usd": 7.0, "usd_before": 3.0, "usd_an_hour": 2.0, "time": 5000.0}
    assert find_latest(make_spec(), {"cost": cost}, began=1000.0) == float("inf")
    assert find_latest(make_spec(max_hours=2), {}, began=1000.0) == 1000 + 7200 + GRACE
    # 10 dollars for this launch, 4 are spent, 2 an hour: 3 hours are left.
    spent = find_latest(make_spec(budget=10), {"cost": cost}, began=1000.0)
    assert spent == 5000 + 3 * 3600 + GRACE
    assert find_latest(make_spec(budget=10, max_hours=1), {"cost": cost}, began=0.0) == 3600 + GRACE
    assert find_latest(make_spec(budget=3), {"cost": cost}, began=0.0) == 5000 + GRACE
    assert find_latest(make_spec(budget=3), {}, began=0.0) == float("inf")


def test_a_session_that_hangs_is_seen(tmp_path: Path, account: Account) -> None:
    folder: SessionFolder = make_session(tmp_path / "here", "s2")
    task = master_task.MasterTask(folder, store="s3://bucket", cluster=CLUSTER, group=GROUP)
    assert task._is_moving(), "it has just begun"
    task._began -= master_task.HANGING + 1
    assert not task._is_moving()
    folder.write_state({})
    assert task._is_moving()
