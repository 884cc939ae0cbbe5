"""The master's order of names against the case's."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pestfleet.engines.gateway.frames import FrameError, pack_names
from pestfleet.engines.gateway.names import Names, NamesError

CASE = ("k1", "k2", "s")


def match(*names: str) -> NamesError | None:
    try:
        Names("parameter", CASE).match(pack_names(names))
    except NamesError as error:
        return error
    return None


def pack(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def test_values_move_with_their_names() -> None:
    order = Names("parameter", CASE).match(pack_names(["S", "K1", "K2"]))
    assert order.to_case(pack(3, 1, 2)) == pack(1, 2, 3)
    assert order.from_case(pack(1, 2, 3)) == pack(3, 1, 2)


@given(st.permutations([f"n{i}" for i in range(20)]), st.binary(min_size=160, max_size=160))
def test_every_bit_survives(there: list[str], values: bytes) -> None:
    order = Names("observation", [f"n{i}" for i in range(20)]).match(pack_names(there))
    moved = order.to_case(values)
    for place, name in enumerate(there):
        here = int(name[1:])
        assert moved[8 * here : 8 * here + 8] == values[8 * place : 8 * place + 8]
    assert order.from_case(moved) == values


def test_the_same_order_is_not_copied() -> None:
    values = pack(1, 2, 3)
    order = Names("parameter", CASE).match(pack_names(CASE))
    assert order.to_case(values) is values
    assert order.from_case(values) is values


def test_in_a_cycle_pestpp_da_sorts_upper_case_names() -> None:
    """`_` stands between upper and lower case letters: A_ sorts after AB, a_ before ab."""
    order = Names("parameter", ("ab", "c", "a_")).sorted
    assert order.to_case(pack(1, 2, 3)) == pack(1, 3, 2)  # AB, A_, C


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("k1", "k2"), "1 of the fleet's case missing (s)"),
        (("k1", "k2", "s", "t"), "1 that the fleet's case does not have (t)"),
        (("k1", "k2", "s", "s"), "1 given twice"),
        (("k1", "k2", "x"), "does not have (x); 1 of the fleet's case missing (s)"),
        ((), "3 of the fleet's case missing (k1, k2, s)"),
    ],
)
def test_other_names_are_an_error(names: tuple[str, ...], message: str) -> None:
    error = match(*names)
    assert error is not None
    assert error.message.startswith("the master's parameter names are not the case's: ")
    assert error.message.endswith(message)
    assert "control file" in error.remedy


def test_long_lists_of_other_names_are_cut() -> None:
    error = match(*CASE, *(f"x{i:04d}" for i in range(1000)))
    assert error is not None
    assert error.message.endswith("(x0000, x0001, x0002, x0003, x0004, …)")


def test_names_that_are_none() -> None:
    with pytest.raises(FrameError):
        Names("parameter", CASE).match(b"k1\0k2\0s")
