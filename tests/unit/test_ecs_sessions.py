"""The sessions of an account as any shell sees them: listed, opened, and what is left of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pestfleet.targets.base import KEPT, SessionInfo, Where
from pestfleet.targets.ecs import sessions as module
from pestfleet.targets.ecs.access import Refused
from pestfleet.targets.ecs.fleet import EcsFleet, Task, read_task
from pestfleet.targets.ecs.naming import CLUSTER, make_tags
from pestfleet.targets.ecs.resources import Found
from pestfleet.targets.ecs.sessions import (
    HALF,
    LEFT,
    RemoteFleet,
    describe_services,
    find_state,
    is_called,
    list_sessions,
    open_session,
)
from pestfleet_worker.errors import SessionError

EARLY = datetime(2025, 1, 1, tzinfo=UTC)


def make_found(session: str, role: str = "", kind: str = "service", **more: str) -> Found:
    name = f"pestfleet-{session}-{role}" if kind == "service" else f"pestfleet-{session}"
    shared = more.pop("cluster", "")
    tags = make_tags(session, role, **more) | ({CLUSTER: shared} if shared else {})
    return Found(kind, name, f"arn:{name}", tags, kind == "service", name)


def make_service(name: str, desired: int, **more: Any) -> dict[str, Any]:
    counts = {"desiredCount": desired, "runningCount": desired, "pendingCount": 0}
    return {"serviceName": name, "status": "ACTIVE", "createdAt": EARLY, **counts, **more}


class FakeCloud:
    """An account in one region. `services`: name -> number of tasks."""

    account = "123456789012"

    def __init__(self, region: str = "eu-central-1") -> None:
        self.region = region
        self.services: dict[str, int] = {}
        self.asked: list[Sequence[str]] = []

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        assert operation == "describe_services"
        names = parameters["services"]
        assert len(names) <= 10
        self.asked.append(names)
        return {
            "services": [make_service(n, self.services[n]) for n in names if n in self.services]
        }


@pytest.fixture
def account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, tuple[FakeCloud, dict[str, list[Found]]]]]:
    """Region -> its cloud, and session -> what is tagged as its."""
    monkeypatch.chdir(tmp_path)
    regions = {name: (FakeCloud(name), dict[str, list[Found]]()) for name in ("r1", "r2")}
    monkeypatch.setattr(
        module,
        "open_regions",
        lambda where: [regions[name][0] for name in where.region.split(",")],
    )
    monkeypatch.setattr(module, "find_tagged", lambda cloud: regions[cloud.region][1])
    monkeypatch.setattr(module, "list_kept", lambda cloud: [])
    monkeypatch.setattr(module, "_make_fleet", lambda cloud, name: FakeFleet(cloud, name))
    return regions  # type: ignore[return-value]


class FakeFleet(EcsFleet):
    """What there is of a session, without a store."""

    def has_files(self) -> bool:
        return False

    def list_parts(self, *, discard_results: bool = False) -> list[str]:
        return []


Account = dict[str, tuple[FakeCloud, dict[str, list[Found]]]]


def add(account: Account, region: str, session: str, **desired: int) -> None:
    cloud, tagged = account[region]
    tagged[session] = [make_found(session, role, folder="/here") for role in desired]
    tagged[session].append(make_found(session, kind="cluster"))
    cloud.services |= {f"pestfleet-{session}-{role}": n for role, n in desired.items()}


def test_sessions_of_several_regions(account: Account) -> None:
    add(account, "r1", "a", broker=1, master=1, worker=5)
    add(account, "r2", "b", broker=0, master=0, worker=0)
    account["r2"][1]["c"] = [make_found("c", kind="cluster")]
    infos = {info.name: info for info in list_sessions(Where(region="r1,r2", profile="p"))}
    assert {name: info.state for name, info in infos.items()} == {
        "a": "running", "b": LEFT, "c": HALF,
    }  # fmt: skip
    a = infos["a"]
    assert (a.workers, a.folder, a.began) == (5, "/here", EARLY.timestamp())
    assert a.where == Where(region="r1", profile="p")
    assert a.parts[0] == "service broker: 1 asked for, 1 running"
    assert "cluster pestfleet-a" in a.parts


def test_a_session_is_opened_where_it_is(account: Account) -> None:
    add(account, "r2", "b", broker=1, master=1, worker=2)
    remote = open_session("b", Where(region="r1,r2"))
    assert remote.info.where.region == "r2"
    assert account["r2"][0].asked == [[f"pestfleet-b-{role}" for role in module.ROLES]]


def test_half_made_sessions_can_be_opened_and_the_newest_without_a_name(account: Account) -> None:
    account["r1"][1]["c"] = [make_found("c", kind="log-group")]
    assert open_session("c", Where(region="r1")).info.state == HALF
    add(account, "r1", "d", worker=1)
    assert open_session(None, Where(region="r1")).info.name == "d"
    with pytest.raises(SessionError, match="there is no session x in region r1") as caught:
        open_session("x", Where(region="r1"))
    assert "Sessions there: d, c" in caught.value.remedy


@pytest.mark.parametrize(
    ("desired", "state"),
    [
        ({"broker": 1, "master": 1}, HALF),
        ({"broker": 1, "master": 1, "worker": 0}, "running"),
        ({"broker": 1, "worker": 3}, "running"),  # its master is at home
        ({"broker": 0, "master": 0, "worker": 0}, LEFT),
        ({}, HALF),
    ],
)
def test_states_by_what_services_are_asked_for(desired: dict[str, int], state: str) -> None:
    assert find_state({role: {"desiredCount": n} for role, n in desired.items()}) == state


def test_a_thousand_services_take_a_hundred_requests() -> None:
    cloud = FakeCloud()
    tagged = {
        f"s{n}": [make_found(f"s{n}", role, cluster="shared") for role in ("master", "worker")]
        for n in range(500)
    }
    cloud.services = {found.name: 1 for some in tagged.values() for found in some}
    services = describe_services(cloud, tagged)  # type: ignore[arg-type]
    assert len(services) == 500
    assert services["s7"].keys() == {"master", "worker"}
    assert len(cloud.asked) == 100


def test_a_cluster_that_goes_meanwhile_is_passed_over() -> None:
    class Gone(FakeCloud):
        def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
            raise Refused("ecs:DescribeServices", "ClusterNotFoundException", "Cluster not found.")

    found = {"s1": [make_found("s1", "worker")]}
    assert describe_services(Gone(), found) == {}  # type: ignore[arg-type]


# -- one of them -------------------------------------------------------------------------------


def make_task(name: str, role: str = "worker", status: str = "RUNNING") -> Task:
    body = {"taskArn": f"arn:x/{name}", "lastStatus": status, "desiredStatus": status}
    return read_task(body, role)


class FakeObjects:
    """What a store has; key -> text."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def read(self, key: str) -> Any:
        text = self.texts.get(key)
        return None if text is None else type("Content", (), {"data": text.encode()})


