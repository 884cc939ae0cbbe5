"""What a follower makes of how a master in a container ended; over a fake fleet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from fake_engine import FakeFleet, make_container
from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.targets import following
from pestfleet.targets.compose import follower as module
from pestfleet.targets.compose.follower import ContainerMaster
from pestfleet_worker.errors import (
    CaseError,
    ConfigurationError,
    Interrupted,
    PestfleetError,
    RunsFailedError,
    TargetError,
)

SPEC = SessionSpec("first", "/case/case.pst", "d" * 64, "glm", "compose", 1, 1)


class Followed:
    """A session with a fake fleet; `host` follows it to its end."""

    def __init__(self, folder: SessionFolder, launch: Callable[[Any], None]) -> None:
        self.fleet = FakeFleet()
        self.events: list[dict[str, Any]] = []
        self.master = ContainerMaster(
            folder,
            SPEC,
            self.fleet,  # type: ignore[arg-type]
            launch=launch,
            on_event=self.events.append,
        )

    def end(self, exit_code: int = 0, *, state: str = "finished", **end: Any) -> None:
        """Let the master's journal and state say that it has ended."""
        event = {"time": 1.0, "event": "end", "state": state, "exit_code": exit_code, **end}
        self.fleet.files["journal.jsonl"] = json.dumps(event) + "\n"
        self.fleet.end_master(exit_code, state=state)

    def texts(self) -> list[str]:
        return [event["text"] for event in self.events if "text" in event]


@pytest.fixture
def folder(tmp_path: Path) -> SessionFolder:
    made = SessionFolder(tmp_path / "first")
    made.create(SPEC)
    return made


@pytest.fixture
def followed(folder: SessionFolder, monkeypatch: pytest.MonkeyPatch) -> Followed:
    monkeypatch.setattr(following, "INTERVAL", 0.01)
    return Followed(folder, launch=lambda say: say("starting"))


def test_a_session_that_finishes_leaves_nothing(followed: Followed) -> None:
    followed.end(summary={"phi": 1.0})
    outcome = followed.master.host()
    assert outcome.error is None and outcome.summary == {"phi": 1.0}
    assert followed.fleet.asked == [("fetch",), ("down", True)]
    assert followed.master.snapshot()["state"] == "finished"


@pytest.mark.parametrize("kind", [CaseError, ConfigurationError, RunsFailedError, TargetError])
def test_the_master_s_error_is_ours(followed: Followed, kind: type[PestfleetError]) -> None:
    followed.end(kind.exit_code, state="failed", error="too bad", remedy="Do better.")
    error = followed.master.host().error
    assert type(error) is kind
    assert (error.message, error.remedy) == ("too bad", "Do better.")
    # What it has finished may be gone on with.
    assert followed.fleet.asked == [("fetch",), ("down", False)]


def test_ctrl_c_while_it_is_launched(followed: Followed, folder: SessionFolder) -> None:
    followed.master.interrupt()
    outcome = followed.master.host()
    assert isinstance(outcome.error, Interrupted)
    assert followed.fleet.asked == [("fetch",), ("down", True)]
    assert folder.read_state()["state"] == "stopped"


def test_stop_of_another_shell(folder: SessionFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "INTERVAL", 0.01)
    followed = Followed(folder, launch=lambda say: folder.request_stop())
    followed.fleet.there = [make_container("master")]
    followed.fleet.files["journal.jsonl"] = '{"time": 1.0, "event": "start"}\n'
    outcome = followed.master.host()
    assert isinstance(outcome.error, Interrupted)
    assert "pestfleet resume first" in outcome.error.remedy
    assert followed.fleet.asked == [("stop", "master"), ("fetch",), ("down", False)]
    assert followed.master.snapshot()["state"] == "stopped"


def test_a_launch_that_fails_leaves_nothing(
    folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(say: Any) -> None:
        raise TargetError("no such image", remedy="Build it.")

    followed = Followed(folder, launch=fail)
    outcome = followed.master.host()
    assert isinstance(outcome.error, TargetError) and outcome.error.message == "no such image"
    assert followed.fleet.asked == [("fetch",), ("down", True)]
    assert folder.read_state()["state"] == "failed"


def test_a_master_that_dies_is_started_again(followed: Followed) -> None:
    followed.fleet.end_master(137)

    def start(container: Any) -> None:
        followed.fleet.asked.append(("start", container.name))
        followed.end()

    followed.fleet.start = start  # type: ignore[method-assign]
    assert followed.master.host().error is None
    assert followed.fleet.asked == [("start", "master"), ("fetch",), ("down", True)]
    assert any("master had ended (exit code 137)" in text for text in followed.texts())


@pytest.mark.parametrize("exit_code", [2, 3, 4, 8])
def test_a_master_that_would_fail_again_is_not(followed: Followed, exit_code: int) -> None:
    followed.fleet.end_master(exit_code)
    error = followed.master.host().error
    assert isinstance(error, TargetError)
    assert f"master ended with exit code {exit_code}" in error.message
    assert not any(asked[0] == "start" for asked in followed.fleet.asked)


def test_a_master_that_others_stop_has_time_to_come_back(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an engine that is restarted: it stops the master first."""
    followed.end(Interrupted.exit_code, state="stopped", error="stopped")
    looks = [
        [make_container("master", exit_code=130)],
        requests.exceptions.ConnectionError("the engine is away"),
        [make_container("master")],
        [make_container("master")],
    ]

    def look(role: str) -> Any:
        if not looks:
            followed.end(summary={"phi": 1.0})
            return make_container("master", exit_code=0)
        found = looks.pop(0)
        if isinstance(found, Exception):
            raise found
        return found[0]

    followed.fleet.find = look  # type: ignore[method-assign]
    outcome = followed.master.host()
    assert outcome.error is None and not looks


def test_a_master_that_others_stop_for_good(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_DWELL", 0.05)
    followed.end(Interrupted.exit_code, state="stopped", error="stopped")
    assert isinstance(followed.master.host().error, Interrupted)
    assert not any(asked[0] == "start" for asked in followed.fleet.asked)


@pytest.mark.parametrize(
    ("role", "exit_code", "waits"),
    [("worker", 12, True), ("broker", 0, True), ("worker", 0, False), ("worker", None, False)],
)
def test_how_long_a_stopped_master_is_waited_for(
    followed: Followed,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    exit_code: int | None,
    waits: bool,
) -> None:
    monkeypatch.setattr(module, "STOP_DWELL", -1.0)
    followed.fleet.there = [make_container(role, exit_code=exit_code)]
    master = make_container("master", exit_code=Interrupted.exit_code)
    assert followed.master._is_over(master) is not waits


def test_containers_that_somebody_removed(followed: Followed) -> None:
    error = followed.master.host().error
    assert isinstance(error, Interrupted) and "pestfleet resume first" in error.remedy
    assert any("were removed" in text for text in followed.texts())


def test_an_engine_that_does_not_come_back(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.05)
    followed.fleet.there = [make_container("master")]
    followed.fleet.trouble = requests.exceptions.ConnectionError("refused")
    error = followed.master.host().error
    assert isinstance(error, TargetError) and "the Docker engine failed" in error.message
