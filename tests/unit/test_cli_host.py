"""`pestfleet host`: what it makes of its options, and of how a session ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cases import make_case
from pestfleet.cli import hosting
from pestfleet.cli.main import cli
from pestfleet.session import Session
from pestfleet.targets.base import FleetPlan, Site
from pestfleet_worker.errors import Interrupted, LimitReached, PestfleetError, SentAway


class Hosted:
    """Sessions that are hosted by nobody; `error` is how the next one ends."""

    def __init__(self) -> None:
        self.error: PestfleetError | None = None
        self.session: Session | None = None
        self.site: Site | None = None
        self.keep_workers = False

    def host(
        self,
        session: Session,
        make_host: Callable[[Any], Any],
        *,
        as_json: bool,
        keep_workers: bool,
    ) -> None:
        self.session, self.keep_workers = session, keep_workers
        make_host(None)
        if self.error is not None:
            raise self.error


@pytest.fixture
def hosted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosted:
    hosted = Hosted()

    def make_master(session: Session, *, site: Site, **_: Any) -> None:
        hosted.site = site

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PESTFLEET_BROKER", "amqp://u:p@host//")
    monkeypatch.setattr(hosting, "host_session", hosted.host)
    monkeypatch.setattr(Session, "make_master", make_master)
    make_case(tmp_path / "case")
    return hosted


def host(*words: str) -> Result:
    return CliRunner().invoke(cli, ["host", "case", "--session", "s", *words])


def test_the_limits_of_a_session_are_those_of_its_latest_launch(hosted: Hosted) -> None:
    assert host("--idle-minutes", "5").exit_code == 0
    assert hosted.session is not None
    assert (hosted.session.spec.idle_minutes, hosted.session.spec.max_hours) == (5.0, 0.0)
    assert host("--launch", "2", "--max-hours", "9", "--workers", "7").exit_code == 0
    spec = hosted.session.spec
    assert (spec.idle_minutes, spec.max_hours, spec.workers, spec.most) == (0.0, 9.0, 7, 0)


def test_hours_count_from_the_first_master_of_a_launch(hosted: Hosted, tmp_path: Path) -> None:
    hosted.error = SentAway("the node is drained")
    assert host("--keep-workers").exit_code == 12
    launched = tmp_path / "pestfleet-sessions" / "s" / "launched"
    launched.write_text(json.dumps({"launch": "1", "began": 1000.0}))
    host("--keep-workers")
    assert hosted.site is not None and hosted.site.began == 1000.0
    host("--keep-workers", "--launch", "2")
    assert hosted.site.began > 1000.0
    launched.write_text("{")
    host("--keep-workers", "--launch", "2")
    assert hosted.site.began > 1000.0


def test_workers_are_kept_where_that_is_asked_for(hosted: Hosted) -> None:
    host()
    assert hosted.site is not None
    assert not (hosted.keep_workers or hosted.site.keep_workers)
    host("--keep-workers", "--launch", "2")
    assert hosted.keep_workers and hosted.site.keep_workers


@pytest.mark.parametrize(
    ("words", "error", "over"),
    [
        ((), Interrupted("by a signal"), False),
        (("--keep-workers",), Interrupted("by pestfleet stop"), True),
        (("--keep-workers",), SentAway("by a signal"), False),
        ((), LimitReached("its hours"), True),
    ],
)
def test_a_launch_that_is_over_is_not_begun_again(
    hosted: Hosted, words: tuple[str, ...], error: PestfleetError, over: bool
) -> None:
    hosted.error = error
    assert host(*words).exit_code == error.exit_code
    hosted.error, hosted.session = None, None
    again = host(*words)
    assert (hosted.session is None) is over
    assert again.exit_code == (error.exit_code if over else 0)


@pytest.mark.parametrize("words", [("--most", "9"), ("--workers-job", "j"), ("--workers", "2..9")])
def test_a_fleet_that_grows_is_somebody_s(hosted: Hosted, words: tuple[str, ...]) -> None:
    result = host(*words)
    assert result.exit_code == 4 and "--most and --workers-job belong together" in result.stderr


def test_the_job_of_the_workers_is_the_target(
    hosted: Hosted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("token", "t"), ("namespace", "here")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("pestfleet.cluster_api.ACCOUNT", tmp_path)
    monkeypatch.setattr("ssl.create_default_context", lambda cafile: None)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert host("--workers", "2", "--most", "9", "--workers-job", "j").exit_code == 0
    assert hosted.site is not None and hosted.session is not None
    assert (hosted.session.spec.workers, hosted.session.spec.most) == (2, 9)
    plan = FleetPlan("s", tmp_path, tmp_path, "amqp://h//", 2, 1, tmp_path)
    assert hosted.site.make_target(plan).describe() == ["2 workers of Job j join by themselves"]
