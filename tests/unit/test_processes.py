"""Model processes: groups, time limits, cancelling, and the guardian of a worker that vanished."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pestfleet_worker.processes import (
    SLOT_MARK,
    WORKER_MARK,
    Canceller,
    Ending,
    Guardian,
    find_marked,
    kill_marked,
    resolve_command,
    run_command,
)

PATIENCE = 60.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


@pytest.fixture
def mark() -> Iterator[str]:
    mark = uuid.uuid4().hex
    yield mark
    kill_marked(WORKER_MARK, mark)


@pytest.fixture
def canceller() -> Iterator[Canceller]:
    canceller = Canceller()
    yield canceller
    canceller.close()


def run(
    folder: Path, line: str, mark: str, canceller: Canceller, *, seconds: float | None = None
) -> tuple[Ending, str]:
    environment = {**os.environ, WORKER_MARK: mark}
    log = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    try:
        ending = run_command(
            resolve_command(line, directory=folder, environment=environment),
            directory=folder,
            environment=environment,
            log=log,
            deadline=None if seconds is None else time.monotonic() + seconds,
            canceller=canceller,
        )
    finally:
        os.close(log)
    return ending, (folder / "log").read_text(encoding="utf-8")


def write_script(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def test_output_goes_into_the_log(tmp_path: Path, mark: str, canceller: Canceller) -> None:
    ending, log = run(tmp_path, "echo out && echo err >&2 && pwd && cat", mark, canceller)
    assert ending == Ending("exit", 0)
    assert log.splitlines() == ["out", "err", str(tmp_path)]


@pytest.mark.parametrize(
    ("line", "code"),
    [("exit 7", 7), ("no-such-program-here", 127), ("python3 crash.py", -signal.SIGKILL)],
)
def test_exit_codes(tmp_path: Path, mark: str, canceller: Canceller, line: str, code: int) -> None:
    script = "import os\nos.kill(os.getpid(), 9)\n"
    (tmp_path / "crash.py").write_text(script, encoding="utf-8")
    assert run(tmp_path, line, mark, canceller)[0] == Ending("exit", code)


def test_programs_are_looked_for_in_the_folder_first(
    tmp_path: Path, mark: str, canceller: Canceller
) -> None:
    write_script(tmp_path / "ls", "#!/bin/sh\necho mine $1\n")
    write_script(tmp_path / "bare", "echo no first line $1\n")
    (tmp_path / "cat").write_text("data, not a program", encoding="utf-8")
    assert run(tmp_path, 'ls "a b"', mark, canceller)[1] == "mine a b\n"
    assert run(tmp_path, "./ls x", mark, canceller)[1] == "mine x\n"
    assert run(tmp_path, "bare x", mark, canceller)[1] == "no first line x\n"
    resolved = resolve_command("cat x", directory=tmp_path, environment=os.environ)
    assert Path(resolved.arguments[0]).parent != tmp_path


@pytest.mark.parametrize(
    ("line", "by_shell"),
    [
        ("sh run.sh", False),
        ("sh 'run it.sh' -x", False),
        ("sh run.sh > out.txt", True),
        ("sh a.sh && sh b.sh", True),
        ("A=1 sh run.sh", True),
        ("sh 'unclosed", True),
        ("cd sub", True),
    ],
)
def test_shell_only_where_needed(tmp_path: Path, line: str, by_shell: bool) -> None:
    command = resolve_command(line, directory=tmp_path, environment=os.environ)
    assert (command.arguments == ("/bin/sh", "-c", line)) == by_shell


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EMFILE])
def test_where_a_process_gets_no_handle_it_is_looked_after_as_well(
    tmp_path: Path, mark: str, canceller: Canceller, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Linux before 5.3, a sandbox that forbids it, no descriptor left."""

    def fail(process: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", fail, raising=False)
    assert run(tmp_path, "exit 3", mark, canceller)[0] == Ending("exit", 3)
    ending, _ = run(tmp_path, "sleep 300", mark, canceller, seconds=0.3)
    assert ending == Ending("time-limit", -signal.SIGTERM)


def test_time_limit_ends_grandchildren(tmp_path: Path, mark: str, canceller: Canceller) -> None:
    line = "sleep 300 & sleep 300 & echo started; wait"
    ending, log = run(tmp_path, line, mark, canceller, seconds=3.0)
    assert ending == Ending("time-limit", -signal.SIGTERM)
    assert log == "started\n"
    wait_for(lambda: not find_marked(WORKER_MARK, mark))


def test_time_limit_ends_what_ignores_sigterm(
    tmp_path: Path, mark: str, canceller: Canceller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pestfleet_worker.processes.GRACE_SECONDS", 0.1)
    line = "trap '' TERM; while :; do sleep 0.05; done"
    ending, _ = run(tmp_path, line, mark, canceller, seconds=3.0)
    assert ending == Ending("time-limit", -signal.SIGKILL)
    wait_for(lambda: not find_marked(WORKER_MARK, mark))


def test_cancel_from_another_thread(tmp_path: Path, mark: str, canceller: Canceller) -> None:
    def cancel() -> None:
        wait_for(lambda: len(find_marked(WORKER_MARK, mark)) >= 2)
        canceller.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    ending, _ = run(tmp_path, "sleep 300 & sleep 300", mark, canceller)
    thread.join()
    assert ending.cause == "cancelled"
    wait_for(lambda: not find_marked(WORKER_MARK, mark))
    canceller.clear()
    assert run(tmp_path, "true", mark, canceller)[0] == Ending("exit", 0)


def test_a_command_leaves_nothing_in_its_group(
    tmp_path: Path, mark: str, canceller: Canceller
) -> None:
    assert run(tmp_path, "sleep 300 & exit 0", mark, canceller)[0] == Ending("exit", 0)
    wait_for(lambda: not find_marked(WORKER_MARK, mark))


def test_without_pidfd_it_works_as_well(
    tmp_path: Path, mark: str, canceller: Canceller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert run(tmp_path, "exit 3", mark, canceller)[0] == Ending("exit", 3)
    assert run(tmp_path, "sleep 300", mark, canceller, seconds=0.1)[0].cause == "time-limit"


def test_a_program_that_cannot_be_started(tmp_path: Path, mark: str, canceller: Canceller) -> None:
    write_script(tmp_path / "model", "#!/no/such/interpreter\n")
    with pytest.raises(OSError) as caught:
        run(tmp_path, "./model", mark, canceller)
    assert caught.value.errno == errno.ENOENT


def test_marked_processes_are_found_outside_of_their_group(mark: str) -> None:
    process = subprocess.Popen(
        ["sleep", "300"], env={**os.environ, SLOT_MARK: mark}, start_new_session=True
    )
    try:
        wait_for(lambda: find_marked(SLOT_MARK, mark) == [process.pid])
        assert find_marked(SLOT_MARK, mark[:-1]) == []
        assert kill_marked(SLOT_MARK, mark) == 1
        assert process.wait(PATIENCE) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


WORKER = """
import os, subprocess, sys, time
from pestfleet_worker.processes import WORKER_MARK, Guardian
mark = sys.argv[1]
guardian = Guardian.start(mark)
environment = {**os.environ, WORKER_MARK: mark}
subprocess.Popen(["sleep", "300"], env=environment, process_group=0)
subprocess.Popen(["sh", "-c", "sleep 300 & wait"], env=environment, start_new_session=True)
print(guardian.pid, flush=True)
time.sleep(300)
"""


def test_guardian_kills_what_a_killed_worker_left(mark: str) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER), mark],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    bystander = subprocess.Popen(["sleep", "300"], env={WORKER_MARK: mark + "x"})
    try:
        assert worker.stdout is not None
        guardian = int(worker.stdout.readline())
        wait_for(lambda: len(find_marked(WORKER_MARK, mark)) == 3)
        assert Path(f"/proc/{guardian}").exists()
        os.killpg(worker.pid, signal.SIGKILL)  # the guardian is in a session of its own
        worker.wait()
        wait_for(lambda: not find_marked(WORKER_MARK, mark))
        wait_for(lambda: not is_running(guardian))
        assert bystander.poll() is None
    finally:
        for process in (worker, bystander):
            process.kill()
            process.wait()
        assert worker.stdout is not None
        worker.stdout.close()


def is_running(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


def test_guardian_is_small_stubborn_and_goes_when_told(mark: str) -> None:
    with Guardian.start(mark) as guardian:
        ignored = f"/proc/{guardian.pid}/status"

        def read_status(key: str) -> str:
            lines = Path(ignored).read_text(encoding="utf-8").splitlines()
            return next(line.split()[1] for line in lines if line.startswith(key))

        # Ignores SIGHUP (1), SIGINT (2) and SIGTERM (15).
        wait_for(lambda: int(read_status("SigIgn:"), 16) & 0x4003 == 0x4003)
        assert int(read_status("VmRSS:")) < 12 * 1024
        assert os.getsid(guardian.pid) == guardian.pid
    assert not is_running(guardian.pid)
