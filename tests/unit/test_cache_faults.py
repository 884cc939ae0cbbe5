"""The run cache under damage, faults, kills and competing writers: right or missing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cache_entries import find_entry_file, list_entry_files, make_cache, make_key, make_record
from pestfleet.cache import RunCache, directory, runcache
from pestfleet.cache.directory import DirectoryShelf
from pestfleet.cache.entries import DamagedEntry, decode_entry, encode_entry
from pestfleet.cache.upkeep import prune_cache, verify_cache
from source import CLIENT, WORKER

# -- damage -----------------------------------------------------------------------------------


def test_a_file_that_is_cut_off_anywhere_is_missing(tmp_path: Path) -> None:
    warnings: list[str] = []
    cache, key, record = make_cache(tmp_path, warnings=warnings), make_key(), make_record()
    cache.put(key, record)
    path = find_entry_file(tmp_path, key)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert cache.get(key) is None, length
        assert not path.exists()  # set aside
        assert cache.put(key, record)
        assert path.read_bytes()[64:] == whole[64:]
    assert cache.get(key) == record
    assert cache.counts.damaged == len(whole) > 100
    assert len(warnings) == 1
    assert key.hash in warnings[0]


def test_a_changed_byte_anywhere_makes_an_entry_missing(tmp_path: Path) -> None:
    cache, key, record = make_cache(tmp_path), make_key(), make_record()
    cache.put(key, record)
    path = find_entry_file(tmp_path, key)
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        assert cache.get(key) is None, position
    path.write_bytes(whole)
    assert cache.get(key) == record


@pytest.mark.parametrize("value", [b"\0", [1], make_record()], ids=["bytes", "json", "run"])
def test_no_single_bit_goes_unnoticed(value: Any) -> None:
    key = make_key()
    whole = encode_entry(key, value, created=1.0, expires=2.0)
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedEntry):
            decode_entry(key, bytes(changed))
    for extra in (b"\0", whole):
        with pytest.raises(DamagedEntry):
            decode_entry(key, whole + extra)


def test_an_entry_under_another_name_is_no_entry(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.put(make_key(1), make_record(1))
    cache.put(make_key(2), make_record(2))
    shutil.copyfile(find_entry_file(tmp_path, make_key(1)), find_entry_file(tmp_path, make_key(2)))
    assert cache.get(make_key(2)) is None
    assert cache.get(make_key(1)) == make_record(1)


def test_put_replaces_a_damaged_entry(tmp_path: Path) -> None:
    cache, key = make_cache(tmp_path), make_key()
    cache.put(key, b"good")
    find_entry_file(tmp_path, key).write_bytes(b"")
    assert cache.put(key, b"good again")
    assert cache.get(key) == b"good again"
    assert prune_cache(cache).leftovers.files == 1  # the one that was set aside


# -- faults of the place ----------------------------------------------------------------------


class FaultyOs:
    """FAKE: the module `os`, of which some functions fail."""

    def __init__(self, error: int, *names: str) -> None:
        self.names = names
        self.error = error

    def __getattr__(self, name: str) -> Any:
        if name in self.names:
            return self._fail
        return getattr(os, name)

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise OSError(self.error, os.strerror(self.error))


CALLS = ["open", "fstat", "read", "write", "close", "link", "replace", "unlink", "utime"]


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("call", CALLS)
def test_fake_an_error_at_each_call_never_raises(
    call: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = make_cache(tmp_path)
    sound.put(make_key(1), b"kept")
    warnings: list[str] = []
    cache = make_cache(tmp_path, warnings=warnings)
    with monkeypatch.context() as patch:
        if call != "close":  # closing for real, or the test runs out of files
            patch.setattr(directory, "os", FaultyOs(error, call))
        else:
            patch.setattr(directory, "os", ClosingFails(error))
        assert cache.get(make_key(1)) in (None, b"kept")
        assert cache.get(make_key(2)) is None
        cache.put(make_key(3), b"new")
        cache.update(make_key(1), b"kept")
        assert cache.get(make_key(3)) in (None, b"new")
        cache.close()
    assert len(warnings) <= 2  # one for reading, one for writing
    # The others have a second way, or are no loss.
    assert (cache.counts.errors > 0) == (call not in ("link", "unlink", "utime"))
    again = make_cache(tmp_path)
    assert again.get(make_key(1)) == b"kept"
    assert again.get(make_key(3)) in (None, b"new")
    assert verify_cache(again).damaged_entries == 0


class ClosingFails(FaultyOs):
    """FAKE: closes, then reports an error, as a network disk does."""

    def __init__(self, error: int) -> None:
        super().__init__(error)

    def close(self, file: int) -> None:
        os.close(file)
        self._fail()


def test_fake_a_place_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "os", FaultyOs(errno.EPERM, "link"))
    cache = make_cache(tmp_path)
    assert cache.put(make_key(), b"first")
    assert not cache.put(make_key(), b"second")
    assert cache.get(make_key()) == b"first"
    assert list(tmp_path.glob("v1/*/*/*.tmp")) == []


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real disk of 64 KiB where this user may mount one, else a FAKE that says it is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = shutil.which("mount")
    command = [str(program), "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if program is None or subprocess.run(command, capture_output=True, check=False).returncode:
        monkeypatch.setattr(directory, "os", NoSpaceAfter(40_000))
        yield disk
    else:
        try:
            yield disk
        finally:
            subprocess.run(["umount", str(disk)], check=True)


class NoSpaceAfter(FaultyOs):
    """FAKE: a disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__(errno.ENOSPC)
        self.room = room

    def write(self, file: int, data: Any) -> int:
        written = os.write(file, bytes(data)[: self.room])
        self.room -= written
        return written if written else self._fail()


