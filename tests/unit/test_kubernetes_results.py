"""What comes from a pod of a session's files; its shell is this machine's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pestfleet.targets.kubernetes.results import _fetch_from
from pestfleet_worker.errors import TargetError


def make_fleet(there: Path, *, keep: int | None = None) -> Any:
    """Executes commands here, `/session` being `there`; only `keep` bytes of answers arrive."""

    def execute(pod: str, container: str, command: list[str]) -> Iterator[bytes]:
        words = [word.replace("/session", str(there), 1) for word in command]
        data = subprocess.run(words, capture_output=True, check=True).stdout[:keep]
        yield from (data[start : start + 100] for start in range(0, len(data), 100))

    return SimpleNamespace(session="s1", access=SimpleNamespace(execute=execute))


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there" / "s1"
    (folder / "results").mkdir(parents=True)
    (folder / "journal.jsonl").write_text("{}\n" * 1000)
    (folder / "results" / "a.par").write_bytes(bytes(range(256)) * 40)
    return folder.parent


def test_files_come_as_they_are(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    assert _fetch_from(make_fleet(there), "pod", "master", here)
    assert (here / "journal.jsonl").read_text() == "{}\n" * 1000
    assert (here / "results" / "a.par").read_bytes() == bytes(range(256)) * 40


@pytest.mark.parametrize("folder", ["", "s1"])
def test_where_there_is_nothing_that_is_said(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty" / folder).mkdir(parents=True)
    here = tmp_path / "here"
    assert not _fetch_from(make_fleet(tmp_path / "empty"), "pod", "master", here)
    assert not here.exists()


@pytest.mark.parametrize("keep", [0, 5, 120])
def test_an_answer_that_was_lost_is_not_nothing(there: Path, tmp_path: Path, keep: int) -> None:
    """Else the volume with the results would be removed."""
    with pytest.raises(TargetError, match="did not send the session's files whole"):
        _fetch_from(make_fleet(there, keep=keep), "pod", "master", tmp_path / "here")
