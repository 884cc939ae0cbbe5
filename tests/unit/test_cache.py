"""The run cache: keys, typed values, expiry, and where it is."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_entries import DIGEST, PLATFORM, make_cache, make_key, make_record
from pestfleet.cache import CacheError, RunKey, find_default_place, open_cache
from pestfleet.cache.entries import DamagedEntry, decode_entry, encode_entry, read_expiry
from pestfleet.cache.keys import KeyMaker, parse_name
from pestfleet_worker.errors import ConfigurationError
from source import run_python

JSON_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)

PARTS: dict[str, Any] = {
    "case": DIGEST,
    "commands": ("a b", "c"),
    "platform": PLATFORM,
    "parameters": b"\0" * 16,
}


# -- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"case": "ac" * 32},
        {"commands": ("a", "b c")},
        {"commands": ("a ", "bc")},
        {"commands": ("a b",)},
        {"commands": ("a b", "c", "")},
        {"platform": "linux/aarch64"},
        {"parameters": b"\0" * 15 + b"\1"},
        {"parameters": b"\0" * 24},
    ],
    ids=str,
)
def test_every_part_of_a_run_changes_its_key(change: dict[str, Any]) -> None:
    assert RunKey.of_run(**PARTS).hash == RunKey.of_run(**PARTS).hash
    assert RunKey.of_run(**PARTS).hash != RunKey.of_run(**PARTS | change).hash


def test_a_key_is_no_plain_hash_of_its_parts() -> None:
    joined = "".join((DIGEST, *PARTS["commands"], PLATFORM)).encode() + PARTS["parameters"]
    assert RunKey.of_run(**PARTS).hash != hashlib.sha256(joined).hexdigest()


def test_a_key_maker_makes_the_same_keys() -> None:
    maker = KeyMaker(DIGEST, PARTS["commands"], PLATFORM)
    assert maker.make(PARTS["parameters"]) == RunKey.of_run(**PARTS)
    assert maker.make(b"") != maker.make(b"\0")


@pytest.mark.parametrize("case", ["", "../../etc", "AB" * 32, "ab/cdefgh", "ab" * 33])
def test_what_could_be_a_path_is_no_key(case: str) -> None:
    with pytest.raises(ConfigurationError):
        RunKey(case, "0" * 64)
    with pytest.raises(ConfigurationError):
        RunKey(DIGEST, case)


def test_names_of_entries_are_read_back() -> None:
    key = make_key()
    assert parse_name(key.name) == key
    for name in (key.name + ".1-2.tmp", key.name[:-1], key.hash, f"{DIGEST}/zz/{key.hash}"):
        assert parse_name(name) is None


# -- values -----------------------------------------------------------------------------------


@given(value=st.binary() | JSON_VALUES)
def test_values_come_back_as_they_were(value: Any) -> None:
    key = make_key()
    entry = decode_entry(key, encode_entry(key, value, created=1.0, expires=2.0))
    assert entry.value == value
    assert type(entry.value) is type(value)
    assert (entry.created, entry.expires) == (1.0, 2.0)


def test_vectors_come_back_bit_by_bit() -> None:
    key = make_key()
    values = np.array([0.1, -0.0, np.nan, np.inf, 5e-324])
    again = decode_entry(key, encode_entry(key, values, created=1.0)).value
    assert again.dtype == np.float64
    assert again.tobytes() == values.tobytes()


def test_runs_come_back_with_their_parameters() -> None:
    key, record = make_key(), make_record(3.0)
    assert decode_entry(key, encode_entry(key, record, created=1.0)).value == record


@pytest.mark.parametrize(
    "value", [None, object(), np.zeros((2, 2)), np.zeros(2, dtype="f4"), {1, 2}]
)
def test_other_types_are_refused_at_once(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        make_cache(tmp_path).put(make_key(), value)


def test_the_head_alone_tells_when_an_entry_expires() -> None:
    data = encode_entry(make_key(), b"x", created=1.0, expires=77.0)
    assert read_expiry(data[:64]) == 77.0
    assert read_expiry(data[:63]) == 0.0
    assert read_expiry(b"\0" * 64) == 0.0


@given(data=st.binary(max_size=200))
def test_no_bytes_make_decoding_fail_otherwise(data: bytes) -> None:
    with pytest.raises(DamagedEntry):
        decode_entry(make_key(), data)


# -- get, put, update, delete -----------------------------------------------------------------


def test_put_get_update_delete(tmp_path: Path) -> None:
    cache, key = make_cache(tmp_path), make_key()
    assert cache.get(key) is None
    assert cache.put(key, {"a": 1})
    assert cache.get(key) == {"a": 1}
    assert not cache.put(key, {"a": 2})  # the first one stays
    assert cache.get(key) == {"a": 1}
    assert cache.update(key, b"new")
    assert cache.get(key) == b"new"
    assert cache.delete(key)
    assert not cache.delete(key)
    assert cache.get(key) is None
    assert (cache.counts.hits, cache.counts.misses, cache.counts.stored) == (3, 2, 2)


def test_another_process_sees_the_value(tmp_path: Path) -> None:
    make_cache(tmp_path).put(make_key(5), "värde")
    printed = run_python(
        "import sys; from pestfleet.cache import *\n"
        "print(ascii(open_cache(sys.argv[1]).get(RunKey(*sys.argv[2:]))))",
        *(str(tmp_path), make_key(5).case, make_key(5).hash),
    )
    assert printed.strip() == ascii("värde")


def test_values_expire(tmp_path: Path) -> None:
    now = [1000.0]
    cache = make_cache(tmp_path, clock=lambda: now[0])
    cache.put(make_key(1), b"short", keep_seconds=10)
    cache.put(make_key(2), b"long")
    now[0] = 1009.0
    assert cache.get(make_key(1)) == b"short"
    now[0] = 1010.0
    assert cache.get(make_key(1)) is None
    assert cache.get(make_key(2)) == b"long"
    assert cache.counts.expired == 1
    assert cache.put(make_key(1), b"again")


def test_an_expired_value_makes_room_for_a_new_one(tmp_path: Path) -> None:
    now = [1000.0]
    cache = make_cache(tmp_path, clock=lambda: now[0])
    cache.keep_seconds = 5
    cache.put(make_key(), b"old")
    now[0] += 6
    assert cache.put(make_key(), b"new")
    assert cache.get(make_key()) == b"new"


def test_nothing_is_written_before_the_first_put(tmp_path: Path) -> None:
    cache = open_cache(str(tmp_path / "not" / "yet"))
    assert cache.get(make_key()) is None
    cache.close()
    assert list(tmp_path.iterdir()) == []


# -- where it is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "environment", "parts"),
    [
        ("linux", {}, (".cache", "pestfleet", "runs")),
        ("linux", {"XDG_CACHE_HOME": "relative"}, (".cache", "pestfleet", "runs")),
        ("darwin", {}, ("Library", "Caches", "pestfleet", "runs")),
        ("win32", {}, ("AppData", "Local", "pestfleet", "Cache", "runs")),
    ],
)
def test_default_places_are_in_the_home_folder(
    platform: str, environment: dict[str, str], parts: tuple[str, ...]
) -> None:
    assert find_default_place(platform, environment) == Path.home().joinpath(*parts)


def test_default_places_follow_the_platforms_variable(tmp_path: Path) -> None:
    there = {"XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    assert find_default_place("linux", there) == tmp_path / "pestfleet" / "runs"
    assert find_default_place("win32", there) == tmp_path / "pestfleet" / "Cache" / "runs"


def test_open_cache_without_a_place_takes_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_cache().place == str(find_default_place())


@pytest.mark.parametrize(
    "place",
    ["ftp://host/x", "s3://", "s3:///x", "s3://key:secret@bucket/x", "s3://bucket/x?enpoint=y"],
)
def test_wrong_places_are_refused(place: str) -> None:
    with pytest.raises(CacheError) as caught:
        open_cache(place)
    assert caught.value.remedy
    assert "secret" not in str(caught.value)


def test_the_cache_is_light_to_import() -> None:
    heavy = ["boto3", "botocore", "numpy", "pandas", "scipy", "celery"]
    printed = run_python(
        "import sys, pestfleet.cache, pestfleet.cli.cache\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    assert printed.strip() == "[]"


def test_without_boto3_the_user_hears_what_to_install() -> None:
    printed = run_python(
        "import sys; sys.modules['boto3'] = None\n"
        "from pestfleet.cache import CacheError, open_cache\n"
        "try:\n    open_cache('s3://bucket/runs')\n"
        "except CacheError as error:\n    print(error.remedy)"
    )
    assert printed.strip() == "Install it with: pip install 'pestfleet[s3]'"
