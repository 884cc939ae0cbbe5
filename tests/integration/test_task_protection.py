"""Workers that tell the agent of ECS, which is a fake, when they must not be ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from cases import make_case, write_sweep
from fake_ecs_agent import serve_agent
from hosting import check_every_run_once, host_sweep, wait_for


def test_workers_are_protected_while_they_have_runs_and_free_once_drained(
    tmp_path: Path, sessions: Path, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path / "case", seconds=1.0)
    rows = write_sweep(case.parent, runs=30)
    with serve_agent() as agent:
        monkeypatch.setenv("ECS_AGENT_URI", f"{agent.url}/api/1")
        hosted = host_sweep(case, sessions, broker_url=broker_url, workers=3, most=3)
        wait_for(lambda: agent.states == [True] * 3, what="three that are protected")
        hosted.session.folder.request_workers(1)
        wait_for(lambda: agent.states.count(False) == 2, what="two that may go")
        assert not hosted.over and hosted.done() < 30
        assert hosted.wait(240).error is None
    check_every_run_once(hosted.session, rows)
    assert agent.states == [True] * 3 + [False] * 2, "the last one is not asked about again"
