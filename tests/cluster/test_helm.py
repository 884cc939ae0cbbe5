"""Sessions by `helm install` alone, through upgrades and rollbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cases import write_sweep
from chart_session import (
    CHART,
    CLAIM,
    NAME,
    RELEASE,
    Calibration,
    ChartSession,
    read_calibration,
)
from hosting import check_every_run_once
from pestfleet.folder import SessionFolder
from pestfleet.session import Session

pytestmark = [pytest.mark.docker, pytest.mark.kubernetes]


@pytest.fixture(params=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> Path:
    """Both helms, one after the other."""
    program: Path = request.getfixturevalue(request.param)
    return program


def test_an_installation_gives_the_same_bits_as_local(
    chart_session: ChartSession, helm: Path, local_calibration: Calibration
) -> None:
    session = chart_session
    before = session.shell.list_objects()
    assert "helm test" in session.install(helm)
    session.wait_until_complete()
    assert "Succeeded" in session.helm(helm, "test", RELEASE)

    session.helm(helm, "uninstall", RELEASE)
    left = {f"persistentvolumeclaim/{CLAIM}"}
    session.wait_for(lambda: session.shell.list_objects() - before == left, "all but the results")
    assert read_calibration(session.fetch(CLAIM, NAME)) == local_calibration


def check_sweep(session: ChartSession) -> None:
    """Every run was made once, whatever happened meanwhile, and has the model's own bits."""
    rows = write_sweep(session.shell.folder / "case", runs=90)
    check_every_run_once(Session(SessionFolder(session.fetch(CLAIM, NAME))), rows)


def test_upgrades_and_a_rollback_during_a_run_lose_nothing(
    slow_session: ChartSession, helm: Path
) -> None:
    session = slow_session
    conflicts = ["--force-conflicts"] if "helm-4" in str(helm) else []

    def upgrade(**more: Any) -> dict[str, Any]:
        """The workers' Job after it."""
        values = session.write_values(**{"engine": {"name": "sweep"}, **more})
        session.helm(helm, "upgrade", RELEASE, str(CHART), f"--values={values}", *conflicts)
        return session.find_job("worker")

    session.install(helm, engine={"name": "sweep"})
    first = session.find_job("worker")
    session.wait_for_runs(5)
    session.scale(3)

    changed = upgrade(workers={"env": [{"name": "NEW", "value": "1"}]})
    assert changed["metadata"]["name"] != first["metadata"]["name"]
    assert changed["spec"]["parallelism"] == 3  # as it was scaled
    master = session.find_job("master")["metadata"]["uid"]
    session.wait_for_runs(15)

    counted = upgrade(workers={"count": 4, "env": [{"name": "NEW", "value": "1"}]})
    assert counted["metadata"]["uid"] == changed["metadata"]["uid"]
    assert counted["spec"]["parallelism"] == 4
    session.wait_for_runs(20)

    # The master is moved: it leaves its workers to the next one.
    upgrade(workers={"count": 4}, master={"env": [{"name": "NEW", "value": "1"}]})
    assert session.find_job("master")["metadata"]["uid"] != master
    session.wait_for_runs(25)

    session.helm(helm, "rollback", RELEASE, "1", *conflicts)
    job = session.find_job("worker")
    assert (job["metadata"]["name"], job["spec"]["parallelism"]) == (first["metadata"]["name"], 2)
    session.wait_until_complete()
    check_sweep(session)


def test_an_elastic_fleet_scales_its_own_job(slow_session: ChartSession, helm4: Path) -> None:
    session = slow_session
    session.install(helm4, engine={"name": "sweep"}, workers={"count": 1}, elastic={"most": 3})
    assert session.find_job("worker")["spec"]["parallelism"] == 1
    session.wait_for(
        lambda: session.find_job("worker")["spec"]["parallelism"] == 3, "the fleet's growth"
    )
    session.wait_until_complete()
    check_sweep(session)
