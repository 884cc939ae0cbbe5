"""Model processes: the one module of the worker that needs POSIX.

Each command runs in a process group of its own with its output in a log file. Whatever a worker
starts carries `PESTFLEET_WORKER=<id>` in its environment. When the worker vanishes without a word
(kill -9, out of memory), its *guardian*, a small process in a session of its own, finds all that
carries the mark in /proc and kills it. Where there is no /proc (macOS), processes that left their
group, or whose worker vanished, are not found.

A process that forks from the worker would keep the guardian's pipe open: slots are threads.
"""

from __future__ import annotations

import errno
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

WORKER_MARK = "PESTFLEET_WORKER"
SLOT_MARK = "PESTFLEET_SLOT"

GRACE_SECONDS = 2.0  # between SIGTERM and SIGKILL
_SHELL = ("/bin/sh", "-c")
_SHELL_CHARACTERS = frozenset("|&;<>()$`*?[]{}~#!\n")
_LONGEST_POLL = 3600.0  # poll takes an int of milliseconds
_LONGEST_NAP = 0.01  # where the system cannot wake us when a process ends

_GUARDIAN_NEEDS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # where Python's own library may be

# Runs in `python -I -S`: only built-in modules, to stay small.
_GUARDIAN = """
import posix, sys, time
import _signal
for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGTERM):
    _signal.signal(number, _signal.SIG_IGN)
mark = sys.argv[1].encode()
me = posix.getpid()
while posix.read(0, 4096):
    pass
quiet = 0
while quiet < 3:
    found = False
    for name in posix.listdir("/proc"):
        if not name.isdigit() or int(name) == me:
            continue
        try:
            file = posix.open("/proc/" + name + "/environ", posix.O_RDONLY)
        except OSError:
            continue
        text = b""
        try:
            while True:
                piece = posix.read(file, 65536)
                if not piece:
                    break
                text += piece
        except OSError:
            pass
        posix.close(file)
        if mark in text.split(b"\\0"):
            found = True
            try:
                posix.kill(int(name), _signal.SIGKILL)
            except OSError:
                pass
    quiet = 0 if found else quiet + 1
    # A process that was being started when the worker died shows up a moment later.
    time.sleep(0.05)
"""


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, ready to start."""

    line: str
    arguments: tuple[str, ...]

    @property
    def by_shell(self) -> bool:
        return self.arguments[:2] == _SHELL


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended. `code` is negative for a signal, as in `subprocess`."""

    cause: Literal["exit", "time-limit", "cancelled"]
    code: int