def test_a_full_disk_costs_the_cache_only(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runcache, "PATIENCE", 10**6)
    warnings: list[str] = []
    cache = make_cache(small_disk, warnings=warnings)
    values = {number: bytes([number]) * 5_000 for number in range(40)}
    stored = {number for number, value in values.items() if cache.put(make_key(number), value)}
    assert 0 < len(stored) < len(values)
    assert len(warnings) == 1
    assert os.strerror(errno.ENOSPC) in warnings[0]
    for number, value in values.items():
        assert cache.get(make_key(number)) == (value if number in stored else None)
    assert verify_cache(cache).damaged_entries == 0
    assert list(small_disk.glob("v1/*/*/*.tmp")) == []


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    warnings: list[str] = []
    cache = make_cache(tmp_path / "file", warnings=warnings)
    assert not cache.put(make_key(), b"x")
    assert cache.get(make_key()) is None
    assert not cache.delete(make_key())
    assert len(warnings) == 2


def test_a_folder_where_an_entry_should_be(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    (tmp_path / "v1" / make_key().name).mkdir(parents=True)
    assert cache.get(make_key()) is None
    assert not cache.put(make_key(), b"x")
    assert cache.counts.errors == 2


class BrokenShelf(DirectoryShelf):
    """FAKE: counts how often it is asked, and fails while `broken`."""

    broken = True
    asked = 0

    def read(self, key: Any) -> bytes | None:
        self.asked += 1
        if self.broken:
            raise OSError(errno.ETIMEDOUT, "no answer")
        return super().read(key)


def test_fake_a_place_that_fails_again_and_again_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    shelf = BrokenShelf(tmp_path)
    cache = RunCache(shelf, on_warning=warnings.append)
    assert cache.put(make_key(), b"x")  # writing is judged by itself
    assert [cache.get(make_key()) for _ in range(20)] == [None] * 20
    assert shelf.asked == runcache.PATIENCE
    assert (cache.counts.errors, cache.counts.skipped) == (3, 17)
    assert len(warnings) == 1
    shelf.broken = False
    later = time.monotonic() + runcache.REST_SECONDS
    monkeypatch.setattr(runcache.time, "monotonic", lambda: later)
    assert cache.get(make_key()) == b"x"


# -- other processes --------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from pestfleet.cache import RunCache, RunKey, RunRecord
from pestfleet.cache.directory import DirectoryShelf

place, hashes, mark, verb = sys.argv[1], sys.argv[2].split(","), sys.argv[3], sys.argv[4]
cache = RunCache(DirectoryShelf(Path(place)))
print("ready", flush=True)
sys.stdin.readline()
done = []
for _ in range(int(sys.argv[5])):
    for hash in hashes:
        done.append(getattr(cache, verb)(RunKey("ab" * 32, hash), mark.encode() * 3000))
print("".join("1" if one else "0" for one in done), cache.counts.errors)
"""


@pytest.fixture
def start_writer(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(hashes: list[str], mark: str, verb: str, rounds: int) -> subprocess.Popen[str]:
        words = [str(tmp_path), ",".join(hashes), mark, verb, str(rounds)]
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{CLIENT.parent}{os.pathsep}{WORKER.parent}"},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def release(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def test_of_two_processes_that_put_one_wins_each_key(
    tmp_path: Path, start_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    keys = [make_key(number) for number in range(300)]
    writers = [start_writer([key.hash for key in keys], mark, "put", 1) for mark in "AB"]
    release(*writers)
    won, errors = zip(*(writer.communicate()[0].split() for writer in writers), strict=True)
    assert set(errors) == {"0"}
    cache = make_cache(tmp_path)
    for number, key in enumerate(keys):
        assert [flags[number] for flags in won].count("1") == 1, number
        winner = b"A" if won[0][number] == "1" else b"B"
        assert cache.get(key) == winner * 3000
    assert list(tmp_path.glob("v1/*/*/*.tmp")) == []


def test_a_reader_sees_whole_values_while_two_processes_write_the_same_key(
    tmp_path: Path, start_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    cache, key = make_cache(tmp_path), make_key()
    cache.put(key, b"A" * 3000)
    writers = [start_writer([key.hash], mark, "update", 600) for mark in "AB"]
    release(*writers)
    seen = set()
    while any(writer.poll() is None for writer in writers) or cache.counts.hits <= 10:
        seen.add(cache.get(key))
    assert seen <= {b"A" * 3000, b"B" * 3000}
    assert cache.counts.damaged == 0


def test_kill_9_of_a_writer_leaves_whole_entries(
    tmp_path: Path, start_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    keys = [make_key(number) for number in range(200)]
    for attempt in range(4):
        writer = start_writer([key.hash for key in keys], "A", "update", 10**6)
        release(writer)
        while len(list_entry_files(tmp_path)) < 20 * (attempt + 1):
            assert writer.poll() is None
        writer.kill()
        writer.wait()
    cache = make_cache(tmp_path)
    assert {cache.get(key) for key in keys} <= {None, b"A" * 3000}
    assert cache.counts.damaged == 0
    assert cache.counts.hits >= 80


def test_what_a_killed_writer_left_is_pruned_when_it_is_old(tmp_path: Path) -> None:
    cache, key = make_cache(tmp_path), make_key()
    cache.put(key, b"whole")
    entry = find_entry_file(tmp_path, key)
    left = [entry.with_name(f"{entry.name}.{number}.tmp") for number in "ab"]
    for path in left:
        path.write_bytes(b"half")
    os.utime(left[0], (time.time() - 7200,) * 2)
    assert prune_cache(cache, dry_run=True).leftovers.files == 1
    assert left[0].exists()
    assert prune_cache(cache).leftovers.files == 1
    assert not left[0].exists()
    assert left[1].exists()  # its writer may live
    assert cache.get(key) == b"whole"
