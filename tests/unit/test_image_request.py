"""One run over files: what is asked, and how a result is judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pestfleet.images.request import ask, judge
from pestfleet_worker.errors import CaseError, TargetError
from pestfleet_worker.messages import CaseSpec, Failure, Limits, Result, Run
from pestfleet_worker.trial import make_trial, read_lines, write_lines


def test_a_run_is_asked_for_made_and_judged(root: Path, tmp_path: Path) -> None:
    case = root / "examples" / "oude-korendijk"
    ask(case, tmp_path / "request")
    kinds = [type(item) for item in read_lines((tmp_path / "request").read_bytes().splitlines())]
    assert kinds == [CaseSpec, Limits, Run]
    with (tmp_path / "request").open("rb") as lines:
        result = make_trial(lines, case=case, scratch=tmp_path)
    (tmp_path / "result").write_bytes(b"".join(write_lines([result])))
    assert judge(tmp_path / "result").startswith("the run succeeded: 69 observations in ")


def test_a_run_that_failed_is_an_error(tmp_path: Path) -> None:
    failure = Failure("model-failed", "the model ended with 3", log="no such file")
    lines = write_lines([Result(1, "trial", 0, 0.1, failure=failure)])
    (tmp_path / "result").write_bytes(b"".join(lines))
    with pytest.raises(CaseError, match="the model ended with 3") as caught:
        judge(tmp_path / "result")
    assert caught.value.remedy == "no such file"


@pytest.mark.parametrize("text", [b"", b"!\n", b"".join(write_lines([Limits()]))])
def test_no_result_is_an_error(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "result").write_bytes(text)
    with pytest.raises(TargetError, match="no result"):
        judge(tmp_path / "result")


def test_as_a_program_it_has_no_traceback_for_a_mistake(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pestfleet.images.request", *words],
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("ask", str(tmp_path), str(tmp_path / "request"))
    assert done.returncode == CaseError.exit_code
    assert "Traceback" not in done.stderr
    assert run("what").returncode == 1