class FakeStore:
    """A session's."""

    prefix = "sessions/s1/"

    def __init__(self) -> None:
        self.store = FakeObjects()


class FakeOpened(FakeFleet):
    """A session with tasks."""

    def __init__(self) -> None:
        super().__init__(FakeCloud(), "s1")  # type: ignore[arg-type]
        self.store = FakeStore()  # type: ignore[assignment]
        self.there = [make_task("m" * 32, "master"), make_task("abcd" * 8), make_task("ef01" * 8)]
        self.scaled: list[Any] = []

    def tasks(self, role: str, *, stopped: bool = False, most: int = 0) -> list[Task]:
        return [task for task in self.there if task.role == role and not stopped]

    def has_files(self) -> bool:
        return True

    def read_tail(self, stream: str, *, lines: int) -> tuple[list[str], str]:
        return [f"{stream}: line {n}" for n in range(lines)], "token"

    def scale(self, workers: int, *, elastic: bool = False) -> list[str]:
        self.scaled.append((workers, elastic))
        return []


@pytest.fixture
def opened() -> tuple[RemoteFleet, FakeOpened]:
    fleet = FakeOpened()
    return RemoteFleet(SessionInfo("s1", "ecs", "running", 2, 0.0), fleet), fleet


def read(remote: RemoteFleet, worker: str | None) -> list[str]:
    return list(remote.follow_log(worker, lines=1, follow=False))


def test_logs_are_found_by_role_id_part_of_it_and_name(
    opened: tuple[RemoteFleet, FakeOpened],
) -> None:
    remote, _ = opened
    assert read(remote, None) == [f"master/master/{'m' * 32}: line 0"]
    for name in ("abcd" * 8, "abcdabcd", "dabcd", "task-abcdabcdabcd"):
        assert read(remote, name) == [f"worker/worker/{'abcd' * 8}: line 0"]
    with pytest.raises(SessionError, match="has no task task-x") as caught:
        read(remote, "task-x")
    assert "worker abcdabcd" in caught.value.remedy


def test_of_a_master_that_has_gone_the_kept_log_is_shown(
    opened: tuple[RemoteFleet, FakeOpened],
) -> None:
    remote, fleet = opened
    fleet.there = []
    fleet.store.store.texts["sessions/s1/files/master.log"] = "a\nb\n"  # type: ignore[attr-defined]
    assert read(remote, None) == ["b"]


@pytest.mark.parametrize(("most", "elastic"), [(0, False), (9, True)])
def test_an_elastic_session_is_scaled_by_its_master(
    opened: tuple[RemoteFleet, FakeOpened], most: int, elastic: bool
) -> None:
    remote, fleet = opened
    texts = fleet.store.store.texts  # type: ignore[attr-defined]
    texts["sessions/s1/files/session.json"] = json.dumps({"most": most})
    remote.scale(3)
    assert fleet.scaled == [(3, elastic)]


def test_short_words_are_no_ids() -> None:
    assert not is_called(make_task("abcd" * 8), "abc")


def test_kept_files_are_a_session(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(cloud: Any, name: str, where: Where) -> SessionInfo:
        return SessionInfo(name, "ecs", KEPT, 0, 0.0)

    monkeypatch.setattr(module, "list_kept", lambda cloud: ["old", "a"])
    monkeypatch.setattr(module, "_describe_kept", describe)
    add(account, "r1", "a", worker=1)
    states = {info.name: info.state for info in list_sessions(Where(region="r1"))}
    assert states == {"a": "running", "old": KEPT}
