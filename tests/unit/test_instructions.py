"""Instruction files: all of PEST's language, quick and slow reading alike, exact errors."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pyemu
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pestfleet_worker import instruction_blocks, instructions
from pestfleet_worker.instructions import InstructionError, Instructions

REPEATS = 12  # lines of one shape, enough for a quick reader


def read(folder: Path, script: str, output: str | bytes) -> dict[str, float]:
    ins = folder / "a.ins"
    out = folder / "a.out"
    ins.write_text("pif ~\n" + script, encoding="latin-1")
    out.write_bytes(output if isinstance(output, bytes) else output.encode("latin-1"))
    compiled = Instructions.parse(ins)
    return dict(zip(compiled.names, compiled.read(out), strict=True))


def read_slowly(folder: Path, script: str, output: str) -> dict[str, float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instructions, "compile_block", lambda operations, count: None)
        return read(folder, script, output)


CASES = [
    # non-fixed
    ("l1 !a!", "1.5\n", [1.5]),
    ("L1 !A!", "  -1.5e3   text\n", [-1500.0]),
    ("l1 !a! !b! !c!", "1 2 3 4\n", [1, 2, 3]),
    ("l1 !a! !b!", "1,2\n", [1, 2]),
    ("l1 !a! !b!", "1 , 2\n", [1, 2]),
    ("l1 !dum! !a!", "name 2\n", [2]),
    ("l1 !dum! !dum! !a!", "x,y,2\n", [2]),
    ("l1 !a!", "\t7\t8\r\n", [7]),
    # Fortran's notation
    ("l1 !a! !b! !c!", "1.0D+03 1.0d3 1.234-105\n", [1000, 1000, 1.234e-105]),
    ("l1 [a]1:8[b]9:16".replace("[b]", " [b]"), "1.5D+01  2.5-100\n", [15, 2.5e-100]),
    # whitespace
    ("l1 w !a!", "name 5\n", [5]),
    ("l1 w !a!", "   5 6\n", [5]),
    ("l1 w w w !a!", "4.33 -20.3 23.392093 3.394382\n", [3.394382]),
    ("l1 !dum! w w w !a!", "  4.33 -20.3 23.392093 3.394382\n", [3.394382]),
    ("l1 w !a!", "a,b c,5 6\n", None),
    ("l1 w ~,~ !a!", "a,b c,5 6\n", [5]),
    # tabs: the cursor is on the column, reading begins after it
    ("l1 t60 ~=~ !a!", "TIME(1): A = 1.34564E-04, TIME(2): A = 1.45654E-04, "
     "TIME(3): A = 1.54982E-04\n", [1.54982e-4]),
    ("l1 t5 !a!", "xxxxx12\n", [12]),
    ("l1 t5 !a!", "1234567\n", [67]),
    # fixed
    ("l1 [A]1:8 [B]9:16 [C]17:24", "1236.5678495.000-900.000\n", [1236.567, 8495, -900]),
    ("l1 [a]3:40", "x  12.5\n", [12.5]),
    ("l1 [b]6:8 [a]1:3", "1.1  2.2\n", [2.2, 1.1]),
    ("l1 [a]2:4 !b!", " 1.5 7\n", [1.5, 7]),
    ("l1 [dum]1:3 !b!", "abc 7\n", [7]),
    ("l1 [a]9:12", "\t1.5\n", [1.5]),
    # semi-fixed
    ("l1 (a)3:6", "   123456789\n", [123456789]),
    ("l1 (a)4:4", " 123.5 8\n", [123.5]),
    ("l1 (a)1:10 !b!", "    12.25,3\n", [12.25, 3]),
    ("l1 (dum)1:3 !b!", " abc 3\n", [3]),
    # secondary markers
    ("l1 ~K:~ !a!", "Na: 3.4E-2 Mg: 5.9E-2 K: 9.9E-3\n", [9.9e-3]),
    ("l5 ~=~ !a! ~%~", "\n\n\n\nSOIL WATER CONTENT (NO CORRECTION)=21.345634%\n", [21.345634]),
    ("l1 ~=~ !a! ~ m~ !b!", "d=2.5 m 3\n", [2.5, 3]),
    ("l1 !a! ~E~ !b!", "1.5E3\n", None),
    ("l1 !a! ~E~ !b!", "1.5E3 E4\n", [1500, 4]),
    ("l1 !dum! ~E~ !b!", "abcE3 E4\n", [3]),
    ("l1 ~=~ ~=~ !a!", "x=1=2 3\n", [2]),
    ("l1 ~two words~ !a!", "one two words 3\n", [3]),
    ("l1 ~,~ !a! ~,~ !b!", "name,1.5,2.5\n", [1.5, 2.5]),
    ("l1 ~X~ !a!", "x 1 X 2\n", [2]),
    # continuation
    ("l1 !a!\n& !b!\n& w !c!", "1 2 3\n", [1, 2, 3]),
    # lines
    ("l3 !a!", "1\n2\n3", [3]),
    ("l1\nl1 !a!", "1\n2\n", [2]),
    ("\nl1 !a!\n\n", "1\n", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("script", "output", "values"), CASES)
def test_language(tmp_path: Path, script: str, output: str, values: list[float] | None) -> None:
    if values is None:
        with pytest.raises(InstructionError):
            read(tmp_path, script, output)
    else:
        assert list(read(tmp_path, script, output).values()) == values


@pytest.mark.parametrize(("script", "output", "values"), CASES)
def test_language_in_many_lines(
    tmp_path: Path, script: str, output: str, values: list[float] | None
) -> None:
    scripts = [re.sub(r"([a-cA-C])([])!])", rf"\g<1>{i}\2", script) for i in range(REPEATS)]
    output = output if output.endswith("\n") else output + "\n"
    if values is None:
        with pytest.raises(InstructionError):
            read(tmp_path, "\n".join(scripts), output * REPEATS)
    else:
        found = read(tmp_path, "\n".join(scripts), output * REPEATS)
        assert list(found.values()) == values * REPEATS


LISTING = """\
PERIOD NO. 1
SOLUTION VECTOR
 1.1 1.2
