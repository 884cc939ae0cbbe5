"""skaffold.yaml: the example from its folder to its results, by skaffold alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from chart_session import CLAIM, NAME, ROOT, Calibration, ChartSession, read_calibration

pytestmark = [pytest.mark.docker, pytest.mark.kubernetes]

QUIET = "global: {collect-metrics: false, survey: {disable-prompt: true}}\n"


class Skaffold:
    """skaffold at the top of the repository, with a home of its own."""

    def __init__(self, program: Path, home: Path, session: ChartSession) -> None:
        settings = home / ".skaffold" / "config"
        settings.parent.mkdir(parents=True)
        settings.write_text(QUIET)
        broker = session.images.broker
        self._words = ["--namespace", session.shell.namespace, "--update-check=false"]
        self._registry = session.images.registry
        self._program = str(program)
        self._environment = {
            **os.environ,
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "BROKER_REPOSITORY": broker.name,
            "BROKER_TAG": broker.tag,
        }

    def run(self, *words: str) -> str:
        """What skaffold writes on stdout, when it succeeds."""
        more = [] if words[0] == "diagnose" else list(self._words)
        if words[0] in ("render", "run"):
            more += ["--default-repo", self._registry]
        done = subprocess.run(
            [self._program, *words, *more],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment,
        )
        assert done.returncode == 0, f"skaffold {words[0]}: {done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def skaffold_here(
    chart_session: ChartSession, cluster_environment: None, skaffold: Path, tmp_path: Path
) -> Skaffold:
    return Skaffold(skaffold, tmp_path / "home", chart_session)


def test_skaffold_finds_no_fault(skaffold_here: Skaffold) -> None:
    text = skaffold_here.run("diagnose", "--yaml-only")
    assert [artifact["image"] for artifact in yaml.safe_load(text)["build"]["artifacts"]] == [
        "pestfleet-case", "pestfleet-master"
    ]  # fmt: skip


def test_skaffold_renders_what_it_would_build(
    skaffold_here: Skaffold, chart_session: ChartSession
) -> None:
    text = skaffold_here.run("render", "--digest-source=tag")
    jobs = {
        item["metadata"]["labels"]["pestfleet.role"]: item["spec"]["template"]["spec"]
        for item in yaml.safe_load_all(text)
        if item and item["kind"] == "Job"
    }
    registry = chart_session.images.registry
    for role, name in (("worker", "pestfleet-case"), ("master", "pestfleet-master")):
        [container] = jobs[role]["containers"]
        assert container["image"].startswith(f"{registry}/{name}:")


def test_skaffold_runs_the_example_to_its_end(
    skaffold_here: Skaffold, chart_session: ChartSession, local_calibration: Calibration
) -> None:
    session = chart_session
    before = session.shell.list_objects()
    skaffold_here.run("run")
    session.wait_until_complete()
    skaffold_here.run("delete")
    left = {f"persistentvolumeclaim/{CLAIM}"}
    session.wait_for(lambda: session.shell.list_objects() - before == left, "all but the results")
    assert read_calibration(session.fetch(CLAIM, NAME)) == local_calibration