class Canceller:
    """Wakes a thread that waits in `run_command`, from any other thread."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        return self._reader

    def set(self) -> None:
        try:
            os.write(self._writer, b"x")
        except BlockingIOError:
            return  # set many times already

    def clear(self) -> None:
        try:
            while os.read(self._reader, 4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


def resolve_command(line: str, *, directory: Path, environment: Mapping[str, str]) -> Command:
    """Split a command line, or hand it to the shell where it uses the shell's language.

    A program is looked for in `directory` first, then in PATH.
    """
    shell = Command(line, (*_SHELL, line))
    if _SHELL_CHARACTERS.intersection(line):
        return shell
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation mark too few: the shell says it in the log
        return shell
    if not words or "=" in words[0]:
        return shell
    if os.sep in words[0]:
        program: str | None = str(directory / words[0])
    else:
        path = os.pathsep.join((str(directory), environment.get("PATH", os.defpath)))
        program = shutil.which(words[0], path=path)
    if program is None or not os.access(program, os.X_OK):
        return shell  # a built-in of the shell; or its "not found" goes into the log
    return Command(line, (program, *words[1:]))


def run_command(
    command: Command,
    *,
    directory: Path,
    environment: Mapping[str, str],
    log: int,
    deadline: float | None,
    canceller: Canceller,
) -> Ending:
    """Run a command to its end, and end all that is left of its process group.

    `log`: file descriptor for stdout and stderr; `deadline` on `time.monotonic`.
    Raises `OSError` where the command cannot be started.
    """
    try:
        process = _start(command.arguments, directory, environment, log)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        # A script without #!, which every shell takes for one of its own.
        process = _start(("/bin/sh", *command.arguments), directory, environment, log)
    handle = _open_handle(process.pid)
    cause: Literal["exit", "time-limit", "cancelled"] = "exit"
    try:
        cause = _wait(process, handle, deadline, canceller)
        if cause != "exit":
            signal_group(process.pid, signal.SIGTERM)
            _wait(process, handle, time.monotonic() + GRACE_SECONDS, None)
    finally:
        # The group's first process is not reaped yet, so its number cannot be another's.
        signal_group(process.pid, signal.SIGKILL)
        process.wait()
        if handle >= 0:
            os.close(handle)
    return Ending(cause, process.returncode)


def _start(
    arguments: tuple[str, ...], directory: Path, environment: Mapping[str, str], log: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=0,
    )


def _wait(
    process: subprocess.Popen[bytes],
    handle: int,
    deadline: float | None,
    canceller: Canceller | None,
) -> Literal["exit", "time-limit", "cancelled"]:
    """Wait until the process ends (it is not reaped), or one of the others comes first."""
    poll = select.poll()
    if handle >= 0:
        poll.register(handle, select.POLLIN)
    if canceller is not None:
        poll.register(canceller.fileno(), select.POLLIN)
    nap = 0.0005
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        pause = left
        if handle < 0:
            nap = min(nap * 1.5, _LONGEST_NAP)
            pause = nap if left is None else min(nap, left)
        # Rounded up, for poll counts in whole milliseconds.
        ready = poll.poll(None if pause is None else int(min(pause, _LONGEST_POLL) * 1000) + 1)
        if handle < 0 and _has_ended(process.pid):
            return "exit"
        for descriptor, _ in ready:
            if descriptor == handle:
                return "exit"
        if ready:
            return "cancelled"
        if left is not None and left <= 0:
            return "time-limit"


def _open_handle(process: int) -> int:
    """A pidfd; -1 where there is none: Linux before 5.3, a sandbox, no descriptor left."""
    try:
        return os.pidfd_open(process)
    except (AttributeError, OSError):
        return -1


def _has_ended(process: int) -> bool:
    """Whether a child has ended; it stays unreaped."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group, if it is still there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return  # nothing left but what has ended


def find_marked(name: str, value: str) -> list[int]:
    """Processes, other than this one, with `name=value` in their environment (needs /proc)."""
    mark = f"{name}={value}".encode()
    found: list[int] = []
    proc = Path("/proc")
    if not proc.is_dir():
        return found
    for entry in proc.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            text = (entry / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or is not ours
        if mark in text.split(b"\0"):
            found.append(int(entry.name))
    return found


def kill_marked(name: str, value: str) -> int:
    """Kill what carries a mark, also outside of its process group. Returns how many."""
    killed: set[int] = set()
    deadline = time.monotonic() + GRACE_SECONDS
    while found := find_marked(name, value):
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
            killed.add(process)
        if time.monotonic() > deadline:  # it hangs in the kernel, on a dead disk perhaps
            break
        time.sleep(_LONGEST_NAP)
    return len(killed)


class Guardian:
    """Kills what a worker started when the worker is gone. One for each worker process."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int) -> None:
        self._process = process
        self._pipe = pipe

    @classmethod
    def start(cls, worker: str) -> Guardian:
        """Start the guardian of the worker with this id. Raises `OSError`."""
        reader, writer = os.pipe()
        try:
            process = subprocess.Popen(
                (sys.executable, "-I", "-S", "-c", _GUARDIAN, f"{WORKER_MARK}={worker}"),
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={key: os.environ[key] for key in _GUARDIAN_NEEDS if key in os.environ},
                start_new_session=True,
            )
        except OSError:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        return cls(process, writer)

    def __enter__(self) -> Guardian:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End the guardian; what the worker has left running ends with it."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        self._process.wait()
