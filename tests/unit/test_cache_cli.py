"""`pestfleet cache`: list, show, prune, verify."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cache_entries import (
    DIGEST,
    find_entry_file,
    list_entry_files,
    make_cache,
    make_key,
    make_record,
)
from pestfleet.cache import CachedRuns
from pestfleet.case import Case
from pestfleet.cli.main import cli
from pestfleet.cli.quantities import format_size, parse_size, parse_time
from pestfleet_worker.messages import Limits
from pestfleet_worker.runs import Slot
from session_files import CASE, EXAMPLE

OTHER = "cd" * 32


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A cache with three runs of one case, the first not used for 40 days, and one of another."""
    place = tmp_path / "cache"
    cache = make_cache(place)
    for number in range(3):
        cache.put(make_key(number), make_record(number))
    cache.put(make_key(0, case=OTHER), make_record(9))
    old = time.time() - 40 * 86_400
    os.utime(find_entry_file(place, make_key(0)), (old, old))
    return place


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, which runs with the Python that runs the tests."""
    folder = tmp_path_factory.mktemp("case") / "case"
    shutil.copytree(EXAMPLE, folder)
    control = folder / f"{CASE}.pst"
    text = control.read_text(encoding="utf-8")
    control.write_text(text.replace("python3 model.py", f"{sys.executable} model.py"))
    return folder


@pytest.fixture(scope="module")
def made(case: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, bytes]:
    """Three runs of the example, as a worker makes them."""
    opened = Case.read(case)
    folder = tmp_path_factory.mktemp("slot")
    slot = Slot(
        opened.spec, source=case, directory=folder / "slot", limits=Limits(), worker_id="test"
    )
    slot.prepare()
    try:
        found = {}
        for factor in (1.0, 1.1, 1.2):
            vector = opened.model_values(opened.initial_values() * factor).tobytes()
            outcome = slot.execute(vector)
            assert outcome.failure is None
            found[vector] = outcome.observations
        return found
    finally:
        slot.close()


def store(place: Path, case: Path, made: dict[bytes, bytes]) -> None:
    runs = CachedRuns(make_cache(place), Case.read(case).spec, platform="linux/x86_64")
    for parameters, observations in made.items():
        runs.store(parameters, observations, 0.1)


def call(place: Path | str, *arguments: str | Path) -> Result:
    words = ["cache", *map(str, arguments), "--cache", str(place)]
    return CliRunner().invoke(cli, words, catch_exceptions=False)


def test_list(place: Path) -> None:
    result = call(place, "list")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert ["abababababab", "case", "3"] in [line[:3] for line in lines]
    assert ["cdcdcdcdcdcd", "case", "1"] in [line[:3] for line in lines]
    size = sum(path.stat().st_size for path in list_entry_files(place))
    assert f"4 runs, {size} B, in {place}" in result.stdout


def test_list_as_json(place: Path) -> None:
    report = json.loads(call(place, "list", "--json").stdout)
    assert report["place"] == str(place)
    assert {use["digest"]: use["runs"] for use in report["cases"]} == {DIGEST: 3, OTHER: 1}
    assert sum(use["bytes"] for use in report["cases"]) == sum(
        path.stat().st_size for path in list_entry_files(place)
    )


def test_list_of_an_empty_cache(tmp_path: Path) -> None:
    assert call(tmp_path / "none", "list").stdout == f"the run cache {tmp_path}/none is empty\n"


def test_the_environment_names_the_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pestfleet.cli.cache import command

    monkeypatch.setenv("PESTFLEET_CACHE", str(place))
    assert "4 runs" in CliRunner().invoke(command, ["list"]).stdout


def test_show_a_case(place: Path) -> None:
    report = json.loads(call(place, "show", DIGEST[:8], "--json").stdout)
    assert (report["digest"], report["runs"], report["name"]) == (DIGEST, 3, "case")
    assert report["commands"] == ["model"]
    assert "platform     linux/x86_64" in call(place, "show", DIGEST).stdout


def test_show_a_run(place: Path) -> None:
    report = json.loads(call(place, "show", make_key(2).hash[:10], "--json").stdout)
    assert report["key"] == make_key(2).hash
    assert report["parameters"] == [2.0, 1 / 3]
    assert report["observations"] == [2.0, -0.0, 1e-300]
    assert report["seconds"] == 0.25
    assert (
        "observations 2.0 -0.0 … (3)" in call(place, "show", make_key(2).hash, "--rows", "2").stdout
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "abab"], "'abab' is neither a folder nor the beginning of a digest or key"),
        (["show", "123456789"], "has neither a case nor a run 123456789"),
        (["prune", "--case", "123456"], "has no case 123456"),
        (["prune", "--case", "nowhere"], "'nowhere' is neither a folder"),
        (["verify", "--rerun", "2"], "--rerun needs the case's files"),
        (["verify", "--rerun", "2", "--case", "nowhere"], "nowhere: there is no such case"),
        (["verify", "--rerun", "2", "--case", str(EXAMPLE)], "has no run of"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_mistakes_are_told_with_a_remedy(place: Path, words: list[str], says: str) -> None:
    result = call(place, *words)
    assert result.exit_code == 4
    assert says in result.stderr
    assert result.stderr.count("\n") == 2


@pytest.mark.parametrize("words", [["--older-than", "30"], ["--max-size", "5 apples"]])
def test_units_are_asked_for(place: Path, words: list[str]) -> None:
    result = call(place, "prune", *words)
    assert result.exit_code == 2
    assert "such as" in result.stderr


def test_prune(place: Path) -> None:
    dry = call(place, "prune", "--older-than", "30d", "--dry-run")
    assert dry.stdout.splitlines()[0].startswith("1 run would be removed")
    assert len(list_entry_files(place)) == 4
    report = json.loads(call(place, "prune", "--older-than", "30d", "--json").stdout)
    assert (report["removed"]["runs"], report["kept"]["runs"]) == (1, 3)
    assert len(list_entry_files(place)) == 3
    assert call(place, "prune", "--case", DIGEST[:6]).stdout.startswith("2 runs removed")
    assert call(place, "prune", "--max-size", "0").stdout.startswith("1 run removed")
    assert list_entry_files(place) == []


def test_verify(place: Path) -> None:
    assert "4 runs, " in call(place, "verify").stdout
    path = find_entry_file(place, make_key(1))
    path.write_bytes(path.read_bytes()[:-3])
    result = call(place, "verify")
    assert result.exit_code == 5
    assert "1 damaged" in result.stdout
    assert f"{make_key(1).hash}: it is cut off" in result.stdout
    assert call(place, "verify").exit_code == 0


def test_verify_makes_runs_again(tmp_path: Path, case: Path, made: dict[bytes, bytes]) -> None:
    store(tmp_path, case, made)
    result = call(tmp_path, "verify", "--rerun", "2", "--case", case)
    assert result.exit_code == 0, result.output
    assert "2 of 3 cached runs of the case were made again" in result.stdout
    assert "the model is deterministic" in result.stdout


def test_verify_notices_other_results(tmp_path: Path, case: Path, made: dict[bytes, bytes]) -> None:
    # The last bit of the last observation.
    store(tmp_path, case, {p: o[:-8] + bytes([o[-8] ^ 1]) + o[-7:] for p, o in made.items()})
    result = call(tmp_path, "verify", "--rerun", "1", "--case", case, "--json")
    assert result.exit_code == 5
    report = json.loads(result.stdout)["rerun"]
    assert report["deterministic"] is True
    (difference,) = report["differences"]
    assert difference["count"] == 1
    assert difference["observation"] == Case.read(case).spec.observations[-1]
    assert 0 < difference["relative"] < 1e-15
    assert "not what is cached" in call(tmp_path, "verify", "--rerun", "1", "--case", case).stdout


def test_verify_notices_a_model_that_draws_lots(tmp_path: Path, case: Path) -> None:
    folder = tmp_path / "case"
    shutil.copytree(case, folder)
    model = folder / "model.py"
    text = model.read_text(encoding="utf-8")
    assert "{value:.10e}" in text
    text = text.replace("{value:.10e}", "{value * random.random():.10e}")
    model.write_text(text.replace("import csv", "import csv, random"), encoding="utf-8")
    opened = Case.read(folder)
    vector = opened.model_values(opened.initial_values()).tobytes()
    store(tmp_path / "cache", folder, {vector: bytes(8 * len(opened.spec.observations))})
    result = call(tmp_path / "cache", "verify", "--rerun", "1", "--case", folder)
    assert result.exit_code == 5
    assert "the model is not deterministic" in result.stdout


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5e9), ("500 MB", 5e8), ("1.5GiB", 1.5 * 2**30), ("12", 12)]
)
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2_592_000), ("12h", 43_200), ("1.5min", 90), ("2w", 1_209_600)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "5XB", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (3200, "3.2 kB"), (1.5e8, "150 MB"), (2e13, "20 TB")],
)
def test_sizes_are_written_short(size: float, text: str) -> None:
    assert format_size(size) == text
