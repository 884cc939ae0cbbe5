"""Secrets that come as a variable, and become files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pestfleet_worker import unpack
from pestfleet_worker.errors import ConfigurationError

URL = "amqps://worker:geheim@broker/s1"


def give(monkeypatch: pytest.MonkeyPatch, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    monkeypatch.setenv(unpack.VARIABLE, text)


def test_files_are_for_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, {"broker-url": f"{URL}\n", "ca.pem": "öffentlich\r\n"})
    assert unpack.main([str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broker-url", "ca.pem"]
    assert (tmp_path / "broker-url").read_bytes() == f"{URL}\n".encode()
    assert (tmp_path / "ca.pem").read_bytes() == "öffentlich\r\n".encode()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o400}
    assert unpack.VARIABLE not in os.environ


def test_what_is_there_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("old", "new"):
        give(monkeypatch, {"a": text})
        assert unpack.main([str(tmp_path)]) == 0
    (tmp_path / ".a.new").write_text("what a killed one left")
    give(monkeypatch, {"a": "newer"})
    assert unpack.main([str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "newer"


@pytest.mark.parametrize(
    "name", ["../a", "a/b", "/a", "..", ".", "", ".hidden", "-a", "a b", "a\n", "a\0b", "a\\b"]
)
def test_a_file_is_never_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    give(monkeypatch, {"fine": URL, name: URL})
    assert unpack.main([str(folder)]) == ConfigurationError.exit_code
    assert list(folder.iterdir()) == [] and list(tmp_path.iterdir()) == [folder]
    error = capsys.readouterr().err
    assert "is not the name of a file" in error and "geheim" not in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not set"),
        (f"{{'{URL}'", "is not JSON, character 1"),
        ("[1]", "is not a JSON object with files"),
        ("{}", "is not a JSON object with files"),
        ({"a": 5}, "the file a in PESTFLEET_SECRET_FILES is not text"),
        ({"a": {"b": URL}}, "the file a in PESTFLEET_SECRET_FILES is not text"),
    ],
)
def test_what_cannot_be_read_is_told_without_the_secret(
    content: Any,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give(monkeypatch, content)
    assert unpack.main([str(tmp_path)]) == ConfigurationError.exit_code
    captured = capsys.readouterr()
    assert words in captured.err and "geheim" not in captured.err + captured.out
    assert list(tmp_path.iterdir()) == []
    assert unpack.VARIABLE not in os.environ


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(monkeypatch, {"a": URL})
    assert unpack.main([str(tmp_path / "none")]) == ConfigurationError.exit_code
    error = capsys.readouterr().err
    assert "none/a cannot be written: No such file or directory" in error
    assert "Traceback" not in error and "geheim" not in error


def test_without_a_folder_it_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        unpack.main([])
    assert caught.value.code == 2 and "FOLDER" in capsys.readouterr().err


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpack.os, "fsync", fail)
    with pytest.raises(ConfigurationError, match="No space left"):
        unpack.write_files(tmp_path, {"a": "text"})
    assert not (tmp_path / "a").exists()
