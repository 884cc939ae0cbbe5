"""A master here with its fleet on a Docker engine: what it starts, who learns of which broker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pestfleet.placement import Placement
from pestfleet.session import Session
from pestfleet.targets.base import Site
from pestfleet.targets.compose import home as module
from pestfleet.targets.compose.document import ComposePlan, Images
from pestfleet.targets.compose.home import ComposeHome
from session_files import make_session

OURS = "amqps://master:word@broker:5671/s1?cacertfile=/secrets/ca.pem"
THEIRS = "amqp://guest:word@rabbit.example:5672/%2F"


class FakeFleet:
    def __init__(self) -> None:
        self.handed_out: list[dict[str, bytes]] = []
        image = SimpleNamespace(id="sha256:abc")
        self.client = SimpleNamespace(images=SimpleNamespace(get=lambda name: image))

    def wait(self, role: str) -> None:
        assert role == "credentials"

    def put_files(self, role: str, folder: str, files: dict[str, bytes], *, user: str) -> None:
        assert (role, folder) == ("credentials", "/secrets/worker")
        self.handed_out.append(files)

    def find_port(self, role: str, port: int) -> int:
        return 40_000 + port

    def read_file(self, role: str, path: str) -> bytes:
        return {"broker-url": OURS, "ca.pem": "the CA"}[path.rpartition("/")[2]].encode()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    found: list[list[str]] = []

    def up(project: str, document: Any, words: list[str]) -> None:
        found.append(words)

    monkeypatch.setattr(module, "find_compose", lambda: SimpleNamespace(up=up))
    monkeypatch.setattr(module, "find_engine_host", lambda: "127.0.0.1")
    return found


def launch(
    folder: Path, *, broker_url: str = "", tunnel: bool = False, mode: str = "queue"
) -> tuple[FakeFleet, str, Site]:
    place = Placement(master="here", tunnel=tunnel)
    session = Session(make_session(folder, target="compose", place=place, mode=mode))
    plan = ComposePlan(
        "s1", Images("worker", "master", "broker", "tunnel"), 2, 1, place, "10001:10001"
    )
    plan = replace(plan, broker=not broker_url and not (tunnel and mode == "queue"))
    fleet = FakeFleet()
    home = ComposeHome(
        session,
        fleet,  # type: ignore[arg-type]
        make_plan=lambda say: plan,
        broker_url=broker_url,
        on_event=lambda event: None,
    )
    return fleet, *home._launch_all(lambda text: None)


def test_the_broker_s_port_here(tmp_path: Path, started: list[list[str]]) -> None:
    fleet, url, site = launch(tmp_path)
    assert started == [["credentials", "broker"]] and fleet.handed_out == []
    assert url.startswith("amqps://master:word@127.0.0.1:45671/s1?")
    assert (tmp_path / "s1" / "broker-ca.pem").read_text() == "the CA"
    assert site.case_in_image and site.platform == "image sha256:abc" and not site.relay_port


def test_workers_learn_of_a_broker_of_the_user_s(tmp_path: Path, started: list[list[str]]) -> None:
    fleet, url, _ = launch(tmp_path, broker_url=THEIRS)
    assert started == [["credentials"]] and url == THEIRS
    assert fleet.handed_out == [{"broker-url": THEIRS.encode()}]


def test_agents_come_through_the_tunnel(tmp_path: Path, started: list[list[str]]) -> None:
    fleet, url, site = launch(tmp_path, broker_url=THEIRS, tunnel=True, mode="agent")
    assert started == [["credentials", "tunnel"]] and url == THEIRS
    assert fleet.handed_out == [{"broker-url": THEIRS.encode()}], "their runs come another way"
    assert site.relay_port and (site.advertised, site.advertised_port) == ("tunnel", 4004)


@pytest.mark.parametrize("broker_url", ["", THEIRS])
def test_runs_come_through_the_tunnel(
    tmp_path: Path, started: list[list[str]], broker_url: str
) -> None:
    fleet, url, site = launch(tmp_path, broker_url=broker_url, tunnel=True)
    assert started == [["credentials", "tunnel"]] and url == broker_url
    assert fleet.handed_out == [], "where the tunnel is, is not known yet"
    assert not site.relay_port and site.advertised == ""
