"""A master on the user's machine, with broker and workers on compose; and another user's id."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cases import make_case, write_sweep
from compose_shell import Shell, read_results, read_runs
from hosting import check_every_run_once
from pestfleet.session import Session

pytestmark = pytest.mark.docker

EXAMPLE = "oude-korendijk"
USER = 4711


@pytest.fixture
def somebody(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> int:
    """Commands see another user than root, whose number the containers then have."""
    site = shell.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import os\nos.getuid = os.getgid = lambda: {USER}\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    return USER


@pytest.mark.compose_v2
def test_any_user_and_a_master_here(
    shell: Shell, compose_v2: None, root: Path, somebody: int
) -> None:
    case = shell.folder / "example"
    shutil.copytree(root / "examples" / EXAMPLE, case)
    words = ("run", str(case), "--engine", "glm", "--workers", "2", "--no-cache")
    shell.run(*words, "--session", "here", "--on", "local")
    sessions = shell.folder / "pestfleet-sessions"
    for number, master in enumerate(("here", "there")):
        session = f"pf-home{number}"
        how = ("--on", "compose", "--master", master, "--session", session, "--json")
        command = shell.start(*words, *how)
        command.wait_for(lambda s=session: shell.containers(s, "worker"), "a worker")
        users = {container.attrs["Config"]["User"] for container in shell.containers(session)}
        assert users == {f"{USER}:{USER}"}
        command.wait()
        assert read_results(sessions / session, EXAMPLE) == read_results(sessions / "here", EXAMPLE)
        assert read_runs(sessions / session) == read_runs(sessions / "here")
        shell.check_nothing_left(session)


def test_kill_of_a_master_here(shell: Shell, compose_v1: None) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=150)
    how = ("--engine", "sweep", "--no-cache", "--workers", "2", "--session", "pf-home")
    shell.launch("run", str(case), "--on", "compose", "--master", "here", *how, runs=6).kill()
    assert "died" in shell.run("status", "pf-home")
    resumed = shell.start("resume", "pf-home", "--json")
    resumed.wait_for(lambda: resumed.events("worker-joined"), "a worker")
    resumed.kill()
    planned = shell.run("down", "pf-home", "--dry-run")
    said = shell.run("down", "pf-home")
    assert sorted(planned.splitlines()) == sorted(
        line.replace(": removed", ": would remove") for line in said.splitlines()
    )
    assert "removed container broker" in said and "removed container worker-1" in said
    shell.check_nothing_left("pf-home")
    shell.run("resume", "pf-home", "--json")
    check_every_run_once(Session(shell.open_folder("pf-home")), rows)
    shell.check_nothing_left("pf-home")
