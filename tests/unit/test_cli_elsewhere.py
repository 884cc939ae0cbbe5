"""Commands on sessions of a target of containers, which is a stand-in here."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from fake_cluster_access import FakeAccess
from pestfleet import targets
from pestfleet.cli.main import cli
from pestfleet.placement import AmazonPlace, Placement
from pestfleet.session import Session
from pestfleet.targets.base import SessionInfo, Where
from pestfleet.targets.kubernetes import launch as kubernetes_launch
from pestfleet.targets.kubernetes.fleet import KubernetesFleet
from pestfleet_worker.errors import SessionError, TargetError
from session_files import EXAMPLE, make_session, make_state


@dataclass
class FakeRemote:
    """A session there. `states`: what its master has written, look by look."""

    info: SessionInfo
    states: list[dict[str, Any]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    trouble: str = ""

    def read_state(self) -> dict[str, Any]:
        return dict(self.states.pop(0) if len(self.states) > 1 else self.states[0])

    def stop(self) -> None:
        self.done.append("stop")

    def list_parts(self, *, discard_results: bool) -> list[str]:
        return ["container master", *(["volume session"] if discard_results else [])]

    def down(self, *, discard_results: bool) -> list[str]:
        if self.trouble:
            raise TargetError(self.trouble)
        self.done.append("down")
        return ["container master"]


class FakeTarget:
    """The sessions of a target; `away`: it does not answer."""

    def __init__(self) -> None:
        self.sessions: dict[str, FakeRemote] = {}
        self.away = False

    def add(self, name: str, state: str, *states: dict[str, Any], trouble: str = "") -> FakeRemote:
        info = SessionInfo(name, "compose", state, 2, 0.0, parts=("master: it is there",))
        self.sessions[name] = FakeRemote(info, list(states), trouble=trouble)
        return self.sessions[name]

    def list_sessions(self, _: str, where: Where | None = None) -> list[SessionInfo]:
        if self.away:
            raise TargetError("no Docker engine runs here")
        return [remote.info for remote in self.sessions.values()]

    def open_session(self, target: str, name: str | None, where: Where | None = None) -> FakeRemote:
        self.list_sessions(target)
        if name not in self.sessions:
            raise SessionError(f"there is no session {name}")
        return self.sessions[name]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTarget:
    monkeypatch.chdir(tmp_path)
    fake = FakeTarget()
    monkeypatch.setattr(targets, "list_remote_sessions", fake.list_sessions)
    monkeypatch.setattr(targets, "open_remote_session", fake.open_session)
    return fake


def launch(tmp_path: Path, name: str = "s1", *, master: str = "there") -> Session:
    """The folder here of a session that was launched on compose, and is not followed."""
    root = tmp_path / "pestfleet-sessions"
    return Session(make_session(root, name, target="compose", place=Placement(master=master)))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_a_session_that_nobody_follows_is_stopped_where_it_is(
    tmp_path: Path, target: FakeTarget
) -> None:
    session = launch(tmp_path)
    remote = target.add("s1", "running", make_state())
    assert session.stop()
    assert remote.done == ["stop"]
    assert not session.folder.stop_requested


def test_a_session_that_is_nowhere_cannot_be_stopped(tmp_path: Path, target: FakeTarget) -> None:
    with pytest.raises(SessionError, match="there is no session s1"):
        launch(tmp_path).stop()


def test_status_is_that_of_the_master_there(tmp_path: Path, target: FakeTarget) -> None:
    launch(tmp_path)
    target.add("s1", "running", make_state())
    status = json.loads(call("status", "--json").stdout)
    assert (status["state"], status["containers"]) == ("running", ["master: it is there"])


def test_a_master_that_died_there_does_not_run(tmp_path: Path, target: FakeTarget) -> None:
    launch(tmp_path)
    target.add("s1", "ended, its containers are left", make_state())
    assert json.loads(call("status", "--json").stdout)["state"] == "died"


def test_a_watch_sees_the_end_of_a_session_that_is_removed(
    tmp_path: Path, target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(tmp_path)
    target.add("s1", "running", make_state())
    monkeypatch.setattr("pestfleet.cli.status.time.sleep", lambda _: target.sessions.clear())
    lines = call("status", "--json", "--watch").stdout
    assert '"running"' in lines
    assert '"died"' in lines


def test_a_target_that_is_away_hides_no_folder(tmp_path: Path, target: FakeTarget) -> None:
    session = launch(tmp_path)
    session.folder.write_state(make_state(state="finished"))
    session.folder.log.write_text("a line\n")
    target.away = True
    for command, shown in (("status", "finished"), ("logs", "a line")):
        result = call(command, "s1")
        assert result.exit_code == 0
        assert shown in result.stdout
        assert "compose cannot be asked: no Docker engine runs here" in result.stderr
    assert call("down", "s1").exit_code == TargetError.exit_code


def test_sessions_while_a_master_has_no_state_yet(tmp_path: Path, target: FakeTarget) -> None:
    session = launch(tmp_path)
    session.folder.acquire()
    try:
        result = call("sessions")
    finally:
        session.folder.release()
    assert result.exit_code == 0
    assert "running" in result.stdout


def test_down_of_all_goes_on_after_a_failure(tmp_path: Path, target: FakeTarget) -> None:
    target.add("s1", "running", trouble="the network is in use")
    remote = target.add("s2", "running")
    result = call("down", "--all", "--on", "compose")
    assert result.exit_code == TargetError.exit_code
    assert remote.done == ["down"]
    assert "s2: removed container master" in result.stdout
    assert "the network is in use" in result.stderr


def test_down_says_before_what_it_would_remove(target: FakeTarget) -> None:
    remote = target.add("s1", "running")
    down = ("down", "--on", "compose", "--dry-run")
    assert call(*down, "s1").stdout == "s1: would remove container master\n"
    assert "volume session" in call(*down, "s1", "--discard-results").stdout
    assert call(*down, "--all").stdout == "s1: would remove master: it is there\n"
    assert remote.done == []


def test_a_dry_run_has_the_words_for_the_engine(target: FakeTarget) -> None:
    result = call(
        "run", str(EXAMPLE), "--dry-run", "--on", "compose",
        "--engine", "pestpp-glm", "--engine-args", "/r 'a b'",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    words = yaml.safe_load(result.stdout)["services"]["master"]["command"]
    assert words[words.index("--engine-args") + 1] == "/r 'a b'"


def test_a_session_that_runs_here_is_not_removed_by_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    removed: list[str] = []
    monkeypatch.setattr(kubernetes_launch, "connect", lambda *_: FakeAccess({"/jobs": []}))
    monkeypatch.setattr(KubernetesFleet, "down", lambda self, **_: removed.append(self.session))
    folder = make_session(
        tmp_path / "pestfleet-sessions", target="kubernetes", place=Placement(master="here")
    )
    folder.acquire()  # its master, in another terminal
    result = call("resume", "s1")
    folder.release()
    assert result.exit_code == SessionError.exit_code
    assert "session s1 is running" in result.stderr
    assert removed == []


class FakeHost:
    """Notes what a signal would do while it launches."""

    def __init__(self) -> None:
        self.handlers: list[Any] = []

    def launch(self) -> None:
        self.handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("network", ["", "make"])
def test_a_launch_that_is_left_alone_ends_clean_when_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    monkeypatch.chdir(tmp_path)
    host = FakeHost()
    monkeypatch.setattr(Session, "make_host", lambda self, **_: host)
    monkeypatch.setattr("pestfleet.cli.cost.confirm_launch", lambda *_, **__: None)
    monkeypatch.setenv("PESTFLEET_AMAZON__NETWORK", network)
    result = call("run", str(EXAMPLE), "--on", "ecs", "--engine", "glm", "--detach")
    assert result.exit_code == 0, result.output
    assert len(host.handlers) == 2 and all(map(callable, host.handlers))
    assert signal.default_int_handler not in host.handlers
    assert ("also after its end" in result.stdout) == (network == "make")


@pytest.mark.parametrize(("region", "asked"), [("eu-west-1", False), ("eu-central-1", True)])
def test_a_session_of_the_same_name_in_another_region_is_another(
    tmp_path: Path,
    target: FakeTarget,
    monkeypatch: pytest.MonkeyPatch,
    region: str,
    asked: bool,
) -> None:
    place = Placement(master="there", amazon=AmazonPlace(region="eu-central-1"))
    folder = make_session(tmp_path / "pestfleet-sessions", target="ecs", place=place)
    remote = target.add("s1", "running", make_state())
    folder.acquire()  # it is followed here
    monkeypatch.setattr(Session, "stop", lambda self, **_: remote.done.append("stop") or True)
    result = call("down", "s1", "--on", "ecs", "--region", region)
    folder.release()
    assert result.exit_code == 0
    assert remote.done == (["stop", "down"] if asked else ["down"])
