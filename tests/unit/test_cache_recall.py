"""A case's runs in the run cache, as the master's ledger looks them up and stores them."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from cache_entries import DIGEST, PLATFORM, SPEC, make_cache
from fake_shelf import FakeShelf
from pestfleet.cache import CachedRuns, RunCache, RunKey, RunRecord, recall, writer
from pestfleet.ledger import RunStore
from pestfleet_worker.messages import CaseSpec, pack_vector

PARAMETERS = pack_vector([1.0, 2.0])
OBSERVATIONS = pack_vector([0.1, -0.0, 1e-300])
KEY = RunKey.of_run(case=DIGEST, commands=SPEC.commands, platform=PLATFORM, parameters=PARAMETERS)


def recall_runs(cache: RunCache, spec: CaseSpec = SPEC, platform: str = PLATFORM) -> CachedRuns:
    return CachedRuns(cache, spec, platform=platform)


def test_a_stored_run_is_found_by_another_session(tmp_path: Path) -> None:
    runs: RunStore = recall_runs(make_cache(tmp_path))
    assert runs.lookup(PARAMETERS) is None
    runs.store(PARAMETERS, OBSERVATIONS, 0.5)
    assert runs.lookup(PARAMETERS) == OBSERVATIONS
    later = recall_runs(make_cache(tmp_path))
    assert later.lookup(PARAMETERS) == OBSERVATIONS
    assert (later.counts.found, later.counts.missed) == (1, 0)


@pytest.mark.parametrize(
    ("change", "platform"),
    [
        ({"digest": "cd" * 32}, PLATFORM),
        ({"commands": ("model in2.dat",)}, PLATFORM),
        ({}, "linux/aarch64"),
        ({"observations": ("x", "y")}, PLATFORM),
    ],
    ids=["digest", "commands", "platform", "observations"],
)
def test_a_run_of_something_else_is_not_found(
    change: dict[str, Any], platform: str, tmp_path: Path
) -> None:
    cache = make_cache(tmp_path)
    recall_runs(cache).store(PARAMETERS, OBSERVATIONS, 0.5)
    other = recall_runs(cache, dataclasses.replace(SPEC, **change), platform)
    assert other.lookup(PARAMETERS) is None


@pytest.mark.parametrize(
    "value",
    [
        RunRecord(pack_vector([1.0, 3.0]), OBSERVATIONS, 0.5),
        RunRecord(PARAMETERS, OBSERVATIONS[8:], 0.5),
        OBSERVATIONS,
        {"observations": []},
    ],
    ids=["other parameters", "too short", "bytes", "json"],
)
def test_a_value_that_cannot_be_this_run_is_not_believed(value: Any, tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.put(KEY, value)
    assert recall_runs(cache).lookup(PARAMETERS) is None


def test_vectors_of_the_wrong_length_are_not_stored(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    recall_runs(cache).store(PARAMETERS, OBSERVATIONS[8:], 0.5)
    recall_runs(cache).store(PARAMETERS[8:], OBSERVATIONS, 0.5)
    assert cache.counts.stored == 0


def test_not_even_a_defect_of_the_cache_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    cache = make_cache(tmp_path, warnings=warnings)

    def fail(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(cache, "get", fail)
    monkeypatch.setattr(cache, "put", fail)
    runs = recall_runs(cache)
    for _ in range(3):
        assert runs.lookup(PARAMETERS) is None
        runs.store(PARAMETERS, OBSERVATIONS, 0.5)
    assert len(warnings) == 1
    assert "a defect" in warnings[0]


# -- a slow place -----------------------------------------------------------------------------


def test_a_slow_place_is_written_to_behind_the_callers_back() -> None:
    shelf = FakeShelf()
    runs = recall_runs(RunCache(shelf))
    shelf.gate.clear()
    runs.store(PARAMETERS, OBSERVATIONS, 0.5)  # returns though the write waits
    assert shelf.entries == {}
    shelf.gate.set()
    runs.close()
    assert list(shelf.entries) == [KEY]
    assert recall_runs(RunCache(shelf)).lookup(PARAMETERS) == OBSERVATIONS


def test_a_slow_place_is_not_asked_for_runs_that_it_does_not_list() -> None:
    shelf = FakeShelf()
    first = recall_runs(RunCache(shelf))
    first.store(PARAMETERS, OBSERVATIONS, 0.5)
    first.close()
    shelf.calls.clear()
    runs = recall_runs(RunCache(shelf))
    for number in range(50):
        assert runs.lookup(pack_vector([number, 0.0])) is None
    assert runs.lookup(PARAMETERS) == OBSERVATIONS
    assert shelf.calls == ["list", "read"]


def test_its_own_runs_are_found_in_a_slow_place() -> None:
    runs = recall_runs(RunCache(FakeShelf()))
    assert runs.lookup(PARAMETERS) is None
    runs.store(PARAMETERS, OBSERVATIONS, 0.5)
    runs.close()
    assert runs.lookup(PARAMETERS) == OBSERVATIONS


def test_a_place_with_very_many_runs_is_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_MAX_LISTED", 3)
    shelf = FakeShelf()
    cache = RunCache(shelf)
    for number in range(5):
        cache.put(RunKey(DIGEST, f"{number:064x}"), b"")
    cache.put(KEY, RunRecord(PARAMETERS, OBSERVATIONS, 0.5))
    assert recall_runs(cache).lookup(PARAMETERS) == OBSERVATIONS


@pytest.mark.parametrize("verb", ["read", "write", "list"])
def test_an_error_of_a_slow_place_is_a_miss(verb: str) -> None:
    shelf, warnings = FakeShelf(), list[str]()
    shelf.failing.add(verb)
    runs = recall_runs(RunCache(shelf, on_warning=warnings.append))
    for _ in range(10):
        runs.store(PARAMETERS, OBSERVATIONS, 0.5)
        assert runs.lookup(PARAMETERS) in (None, OBSERVATIONS)
    runs.close()
    assert runs.lookup(PARAMETERS) in (None, OBSERVATIONS)
    assert 1 <= len(warnings) <= 2


def test_what_waits_for_a_slow_place_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 8)
    shelf, warnings = FakeShelf(), list[str]()
    runs = recall_runs(RunCache(shelf, on_warning=warnings.append))
    shelf.gate.clear()
    for number in range(20):
        runs.store(pack_vector([number, 0.0]), OBSERVATIONS, 0.5)
    assert runs.counts.dropped == 12
    assert len(warnings) == 1
    shelf.gate.set()
    runs.close()
    assert len(shelf.entries) == 8


def test_closing_gives_up_a_place_that_does_not_answer() -> None:
    shelf = FakeShelf()
    before = threading.active_count()
    runs = recall_runs(RunCache(shelf))
    shelf.gate.clear()
    for number in range(10):
        runs.store(pack_vector([number, 0.0]), OBSERVATIONS, 0.5)
    runs.close(timeout=0.05)
    assert runs.counts.dropped == 10
    runs.store(PARAMETERS, OBSERVATIONS, 0.5)  # after the end: nothing, and no error
    shelf.gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith("cache-writer"):
            thread.join(10)
    assert threading.active_count() <= before
    assert len(shelf.entries) <= writer.THREADS  # those that were under way
