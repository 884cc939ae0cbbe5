"""A run that fails on a worker leaves a kit with which the failure is made again by hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from cases import make_case, write_sweep
from hosting import host_sweep
from pestfleet.cli.main import cli
from pestfleet.kits import list_kits

# Fails above a bound, and tells what it did; its table is no file of the control file.
MODEL = """#!/bin/sh
read value < input.dat
echo "head is $value" | tee heads.txt
awk '{ exit !($1 > 1.45) }' input.dat && { echo "no convergence above 1.45"; exit 3; }
awk '{ printf "%.17g\\n", $1 * $1 + NR }' input.dat > output.dat
"""


def test_a_failed_run_can_be_made_again_by_hand(
    tmp_path: Path, sessions: Path, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path / "case", model=MODEL)
    rows = write_sweep(case.parent, runs=8)
    hosted = host_sweep(case, sessions, broker_url=broker_url, workers=2)
    hosted.wait(240)
    session = hosted.session
    failed = session.runs(failed=True)
    assert list(failed["kit"]) == [True] * 3
    assert sorted(failed["name"]) == ["5", "6", "7"]  # as in sweep_in.csv
    assert set(list_kits(session.folder)) == set(failed["id"])

    monkeypatch.chdir(tmp_path)
    run = int(failed["id"].iloc[0])
    result = CliRunner().invoke(cli, ["fetch", str(run), "--sessions", str(sessions)])
    assert result.exit_code == 0, result.output
    kit = tmp_path / f"run-{run}"
    written = [float(value) for value in (kit / "inputs" / "input.dat").read_text().split()]
    assert written in rows and written[0] > 1.45
    log = (kit / "model.log").read_text()
    assert log.startswith("head is ") and log.endswith("no convergence above 1.45\n")
    assert (kit / "others" / "heads.txt").read_text() == log.splitlines()[0] + "\n"
    assert not (kit / "outputs").exists()

    (session.folder.case / "output.dat").write_text("of an older run\n")
    _, _, recipe = result.stdout.partition("To make the run again:\n")
    again = subprocess.run(
        ["/bin/sh", "-c", recipe],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert (again.returncode, again.stdout) == (3, log)
    assert not (kit / "again" / "output.dat").exists()


def test_a_worker_that_is_killed_by_a_run_leaves_none(tmp_path: Path, sessions: Path) -> None:
    model = """#!/bin/sh
kill -9 $(cut -d' ' -f4 /proc/$$/stat)
sleep 60
"""
    case = make_case(tmp_path / "case", model=model)
    write_sweep(case.parent, runs=1)
    hosted = host_sweep(case, sessions, workers=1)
    hosted.wait(240)
    (failed,) = hosted.session.runs(failed=True).to_dict("records")
    assert (failed["reason"], failed["kit"]) == ("killed-worker", False)
    result = CliRunner().invoke(cli, ["fetch", "last", "--sessions", str(sessions)])
    assert result.exit_code == 8
    assert "its workers were killed before they could pack one" in result.stderr
