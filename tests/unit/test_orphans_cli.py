"""`pestfleet orphans`, and `down --all --older-than`, over an account that is a stand-in."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pestfleet import targets
from pestfleet.cli.main import cli
from pestfleet.cli.orphans import list_parts
from pestfleet.targets.base import SessionInfo, Where
from pestfleet.targets.ecs import orphans as module
from pestfleet.targets.ecs.access import Refused
from pestfleet.targets.ecs.naming import make_tags
from pestfleet.targets.ecs.orphans import MACHINES, find_orphans
from pestfleet.targets.ecs.resources import Found
from pestfleet_worker.errors import ConfigurationError, SessionError

HOUR = 3600.0


def make_found(session: str, kind: str, *, costs: bool = False, **tags: str) -> Found:
    name = f"pestfleet-{session}"
    return Found(kind, name, f"arn:{kind}/{name}", make_tags(session, **tags), costs, name)


class FakeCloud:
    """A region. `groups`: when the groups of schedules of which sessions were made."""

    def __init__(self, region: str) -> None:
        self.region = region
        self.tagged: dict[str, list[Found]] = {}
        self.services: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, float] = {}
        self.error: Exception | None = None

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        assert (operation, parameters) == ("describe_regions", {"AllRegions": False})
        return {"Regions": [{"RegionName": "r2"}, {"RegionName": "r1"}]}

    def find_all(self, service: str, operation: str, key: str, **_: Any) -> Any:
        assert operation == "list_schedule_groups"
        for name, made in self.groups.items():
            yield {"Name": f"pestfleet-{name}", "CreationDate": datetime.fromtimestamp(made, UTC)}

    def elsewhere(self, region: str) -> FakeCloud:
        return REGIONS[region]


REGIONS: dict[str, FakeCloud] = {}


@pytest.fixture
def regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeCloud]:
    monkeypatch.chdir(tmp_path)
    REGIONS.clear()
    REGIONS.update({name: FakeCloud(name) for name in ("r1", "r2")})

    def find_tagged(cloud: FakeCloud) -> dict[str, list[Found]]:
        if cloud.error is not None:
            raise cloud.error
        return cloud.tagged

    monkeypatch.setattr(module, "find_tagged", find_tagged)
    monkeypatch.setattr(module, "describe_services", lambda cloud, tagged: cloud.services)
    monkeypatch.setattr(
        module, "open_regions", lambda where: [REGIONS[name] for name in where.region.split(",")]
    )
    monkeypatch.setattr(module, "connect", lambda where: REGIONS["r1"])
    return REGIONS


def fill(regions: dict[str, FakeCloud]) -> None:
    """One that runs, one that has ended, one that is half made, and machines."""
    now = time.time()
    one, two = regions["r1"], regions["r2"]
    one.tagged = {
        "runs": [
            make_found("runs", "service", costs=True, owner="ann"),
            make_found("runs", "cluster"),
        ],
        "half": [
            make_found("half", "schedule-group"),
            make_found("half", "secret", costs=True),
            make_found("half", "secret", costs=True),
        ],
    }
    began = datetime.fromtimestamp(now - 2 * HOUR, UTC)
    later = datetime.fromtimestamp(now - HOUR, UTC)
    one.services = {
        "runs": {
            role: {"desiredCount": 1, "createdAt": began} for role in ("broker", "master", "worker")
        }
    }
    one.groups = {"half": now - 100 * HOUR}
    two.tagged = {
        "ended": [make_found("ended", "service", costs=True, expires="2020-01-01T00:00:00Z")],
        "machines": [make_found("machines", "instance", costs=True)],
    }
    two.services = {"ended": {"worker": {"desiredCount": 0, "createdAt": later}}}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_all_that_is_tagged_is_found_the_oldest_first(regions: dict[str, FakeCloud]) -> None:
    fill(regions)
    found, problems = find_orphans(Where(region="r1,r2"))
    assert problems == {}
    assert [orphan.session for orphan in found] == ["half", "runs", "ended", "machines"]
    states = {orphan.session: (orphan.state, orphan.runs) for orphan in found}
    assert states == {
        "runs": ("running", True),
        "half": ("half made, its parts are left", False),
        "ended": ("ended, its parts are left", False),
        "machines": (MACHINES, True),
    }
    half = found[0]
    assert half.parts == {"schedule-group": 1, "secret": 2}
    assert half.costs == {"secret": 2}
    assert half.remedy == "pestfleet down half --on ecs --region r1"


def test_the_command_says_what_costs_whose_it_is_and_what_removes_it(
    regions: dict[str, FakeCloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(regions)
    monkeypatch.setenv("COLUMNS", "200")
    result = call("orphans", "--region", "r1,r2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    (runs,) = [line for line in lines if line.strip().startswith("runs")]
    assert "ann" in runs and "1 service" in runs
    (half,) = [line for line in lines if line.strip().startswith("half")]
    assert "2 secrets" in half
    assert any("over its time" in line for line in lines)
    commands = [line.strip() for line in lines if "pestfleet down" in line]
    assert commands == [
        "pestfleet down half --on ecs --region r1",
        "pestfleet down ended --on ecs --region r2",
    ]


def test_json_has_all_of_it(regions: dict[str, FakeCloud]) -> None:
    fill(regions)
    shown = json.loads(call("orphans", "--region", "r1", "--json").stdout)
    rows = {row["session"]: row for row in shown}
    assert rows["runs"]["owner"] == "ann"
    assert rows["half"]["remedy"] == "pestfleet down half --on ecs --region r1"
    assert rows["half"]["costs"] == {"secret": 2}


def test_all_regions_of_the_account(regions: dict[str, FakeCloud]) -> None:
    fill(regions)
    found, _ = find_orphans(Where(), everywhere=True)
    assert {orphan.region for orphan in found} == {"r1", "r2"}
    refused = call("orphans", "--all-regions", "--region", "r1")
    assert refused.exit_code == ConfigurationError.exit_code


def test_a_region_that_refuses_hides_no_other(regions: dict[str, FakeCloud]) -> None:
    fill(regions)
    regions["r2"].error = Refused("tag:GetResources", "AccessDeniedException", "not here")
    result = call("orphans", "--region", "r1,r2")
    assert result.exit_code == 0
    assert "warning: region r2 is not looked at" in result.stderr
    assert "half" in result.stdout
    regions["r1"].error = regions["r2"].error
    assert call("orphans", "--region", "r1,r2").exit_code == 7


def test_an_empty_account(regions: dict[str, FakeCloud]) -> None:
    assert "nothing has the tag" in call("orphans", "--region", "r1").stdout
    assert json.loads(call("orphans", "--region", "r1", "--json").stdout) == []


def test_parts_in_words() -> None:
    parts = {"secret": 2, "log-group": 1, "repository": 2}
    assert list_parts(parts) == "1 log group, 2 repositories, 2 secrets"


# -- down --all --older-than -------------------------------------------------------------------


class FakeRemote:
    """A session there."""

    def __init__(self, info: SessionInfo) -> None:
        self.info = info
        self.removed = False

    def down(self, *, discard_results: bool) -> list[str]:
        self.removed = True
        return ["cluster"]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeRemote]:
    """Sessions of two regions, by name and region, two of them with one name."""
    monkeypatch.chdir(tmp_path)
    now = time.time()
    sessions = {
        f"{name} {region}": FakeRemote(
            SessionInfo(name, "ecs", "running", 1, began, where=Where(region=region))
        )
        for name, region, began in (
            ("new", "r1", now - HOUR),
            ("old", "r1", now - 80 * HOUR),
            ("old", "r2", now - 13 * HOUR),
            ("unknown", "r2", 0.0),
        )
    }

    def list_sessions(target: str, where: Where) -> list[SessionInfo]:
        infos = [remote.info for remote in sessions.values()]
        return [info for info in infos if info.where.region in where.region.split(",")]

    def open_session(target: str, name: str, where: Where) -> FakeRemote:
        if f"{name} {where.region}" not in sessions:
            raise SessionError("gone")
        return sessions[f"{name} {where.region}"]

    monkeypatch.setattr(targets, "list_remote_sessions", list_sessions)
    monkeypatch.setattr(targets, "open_remote_session", open_session)
    return sessions


@pytest.mark.parametrize(
    ("older", "gone"), [("12h", ["old r1", "old r2"]), ("3d", ["old r1"]), ("30d", [])]
)
def test_only_old_sessions_go(there: dict[str, FakeRemote], older: str, gone: list[str]) -> None:
    result = call("down", "--all", "--older-than", older, "--on", "ecs", "--region", "r1,r2")
    assert result.exit_code == 0, result.output
    assert [name for name, remote in there.items() if remote.removed] == gone
    assert "unknown: it is not known how old it is" in result.stderr


def test_all_go_without_an_age(there: dict[str, FakeRemote]) -> None:
    call("down", "--all", "--on", "ecs", "--region", "r1,r2")
    assert all(remote.removed for remote in there.values())


def test_older_than_belongs_to_all_and_is_a_time(there: dict[str, FakeRemote]) -> None:
    assert call("down", "old", "--older-than", "3d", "--on", "ecs").exit_code == 2
    result = call("down", "--all", "--older-than", "3", "--on", "ecs")
    assert result.exit_code == 2
    assert "'3' is not a time" in result.stderr
