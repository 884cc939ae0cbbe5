"""Numbers of lists: none ever means another machine than the one that was shown under it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.ec2.responses.instances import InstanceResponse

from capacity_account import REGION, Account, account, run_cli
from pestfleet.capacity.numbers import Numbers, parse_selection
from pestfleet.targets.ecs.access import Cloud
from pestfleet_worker.errors import ConfigurationError, SessionError

__all__ = ["account"]

PLAIN = ("--instances", "c5.large", "--join", "none", "--on-demand")
DAY = 86_400.0


class FakeCloud:
    """The place that numbers are of."""

    def __init__(self, account: str = "1", region: str = REGION) -> None:
        self.account, self.region = account, region


def make_numbers(path: Path, kind: str = "machines", **place: str) -> Numbers:
    return Numbers(cast(Cloud, FakeCloud(**place)), kind, path=path)


def test_a_machine_keeps_its_number(tmp_path: Path) -> None:
    numbers = make_numbers(tmp_path / "n.json")
    assert numbers.assign(["i-a", "i-b"]) == {"i-a": 1, "i-b": 2}
    assert numbers.assign(["i-c", "i-b"]) == {"i-c": 3, "i-b": 2}
    assert [numbers.find(number) for number in (1, 2, 3)] == ["i-a", "i-b", "i-c"]
    assert numbers.find_between(2, 9) == ["i-b", "i-c"]
    for wrong in (4, 0):
        with pytest.raises(ConfigurationError, match=f"has shown a number {wrong}"):
            numbers.find(wrong)


def test_places_and_kinds_have_numbers_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "n.json"
    make_numbers(path).assign(["i-a"])
    for other in (
        make_numbers(path, "images"),
        make_numbers(path, region="us-east-1"),
        make_numbers(path, account="2"),
    ):
        with pytest.raises(ConfigurationError):
            other.find(1)


def test_numbers_begin_again_a_day_after_the_last_machine_was_seen(tmp_path: Path) -> None:
    numbers = make_numbers(tmp_path / "n.json")
    numbers.assign(["i-a", "i-b"], all_of_them=True, now=0.0)
    # Who has that list before him may still type from it.
    assert numbers.assign(["i-c"], all_of_them=True, now=DAY / 2) == {"i-c": 3}
    assert numbers.assign(["i-c"], all_of_them=True, now=9 * DAY) == {"i-c": 3}
    assert numbers.assign(["i-d"], all_of_them=False, now=20 * DAY) == {"i-d": 4}
    assert numbers.assign(["i-e"], all_of_them=True, now=22 * DAY) == {"i-e": 1}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 8), unique=True), max_size=8))
def test_whatever_is_listed_a_number_has_one_meaning(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("numbers") / "n.json"
    meanings: dict[int, str] = {}
    for names in lists:
        for name, number in make_numbers(path).assign([f"i-{name}" for name in names]).items():
            assert meanings.setdefault(number, name) == name
    assert len(set(meanings.values())) == len(meanings)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "n.json"
    path.write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        make_numbers(path).find(1)


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["1,3-5"], [(1, 1), (3, 5)]),
        (["2", "i-0abc,7"], [(2, 2), "i-0abc", (7, 7)]),
        (["1,,2"], [(1, 1), (2, 2)]),
    ],
)
def test_selections(words: list[str], chosen: list[Any]) -> None:
    assert parse_selection(words) == chosen


@pytest.mark.parametrize("word", ["5-3", "one", "i-xyz", "-1", "1-", "1.5"])
def test_what_is_no_selection(word: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_selection([word])


def test_a_range_means_machines_of_one_session(account: Account) -> None:
    for session in ("s1", "s2", "s1"):
        run_cli("run", "--session", session, *PLAIN)
    result = run_cli("stop", "1-3")
    assert result.exit_code == ConfigurationError.exit_code
    assert "machines of the sessions s1, s2" in result.stderr
    assert run_cli("stop", "1-3", "--session", "s1").exit_code == 0
    assert len(account.find_machines("stopped")) == 2
    assert len(account.find_machines("running")) == 1
    result = run_cli("stop", "2", "--session", "s1")
    assert result.exit_code == SessionError.exit_code
    assert "is of session s2" in result.stderr


def test_the_number_of_a_machine_that_is_gone_means_no_other(account: Account) -> None:
    run_cli("run", "--session", "s1", *PLAIN, "--count", "2")
    run_cli("terminate", "1", "--yes")
    run_cli("run", "--session", "s1", *PLAIN)
    rows = json.loads(run_cli("list", "--json").stdout)
    assert sorted(row["number"] for row in rows) == [2, 3]
    assert run_cli("terminate", "1", "--yes").exit_code == SessionError.exit_code
    assert run_cli("terminate", "1-2", "--yes").exit_code == 0
    assert [row["number"] for row in json.loads(run_cli("list", "--json").stdout)] == [3]


def test_many_machines_are_listed_by_pages(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = InstanceResponse._get_param

    def find_few(self: Any, name: str, if_none: Any = None) -> Any:
        return find(self, name, 5 if name == "MaxResults" else if_none)  # moto has 100 a page

    monkeypatch.setattr(InstanceResponse, "_get_param", find_few)
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "pestfleet:session", "Value": "s1"}]}]
    for _ in range(11):  # a reservation each, which is what a page counts
        account.ec2.run_instances(
            ImageId="ami-078b9e98c4449bf43", MinCount=2, MaxCount=2, TagSpecifications=tags
        )
    assert len(json.loads(run_cli("list", "--json").stdout)) == 22
    assert len(json.loads(run_cli("list", "--session", "s1", "--json").stdout)) == 22
