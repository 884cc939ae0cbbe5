"""The engine's copy of the control file: which options are in it, and what stays untouched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pestfleet.control.reader import read_control
from pestfleet.engines.pestpp.control_copy import (
    FLEET_OPTIONS,
    edit_options,
    list_warnings,
    write_control_copy,
)

CASES = Path(__file__).parent / "data" / "cases"


def _copy(folder: Path, name: str, *, extra: str = "", **options: str) -> tuple[Path, Path]:
    """A case with `extra` lines at its end, and the engine's copy beside it."""
    source = CASES / name
    (original,) = source.glob("*.pst")
    for path in source.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    control = folder / original.name
    with control.open("a") as file:
        file.write(extra)
    copy = folder / "copy.pst"
    write_control_copy(read_control(control), copy, options=options)
    return control, copy


@pytest.mark.parametrize("name", ["version1", "version2"])
def test_every_option_is_explicit_and_the_rest_is_the_same(tmp_path: Path, name: str) -> None:
    control, copy = _copy(tmp_path, name)
    before, after = read_control(control), read_control(copy)
    assert {key: after.options[key] for key in FLEET_OPTIONS} == FLEET_OPTIONS
    assert after.options.keys() - FLEET_OPTIONS.keys() == before.options.keys()
    assert after.control_data == before.control_data
    assert [p.name for p in after.parameters] == [p.name for p in before.parameters]
    assert [o.value for o in after.observations] == [o.value for o in before.observations]
    kept = copy.read_text().splitlines()
    assert [line for line in control.read_text().splitlines() if line.strip()] == [
        line for line in kept if line.strip() and not _is_ours(line)
    ]


def _is_ours(line: str) -> bool:
    return re.split(r"[\s(]", line.removeprefix("++"))[0] in FLEET_OPTIONS


@pytest.mark.parametrize("name", ["version1", "version2"])
def test_the_users_options_win_under_any_of_their_names(tmp_path: Path, name: str) -> None:
    _, copy = _copy(
        tmp_path,
        name,
        extra="++ Random_Seed(7) ies_num_reals(30)\n",
        ies_num_reals="9",
        noptmax="4",
    )
    after = read_control(copy)
    assert after.options["random_seed"] == "7"
    assert "rand_seed" not in after.options
    assert after.options["ies_num_reals"] == "9"
    assert copy.read_text().lower().count("ies_num_reals") == 1
    assert after.control_data["noptmax"] == 4


def test_an_option_is_taken_out_of_a_line_with_others() -> None:
    lines = ["pcf", "++a(1) b_option( x ) ++c(3) # b_option(2)", "++b_option(3)", "++ # b_option"]
    assert edit_options(lines, {"b_option": "9"}) == [
        "pcf",
        "++a(1) ++c(3) # b_option(2)",
        "++ # b_option",
        "++b_option(9)",
    ]


def test_a_name_that_is_part_of_another_stays() -> None:
    lines = ["++ies_num_reals(5)", "++num_reals(6)"]
    assert edit_options(lines, {"num_reals": "7"}) == ["++ies_num_reals(5)", "++num_reals(7)"]


def test_keywords_are_replaced_in_their_section_only() -> None:
    lines = [
        "pcf version=2", "* control data keyword", "noptmax 3", "# noptmax 4", "phiredstp 0.1",
        "* parameter groups", "noptmax relative 0.01",
    ]  # fmt: skip
    assert edit_options(lines, {"noptmax": "0"}) == [
        "pcf version=2", "* control data keyword", "noptmax 0", "# noptmax 4", "phiredstp 0.1",
        "* parameter groups", "noptmax relative 0.01",
    ]  # fmt: skip


def test_noptmax_of_version_1_is_in_the_seventh_line() -> None:
    lines = ["pcf", "* control data", "# a comment", *"123456", " 30 0.1 4 4", "1 1 1", "* x"]
    edited = edit_options(lines, {"noptmax": "-1"})
    assert edited == [*lines[:9], " -1 0.1 4 4", "1 1 1", "* x"]


@pytest.mark.parametrize(("mark", "text"), [(b"", b"gr\xfcn"), (b"\xef\xbb\xbf", b"gr\xc3\xbcn")])
def test_other_line_ends_bytes_and_marks_are_no_trouble(
    tmp_path: Path, mark: bytes, text: bytes
) -> None:
    control, copy = _copy(tmp_path, "version1")
    data = control.read_bytes().replace(b"pcf\n", b"pcf\r\n# " + text + b"\r\n", 1)
    control.write_bytes(mark + data)
    write_control_copy(read_control(control), copy, options={})
    assert copy.read_bytes().startswith(b"pcf\n# " + text + b"\n")


def test_an_engine_that_does_not_know_an_option_does_not_get_it(tmp_path: Path) -> None:
    control, copy = _copy(tmp_path, "version1")
    write_control_copy(read_control(control), copy, options={}, unknown={"panther_echo"})
    assert read_control(copy).options.keys() & FLEET_OPTIONS.keys() == (
        FLEET_OPTIONS.keys() - {"panther_echo"}
    )


@pytest.mark.parametrize(
    ("option", "costly", "harmless"),
    [
        ("overdue_giveup_fac", "2.0", "1e30"),
        ("overdue_giveup_minutes", "60", "1.0e+30"),
        ("overdue_resched_fac", "1.15", "1e30"),
        ("max_run_fail", "3", "1"),
        ("panther_persistent_workers", "False", "TRUE"),
        ("panther_echo", "0", "true"),
        ("panther_master_timeout_milliseconds", "500", "20"),
        ("panther_debug_loop", "true", "false"),
    ],
)
def test_what_costs_realizations_or_hours_is_warned_of(
    option: str, costly: str, harmless: str
) -> None:
    (warning,) = list_warnings({option: costly, "ies_num_reals": "3"})
    assert warning.startswith(f"{option}({costly}): ")
    assert list_warnings({option: harmless}) == []


def test_our_own_options_need_no_warning() -> None:
    assert list_warnings(FLEET_OPTIONS) == []