TIME STEP 10 (ITERATIONS 4) STRESS
  X = 1.05  STRESS = 4.35678E+03
TIME STEP 10 (ITERATIONS 4) STRAIN
  X = 1.05  STRAIN = 2.56785E-03
PERIOD NO. 2
SOLUTION VECTOR
 2.1 2.2
"""


def test_primary_markers(tmp_path: Path) -> None:
    script = "~PERIOD NO. 2~\n~SOLUTION VECTOR~\nl1 (a)1:4 !b!\n"
    assert read(tmp_path, script, LISTING) == {"a": 2.1, "b": 2.2}
    assert read(tmp_path, "~TIME STEP 10~ !a!\n", "TIME STEP 10 20\n") == {"a": 20}


def test_primary_marker_is_searched_from_the_next_line(tmp_path: Path) -> None:
    assert read(tmp_path, "~x=~ !a!\n~x=~ !b!", "x=1 x=2\nx=3\n") == {"a": 1, "b": 3}
    assert read(tmp_path, "l1 !a!\n~x=~ !b!", "1 x=2\nx=3\n") == {"a": 1, "b": 3}
    assert read(tmp_path, "~x=~ !b!", "y\n\nx=3") == {"b": 3}


def test_search_goes_on_until_all_markers_are_in_one_line(tmp_path: Path) -> None:
    script = "~TIME STEP 10~ ~STRAIN~\nl1 ~STRAIN =~ !a!\n"
    assert read(tmp_path, script, LISTING) == {"a": 2.56785e-03}
    with pytest.raises(InstructionError, match=r"a\.ins:2: a\.out: the marker 'TIME STEP 10'"):
        read(tmp_path, "~TIME STEP 10~ ~nowhere~\n", LISTING)
    # Anything else before the secondary marker makes its absence an error.
    with pytest.raises(InstructionError, match=r"a\.out:4: the marker 'STRAIN' is not in the rest"):
        read(tmp_path, "~TIME STEP 10~ w ~STRAIN~\n", LISTING)
    with pytest.raises(InstructionError, match=r"a\.out:1: the marker 'STRAIN' is not in the line"):
        read(tmp_path, "l1 ~STRAIN~ !a!\n", LISTING)


@pytest.mark.parametrize(
    ("script", "output", "message"),
    [
        ("l1 !a!\nl2 !b!\n", "1\n2\n", r"a\.ins:3: a\.out: the file ends after line 2"),
        ("l1 !a!\n", "", r"a\.ins:2: a\.out: the file is empty"),
        ("l1 !a!\n~end~\n", "1\n2\n", r"a\.ins:3: a\.out: the marker 'end' is not in any line"),
        ("l1 !a!\n& !b!\n", "1\n", r"a\.ins:3: a\.out:1: observation b: no number after column 1"),
        ("l1 !a!\n& !b!\n", "1 *****\n", r"a\.ins:3: a\.out:1: observation b: '\*\*\*\*\*' in col"),
        ("l2 !a!\n", "\n1_000\n", r"a\.ins:2: a\.out:2: observation a: '1_000' in columns 1 to 5"),
        ("l1 [a]1:5\n", "1 2 3\n", r"observation a: '1 2 3' in columns 1 to 5 is not a number"),
        (
            "l1 [a]9:12\n",
            "1.5\n",
            r"observation a: no number in columns 9 to 12; the line is '1.5'",
        ),
        ("l1 (a)5:6\n", "1.5    7\n", r"observation a: no number in columns 5 to 6"),
        ("l1 w !a!\n", "12345\n", r"no whitespace with text after it"),
        ("l1 w !a!\n", "12345   \n", r"no whitespace with text after it"),
        ("l1 t9 !a!\n", "12345\n", r"the line ends before column 9"),
        ("l1 !a! t2 !b!\n", "12345 7\n", r"t2 would go back: the cursor is at column 5"),
        ("l1 ~x~ !a!\n", "1\n", r"the marker 'x' is not in the line; the line is '1'"),
    ],
)
def test_output_that_does_not_fit(tmp_path: Path, script: str, output: str, message: str) -> None:
    with pytest.raises(InstructionError, match=message) as caught:
        read(tmp_path, script, output)
    assert caught.value.file.name == "a.ins"
    assert caught.value.line > 0
    assert caught.value.problem.startswith("a.out")


@pytest.mark.parametrize(
    ("script", "fine", "bad", "message"),
    [
        ("l1 !a!", "1", "x", "'x' in columns 1 to 1 is not a number"),
        ("l1 !dum! !a!", "x 1", "x", "no number after column 1"),
        ("l1 w !a!", "x 1", "x", "no whitespace"),
        ("l1 t3 !a!", "xxx1", "xx", "ends before column 3"),
        ("l1 ~=~ !a!", "x=1", "x", "the marker '=' is not in the line"),
        ("l1 [a]2:4", " 1.5", " 1.", ""),
        ("l1 [a]2:4", " 1.5", "1", "no number in columns 2 to 4"),
        ("l1 (a)2:4", " 1.5", "1    2", "no number in columns 2 to 4"),
    ],
)
def test_bad_line_among_many_good_ones(
    tmp_path: Path, script: str, fine: str, bad: str, message: str
) -> None:
    many = "".join(script.replace("a", f"a{i}") + "\n" for i in range(REPEATS))
    for row in (0, 5, REPEATS - 1):
        lines = [fine] * REPEATS
        lines[row] = bad
        if not message:
            values = list(read(tmp_path, many, "\n".join(lines)).values())
            assert values == [1.5] * row + [1.0] + [1.5] * (REPEATS - 1 - row)
            continue
        place = rf"a\.ins:{row + 2}: a\.out:{row + 1}: .*"
        with pytest.raises(InstructionError, match=place + re.escape(message)):
            read(tmp_path, many, "\n".join(lines))
    with pytest.raises(InstructionError, match=rf"a\.ins:{REPEATS}: a\.out: the file ends after"):
        read(tmp_path, many, (fine + "\n") * (REPEATS - 2))


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("ptf ~\n", 1, "first line must be pif"),
        ("", 1, "first line must be pif"),
        ("pif !\n", 1, "cannot be the marker delimiter"),
        ("pif x\n", 1, "cannot be the marker delimiter"),
        ("pif ~\nl1 !a!\n!b!\n", 3, "must begin with a line advance"),
        ("pif ~\n& !a!\n", 2, "cannot be a continuation"),
        ("pif ~\nl1 !a!\n&!b!\n", 3, "must begin with a line advance"),
        ("pif ~\nl1 ~open !a!\n", 2, "not closed"),
        ("pif ~\nl1 ~~ !a!\n", 2, "without text"),
        ("pif ~\nl1 !a! l2\n", 2, "must be the first instruction"),
        ("pif ~\nl0 !a!\n", 2, "cannot understand the instruction 'l0'"),
        ("pif ~\nl1 !a\n", 2, "cannot understand the instruction '!a'"),
        ("pif ~\nl1 !a!!b!\n", 2, "not an observation name"),
        ("pif ~\nl1 [a]5:3\n", 2, "ascending"),
        ("pif ~\nl1 [a]0:3\n", 2, "count from 1"),
        ("pif ~\nl1 [a)1:3\n", 2, "cannot understand"),
        ("pif ~\nl1 [a] 1:3\n", 2, "cannot understand"),
        ("pif ~\nl1 x !a!\n", 2, "cannot understand the instruction 'x'"),
        ("pif ~\nl1 !a!\nl1 !A!\n", 3, "read twice, first in line 2"),
        ("pif ~\nl1 !a!\nl1 (a)1:2\n", 3, "read twice, first in line 2"),
        ("pif ~\nl1 ~a\tb~\n", 2, "tab"),
    ],
)
def test_broken_instruction_files(tmp_path: Path, text: str, line: int, problem: str) -> None:
    path = tmp_path / "a.ins"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InstructionError, match=re.escape(problem)) as caught:
        Instructions.parse(path)
    assert caught.value.line == line
    assert f"a.ins:{line}: " in str(caught.value)


def test_line_of_an_observation(tmp_path: Path) -> None:
    path = tmp_path / "a.ins"
    path.write_bytes(b"pif ~\r\nl1 !a!\r\n& [b]3:4\r\n\r\nl1 (C)1:2\r\n")
    compiled = Instructions.parse(path)
    assert compiled.names == ("a", "b", "c")
    assert [compiled.line_of(name) for name in ("a", "B", "c", "d")] == [2, 3, 5, 0]


def test_nan_is_read_and_left_to_the_caller(tmp_path: Path) -> None:
    values = read(tmp_path, "l1 !a! !b!\n", "NaN -Infinity\n")
    assert math.isnan(values["a"]) and values["b"] == -math.inf


PIECES = st.sampled_from(
    ["!x!", "!dum!", "w", "~=~", "~,~", "~E~", "~ m~", "~5~", "[x]2:6", "(x)3:8", "[dum]4:7",
     "(dum)1:5", "t3", "t9"]
)  # fmt: skip
LINES = st.lists(
    st.sampled_from(
        ["1.5", "-2e3", "3D2", "x=", "=", ",", " ", "  ", "\t", "7%", "1_0", "abc", "E", "m", "5",
         "1.2-101", "nan"]
    ),
    max_size=9,
).map("".join)  # fmt: skip


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pieces=st.lists(PIECES, min_size=1, max_size=5),
    step=st.integers(1, 2),
    lines=st.lists(LINES, min_size=1, max_size=3),
)
def test_quick_and_slow_reading_agree(
    tmp_path: Path, pieces: list[str], step: int, lines: list[str]
) -> None:
    script = ""
    for row in range(REPEATS):
        named = [piece.replace("x", f"x{row}_{at}") for at, piece in enumerate(pieces)]
        script += f"l{step} {' '.join(named)}\n"
    output = "".join(lines[row % len(lines)] + "\n" for row in range(step * REPEATS))
    results: list[object] = []
    for reader in (read, read_slowly):
        try:
            results.append([repr(value) for value in reader(tmp_path, script, output).values()])
        except InstructionError as error:
            results.append(str(error))
    assert results[0] == results[1]


def test_ordinary_shapes_have_quick_readers() -> None:
    for shape in ("l1\n!", "l1\nw\n!", "l1\n[3:14", "l2\nm,\n!\nm,\n!", "l1\nd\nw\n!"):
        operations = instruction_blocks.read_operations(shape)
        assert instruction_blocks.compile_block(operations, REPEATS) is not None


def test_pyemu_reads_the_same(tmp_path: Path) -> None:
    rng = random.Random(7)
    script, output = "", ""
    for i in range(40):
        a, b, c = (rng.uniform(-1, 1) * 10.0 ** rng.randint(-9, 9) for _ in range(3))
        kind = i % 4
        if kind == 0:
            script += f"l1 w !a{i}! w !b{i}!\n"
            output += f"head {a!r} {b!r} {c!r}\n"
        elif kind == 1:
            script += f"l2 [a{i}]1:12 [b{i}]13:24\n"
            output += f"skipped\n{a:12.4e}{b:12.4e}\n"
        elif kind == 2:
            script += f"~site {i} ~ !a{i}! !dum! !c{i}!\n"
            output += f"noise\nsite {i} {a!r} {b!r} {c!r}\n"
        else:
            script += f"l1 ~h=~ !a{i}! ~k=~ !b{i}!\n"
            output += f"h= {a!r} k= {b!r}\n"
    ours = read(tmp_path, script, output)
    frame = pyemu.pst_utils.InstructionFile(str(tmp_path / "a.ins")).read_output_file(
        str(tmp_path / "a.out")
    )
    assert ours == frame["obsval"].to_dict()
    assert len(ours) == 80
