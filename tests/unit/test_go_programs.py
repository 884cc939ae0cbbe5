"""Programs that tests build: once, whole or not at all, and with a plain word where Go is not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import go_programs
from go_programs import Go, ensure_programs, find_reason_against


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and a Go that is new enough."""
    monkeypatch.setattr(go_programs, "CACHE", tmp_path)
    monkeypatch.setattr(go_programs, "_BUILDS", tmp_path / "go")
    monkeypatch.setattr(go_programs, "find_version", lambda: (1, 26, 0))
    return tmp_path


def test_two_that_need_a_program_build_it_once(cache: Path) -> None:
    builds: list[Path] = []

    def build(go: Go, into: Path) -> None:
        builds.append(go.scratch)
        second.start()
        (into / "program").touch()

    second = threading.Thread(target=ensure_programs, args=("tool-1", build))
    folder = ensure_programs("tool-1", build)
    second.join()

    assert len(builds) == 1
    assert folder == cache / "tool-1" and (folder / "program").is_file()


def test_a_build_that_fails_keeps_what_go_has_and_nothing_else(cache: Path) -> None:
    kept = cache / "go" / "modules"

    def fail(go: Go, into: Path) -> None:
        kept.mkdir(parents=True)
        (into / "half").touch()
        raise KeyboardInterrupt

    def build(go: Go, into: Path) -> None:
        assert kept.is_dir()
        (into / "whole").touch()

    with pytest.raises(KeyboardInterrupt):
        ensure_programs("tool-1", fail)
    assert [path.name for path in cache.iterdir() if not path.name.startswith(".go.")] == ["go"]

    folder = ensure_programs("tool-1", build)
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert not (cache / "go").exists()


def test_an_old_go_or_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_programs, "find_version", lambda: (1, 24, 9))
    assert find_reason_against(1, 24, 9) == ""
    assert find_reason_against(1, 26).startswith("Go 1.26 is not installed")


def test_without_go_the_error_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(go_programs, "find_version", lambda: (0,))
    with pytest.raises(AssertionError, match="to build tool-1, install Go"):
        ensure_programs("tool-1", lambda go, into: None)
