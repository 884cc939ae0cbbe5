"""What people ask of a run cache: shares, pruning, verifying, making runs again."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from cache_entries import (
    DIGEST,
    SPEC,
    find_entry_file,
    list_entry_files,
    make_cache,
    make_key,
    make_record,
)
from pestfleet.cache import CacheError, RunCache, runcache
from pestfleet.cache.directory import DirectoryShelf
from pestfleet.cache.rerun import choose_sample, compare_runs
from pestfleet.cache.upkeep import (
    find_entries,
    peek_entry,
    prune_cache,
    summarize_cases,
    verify_cache,
)
from pestfleet_worker.messages import pack_vector

OTHER = "cd" * 32
HOUR = 3600.0


def fill(folder: Path, ages: list[float], *, size: int = 1000) -> RunCache:
    """Entry number n was used `ages[n]` hours ago."""
    cache = make_cache(folder)
    for number, hours in enumerate(ages):
        cache.put(make_key(number), bytes(size - 64))
        used = time.time() - hours * HOUR
        os.utime(find_entry_file(folder, make_key(number)), (used, used))
    return cache


def list_kept(cache: RunCache, count: int) -> list[int]:
    names = {item.key for item in cache.shelf.list_entries()}
    return [number for number in range(count) if make_key(number) in names]


def test_shares_of_cases(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    for number in range(3):
        cache.put(make_key(number), make_record(number))
    cache.put(make_key(0, case=OTHER), b"no run")
    old = time.time() - 9000
    os.utime(find_entry_file(tmp_path, make_key(1)), (old, old))
    uses = {use.case: use for use in summarize_cases(cache)}
    assert uses.keys() == {DIGEST, OTHER}
    mine = uses[DIGEST]
    assert (mine.name, mine.entries) == ("case", 3)
    assert mine.size == sum(path.stat().st_size for path in list_entry_files(tmp_path / ".")[:3])
    assert mine.oldest == pytest.approx(old)
    assert mine.newest > old + 8000
    assert [use.case for use in summarize_cases(cache, OTHER)] == [OTHER]


def test_entries_are_found_by_the_beginning_of_their_key(tmp_path: Path) -> None:
    cache = fill(tmp_path, [0, 0, 0])
    (found,) = find_entries(cache, make_key(1).hash[:12])
    assert found.key == make_key(1)
    entry = peek_entry(cache, found)
    assert entry is not None and entry.value == bytes(936)
    assert len(find_entries(cache, "", limit=2)) == 2


def test_reading_renews_the_last_use_to_the_hour(tmp_path: Path) -> None:
    cache = fill(tmp_path, [0.5, 48])
    before = [find_entry_file(tmp_path, make_key(n)).stat().st_mtime for n in (0, 1)]
    assert cache.get(make_key(0)) == cache.get(make_key(1)) == bytes(936)
    after = [find_entry_file(tmp_path, make_key(n)).stat().st_mtime for n in (0, 1)]
    assert after[0] == before[0]
    assert after[1] > before[1] + 47 * HOUR


def test_prune_removes_what_was_not_used_for_long(tmp_path: Path) -> None:
    cache = fill(tmp_path, [1, 30, 50])
    dry = prune_cache(cache, older_than=24 * HOUR, dry_run=True)
    assert list_kept(cache, 3) == [0, 1, 2]
    pruned = prune_cache(cache, older_than=24 * HOUR)
    assert (dry.removed, dry.removed_size, dry.kept) == (2, 2000, 1)
    assert (pruned.removed, pruned.removed_size, pruned.kept) == (2, 2000, 1)
    assert list_kept(cache, 3) == [0]


@pytest.mark.parametrize("dry_run", [True, False])
def test_prune_to_a_size_removes_the_oldest_used(tmp_path: Path, dry_run: bool) -> None:
    cache = fill(tmp_path, [5, 1, 4, 2, 3])
    pruned = prune_cache(cache, max_bytes=3500, dry_run=dry_run)
    assert (pruned.removed, pruned.kept, pruned.kept_size) == (2, 3, 3000)
    assert list_kept(cache, 5) == ([0, 1, 2, 3, 4] if dry_run else [1, 3, 4])


@pytest.mark.parametrize("room", [0, 1, 1999, 5000, 9000, 20_000])
def test_prune_to_a_size_of_equally_old_entries(tmp_path: Path, room: int) -> None:
    cache = fill(tmp_path, [3] * 9)
    pruned = prune_cache(cache, max_bytes=room)
    assert pruned.kept == min(9, room // 1000)
    assert len(list_kept(cache, 9)) == pruned.kept


def test_prune_one_case_leaves_the_others(tmp_path: Path) -> None:
    cache = fill(tmp_path, [100, 0])
    cache.put(make_key(7, case=OTHER), b"x")
    assert prune_cache(cache, case=DIGEST, older_than=24 * HOUR).removed == 1
    assert prune_cache(cache, case=DIGEST).removed == 1
    assert [use.case for use in summarize_cases(cache)] == [OTHER]
    assert prune_cache(cache).removed == 0
    assert not (tmp_path / "v1" / DIGEST).exists()


def test_prune_always_removes_what_has_expired(tmp_path: Path) -> None:
    now = [1000.0]
    cache = make_cache(tmp_path, clock=lambda: now[0])
    cache.put(make_key(1), b"short", keep_seconds=10)
    cache.put(make_key(2), b"long", keep_seconds=100)
    cache.put(make_key(3), b"for ever")
    now[0] = 1050.0
    assert prune_cache(cache).removed == 1
    assert list_kept(cache, 4) == [2, 3]


def test_a_cache_that_grows_beyond_its_limit_loses_its_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runcache, "SWEEP_SHARE", 0.1)
    ages = [float(100 - number) for number in range(30)]
    fill(tmp_path, ages).close()
    cache = RunCache(DirectoryShelf(tmp_path), max_bytes=20_000)
    for number in range(30, 34):
        cache.put(make_key(number), bytes(936))
    cache.close(timeout=20)
    kept = list_kept(cache, 34)
    assert kept == list(range(kept[0], 34))  # the oldest went
    assert 14 <= len(kept) <= 22


def test_few_writes_start_a_sweep_once_a_day(tmp_path: Path) -> None:
    fill(tmp_path, [2.0] * 30).close()
    shelf = DirectoryShelf(tmp_path)
    first = RunCache(shelf, max_bytes=20_000)
    first.put(make_key(50), b"x")
    first.close(timeout=20)
    assert len(list_entry_files(tmp_path)) <= 19
    fill(tmp_path, [2.0] * 30).close()
    second = RunCache(shelf, max_bytes=20_000)
    second.put(make_key(51), b"x")
    second.close(timeout=20)
    assert len(list_entry_files(tmp_path)) == 32


def test_verify_sets_damaged_entries_aside(tmp_path: Path) -> None:
    cache = fill(tmp_path, [50, 50, 50])
    path = find_entry_file(tmp_path, make_key(1))
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    used = find_entry_file(tmp_path, make_key(2)).stat().st_mtime
    found = verify_cache(cache, DIGEST)
    assert (found.entries, found.size, found.damaged_entries) == (3, 3000, 1)
    assert found.damaged == {make_key(1).hash: "its checksum is wrong"}
    assert list_kept(cache, 3) == [0, 2]
    assert find_entry_file(tmp_path, make_key(2)).stat().st_mtime == used  # verifying is no use
    assert verify_cache(cache).damaged_entries == 0


def test_upkeep_tells_what_is_wrong_with_the_place(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    cache = make_cache(loop)
    for ask in (summarize_cases, prune_cache, verify_cache):
        with pytest.raises(CacheError) as caught:
            ask(cache)
        assert str(loop) in caught.value.message


# -- runs that are made again -----------------------------------------------------------------


def test_a_sample_is_fair_and_counts_all() -> None:
    counts: Counter[int] = Counter()
    for seed in range(2000):
        chosen, count = choose_sample(range(10), 3, random.Random(seed))
        assert (len(set(chosen)), count) == (3, 10)
        counts.update(chosen)
    assert all(500 < counts[number] < 700 for number in range(10))
    assert choose_sample(range(2), 5, random.Random(0)) == ([0, 1], 2)


def test_runs_that_are_the_same_are_sound() -> None:
    sample = [(make_key(n), make_record(n)) for n in range(3)]
    known = {record.parameters: record.observations for _, record in sample}
    found = compare_runs(sample, lambda p: (known[p], ""), SPEC.observations)
    assert (found.made, found.same, found.sound, found.deterministic) == (3, 3, True, True)


def test_a_model_that_draws_lots_is_noticed() -> None:
    draws = iter(range(100))

    def make(_: bytes) -> tuple[bytes, str]:
        return pack_vector([2.0, 0.0, 1e-300 * (1 + next(draws) / 10)]), ""

    found = compare_runs([(make_key(), make_record(2.0))], make, SPEC.observations)
    (difference,) = found.differences
    assert not found.sound and found.deterministic is False
    assert not difference.repeatable
    # -0.0 became 0.0: other bits, and no difference in value.
    assert (difference.count, difference.observation) == (1, "y")
    assert difference.relative == 0.0


def test_another_machines_bits_are_told_from_chance() -> None:
    record = make_record(2.0)
    again = pack_vector([2.5, -0.0, 1e-300])
    found = compare_runs([(make_key(), record)], lambda _: (again, ""), SPEC.observations)
    (difference,) = found.differences
    assert not found.sound and found.deterministic is True
    assert (difference.observation, difference.cached, difference.again) == ("x", 2.0, 2.5)
    assert difference.relative == 0.25
    assert difference.platform == record.about["platform"]


def test_a_run_that_fails_now_is_told() -> None:
    found = compare_runs(
        [(make_key(), make_record())], lambda _: (b"", "no licence"), SPEC.observations
    )
    assert found.failed == {make_key().hash: "no licence"}
    assert not found.sound and found.deterministic is None
