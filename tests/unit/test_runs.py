"""One run in one slot: the vector in, the vector out, or the one failure that happened."""

from __future__ import annotations

import errno
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pestfleet_worker import runs
from pestfleet_worker.errors import CaseError
from pestfleet_worker.messages import (
    CaseSpec,
    Failure,
    FilePair,
    Limits,
    pack_vector,
    unpack_vector,
)
from pestfleet_worker.processes import SLOT_MARK, find_marked
from pestfleet_worker.runs import Slot

VALUES = (0.1, -1.25e-200, math.pi * 1e17)
PATIENCE = 60.0

MODEL = """\
#!/bin/sh
tr ' ' '\\n' < in.dat | grep . > out.dat
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "case"
    source.mkdir()
    (source / "in.tpl").write_text(
        "ptf ~\n~a                      ~ ~b                      ~\n~c                      ~\n",
        encoding="utf-8",
    )
    (source / "out.ins").write_text("pif ~\nl1 !o1!\nl1 !o2!\nl1 !o3!\n", encoding="utf-8")
    (source / "model").write_text(MODEL, encoding="utf-8")
    (source / "model").chmod(0o755)
    return source


@pytest.fixture
def make_slot(source: Path, tmp_path: Path) -> Iterator[Callable[..., Slot]]:
    made: list[Slot] = []

    def make(*commands: str, seconds: float = 0.0, prepare: bool = True, **changes: Any) -> Slot:
        fields: dict[str, Any] = {
            "name": "case",
            "digest": "",
            "parameters": ("a", "b", "c"),
            "observations": ("o3", "o1", "o2"),
            "templates": (FilePair("in.tpl", "in.dat"),),
            "instructions": (FilePair("out.ins", "out.dat"),),
            "commands": commands or ("./model",),
        } | changes
        slot = Slot(
            CaseSpec(**fields),
            source=source,
            directory=tmp_path / "slots" / f"slot-{len(made)}",
            limits=Limits(seconds=seconds),
            worker_id="w-test",
        )
        made.append(slot)
        if prepare:
            slot.prepare()
        return slot

    yield make
    for slot in made:
        slot.close()
        assert not slot.directory.exists()


def fail(slot: Slot, values: tuple[float, ...] = VALUES) -> Failure:
    outcome = slot.execute(pack_vector(values))
    assert outcome.observations == b""
    assert outcome.failure is not None
    assert outcome.seconds > 0
    return outcome.failure


def test_values_go_through_bit_equal(make_slot: Callable[..., Slot], source: Path) -> None:
    slot = make_slot()
    before = sorted(p.name for p in source.iterdir())
    for values in (VALUES, (1.0, 2.0, 3.0)):
        outcome = slot.execute(pack_vector(values))
        assert outcome.failure is None
        a, b, c = values
        assert outcome.observations == pack_vector((c, a, b))
    assert sorted(p.name for p in source.iterdir()) == before


def test_several_files_and_commands(make_slot: Callable[..., Slot], source: Path) -> None:
    (source / "sub").mkdir()
    (source / "sub" / "c.tpl").write_text("ptf #\n# C      # #b#\n", encoding="utf-8")
    (source / "in.tpl").write_text("ptf ~\n~a          ~ ~b          ~\n", encoding="utf-8")
    (source / "out.ins").write_text("pif ~\nl1 !o1! !o2!\n", encoding="utf-8")
    (source / "two.ins").write_text("pif ~\nl1 !O3! !dum!\n", encoding="utf-8")
    slot = make_slot(
        "cp in.dat out.dat",
        "cat sub/c.dat > sub/out.dat",
        templates=(FilePair("in.tpl", "in.dat"), FilePair("sub/c.tpl", "sub/c.dat")),
        instructions=(FilePair("out.ins", "out.dat"), FilePair("two.ins", "sub/out.dat")),
    )
    outcome = slot.execute(pack_vector((1.5, 1 / 3, 4.0)))
    # b is written alike in both files, as fits the narrower space.
    assert outcome.failure is None
    assert list(unpack_vector(outcome.observations)) == [4.0, 1.5, 0.33]
    inputs = [
        (slot.directory / name).read_text(encoding="utf-8").split()
        for name in ("in.dat", "sub/c.dat")
    ]
    assert inputs == [["1.5", ".33"], ["4.0", ".33"]]


def test_a_stale_output_never_counts(make_slot: Callable[..., Slot], source: Path) -> None:
    (source / "out.dat").write_text("1\n2\n3\n", encoding="utf-8")
    slot = make_slot("test -e once || ./model; touch once; echo done")
    assert slot.execute(pack_vector(VALUES)).failure is None
    failure = fail(slot)
    assert (failure.reason, failure.file, failure.exit_code) == ("output-missing", "out.dat", 0)
    assert failure.message == "out.dat was not written, though the command ended with exit code 0"
    assert failure.log == "done\n"


def test_environment(make_slot: Callable[..., Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    slot = make_slot("env | grep -E 'THREADS|PESTFLEET'; pwd; exit 1")
    log = fail(slot).log.splitlines()
    assert "OMP_NUM_THREADS=1" in log and "MKL_NUM_THREADS=3" in log
    assert "PESTFLEET_WORKER=w-test" in log and f"PESTFLEET_SLOT={slot.directory}" in log
    assert log[-1] == str(slot.directory)


def test_program_without_path_is_found_in_the_folder(make_slot: Callable[..., Slot]) -> None:
    assert make_slot("model").execute(pack_vector(VALUES)).failure is None


@pytest.mark.parametrize(
    ("commands", "reason", "message", "code", "number"),
    [
        (("echo no; exit 3",), "model-failed", "ended with exit code 3", 3, None),
        (("./crash",), "model-failed", "was killed by SIGSEGV", None, 11),
        (("./crash > log",), "model-failed", "was killed by SIGSEGV", 139, 11),
        (("./model", "false"), "model-failed", "'false' ended with exit code 1", 1, None),
        (("no-such-model",), "model-failed", "there is no such program", 127, None),
        (("./in.tpl",), "model-failed", "the program is not executable", 126, None),
        (("echo 'write: No space left on device'; exit 2",), "disk-full", "no space", None, None),
    ],
)
def test_failing_models(
    make_slot: Callable[..., Slot],
    source: Path,
    commands: tuple[str, ...],
    reason: str,
    message: str,
    code: int | None,
    number: int | None,
) -> None:
    (source / "crash").write_text("#!/bin/sh\nkill -SEGV $$\n", encoding="utf-8")
    (source / "crash").chmod(0o755)
    failure = fail(make_slot(*commands))
    assert failure.reason == reason
    assert message in failure.message
    assert (failure.exit_code, failure.signal) == (code, number)


def test_program_that_cannot_be_started(make_slot: Callable[..., Slot], source: Path) -> None:
    (source / "model").write_text("#!/no/such/interpreter\n", encoding="utf-8")
    failure = fail(make_slot())
    assert failure.reason == "model-failed"
    assert failure.message == ("the command './model' cannot be started: No such file or directory")


def test_the_next_command_does_not_run_after_a_failure(make_slot: Callable[..., Slot]) -> None:
    slot = make_slot("exit 1", "touch never")
    fail(slot)
    assert not (slot.directory / "never").exists()


def test_log_is_the_tail_of_the_latest_run(make_slot: Callable[..., Slot]) -> None:
    slot = make_slot("cat in.dat; seq 1000; printf 'odd \\000\\377 bytes'; exit 1")
    for _ in range(2):
        lines = fail(slot).log.split("\n")
        assert len(lines) == runs.LOG_LINES
        assert lines[-2] == "1000"
        assert lines[-1] == "odd \0\N{REPLACEMENT CHARACTER} bytes"
    slot = make_slot("echo short; exit 1")
    assert fail(slot).log == "short\n"
    slot = make_slot(f"{sys.executable} -c 'print(\"x\" * 50000)'; exit 1")
    assert 0 < len(fail(slot).log) <= runs.LOG_BYTES


def test_time_limit_is_for_all_commands_together(make_slot: Callable[..., Slot]) -> None:
    slot = make_slot("sleep 0.2", "setsid sleep 300 & echo begun; sleep 300", seconds=3.0)
    failure = fail(slot)
    assert failure.reason == "time-limit"
    assert "was not ready within 3 s" in failure.message
    assert failure.log == "begun\n"
    assert find_marked(SLOT_MARK, str(slot.directory)) == []


def test_cancel(make_slot: Callable[..., Slot]) -> None:
    slot = make_slot("test $(wc -c < in.dat) -gt 0 && sleep 300", "./model")
    assert not slot.cancel()
    failures: list[Failure] = []
    thread = threading.Thread(target=lambda: failures.append(fail(slot)))
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while len(find_marked(SLOT_MARK, str(slot.directory))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert slot.cancel()
    thread.join(PATIENCE)
    assert [failure.reason for failure in failures] == ["cancelled"]
    assert find_marked(SLOT_MARK, str(slot.directory)) == []


def test_cancel_does_not_reach_the_next_run(make_slot: Callable[..., Slot]) -> None:
    slot = make_slot("test -e go && ./model || sleep 300")
    thread = threading.Thread(target=fail, args=(slot,))
    thread.start()
    while not slot.cancel():
        time.sleep(0.001)
    thread.join(PATIENCE)
    (slot.directory / "go").touch()
    assert slot.execute(pack_vector(VALUES)).failure is None


def test_several_missing_outputs_are_all_named(
    make_slot: Callable[..., Slot], source: Path
) -> None:
    (source / "out.ins").write_text("pif ~\nl1 !o1! !o2!\n", encoding="utf-8")
    (source / "two.ins").write_text("pif ~\nl1 !o3!\n", encoding="utf-8")
    pairs = (FilePair("out.ins", "out.dat"), FilePair("two.ins", "two.dat"))
    failure = fail(make_slot("true", "true", instructions=pairs))
    assert failure.message == (
        "out.dat, two.dat were not written, though all commands ended with exit code 0"
    )


def test_output_that_the_instructions_do_not_fit(make_slot: Callable[..., Slot]) -> None:
    failure = fail(make_slot("printf '1\\n*****\\n' > out.dat; echo diverged"))
    assert failure.reason == "instruction-failed"
    assert str(failure).startswith("out.ins:3: out.dat:2: observation o2: '*****' in columns 1 to")
    assert failure.log == "diverged\n"


def test_output_in_a_folder_is_named_as_in_the_control_file(
    make_slot: Callable[..., Slot],
) -> None:
    pairs = (FilePair("out.ins", "out/heads.dat"),)
    failure = fail(make_slot("mkdir -p out; echo '*****' > out/heads.dat", instructions=pairs))
    assert str(failure).startswith("out.ins:2: out/heads.dat:1: observation o1: ")
    failure = fail(make_slot("mkdir -p out; : > out/heads.dat", instructions=pairs))
    assert str(failure).startswith("out.ins:2: out/heads.dat: the file is empty")


@pytest.mark.parametrize("text", ["nan", "NaN", "-Infinity", "1e999"])
def test_non_finite_observation(make_slot: Callable[..., Slot], text: str) -> None:
    failure = fail(make_slot(f"printf '1\\n2\\n{text}\\n' > out.dat"))
    assert (failure.reason, failure.file) == ("non-finite", "out.dat")
    assert failure.message == f"observation o3 is {float(text)}"


def test_finite_values_whose_sum_is_not(make_slot: Callable[..., Slot]) -> None:
    outcome = make_slot("printf '1e308\\n1e308\\n1e308\\n' > out.dat").execute(pack_vector(VALUES))
    assert outcome.failure is None


def test_bad_input(make_slot: Callable[..., Slot], source: Path) -> None:
    failure = fail(make_slot(), (1.0, math.nan, 2.0))
    assert (failure.reason, failure.file, failure.line) == ("bad-input", "in.tpl", 2)
    assert failure.message == "parameter b: the value nan is not a finite number"
    (source / "in.tpl").write_text("ptf ~\n~a~ ~b~\n~c ~", encoding="utf-8")
    failure = fail(make_slot(), (1.0, 2.0, 1.5e10))
    assert (failure.file, failure.line) == ("in.tpl", 3)
    assert "too narrow for the value 15000000000.0" in failure.message


def test_vector_of_the_wrong_length(make_slot: Callable[..., Slot]) -> None:
    assert fail(make_slot(), (1.0, 2.0)).reason == "worker-error"


def test_disk_full(make_slot: Callable[..., Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    slot = make_slot()

    def refuse(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        failure = fail(slot)
    assert (failure.reason, failure.file) == ("disk-full", "in.dat")
    assert slot.execute(pack_vector(VALUES)).failure is None


def test_a_directory_that_vanished_is_a_failure_not_an_error(
    make_slot: Callable[..., Slot], tmp_path: Path
) -> None:
    slot = make_slot()
    slot.directory.rename(tmp_path / "elsewhere")
    assert fail(slot).reason == "worker-error"


def test_a_linked_file_that_the_model_writes_is_made_private_and_the_run_repeated(
    make_slot: Callable[..., Slot], source: Path
) -> None:
    big = source / "restart.bin"
    big.write_bytes(b"0" * (2 << 20))
    slots = [make_slot("./model && printf x >> restart.bin && echo ran >> ran.txt") for _ in "ab"]
    for slot in slots:
        assert slot.execute(pack_vector(VALUES)).failure is None
    assert big.stat().st_size == 2 << 20
    sizes = [(slot.directory / "restart.bin").stat().st_size for slot in slots]
    assert sizes == [(2 << 20) + 1] * 2
    # Where the file system clones, nothing is linked and nothing need be repeated.
    repeated = {(slot.directory / "ran.txt").read_text(encoding="utf-8") for slot in slots}
    assert repeated in ({"ran\n"}, {"ran\nran\n"})


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("in.tpl", "ptf ~\n~a~ ~b~ ~d~\n", "in.tpl:2: parameter d is not in the control file"),
        ("in.tpl", "ptf ~\n~a~ ~b\n", "in.tpl:2: the marker ~ opens"),
        ("out.ins", "pif ~\nl1 !o1!\nl1 !o9!\n", "out.ins:3: observation o9 is not in the control"),
        ("out.ins", "pif ~\nl1 !o1!\n", "no instruction file reads observation o3 and 1 more"),
        ("out.ins", "pif ~\nx\n", "out.ins:2: an instruction line must begin with"),
    ],
)
def test_cases_that_cannot_run(
    make_slot: Callable[..., Slot], source: Path, file: str, text: str, message: str
) -> None:
    (source / file).write_text(text, encoding="utf-8")
    slot = make_slot(prepare=False)
    with pytest.raises(CaseError) as caught:
        slot.prepare()
    assert message in str(caught.value)
    assert not slot.directory.exists()


def test_an_observation_in_two_instruction_files(
    make_slot: Callable[..., Slot], source: Path
) -> None:
    (source / "two.ins").write_text("pif ~\n\nl1 !o1!\n", encoding="utf-8")
    pairs = (FilePair("out.ins", "out.dat"), FilePair("two.ins", "two.dat"))
    with pytest.raises(CaseError, match=r"two\.ins:3: observation o1 is read twice, first in .*:2"):
        make_slot(instructions=pairs)
    with pytest.raises(CaseError, match="no model command"):
        make_slot(commands=())
