"""What a follower does when its platform is silent, or does not do what it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.targets import following
from pestfleet.targets.base import Taken
from pestfleet.targets.following import FollowedMaster, Say
from pestfleet_worker.errors import Interrupted, TargetError

SPEC = SessionSpec("first", "/case/case.pst", "d" * 64, "glm", "fake", 1, 1)


def start(say: Say) -> None:
    say("starting")


class Silence(Exception):
    """The platform does not answer."""


class FakeFleet:
    """Keeps what it was asked for."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def stop_master(self) -> None:
        self.done.append("stop")

    def down(self, *, discard_results: bool = False) -> list[str]:
        self.done.append("discard" if discard_results else "keep")
        return []


class FakeMaster(FollowedMaster[FakeFleet]):
    """`looks`: what each look gives, or raises; the last one for ever."""

    trouble = (Silence,)
    platform = "the platform"

    def __init__(self, folder: SessionFolder, looks: list[bool | Exception]) -> None:
        self.events: list[dict[str, Any]] = []
        fleet = FakeFleet()
        super().__init__(folder, SPEC, fleet, launch=start, on_event=self.events.append)
        self.looks = looks
        self.done = fleet.done
        self.files: bool | Exception = True

    def _look(self, *, stopping: bool) -> bool:
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(found, Exception):
            raise found
        return found

    def _read_log(self, since: float) -> Iterator[str]:
        return iter(())

    def _fetch_files(self) -> bool:
        self.done.append("fetch")
        if isinstance(self.files, Exception):
            raise self.files
        return self.files

    def _explain(self, trouble: Exception) -> TargetError:
        return TargetError(f"the platform failed: {trouble}")

    def texts(self) -> str:
        return "\n".join(event["text"] for event in self.events)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeMaster]:
    monkeypatch.setattr(following, "INTERVAL", 0.01)
    folder = SessionFolder(tmp_path / "first")
    folder.create(SPEC)
    return lambda *looks: FakeMaster(folder, list(looks))


def test_a_silence_is_told_once_and_its_end(
    make: Callable[..., FakeMaster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SILENCE", -1.0)
    master = make(False, Silence("no"), Silence("no"), False, True)
    master.host()
    assert master.texts().count("the platform does not answer") == 1
    assert master.texts().count("the platform answers again") == 1
    assert "goes on" not in master.texts()


def test_a_short_silence_is_not_told(make: Callable[..., FakeMaster]) -> None:
    master = make(False, Silence("no"), True)
    master.host()
    assert "answer" not in master.texts()


@pytest.mark.parametrize("alone", [False, True])
def test_a_session_that_lives_alone_is_left_alone(
    make: Callable[..., FakeMaster], monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.05)
    monkeypatch.setattr(FakeMaster, "lives_alone", alone)
    master = make(Silence("no"))
    error = master.host().error
    assert isinstance(error, TargetError) and error.message == "the platform failed: no"
    assert master.done == ([] if alone else ["fetch", "keep"])


@pytest.mark.parametrize("trouble", [Silence("no"), OSError("disk full"), TargetError("no")])
def test_results_that_cannot_be_fetched_are_kept(
    make: Callable[..., FakeMaster], trouble: Exception
) -> None:
    master = make(True)
    master.files = trouble
    error = master.host().error
    assert error is not None
    assert error.message == f"the results of session first could not be fetched: {trouble}"
    assert master.done == ["fetch", "keep"]


def test_a_session_without_files_leaves_nothing(make: Callable[..., FakeMaster]) -> None:
    master = make(True)
    master.files = False
    assert isinstance(master.host().error, Interrupted)
    assert master.done == ["fetch", "discard"]


def test_a_master_that_cannot_be_stopped_is_removed(make: Callable[..., FakeMaster]) -> None:
    """Such as one that has not started yet."""
    master = make(False)
    master.interrupt()
    # The launch itself looks for a stop; here it comes right after.
    master._note = lambda text: None  # type: ignore[method-assign]
    assert isinstance(master.host().error, Interrupted)
    assert master.done == ["stop", "fetch", "keep"]


def test_what_is_another_session_s_is_left_alone(make: Callable[..., FakeMaster]) -> None:
    master = make(True)

    def launch(say: Callable[[str], None]) -> None:
        raise Taken("session first has a job already")

    master._launch_all = launch
    assert isinstance(master.host().error, Taken)
    assert master.done == []


@pytest.mark.parametrize(
    ("journal", "kept"),
    [
        ('{"time": 1.0, "event": "start"}\n', False),
        ('{"time": 1.0, "event": "run", "id": 1}\n', True),
    ],
)
def test_of_a_launch_without_a_run_nothing_is_kept(
    make: Callable[..., FakeMaster], journal: str, kept: bool
) -> None:
    master = make(TargetError("the image cannot be pulled"))
    master._folder.journal.write_text(journal, encoding="utf-8")
    assert isinstance(master.host().error, TargetError)
    assert master.done == ["fetch", "keep" if kept else "discard"]
