"""Numbers as text: written into the few characters of a template, read in Fortran's notation."""

from __future__ import annotations

import math
import re
from typing import Literal

Precision = Literal["single", "double"]
DecimalPoint = Literal["point", "nopoint"]

SINGLE_DIGITS = 8  # what 1PE13.7 holds, PEST's widest number with PRECIS single
SINGLE_WIDTH = 13  # without the sign
SINGLE_EXPONENT = 38

_FORTRAN = re.compile(rb"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eEdDqQ]([+-]?\d+)|([+-]\d+))?")


class NumberError(ValueError):
    """A number that has no text of the wanted width."""


def read_number(text: bytes) -> float:
    """A number in any notation that Fortran writes: 1.5, 1.0D+03, 1d3, 1.234-105, NaN.

    Raises `ValueError`.
    """
    if b"_" not in text:
        try:
            return float(text)
        except ValueError:
            pass  # not Python's notation; it may be Fortran's
    match = _FORTRAN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a number: {text!r}")
    return float(match[1] + b"e" + (match[2] or match[3] or b"0"))


def format_number(
    value: float,
    width: int,
    *,
    precision: Precision = "double",
    decimal_point: DecimalPoint = "point",
) -> str:
    """The text of at most `width` characters that is closest to `value`.

    With `point` the text has a decimal point, since a Fortran format such as F10.3 puts one
    into a number that has none. Raises `NumberError` where the value is not finite, or where
    not one significant digit fits.
    """
    if not math.isfinite(value):
        raise NumberError(f"the value {value} is not a finite number")
    pointed = decimal_point == "point"
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    magnitude = abs(value)
    digits = 17
    room = width - len(sign)
    if precision == "single":
        digits = SINGLE_DIGITS
        room = min(room, SINGLE_WIDTH)
        if value and not -SINGLE_EXPONENT <= _exponent(magnitude, digits) <= SINGLE_EXPONENT:
            raise NumberError(f"the value {value!r} is outside of the range of single precision")
    else:
        shortest = _add_point(repr(magnitude), room) if pointed else repr(magnitude)
        if len(shortest) <= room:
            return sign + shortest
    if not value:
        text = "0.0" if room > 2 else "0." if pointed else "0"
        if len(text) > room:
            sign = ""  # a negative zero is as good without
        if len(text) > width:
            raise NumberError(f"a space of {width} characters is too narrow for the value 0")
        return sign + text
    text = fit_quickly(magnitude, room, digits) if pointed and room > 3 else ""
    if not text and room > 0:
        text = _fit(magnitude, room, digits, pointed)
    if not text:
        raise NumberError(f"a space of {width} characters is too narrow for the value {value!r}")
    return sign + text


def fit_quickly(magnitude: float, room: int, digits: int) -> str:
    """What `_fit` finds, with one conversion instead of many; "" where that is not certain."""
    logarithm = math.log10(magnitude)
    exponent = math.floor(logarithm)
    if abs(logarithm - round(logarithm)) < 1e-9:
        return ""  # rounding may give one digit more
    if exponent >= 308:
        return ""  # rounding up may go beyond the largest double
    if -4 <= exponent <= room - 2:
        # No scientific notation holds more digits than this, and 0.5 can do without its 0.
        decimals = min(room - 1 - max(exponent + 1, 0), digits - 1 - exponent)
        if decimals < max(-exponent, 0):
            return ""
        text = f"{magnitude:.{decimals}f}"
        if len(text) > room and text[0] == "0":
            text = text[1:]
        if not decimals:
            text += "."
        return text if len(text) <= room else ""
    place = 1  # figures before the point
    if exponent in (-10, -100):
        place = 0
    else:
        for longest in (99, 9):
            figures = min(room - 2 - len(str(longest)), digits)
            if longest < exponent < longest + figures:
                place = exponent - longest + 1
    shown = exponent - (place - 1)
    count = min(room - 2 - len(str(shown)), digits)
    if count < max(place, 1):
        return ""
    mantissa, _, power = f"{magnitude:.{count - 1}e}".partition("e")
    if int(power) != exponent:
        return ""
    if place == 1:
        return f"{mantissa}e{shown}" if count > 1 else f"{mantissa}.e{shown}"
    figures_text = mantissa.replace(".", "")
    return f"{figures_text[:place]}.{figures_text[place:]}e{shown}"


def _fit(magnitude: float, room: int, digits: int, pointed: bool) -> str:
    """The closest text of at most `room` characters, "" if no significant digit fits."""
    candidates = [
        text
        for text in (
            _write_fixed(magnitude, room, pointed, digits),
            _write_scientific(magnitude, room, digits, pointed),
        )
        if text
    ]
    if not candidates:
        return ""
    best = min(candidates, key=lambda text: abs(float(text) - magnitude))
    # One digit, correctly rounded, is never further away than a third of the value.
    return best if abs(float(best) - magnitude) <= 0.34 * magnitude else ""


def _write_fixed(magnitude: float, room: int, pointed: bool, digits: int) -> str:
    """Fixed notation with as many decimals as fit, "" if it does not fit."""
    decimals = room - 1
    if magnitude >= 1:
        decimals -= _exponent(magnitude, 17) + 1
    decimals = min(decimals, digits - 1 - _exponent(magnitude, digits))
    for count in range(decimals, max(decimals - 3, -1), -1):
        text = f"{magnitude:.{count}f}"
        if text.startswith("0.") and len(text) > room:
            text = text[1:]
        if pointed and "." not in text:
            text += "."
        if len(text) <= room:
            return text if any(mark in "123456789" for mark in text) else ""
    if magnitude >= 1 and decimals < 0:
        exponent = _exponent(magnitude, digits)
        text = f"{magnitude:.0f}" + ("." if pointed else "")
        if len(text) <= room and exponent < digits:
            return text
    return ""


def _write_scientific(magnitude: float, room: int, digits: int, pointed: bool) -> str:
    """Scientific notation with as many significant digits as fit, "" if none fits.

    The point stands where the exponent gets shortest: .12e-9 is shorter than 1.2e-10.
    """
    for count in range(min(digits, room - 2), 0, -1):
        mantissa, _, power = f"{magnitude:.{count - 1}e}".partition("e")
        figures = mantissa.replace(".", "")
        exponent = int(power)
        if not pointed:
            text = f"{figures}e{exponent - (count - 1)}"
            if len(text) <= room:
                return text
        for place in dict.fromkeys((1, 0, *range(count, 1, -1))):
            text = f"{figures[:place]}.{figures[place:]}e{exponent - (place - 1)}"
            if len(text) <= room:
                return text
    return ""


def _exponent(magnitude: float, digits: int) -> int:
    """Decimal exponent of a number after rounding to so many digits; 0 for 0."""
    return int(f"{magnitude:.{digits - 1}e}".partition("e")[2])


def _add_point(text: str, room: int) -> str:
    """`repr` of a float, with a decimal point where it has none (1e-05)."""
    if "." in text:
        return text
    mantissa, _, power = text.partition("e")
    return f"{mantissa}.0e{power}" if len(text) + 2 <= room else f"{mantissa}.e{int(power)}"
