"""A master here with its fleet on a platform of containers; over a fake platform."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pestfleet.folder import SessionFolder
from pestfleet.host import Outcome
from pestfleet.session import Session
from pestfleet.targets.base import FleetPlan, Site, Taken
from pestfleet.targets.home import HomeMaster, HomeTarget, Say
from pestfleet.tunnel import connection
from pestfleet.tunnel.connection import TunnelPlace
from pestfleet.tunnel.keys import make_tunnel_keys
from pestfleet_worker.errors import ConfigurationError, Interrupted, TargetError
from session_files import make_session

AMQP = "amqp://guest:secret@127.0.0.1:5999/%2F"


class PlatformError(Exception):
    """How the platform says no."""


class FakeMaster:
    def __init__(self, folder: SessionFolder) -> None:
        self.folder = folder
        self.interrupted = False

    def interrupt(self) -> None:
        self.interrupted = True

    def snapshot(self) -> dict[str, Any]:
        return {"session": self.folder.name, "state": "running", "iteration": 3}

    def host(self) -> Outcome:
        error = Interrupted("stopped") if self.interrupted else None
        return Outcome(self.folder, {"phi": 1.0}, error)


class FakeHome(HomeMaster):
    trouble = (PlatformError,)
    parts = "fakes"

    def __init__(self, folder: SessionFolder, launch: Callable[[Say], None]) -> None:
        session = Session(folder)
        self.events: list[dict[str, Any]] = []
        super().__init__(session, broker_url="", on_event=self.take)
        self.made: list[tuple[str, Site]] = []
        session.make_master = self.make_master  # type: ignore[assignment, method-assign]
        self.launch = launch
        self.removed = 0
        self.removal: Exception | None = None

    def take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        raise RuntimeError("a display that fails")

    def make_master(self, *, broker_url: str, site: Site, on_event: Any) -> Any:
        self.made.append((broker_url, site))
        return FakeMaster(self._session.folder)

    def _launch_all(self, say: Say) -> tuple[str, Site]:
        assert self._session.folder.running, "nobody else may launch for it"
        self.launch(say)
        return AMQP, Site(lambda plan: None)  # type: ignore[arg-type, return-value]

    def _remove_all(self) -> None:
        self.removed += 1
        if self.removal is not None:
            raise self.removal

    def _explain(self, trouble: Exception) -> TargetError:
        return TargetError(f"the platform failed: {trouble}")


@pytest.fixture
def folder(tmp_path: Path) -> SessionFolder:
    return make_session(tmp_path, target="compose")


def test_the_master_runs_and_all_is_removed(folder: SessionFolder) -> None:
    home = FakeHome(folder, lambda say: say("starting"))
    outcome = home.host()
    assert outcome.summary == {"phi": 1.0} and outcome.error is None
    assert [url for url, _ in home.made] == [AMQP]
    assert home.removed == 1 and not folder.running
    assert [event["text"] for event in home.events] == ["starting"]
    assert home.snapshot()["iteration"] == 3


def fail(error: Exception) -> Callable[[Say], None]:
    def launch(say: Say) -> None:
        raise error

    return launch


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (TargetError("no room"), TargetError, "no room"),
        (ConfigurationError("no chart"), ConfigurationError, "no chart"),
        (PlatformError("silent"), TargetError, "the platform failed: silent"),
    ],
)
def test_a_launch_that_fails_leaves_nothing(
    folder: SessionFolder, error: Exception, kind: type[Exception], words: str
) -> None:
    home = FakeHome(folder, fail(error))
    outcome = home.host()
    assert type(outcome.error) is kind and words in str(outcome.error)
    assert home.removed == 1 and not home.made and not folder.running
    assert folder.read_state()["state"] == "failed"


def test_an_id_that_is_taken_removes_nothing(folder: SessionFolder) -> None:
    home = FakeHome(folder, fail(Taken("session s1 has a job already")))
    assert isinstance(home.host().error, Taken)
    assert home.removed == 0
    assert not folder.running


def test_what_earlier_launches_cost_is_known_to_the_next_master(folder: SessionFolder) -> None:
    folder.write_state(
        {"session": "s1", "state": "stopped", "cost": {"usd": 12.0, "usd_an_hour": 7.0}}
    )
    seen: list[dict[str, Any]] = []

    class Master(FakeMaster):
        def host(self) -> Outcome:
            seen.append(folder.read_state())
            return super().host()

    home = FakeHome(folder, lambda say: None)
    home._session.make_master = lambda **_: Master(folder)  # type: ignore[assignment, method-assign, misc, return-value]
    home.host()
    assert seen[0]["cost"] == {"usd": 12.0, "usd_an_hour": 0.0}


@pytest.mark.parametrize("how", ["interrupt", "stop"])
def test_a_stop_while_it_is_launched(folder: SessionFolder, how: str) -> None:
    def launch(say: Say) -> None:
        home.interrupt() if how == "interrupt" else folder.request_stop()
        say("")
        raise AssertionError("the launch goes on")

    home = FakeHome(folder, launch)
    outcome = home.host()
    assert isinstance(outcome.error, Interrupted)
    assert home.removed == 1 and folder.read_state()["state"] == "stopped"


def test_a_stop_at_the_end_of_the_launch(folder: SessionFolder) -> None:
    home = FakeHome(folder, lambda say: home.interrupt())
    assert isinstance(home.host().error, Interrupted)


def test_what_cannot_be_removed_is_told(folder: SessionFolder) -> None:
    home = FakeHome(folder, lambda say: None)
    home.removal = PlatformError("silent")
    assert home.host().error is None
    (event,) = home.events
    assert event["event"] == "warn"
    assert "fakes may be left" in event["text"] and "pestfleet down s1" in event["text"]


class FakeTunnel:
    def __init__(self) -> None:
        self.error: TargetError | None = None
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


class FakeTarget(HomeTarget):
    trouble = (PlatformError,)

    def __init__(self, folder: Path, *, tunnel: bool = False, relay_port: int = 0) -> None:
        self.told: list[str] = []
        self.done: list[Any] = []
        self.error: Exception | None = None
        wanted = FleetPlan("s1", folder, folder, AMQP, 2, 1, folder)
        super().__init__(wanted, tunnel=tunnel, relay_port=relay_port, note=self.told.append)

    def do(self, what: Any) -> None:
        self.done.append(what)
        if self.error is not None:
            raise self.error

    def describe(self) -> list[str]:
        return []

    def _start_workers(self) -> None:
        self.do("start")

    def _find_tunnel(self) -> TunnelPlace:
        files = make_tunnel_keys().home_files()
        return TunnelPlace("here", user_key=files["tunnel_key"], host_public=files["host_key.pub"])

    def _hand_out(self, files: dict[str, bytes]) -> None:
        self.do(files)

    def _look(self) -> None:
        self.do("look")

    def _set_number(self, workers: int, surplus: Collection[str]) -> None:
        self.do((workers, surplus))

    def _renew(self, host: str) -> None:
        self.do(host)

    def _end_workers(self) -> None:
        self.do("end")

    def _explain(self, trouble: Exception) -> TargetError:
        return TargetError(f"the platform failed: {trouble}")


@pytest.fixture
def tunnel(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    opened = SimpleNamespace(tunnel=FakeTunnel(), to=None, tell=None)

    def open_tunnel(place: TunnelPlace, *, to: tuple[str, int], on_event: Any) -> FakeTunnel:
        opened.to, opened.tell = to, on_event
        return opened.tunnel

    monkeypatch.setattr(connection, "open_tunnel", open_tunnel)
    return opened


def test_workers_reach_a_broker_here_through_the_tunnel(
    tmp_path: Path, tunnel: SimpleNamespace
) -> None:
    target = FakeTarget(tmp_path, tunnel=True)
    target.launch()
    assert tunnel.to == ("127.0.0.1", 5999)
    assert target.done == [{"broker-url": b"amqp://guest:secret@tunnel:4004/%2F"}, "start"]


def test_agents_reach_the_relay_through_the_tunnel(tmp_path: Path, tunnel: SimpleNamespace) -> None:
    target = FakeTarget(tmp_path, tunnel=True, relay_port=4711)
    target.launch()
    assert tunnel.to == ("127.0.0.1", 4711) and target.done == ["start"]
    tunnel.tell("lost", "no answer")
    assert target.told == ["the tunnel is lost: no answer"]
    target.check()
    tunnel.tunnel.error = TargetError("it will not heal")
    with pytest.raises(TargetError, match="not heal"):
        target.check()
    target.teardown()
    assert tunnel.tunnel.stopped and target.done[-1] == "end"


def test_a_platform_that_fails_for_once_ends_no_session(tmp_path: Path) -> None:
    target = FakeTarget(tmp_path)
    for error in (PlatformError("silent"), TargetError("refused")):
        target.error, target.told[:] = error, []
        target.scale(3, surplus=("w-1",))
        target.replace("pod-abc-17")
        target.teardown()
        assert target.told == [
            "the fleet could not be scaled",
            "worker pod-abc-17 could not be replaced",
        ]
    assert target.done[:2] == [(3, ("w-1",)), "pod-abc"]
    target.replace("nameless")
    assert target.done[-1] == "end", "what has no host's name is not looked for"
    with pytest.raises(TargetError, match="refused"):
        target.launch()
    target.error = PlatformError("silent")
    with pytest.raises(TargetError, match="the platform failed: silent"):
        target.launch()
