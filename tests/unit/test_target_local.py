"""The local target: what it would start, and when it gives up."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pestfleet.targets import local
from pestfleet.targets.base import FleetPlan
from pestfleet.targets.local import LocalTarget
from pestfleet_worker.errors import TargetError

URL = "amqp://user:secret@host//"


def make_plan(folder: Path, *, session: str = "s", workers: int = 2) -> FleetPlan:
    return FleetPlan(session, folder, folder / "case", URL, workers, 3, folder / "my slots")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class ShortLived(LocalTarget):
    """A target whose workers are small scripts."""

    script = ""

    def _command(self, seat: local._Seat) -> list[str]:
        return [sys.executable, "-c", self.script]


@pytest.fixture
def target(tmp_path: Path) -> Iterator[ShortLived]:
    target = ShortLived(make_plan(tmp_path, workers=1))
    yield target
    target.teardown()


def trouble_of(target: LocalTarget) -> str:
    def has_given_up() -> bool:
        try:
            target.check()
        except TargetError as error:
            told.append(error.message)
        return bool(told)

    told: list[str] = []
    wait_for(has_given_up)
    return told[0]


def test_what_would_be_started_has_no_secret_and_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    lines = LocalTarget(make_plan(folder)).describe()
    assert [shlex.split(line)[6] for line in lines] == ["local-1", "local-2"]
    for line in lines:
        assert "secret" not in line and "amqp" not in line
        words = shlex.split(line)
        assert words[:5] == [sys.executable, "-m", "pestfleet_worker", "--session", "s"]
        scratch = Path(words[words.index("--scratch") + 1])
        assert scratch.parent == folder / "my slots"
    assert not folder.exists()


def test_sessions_that_share_a_scratch_folder_do_not_share_slots(tmp_path: Path) -> None:
    def scratch_of(root: str) -> str:
        plan = FleetPlan("s", tmp_path / root, tmp_path, URL, 1, 1, tmp_path / "scratch")
        words = shlex.split(LocalTarget(plan).describe()[0])
        return words[words.index("--scratch") + 1]

    assert scratch_of("a") == scratch_of("a") != scratch_of("b")


def test_the_url_comes_by_the_environment(target: ShortLived, tmp_path: Path) -> None:
    target.script = "import os; print(os.environ['PESTFLEET_BROKER']); raise SystemExit(10)"
    target.launch()
    assert URL in trouble_of(target)


def test_a_worker_that_refuses_is_not_started_again(target: ShortLived, tmp_path: Path) -> None:
    target.script = "print('no such case'); raise SystemExit(10)"
    target.launch()
    assert trouble_of(target) == "worker local-1 ended with exit code 10: no such case"
    log = target.logs("local-1")
    assert log is not None and log.read_text().count("no such case") == 1


def test_workers_that_never_work_are_given_up(target: ShortLived) -> None:
    target.script = "print('broken'); raise SystemExit(1)"
    target.launch()
    assert trouble_of(target) == "worker local-1 ended with exit code 1: broken"
    log = target.logs("local-1.3")
    assert log is not None and log.read_text().count("broken") == local.EARLY_ENDS


def test_a_worker_that_was_killed_gets_a_successor(target: ShortLived) -> None:
    target.script = "import sys; sys.stdin.read()"
    target.launch()
    (seat,) = target._seats
    wait_for(lambda: seat.process is not None)
    target.replace("local-1")
    wait_for(lambda: seat.starts == 2)
    target.replace("local-1")  # told late, of the one that is gone already
    target.check()
    assert seat.starts == 2


def test_a_program_that_cannot_be_started_is_told(
    target: ShortLived, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "_command", lambda seat: ["/does/not/exist"])
    target.launch()
    assert "worker local-1 could not be started" in trouble_of(target)


def test_a_log_that_cannot_be_written_is_told(target: ShortLived, tmp_path: Path) -> None:
    (tmp_path / "logs" / "local-1.log").mkdir(parents=True)
    target.launch()
    assert "worker local-1 could not be started" in trouble_of(target)


def test_teardown_leaves_no_process_and_no_slot(target: ShortLived, tmp_path: Path) -> None:
    target.script = "import sys; sys.stdin.read()"
    target._plan.scratch.mkdir()
    (target._plan.scratch / "of another").touch()
    (target._scratch / "local-1-x-0").mkdir(parents=True)  # left by a worker that was killed
    target.launch()
    target.scale(3)
    seats = list(target._seats)
    wait_for(lambda: all(seat.process is not None for seat in seats))
    target.scale(1)
    assert len(target._seats) == 1
    target.teardown()
    target.teardown()
    assert all(seat.process is not None and seat.process.wait(10) == 0 for seat in seats)
    assert [path.name for path in target._plan.scratch.iterdir()] == ["of another"]
