"""Quick reading of many model output lines by one instruction line's shape.

A shape is what `instructions` keeps of an instruction line: its instructions without observation
names, one a line (`l1`, `w`, `t5`, `!`, `d` for dum, `[2:9`, `(2:9`, `mTEXT`). A quick reader
takes the ordinary cases only. At a line that it does not understand it stops, leaves no values of
that line behind, and says which line it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Number = Callable[[bytes], float]
# (lines, index of the first, values to extend, number, commas in the file) -> index where it ends
QuickReader = Callable[[list[bytes], int, list[float], Number, bool], int]

Kind = Literal["lines", "whitespace", "tab", "marker", "free", "fixed", "semifixed"]

_INSIDE = re.compile(rb"[^ ,\n]")
_END = re.compile(rb"[ ,\n]|$")
# A marker that begins with one of these may be mistaken for a part of a number.
_NUMERIC = b"0123456789+-.eEdDqQnNaAiIfFtTyY \n"
_WORTH_COMPILING = 8  # lines of one shape


@dataclass(frozen=True, slots=True)
class Operation:
    """One instruction. Columns `begin`, `end` as of a Python slice; `begin` also: lines, tab."""

    kind: Kind
    begin: int = 0
    end: int = 0
    text: bytes = b""
    dummy: bool = False


def locate_semifixed(line: bytes, begin: int, end: int) -> tuple[int, int] | None:
    """Where the number stands of which a part is in the columns; None if these are blank."""
    match = _INSIDE.search(line, begin, end)
    if match is None:
        return None
    inside = match.start()
    left = max(line.rfind(b" ", 0, inside), line.rfind(b",", 0, inside)) + 1
    right = _END.search(line, inside)
    return left, right.start() if right else len(line)


def read_operations(shape: str) -> tuple[Operation, ...]:
    """The operations of a shape."""
    return tuple(_read_operation(part) for part in shape.split("\n"))


def _read_operation(part: str) -> Operation:
    kind, rest = part[0], part[1:]
    if kind == "m":
        return Operation("marker", text=rest.encode("latin-1"))
    if kind == "l":
        return Operation("lines", int(rest))
    if kind == "w":
        return Operation("whitespace")
    if kind == "t":
        return Operation("tab", int(rest))
    if kind in "!d":
        return Operation("free", dummy=kind == "d")
    begin, _, end = rest.removeprefix("d").partition(":")
    return Operation(
        "fixed" if kind == "[" else "semifixed",
        int(begin) - 1,
        int(end),
        dummy=rest.startswith("d"),
    )


def compile_block(operations: tuple[Operation, ...], count: int) -> QuickReader | None:
    """The quick reader for `count` lines of a shape; None where there is none, or no gain."""
    head, *rest = operations
    if head.kind != "lines" or not rest:
        return None
    if all(operation.kind == "free" for operation in rest):
        return _compile_words([operation.dummy for operation in rest])
    if count < _WORTH_COMPILING or any(
        operation.dummy and following.text[:1] in _NUMERIC and following.text
        for operation, following in pairwise(rest)
    ):
        return None  # where the text under dum ends there depends on its being a number
    return _generate(rest)


def _compile_words(dummies: list[bool]) -> QuickReader:
    """Reader for non-fixed observations only: the first words of each line."""
    wanted = len(dummies)
    kept = [index for index, dummy in enumerate(dummies) if not dummy]
    size = len(kept)
    every = size == wanted

    def read(
        lines: list[bytes], start: int, values: list[float], number: Number, commas: bool
    ) -> int:
        before = len(values)
        if commas:
            lines = [line.replace(b",", b" ") for line in lines]
        if wanted == 1 and every:
            try:  # often the number is all that there is in a line
                values.extend(map(number, lines[start:] if start else lines))
                return len(lines)
            except ValueError:
                del values[before:]
        at = start
        try:
            for at in range(start, len(lines)):
                words = lines[at].split(None, wanted)
                if len(words) < wanted:
                    raise ValueError
                if not every:
                    words = [words[index] for index in kept]
                elif len(words) > wanted:
                    del words[wanted:]
                values.extend(map(number, words))
        except ValueError:
            del values[before + (at - start) * size :]
            return at
        return len(lines)

    return read


def _generate(operations: list[Operation]) -> QuickReader:
    """Python code for any other shape; `p` is the cursor."""
    names: dict[str, Any] = {
        "whitespace": re.compile(rb" +(?=[^ \n])").search,
        "word": re.compile(rb"[ ,]*([^ ,\n]+)").match,
        "locate": locate_semifixed,
    }
    body: list[str] = []
    size = 0
    for index, operation in enumerate(operations):
        kind = operation.kind
        if kind == "marker":
            names[f"text{index}"] = operation.text
            body.append(f"p = line.index(text{index}, p) + {len(operation.text)}")
        elif kind == "whitespace":
            body.append("p = whitespace(line, p).end()")
        elif kind == "tab":
            body.append(f"if not p <= {operation.begin} <= len(line.rstrip()): raise ValueError")
            body.append(f"p = {operation.begin}")
        elif kind == "free":
            word = "word"
            if index + 1 < len(operations):
                following = operations[index + 1].text
                if following and following[:1] not in _NUMERIC:
                    # The number ends at the latest where this marker begins.
                    word = f"word{index}"
                    pattern = rb"[ ,]*((?:(?!%s)[^ ,\n])+)" % re.escape(following)
                    names[word] = re.compile(pattern).match
            body.append(f"m = {word}(line, p)")
            body.append("p = m.end()")
            if not operation.dummy:
                body.append("append(number(m[1]))")
        elif kind == "fixed":
            if not operation.dummy:
                body.append(f"append(number(line[{operation.begin}:{operation.end}]))")
            body.append(f"p = {operation.end}")
        else:
            body.append(f"s, p = locate(line, {operation.begin}, {operation.end})")
            if not operation.dummy:
                body.append("append(number(line[s:p]))")
        size += kind in ("free", "fixed", "semifixed") and not operation.dummy
    inner = "\n            ".join(body)
    source = f"""
def read(lines, start, values, number, commas):
    before = len(values)
    append = values.append
    at = start
    try:
        for at in range(start, len(lines)):
            line = lines[at]
            p = 0
            {inner}
    except (ValueError, AttributeError, TypeError):
        del values[before + (at - start) * {size}:]
        return at
    return len(lines)
"""
    exec(compile(source, "<instructions>", "exec"), names)
    reader: QuickReader = names["read"]
    return reader
