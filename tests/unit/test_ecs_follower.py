"""Who follows a master in a task of ECS: what it tells, and when it gives up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.placement import Placement
from pestfleet.store.errors import Unreachable as SlowStore
from pestfleet.targets import following
from pestfleet.targets.ecs import follower as module
from pestfleet.targets.ecs.access import Unreachable
from pestfleet.targets.ecs.fleet import Task, read_task
from pestfleet.targets.ecs.follower import TaskMaster
from pestfleet.targets.ecs.naming import Names
from pestfleet_worker.errors import ConfigurationError, PestfleetError, TargetError

EARLY = datetime(2025, 1, 1, tzinfo=UTC)


def make_service(desired: int, running: int = -1, *messages: str) -> dict[str, Any]:
    events = [{"id": text, "message": text} for text in messages]
    running = desired if running < 0 else running
    return {
        "desiredCount": desired,
        "runningCount": running,
        "createdAt": EARLY,
        "events": events,
    }


class FakeStore:
    """`ended`: looks until the master has ended; -1: it never does."""

    def __init__(self, ended: int = -1) -> None:
        self.looks = ended

    def read_state(self) -> dict[str, Any]:
        self.looks -= 1
        return {"session": "first", "state": "running", "batch": 1}

    def read_ended(self) -> str:
        return "1 0" if self.looks == -1 else ""


class FakeFleet:
    """Services as they are look by look; the last ones for ever."""

    names = Names("first")

    def __init__(self, *services: dict[str, Any], ended: int = -2) -> None:
        self.looks = list(services)
        self.store = FakeStore(ended)
        self.stopped: list[Task] = []
        self.lines: list[str] = []
        self.done: list[str] = []
        self.error: Exception | None = None

    def services(self, roles: Any = ()) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def tasks(self, role: str, *, stopped: bool = False, most: int = 0) -> list[Task]:
        return [task for task in self.stopped if stopped and task.role == role]

    def find(self, role: str) -> Task | None:
        return make_task("1", role)

    def follow_log(self, task: Task, *, since: float = 0.0, token: str = "") -> Iterator[str]:
        yield from self.lines
        self.lines = []

    def read_tail(self, stream: str, *, lines: int) -> tuple[list[str], str]:
        return ["the last line"], ""

    def down(self, *, discard_results: bool = False) -> list[str]:
        self.done.append("discard" if discard_results else "keep")
        return []

    def stop_master(self) -> None:
        self.done.append("stop")
        self.looks = [{"master": make_service(0), "worker": make_service(0)}]


def make_task(name: str, role: str, **body: Any) -> Task:
    return read_task(
        {"taskArn": f"arn:x/{name}", "lastStatus": "RUNNING", "desiredStatus": "RUNNING", **body},
        role,
    )


@pytest.fixture
def follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[TaskMaster, list[str]]]:
    for name in ("LOOKS", "LATER"):
        monkeypatch.setattr(module, name, dict.fromkeys(module.LOOKS, 0.0))
    monkeypatch.setattr(module, "LAST_WORDS", 0.05)
    monkeypatch.setattr(following, "INTERVAL", 0.01)
    monkeypatch.setattr(module, "fetch", lambda fleet, folder: True)

    def make(fleet: FakeFleet, *, least: int = 1) -> tuple[TaskMaster, list[str]]:
        spec = SessionSpec(
            "first", "/case/case.pst", "d" * 64, "glm", "ecs", 4, 1, place=Placement(least=least)
        )
        folder = SessionFolder(tmp_path / "first")
        folder.create(spec)
        said: list[str] = []
        master = TaskMaster(
            folder,
            spec,
            fleet,  # type: ignore[arg-type]
            launch=lambda say: say("starting"),
            on_event=lambda event: said.append(event.get("text", "")),
        )
        return master, said

    return make


Follow = Callable[..., tuple[TaskMaster, list[str]]]
ALL = {"master": make_service(1), "broker": make_service(1), "worker": make_service(4)}


def test_a_session_is_followed_to_the_end_that_its_store_tells(follow: Follow) -> None:
    fleet = FakeFleet(ALL, ended=3)
    fleet.lines = ['{"time": 1.0, "event": "note", "text": "hello"}', "no event"]
    master, said = follow(fleet)
    master.host()
    assert said[:1] == ["starting"]
    assert "hello" in said


def test_the_state_is_that_of_the_store(follow: Follow) -> None:
    master, _ = follow(FakeFleet(ALL))
    assert not master._look(stopping=False)
    assert master.snapshot()["batch"] == 1


def test_a_session_that_was_removed_is_told(follow: Follow) -> None:
    master, said = follow(FakeFleet(ALL, {}))
    master.host()
    assert "the resources of session first were removed: somebody has ended it" in said


def test_one_answer_without_the_master_ends_no_session(follow: Follow) -> None:
    master, said = follow(FakeFleet({}, ALL, {}, {**ALL, "master": make_service(0)}))
    assert isinstance(master.host().error, TargetError)
    assert "were removed" not in said


def test_tasks_that_were_stopped_without_a_word(follow: Follow) -> None:
    master, _ = follow(FakeFleet(ALL, {**ALL, "master": make_service(0)}))
    error = master.host().error
    assert isinstance(error, TargetError)
    assert "its master was not heard of for too long" in error.message
    assert "pestfleet resume" in error.remedy


def test_servers_that_others_take_the_place_of_are_told(follow: Follow) -> None:
    again = [
        {**ALL, "broker": make_service(1, 1, "(service b) has started 1 tasks: (task 1)")},
        {**ALL, "broker": make_service(1, 0, "(service b) has started 1 tasks: (task 1)")},
        {**ALL, "broker": make_service(1, 1, "(service b) has started 1 tasks: (task 2)")},
        {},
    ]
    master, said = follow(FakeFleet(*again))
    master.host()
    told = [text for text in said if "was lost" in text]
    assert told == [
        "the task of the broker was lost, and another one has started: runs that were on their "
        "way are asked for again"
    ]


def test_a_broker_that_starts_at_the_second_try_was_not_lost(follow: Follow) -> None:
    again = [
        {**ALL, "broker": make_service(1, 0, "(service b) has started 1 tasks: (task 1)")},
        {**ALL, "broker": make_service(1, 1, "(service b) has started 1 tasks: (task 2)")},
        {},
    ]
    master, said = follow(FakeFleet(*again))
    master.host()
    assert not [text for text in said if "was lost" in text]


PULL = {
    "stopCode": "TaskFailedToStart",
    "stoppedReason": "CannotPullContainerError: pull image manifest has been retried 5 time(s): "
    "failed to resolve ref x: not found",
    "lastStatus": "STOPPED",
    "createdAt": datetime(2200, 1, 1, tzinfo=UTC),
}


def test_workers_that_never_start_end_the_session(follow: Follow) -> None:
    fleet = FakeFleet({**ALL, "worker": make_service(4, 0)})
    fleet.stopped = [make_task(str(number), "worker", **PULL) for number in range(4)]
    master, _ = follow(fleet)
    error = master.host().error
    assert isinstance(error, TargetError)
    assert error.message == "4 workers ended: the registry has no such image"
    assert fleet.done == ["discard"]


def test_some_of_the_workers_will_do(follow: Follow) -> None:
    fleet = FakeFleet({**ALL, "worker": make_service(4, 2)}, ended=4)
    fleet.stopped = [make_task(str(number), "worker", **PULL) for number in range(9)]
    master, said = follow(fleet, least=2)
    error = master.host().error
    assert error is None or "no such image" not in error.message
    assert [text for text in said if "no such image" in text] == [
        "2 workers ended: the registry has no such image\n    Run again: images are pushed anew. "
        "Or check registry in [image], or --image."
    ]


def test_a_master_that_ends_badly_may_say_so_itself(follow: Follow) -> None:
    ended = {
        "stopCode": "EssentialContainerExited",
        "containers": [{"name": "master", "exitCode": 6}],
        "lastStatus": "STOPPED",
        "createdAt": datetime(2200, 1, 1, tzinfo=UTC),
    }
    fleet = FakeFleet({**ALL, "master": make_service(1, 0)}, ended=3)
    fleet.stopped = [make_task(str(number), "master", **ended) for number in range(2)]
    master, _ = follow(fleet)
    error = master.host().error
    assert error is None or "broker" not in error.message

    fleet.stopped.append(make_task("3", "master", **ended))
    fleet.store.looks = -2
    with pytest.raises(TargetError, match=r"exit code 6 \(the broker\)"):
        master._diagnose()


@pytest.mark.parametrize(
    "error",
    [
        Unreachable("Amazon does not answer ecs:DescribeServices"),
        SlowStore("cannot read s3://b/k: no answer", place="s3://b/k"),
        ConfigurationError("your credentials of Amazon have expired", remedy="Log in again."),
    ],
)
def test_a_session_outlives_what_we_cannot_see(
    follow: Follow, monkeypatch: pytest.MonkeyPatch, error: PestfleetError
) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.05)
    fleet = FakeFleet(ALL)
    fleet.error = error
    master, _ = follow(fleet)
    end = master.host().error
    assert isinstance(end, TargetError)
    assert end.message == f"Amazon failed: {error}"
    assert end.remedy.startswith(error.remedy)
    assert "goes on by itself" in end.remedy
    assert fleet.done == []


def test_a_stop_is_asked_of_the_master(follow: Follow) -> None:
    fleet = FakeFleet(ALL)
    master, _ = follow(fleet)
    begun = master._look

    def look(*, stopping: bool) -> bool:
        master.interrupt()
        return begun(stopping=stopping)

    master._look = look  # type: ignore[method-assign]
    master.host()
    assert fleet.done[0] == "stop"


def test_looks_are_rare_and_later_rarer(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    master, _ = follow(FakeFleet(ALL))
    monkeypatch.setattr(module, "LOOKS", {"state": 3.0})
    monkeypatch.setattr(module, "LATER", {"state": 5.0})
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "time", lambda: 1000.0 + now[0])
    master._launched = 1100.0
    seen = []
    for _ in range(200):
        if master._is_due("state"):
            seen.append(now[0])
        now[0] += 1.0
    pauses = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert pauses[0] == 3.0
    assert pauses[-1] == 5.0
