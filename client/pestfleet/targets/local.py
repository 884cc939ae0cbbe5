"""The target `local`: workers are processes of this machine, ended with the master.

Each worker holds a pipe to the master as its standard input; when the master ends, however it
ends, the pipe closes and the worker stops by itself.
"""

from __future__ import annotations

import itertools
import logging
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Collection
from pathlib import Path

from pestfleet.targets.base import FleetPlan
from pestfleet_worker.errors import TargetError

logger = logging.getLogger(__name__)

REFUSED = 10  # exit code of a worker that must not be started again
EARLY = 5.0  # a worker that ends within so many seconds never worked
EARLY_ENDS = 3  # so many in a row and we give up
PATIENCE = 8.0  # seconds for a worker to leave by itself


class _Seat:
    """A place that always has a worker: one process after the other, and the thread that waits."""

    def __init__(self, number: int, starts: int = 0) -> None:
        self.number = number
        self.name = f"local-{number}"
        self.starts = starts
        self.process: subprocess.Popen[bytes] | None = None
        self.thread: threading.Thread | None = None
        self.closing = threading.Event()


class LocalTarget:
    """Worker processes on this machine."""

    def __init__(self, plan: FleetPlan) -> None:
        self._plan = plan
        self._logs = plan.folder / "logs"
        # Other sessions may use the same scratch folder, and their workers have the same names.
        place = zlib.crc32(str(plan.folder.resolve()).encode())
        self._scratch = plan.scratch / f"pestfleet-{plan.session}-{place:08x}"
        self._seats: list[_Seat] = []
        self._emptied: dict[int, _Seat] = {}  # seats that had workers before
        self._lock = threading.Lock()
        self._trouble = ""

    def describe(self) -> list[str]:
        return [
            shlex.join(self._command(_Seat(number + 1))) for number in range(self._plan.workers)
        ]

    def launch(self) -> None:
        if os.name == "nt":
            raise TargetError(
                "the local target runs workers with Linux or macOS means, not on Windows",
                remedy="Run pestfleet inside WSL, or choose another target with --on.",
            )
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(
                f"the folder for the workers' logs cannot be made: {error}"
            ) from error
        shutil.rmtree(self._scratch, ignore_errors=True)  # of a master that was killed
        self.scale(self._plan.workers)

    def check(self) -> None:
        if self._trouble:
            raise TargetError(self._trouble, remedy=f"The workers' logs are in {self._logs}.")

    def scale(self, workers: int, surplus: Collection[str] = ()) -> None:
        with self._lock:
            taken = {seat.number for seat in self._seats}
            free = (number for number in itertools.count(1) if number not in taken)
            while len(self._seats) < workers:
                self._seats.append(self._fill(next(free)))
            first = [seat for seat in self._seats if _worker_name(seat) in surplus]
            others = [seat for seat in reversed(self._seats) if seat not in first]
            dismissed = [*first, *others][: len(self._seats) - workers]
            self._seats = [seat for seat in self._seats if seat not in dismissed]
            self._emptied |= {seat.number: seat for seat in dismissed}
        for seat in dismissed:
            self._dismiss(seat)

    def _fill(self, number: int) -> _Seat:
        # The worker that had this number may still be on its way out: no two of one name.
        before = self._emptied.pop(number, None)
        seat = _Seat(number, starts=before.starts if before else 0)
        seat.thread = threading.Thread(target=self._keep, args=(seat,), daemon=True)
        seat.thread.start()
        return seat

    def replace(self, worker: str) -> None:
        with self._lock:
            seats = list(self._seats)
        for seat in seats:
            if _worker_name(seat) == worker and seat.process is not None:
                seat.process.kill()  # frozen, or cut off; its seat gets another at once

    def logs(self, worker: str) -> Path | None:
        path = self._logs / f"{worker.partition('.')[0]}.log"
        return path if path.exists() else None

    def teardown(self) -> None:
        with self._lock:
            seats, self._seats = self._seats, []
        for seat in seats:
            self._dismiss(seat)
        deadline = time.monotonic() + PATIENCE
        for seat in seats:
            if seat.thread is not None:
                seat.thread.join(max(0.0, deadline - time.monotonic()))
            if seat.process is not None and seat.process.poll() is None:
                seat.process.kill()
            if seat.thread is not None:
                seat.thread.join(1.0)
        shutil.rmtree(self._scratch, ignore_errors=True)  # what killed workers have left

    def _dismiss(self, seat: _Seat) -> None:
        seat.closing.set()
        if seat.process is not None and seat.process.stdin is not None:
            seat.process.stdin.close()

    def _command(self, seat: _Seat) -> list[str]:
        plan = self._plan
        return [
            sys.executable, "-m", "pestfleet_worker",
            "--session", plan.session,
            "--name", _worker_name(seat),
            "--slots", str(plan.slots),
            "--scratch", str(self._scratch),
            "--with-parent",
        ]  # fmt: skip

    def _keep(self, seat: _Seat) -> None:
        try:
            self._keep_worker(seat)
        except OSError as error:
            self._trouble = f"worker {seat.name} could not be started: {error}"

    def _keep_worker(self, seat: _Seat) -> None:
        """Keep a worker in the seat until it is dismissed or there is no point in it."""
        early_ends = 0
        while not seat.closing.is_set():
            began = time.monotonic()
            exit_code = self._run_worker(seat)
            if exit_code == 0 or seat.closing.is_set():
                return
            self._plan.on_end(_worker_name(seat), f"its process ended: {_describe_end(exit_code)}")
            early_ends = early_ends + 1 if time.monotonic() - began < EARLY else 0
            if exit_code == REFUSED or (early_ends >= EARLY_ENDS and exit_code > 0):
                self._trouble = (
                    f"worker {seat.name} ended with exit code {exit_code}: {self._last_line(seat)}"
                )
                return
            logger.warning("worker %s ended (%s); starting another", seat.name, exit_code)

    def _run_worker(self, seat: _Seat) -> int:
        seat.starts += 1
        environment = {**os.environ, "PESTFLEET_BROKER": self._plan.broker_url}
        with (self._logs / f"{seat.name}.log").open("ab") as log:
            seat.process = subprocess.Popen(
                self._command(seat),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C in the terminal is the master's matter.
                start_new_session=True,
            )
        if seat.closing.is_set():
            self._dismiss(seat)
        return seat.process.wait()

    def _last_line(self, seat: _Seat) -> str:
        lines = (self._logs / f"{seat.name}.log").read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "it wrote no log")


def _describe_end(exit_code: int) -> str:
    return f"exit code {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"


def _worker_name(seat: _Seat) -> str:
    return seat.name if seat.starts <= 1 else f"{seat.name}.{seat.starts}"
