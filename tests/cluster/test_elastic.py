"""A fleet that grows and shrinks with its runs, by a master in a pod with a service account."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import docker
import pytest

import cluster_images as images
from cases import make_case, write_sweep
from chart_session import CLAIM, NAME, ChartSession
from hosting import check_every_run_once
from pestfleet.case import Case
from pestfleet.folder import SessionFolder
from pestfleet.images.case import ensure_case_image
from pestfleet.session import Session
from pestfleet.settings import ImageSettings

pytestmark = [pytest.mark.docker, pytest.mark.kubernetes]

RUNS, MOST = 30, 3
# The fleet shrinks a minute after the others are made, while the last row's run still takes.
MODEL = """#!/bin/sh
read value < input.dat
case $value in *3.9*) sleep 120;; *) sleep 0.5;; esac
awk '{ printf "%.17g\\n", $1 * $1 + NR }' input.dat > output.dat
"""


@pytest.fixture
def uneven_session(
    chart_session: ChartSession, docker_engine: docker.DockerClient, image_settings: ImageSettings
) -> ChartSession:
    control = make_case(chart_session.shell.folder / "case", model=MODEL, name="uneven")
    write_sweep(control.parent, runs=RUNS)
    built = ensure_case_image(Case.read(control), image_settings, engine=docker_engine)
    image = images.push(docker_engine, built.reference, chart_session.images.registry)
    return dataclasses.replace(chart_session, case=image)


def test_a_fleet_grows_and_shrinks_and_no_running_model_is_ended(
    uneven_session: ChartSession, helm3: Path
) -> None:
    session = uneven_session

    def size() -> int:
        number: int = session.find_job("worker")["spec"]["parallelism"]
        return number

    def pods() -> int:
        return len(session.list("pods", "worker"))

    engine = {"name": "sweep", "options": {}}
    session.install(helm3, engine=engine, elastic={"most": MOST}, workers={"count": 1})
    session.wait_for(lambda: size() == MOST, "a fleet that grows")
    session.wait_for_runs(RUNS - 1)
    session.wait_for(lambda: size() == 1, "a fleet that shrinks")
    session.wait_for(lambda: pods() == 1, "the pods of drained workers are gone")
    session.wait_until_complete()

    folder = session.fetch(CLAIM, NAME)
    fetched = Session(SessionFolder(folder))
    check_every_run_once(fetched, write_sweep(session.shell.folder / "case", runs=RUNS))
    events = list(fetched.events())
    (longest,) = [e for e in events if e["event"] == "run" and e["seconds"] > 100]
    left = [e["worker"] for e in events if e["event"] == "worker-left"]
    assert len(left) == MOST and left[-1] == longest["worker"], "it stays to the end"
    workers = {e["worker"] for e in events if e["event"] == "worker-joined"}
    assert len(workers) == MOST, "a worker that had to go was replaced"
