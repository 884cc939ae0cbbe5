"""The folder of a session, its lock, and the ids of sessions."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pestfleet import folder as folder_module
from pestfleet import session as session_module
from pestfleet.bookkeeping import keep_case
from pestfleet.folder import (
    Placement,
    SessionFolder,
    SessionSpec,
    find_session,
    list_sessions,
)
from pestfleet_worker.errors import ConfigurationError, SessionError


def make_folder(root: Path, name: str = "s", **choices: Any) -> SessionFolder:
    folder = SessionFolder(root / name)
    folder.create(SessionSpec(name, "/case/a.pst", "d" * 64, "glm", "local", 2, 1, **choices))
    return folder


def test_a_spec_comes_back_and_later_versions_may_add_to_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, options={"a": "ü"})
    spec = folder.read_spec()
    assert spec.options == {"a": "ü"}
    path = folder.path / "session.json"
    path.write_text(path.read_text().replace("{", '{"of_tomorrow": 1,', 1))
    assert folder.read_spec() == spec
    path.write_text(path.read_text()[:40])
    with pytest.raises(SessionError, match="is not the spec of a session"):
        folder.read_spec()


@pytest.mark.parametrize("name", ["", "a b", "Köln", "../x", ".x", "x" * 61, "a/b", "a\n"])
def test_ids_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the id of a session"):
        make_folder(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_an_id_is_taken_once(tmp_path: Path) -> None:
    make_folder(tmp_path)
    with pytest.raises(SessionError, match="there is a session s already"):
        make_folder(tmp_path)


def test_a_folder_that_cannot_be_written_leaves_the_id_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "_replace", fail)
        with pytest.raises(SessionError, match="cannot be written: No space left"):
            make_folder(tmp_path)
    make_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SessionError, match="cannot be written"):
        make_folder(tmp_path / "file")


def test_one_master_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "LOCK_PATIENCE", 0.1)
    folder = make_folder(tmp_path)
    folder.request_stop()  # of an earlier master
    assert not folder.running
    folder.acquire()
    assert not folder.stop_requested
    assert SessionFolder(folder.path).running
    with pytest.raises(SessionError, match="session s is running"):
        SessionFolder(folder.path).acquire()
    folder.release()
    assert not folder.running


def test_who_only_looks_does_not_keep_a_master_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    looker = SessionFolder(folder.path)
    looker.acquire()  # as `running` does, for a moment
    monkeypatch.setattr("pestfleet.folder.LOCK_PATIENCE", 60.0)
    # The lock is of the thread that has it.
    let_go = threading.Event()

    def become_master() -> None:
        folder.acquire()
        let_go.set()

    thread = threading.Thread(target=become_master)
    thread.start()
    assert not let_go.wait(0.2)
    looker.release()
    assert let_go.wait(60)
    thread.join()


def test_a_lock_that_cannot_be_taken_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(SessionError, match="cannot be written: Permission denied"):
        folder.acquire()
    assert not folder.running
    folder.write_state({"state": "running"})  # its master renews it all the time
    assert folder.running
    os.utime(folder.path / "state.json", (0, 0))
    assert not folder.running


def test_a_state_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    assert folder.read_state() == {}
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            folder.write_state({"number": number, "filling": "x" * 20_000})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while not folder.read_state():
            pass
        seen = [folder.read_state() for _ in range(300)]
    finally:
        over.set()
        thread.join()
    assert all(len(state["filling"]) == 20_000 for state in seen)
    assert not list(folder.path.glob("*.tmp"))


def test_a_state_that_finds_no_space_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    folder.write_state({"a": 1})

    def half(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text.encode()[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        folder.write_state({"a": 2})
    assert folder.read_state() == {"a": 1}
    assert not list(folder.path.glob("*.tmp"))


def test_finding_sessions(tmp_path: Path) -> None:
    assert list_sessions(tmp_path / "none") == []
    with pytest.raises(SessionError, match="there is no session in"):
        find_session(tmp_path, None)
    for age, name in enumerate(("old", "new")):
        folder = make_folder(tmp_path, name)
        os.utime(folder.path / "session.json", (1000 + age, 1000 + age))
    assert [folder.name for folder in list_sessions(tmp_path)] == ["new", "old"]
    assert find_session(tmp_path, None).name == "new"
    with pytest.raises(SessionError, match="there is no session x in"):
        find_session(tmp_path, "x")


@pytest.mark.parametrize(
    ("case", "start"),
    [("small", "small-"), ("Modell Köln (2)", "Modell-K-ln-2-"), ("äöü", "case-"),
     ("x" * 90, "x" * 40 + "-"), (".hidden", "hidden-")],
)  # fmt: skip
def test_an_id_is_made_of_any_case_name(tmp_path: Path, case: str, start: str) -> None:
    name = session_module._make_name(case, tmp_path)
    assert name.startswith(start)
    make_folder(tmp_path, name)
    second = session_module._make_name(case, tmp_path)  # perhaps in the same second
    make_folder(tmp_path, second)
    assert second != name


def test_sessions_in_the_case_folder_would_be_part_of_the_case(tmp_path: Path) -> None:
    case = tmp_path / "my case"
    for root in (case, case / "out", case / "a" / "b"):
        with pytest.raises(ConfigurationError, match="is in the case folder"):
            session_module._refuse_root_in_case(root, case)
    for root in (tmp_path, tmp_path / "out", tmp_path / "my case 2", case / "pestfleet-sessions"):
        session_module._refuse_root_in_case(root, case)


def test_a_request_for_workers_is_taken_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    assert folder.take_workers_request() is None
    folder.request_workers(3)
    folder.request_workers(5)
    assert folder.take_workers_request() == 5
    assert folder.take_workers_request() is None


@pytest.mark.parametrize("content", ["", "{}", '{"workers": "many"}', "[1]"])
def test_a_request_that_cannot_be_read_ends_no_session(tmp_path: Path, content: str) -> None:
    folder = make_folder(tmp_path)
    (folder.path / "scale").write_text(content)
    assert folder.take_workers_request() is None
    assert sorted(path.name for path in folder.path.iterdir()) == ["results", "session.json"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"master": "elsewhere"}, "'elsewhere' .* is not here or there"),
        ({"memory": "much"}, "'much' .* is not a size of memory"),
        ({"cpus": -1.0}, "-1.0 .* is not a number of cores"),
        ({"pids": 0}, "0 .* is not a number of processes"),
    ],
)
def test_a_placement_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Placement(**wrong)


def test_a_copy_of_the_case_that_was_not_finished_is_made_anew(tmp_path: Path) -> None:
    case = tmp_path / "case"
    case.mkdir()
    (case / "a.pst").write_text("pcf")
    folder = SessionFolder(tmp_path / "s")
    spec = SessionSpec("s", str(case / "a.pst"), "d" * 64, "glm", "local", 2, 1)
    folder.create(spec)
    (folder.path / "case.draft").mkdir()  # killed when it was nearly done
    (folder.path / "case.draft" / "half").touch()
    keep_case(folder, spec)
    assert [path.name for path in folder.case.iterdir()] == ["a.pst"]
    assert not (folder.path / "case.draft").exists()
