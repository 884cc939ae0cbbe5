"""The run that tries an image: how it is asked for, and how its result is compared."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from cases import expected_observations, make_case
from pestfleet.case import Case
from pestfleet.config import Settings
from pestfleet.images.trial import advise, compare
from pestfleet.initial_run import make_initial_run, pack_initial_values
from pestfleet_worker.messages import (
    CaseSpec,
    Failure,
    Limits,
    MessageError,
    Result,
    Run,
    pack_vector,
    unpack_vector,
)
from pestfleet_worker.trial import make_trial, read_lines, write_lines


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case.read(make_case(tmp_path / "case"))


def ask(case: Case) -> bytes:
    return b"".join(write_lines([case.spec, Limits(), Run(1, pack_initial_values(case))]))


def test_messages_are_lines_of_text(case: Case) -> None:
    request = ask(case)
    assert request.isascii()
    assert len(request.splitlines()) == 3
    assert next(iter(read_lines(request.splitlines()))) == case.spec
    with pytest.raises(MessageError, match="not a message in base64"):
        list(read_lines([b"Traceback (most recent call last):"]))


def test_the_program_makes_the_run_and_does_not_wait_for_more(case: Case, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pestfleet_worker.trial",
         "--case", str(case.folder), "--scratch", str(tmp_path / "scratch")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(ask(case))
        process.stdin.flush()  # and not closed: a container's is not, either
        (result,) = read_lines(process.stdout)
        assert process.wait() == 0
    assert isinstance(result, Result)
    assert result.failure is None
    assert list(unpack_vector(result.observations)) == expected_observations([2.0] * 3)
    local = make_initial_run(case, Settings())
    assert local.observations == result.observations


def test_a_failure_is_a_result_too(case: Case, tmp_path: Path) -> None:
    (case.folder / "model.sh").write_text("#!/bin/sh\necho no licence\nexit 3\n")
    result = make_trial(io.BytesIO(ask(case)), case=case.folder, scratch=tmp_path / "scratch")
    assert result.failure is not None
    assert (result.failure.exit_code, result.failure.log) == (3, "no licence\n")
    result = make_trial(io.BytesIO(ask(case)), case=tmp_path / "none", scratch=tmp_path / "s")
    assert result.failure is not None
    assert result.failure.reason == "worker-error"


def test_other_messages_are_refused(case: Case, tmp_path: Path) -> None:
    lines = b"".join(write_lines([case.spec, Run(1, b"")]))
    with pytest.raises(MessageError, match="not a case, its limits and a run"):
        make_trial(io.BytesIO(lines), case=case.folder, scratch=tmp_path)


SPEC = CaseSpec("c", "", (), ("o1", "o2", "o3"), (), (), ())


def test_the_same_bits() -> None:
    values = pack_vector([1.0, 0.0, -3.0])
    difference = compare(SPEC, values, values)
    assert (difference.values, difference.relative, difference.names) == (0, 0.0, ())


def test_the_largest_relative_difference_and_where() -> None:
    one, other = pack_vector([1.0, 100.0, 0.0]), pack_vector([1.0 + 1e-12, 80.0, 0.0])
    difference = compare(SPEC, one, other)
    assert difference.values == 2
    assert difference.relative == pytest.approx(0.2)
    assert difference.names == ("o2", "o1")


def test_zero_and_its_negative_differ_in_their_bits_only() -> None:
    difference = compare(SPEC, pack_vector([0.0, 1.0, 1.0]), pack_vector([-0.0, 1.0, 1.0]))
    assert (difference.values, difference.relative, difference.names) == (1, 0.0, ("o1",))


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("ModuleNotFoundError: No module named 'flopy.utils'", '[image] pip = ["flopy"]'),
        ("touch: cannot touch '/x': Read-only file system", "writes outside of its own folder"),
        (
            "./m: error while loading shared libraries: libgomp.so.1: cannot open shared object",
            '[image] apt = ["libgomp1"]',
        ),
        ("error while loading shared libraries: libmine.so: x", '[image] apt = ["…"]'),
        ("open: Permission denied", "a user without rights"),
        ("did not converge", ""),
    ],
)
def test_advice(log: str, advice: str) -> None:
    told = advise(Failure("model-failed", "x", log=log))
    assert advice in told
    assert bool(told) == bool(advice)


def test_advice_about_a_program_that_is_not_executable() -> None:
    log = "./run.sh: 3: ./model: Permission denied"
    assert "chmod +x" in advise(Failure("model-failed", "x", log=log, exit_code=126))
