"""Prior information: `PILBL PIFAC * PARNME + PIFAC * log(PARNME) ... = PIVAL WEIGHT OBGNME`.

Source: PEST manual part I, chapter 4, section "Prior information". A line that begins with `&`
continues the one before it.
"""

from __future__ import annotations

import math
import re

from pestfleet.checks.problem import Problems
from pestfleet.control.model import PriorInformation
from pestfleet.control.tables import Columns, Row, Rows
from pestfleet.control.tokens import read_number

PRIOR_COLUMNS = Columns(
    ("pilbl", "equation", "weight", "obgnme"), required=("pilbl", "equation", "weight", "obgnme")
)
_TERM = re.compile(
    r"\s*(?P<sign>[+-])?\s*(?P<factor>[+-]?[\d.][^\s*]*)\s*\*\s*"
    r"(?:log\s*\(\s*(?P<logged>[^\s()]+)\s*\)|(?P<name>\S+))\s*"
)
_FORM = "Write: label factor * parameter + factor * log(parameter) = value weight group"


def read_priors(rows: Rows, *, inline: bool, problems: Problems) -> list[PriorInformation]:
    """Prior information equations in file order."""
    found = []
    with problems.limited("lines of '* prior information'"):
        for row in _join_continued(rows, problems) if inline else rows:
            prior = _read_inline(row, problems) if inline else _read_record(row, problems)
            if prior is not None:
                found.append(prior)
    return found


def _join_continued(rows: Rows, problems: Problems) -> list[Row]:
    joined: list[Row] = []
    for row in rows:
        first = row.values[0]
        if first is not None and first.startswith("&"):
            if not joined:
                message = "the line continues with '&', but there is none before it"
                problems.error(row.place, message, _FORM)
                continue
            rest = [first[1:], *row.values[1:]] if len(first) > 1 else list(row.values[1:])
            joined[-1] = Row(joined[-1].file, joined[-1].line, [*joined[-1].values, *rest])
        else:
            joined.append(row)
    return joined


def _read_inline(row: Row, problems: Problems) -> PriorInformation | None:
    tokens = [token or "" for token in row.values]
    text = " ".join(tokens[1:])
    left, sign, right = text.partition("=")
    values = right.split()
    if not sign or len(values) != 3:
        what = f"has {len(values)} values after '=', not 3" if sign else "has no '='"
        problems.error(row.place, f"the prior information '{tokens[0]}' {what}", _FORM)
        return None
    return _make(row, tokens[0], left, values[0], values[1], values[2], problems)


def _read_record(row: Row, problems: Problems) -> PriorInformation | None:
    label, equation, weight, group = (value or "" for value in row.values)
    left, sign, right = equation.partition("=")
    if not label or not sign or not group:
        lacks = "PILBL" if not label else "'=' in its EQUATION" if not sign else "OBGNME"
        message = f"the prior information '{label}' has no {lacks}"
        problems.error(row.place, message, "Fill the columns pilbl, equation, weight and obgnme.")
        return None
    return _make(row, label, left, right.strip(), weight, group, problems)


def _make(
    row: Row, label: str, left: str, value: str, weight: str, group: str, problems: Problems
) -> PriorInformation | None:
    terms: list[tuple[float, str, bool]] = []
    position = 0
    while position < len(left) and left[position:].strip():
        match = _TERM.match(left, position)
        factor = read_number(match["factor"]) if match else None
        if match is None or factor is None or (terms and not match["sign"]):
            message = f"'{left[position:].strip()}' of prior information '{label}' is no term"
            problems.error(row.place, message, _FORM)
            return None
        signed = -factor if match["sign"] == "-" else factor
        terms.append((signed, match["logged"] or match["name"], match["logged"] is not None))
        position = match.end()
    if not terms:
        problems.error(row.place, f"the prior information '{label}' has no parameter", _FORM)
        return None
    numbers = []
    for name, token in (("PIVAL", value), ("WEIGHT", weight)):
        number = read_number(token)
        if number is None:
            message = f"{name} of prior information '{label}' is '{token}', not a number"
            problems.error(row.place, message, _FORM)
        numbers.append(math.nan if number is None else number)
    return PriorInformation(label, tuple(terms), numbers[0], numbers[1], group, row.place)
