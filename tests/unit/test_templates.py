"""Template files: PEST's rules, and numbers written as closely as a space allows."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from pathlib import Path

import pyemu
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pestfleet_worker.numbers import NumberError, fit_quickly, format_number, read_number
from pestfleet_worker.templates import Field, FieldError, Template, TemplateError

FLOATS = st.one_of(
    # Not those next to the largest double, which rounding would make infinite.
    st.floats(min_value=-1e308, max_value=1e308),
    st.floats(min_value=-1e8, max_value=1e8),
    st.builds(lambda m, e: m * 10.0**e, st.integers(-(10**6), 10**6), st.integers(-15, 15)),
)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("latin-1"))
    return path


def to_bits(value: float) -> bytes:
    return struct.pack("<d", value)


def list_plain_texts(value: float, width: int, *, pointed: bool) -> list[str]:
    """Texts that %f and %e give, stripped of what a reader does not need, that fit."""
    texts = set()
    for digits in range(18):
        fixed = f"{value:.{digits}f}"
        mantissa, _, power = f"{value:.{digits}e}".partition("e")
        for text, tail in ((fixed, ""), (mantissa, f"e{int(power)}")):
            if "." not in text and pointed:
                text += "."
            texts.add(text + tail)
            if text.startswith(("0.", "-0.")) and text[-1] != ".":
                texts.add(text.replace("0.", ".", 1) + tail)
    return [text for text in texts if len(text) <= width]


def distance(text: str, value: float) -> Fraction:
    return abs(Fraction(text) - Fraction(value))


@given(value=FLOATS, width=st.integers(1, 30), point=st.sampled_from(["point", "nopoint"]))
@example(value=9.9999999, width=7, point="point")
@example(value=-1.5e-10, width=7, point="point")
@example(value=99999.5, width=5, point="nopoint")
@example(value=1e-05, width=4, point="nopoint")
def test_text_is_the_closest_that_fits(value: float, width: int, point: str) -> None:
    pointed = point == "point"
    rivals = [t for t in list_plain_texts(value, width, pointed=pointed) if float(t) or not value]
    try:
        text = format_number(value, width, decimal_point=point)  # type: ignore[arg-type]
    except NumberError:
        # Only where all that fits has lost its first significant digit.
        assert all(distance(t, value) > Fraction(abs(value)) * 34 / 100 for t in rivals)
        return
    assert len(text) <= width
    assert "." in text or not pointed
    if to_bits(float(text)) == to_bits(value) or not value:
        return
    for rival in rivals:
        # Shortest round trip is not the exact decimal; both read as the same double.
        assert abs(float(text) - value) <= abs(float(rival) - value)


@given(value=FLOATS, width=st.integers(24, 60))
def test_wide_spaces_round_trip(value: float, width: int) -> None:
    assert to_bits(float(format_number(value, width))) == to_bits(value)


@given(value=FLOATS, width=st.integers(8, 30))
def test_single_precision(value: float, width: int) -> None:
    try:
        text = format_number(value, width, precision="single")
    except NumberError:
        # A carry into the next power counts as that power.
        assert abs(value) < 1e-38 or abs(value) > 9.9999e38
        return
    assert len(text.lstrip("-")) <= 13
    figures = text.lstrip("-").partition("e")[0].replace(".", "").lstrip("0")
    assert len(figures) <= 8
    room = min(13, width - (value < 0))
    if room == 13:
        assert float(text) == pytest.approx(value, rel=5.1e-8, abs=1e-300)


@given(value=FLOATS.map(abs), room=st.integers(4, 23))
@example(value=0.99999, room=4)
@example(value=9.99995, room=6)
@example(value=9.9999e9, room=6)
def test_quick_text_fits_and_is_as_close_as_any(value: float, room: int) -> None:
    assume(value and len(repr(value)) > room)
    text = fit_quickly(value, room, 17)
    assume(text)
    assert len(text) <= room and "." in text
    best = min(
        (abs(float(t) - value) for t in list_plain_texts(value, room, pointed=True)),
        default=math.inf,
    )
    assert abs(float(text) - value) <= best


@pytest.mark.parametrize(
    ("value", "width", "point", "text"),
    [
        (0.1, 10, "point", "0.1"),
        (1e-05, 7, "point", "1.0e-05"),
        (1e-05, 5, "point", "1.e-5"),
        (1e-05, 4, "nopoint", "1e-5"),
        (-1.2345e-10, 8, "point", "-.123e-9"),
        (12345678.0, 8, "nopoint", "12345678"),
        (12345678.0, 8, "point", "1.2346e7"),
        (0.125, 4, "point", ".125"),
        (0.0, 3, "point", "0.0"),
        (-0.0, 3, "point", "0.0"),
        (5e-324, 24, "point", "5.0e-324"),
    ],
)
def test_examples(value: float, width: int, point: str, text: str) -> None:
    written = format_number(value, width, decimal_point=point)  # type: ignore[arg-type]
    if text == "0.0":
        assert float(written) == 0.0
    else:
        assert written == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("width", [5, 40])
def test_non_finite_values_are_refused(tmp_path: Path, value: float, width: int) -> None:
    template = Template.parse(write(tmp_path / "a.tpl", f"ptf ~\nx {'~k'.ljust(width - 1)}~\n"))
    with pytest.raises(FieldError, match="not a finite number") as caught:
        template.render({"k": value})
    assert (caught.value.line, caught.value.name, caught.value.width) == (2, "k", width)


def test_space_of_a_parameter_is_replaced_between_and_with_its_markers(tmp_path: Path) -> None:
    text = "ptf ~\nhead ~ no ~\n~ A ~~b        ~ end\nno parameter\n"
    template = Template.parse(write(tmp_path / "a.tpl", text))
    assert template.names == ("no", "a", "b")
    assert template.fields[1:] == (Field("a", 3, 1, 5), Field("b", 3, 6, 11))
    data = template.render({"NO": 1.5, "a": -2.25, "B": 1e6})
    assert data == b"head    1.5\n-2.25  1000000.0 end\nno parameter\n"


def test_bytes_and_line_ends_survive(tmp_path: Path) -> None:
    text = "ptf #\r\n\xe4 \xc3\xa4 #a   #\r\n\r\nlast line without end #a   #"
    data = Template.parse(write(tmp_path / "a.tpl", text)).render({"a": 7.0})
    assert data == b"\xe4 \xc3\xa4    7.0\r\n\r\nlast line without end    7.0"


def test_parameter_is_written_alike_in_all_its_spaces(tmp_path: Path) -> None:
    text = "ptf ~\n~k               ~\n~k   ~ ~other          ~\n"
    template = Template.parse(write(tmp_path / "a.tpl", text))
    assert template.widths == {"k": 6, "other": 17}
    first, second = template.render({"k": math.pi, "other": math.e}).splitlines()
    assert first.strip() == second.split()[0] == b"3.1416"
    narrower = template.bind(["k", "other"], widths={"k": 4, "elsewhere": 3})
    assert narrower.render([math.pi, 0.5]).split() == [b"3.14", b"3.14", b"0.5"]


def test_values_are_taken_in_the_bound_order(tmp_path: Path) -> None:
    template = Template.parse(write(tmp_path / "a.tpl", "ptf ~\n~c  ~ ~a  ~\n"))
    assert template.bind(["a", "B", "C"]).render([1.0, 2.0, 3.0]).split() == [b"3.0", b"1.0"]
    with pytest.raises(TemplateError, match=r"a\.tpl:2: parameter c is not in the control file"):
        template.bind(["a", "b"])


@pytest.mark.parametrize(
    ("value", "parts"),
    [(1.5e100, r"too narrow for the value 1\.5e\+100"), (-0.00012, "too narrow")],
)
def test_value_that_does_not_fit(tmp_path: Path, value: float, parts: str) -> None:
    template = Template.parse(write(tmp_path / "a.tpl", "ptf ~\n\n~k              ~\n ~k ~\n"))
    with pytest.raises(FieldError, match=parts) as caught:
        template.render({"k": value})
    assert (caught.value.file.name, caught.value.line, caught.value.name) == ("a.tpl", 4, "k")
    assert caught.value.width == 4
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("ptf ~\na\n~k ~ ~\n", 3, "not closed"),
        ("ptf ~\n~   ~\n", 2, "without a name"),
        ("ptf ~\n~a b~\n", 2, "must not have spaces"),
        ("jtf ~\n~a~\n", 1, "JUPITER"),
        ("pif ~\n", 1, "first line must be ptf"),
        ("ptf\n", 1, "first line must be ptf"),
        ("ptf ~~\n", 1, "first line must be ptf"),
        ("", 1, "first line must be ptf"),
        ("ptf a\n", 1, "cannot be the marker"),
        (b"\xef\xbb\xbfptf ~\n", 1, "byte order mark"),
    ],
)
def test_broken_templates(tmp_path: Path, text: str | bytes, line: int, problem: str) -> None:
    with pytest.raises(TemplateError, match=problem) as caught:
        Template.parse(write(tmp_path / "a.tpl", text))
    assert caught.value.line == line
    assert f"a.tpl:{line}: " in str(caught.value)


def test_missing_template(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="not found"):
        Template.parse(tmp_path / "a.tpl")


def test_pyemu_finds_the_same_parameters(tmp_path: Path) -> None:
    text = "ptf ~\n" + "".join(f"x ~ P{i % 7:02d} ~,~q{i}            ~\n" for i in range(30))
    path = write(tmp_path / "a.tpl", text)
    assert set(Template.parse(path).names) == set(pyemu.pst_utils.parse_tpl_file(path))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1.0D+03", 1000.0),
        (b"1.0d3", 1000.0),
        (b" -2.5Q-2 ", -0.025),
        (b"1.234-105", 1.234e-105),
        (b"1.234+105", 1.234e105),
        (b".5", 0.5),
        (b"5.", 5.0),
        (b"+7", 7.0),
        (b"1e5", 1e5),
    ],
)
def test_fortran_numbers(text: bytes, value: float) -> None:
    assert read_number(text) == value


@pytest.mark.parametrize(
    "text", [b"", b"1_0", b"*****", b"1.0 2.0", b"1,5", b"D5", b"1.5-", b"--1"]
)
def test_what_is_not_a_number(text: bytes) -> None:
    with pytest.raises(ValueError):
        read_number(text)
