"""PEST instruction files: how to find the observations in a model output.

The language is that of the PEST manual, part I, section 2.3 (and the PEST++ manual, section 2.4).
Where the manuals leave a choice open, this reader does what PEST's own does, and where PEST++
is more lenient (a comma ends a number; the text under `dum` need not be a number), what that does.

The cursor is kept as the index of the next character to look at: after a marker or a number the
character that follows it, after `t5` the sixth.

A file is compiled once into blocks, runs of instruction lines of one shape. Blocks are read by
the quick functions of `instruction_blocks`; whatever these do not understand is read again here,
instruction by instruction, which gives the value or the exact error.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pestfleet_worker.instruction_blocks import (
    Number,
    Operation,
    QuickReader,
    compile_block,
    locate_semifixed,
    read_operations,
)
from pestfleet_worker.instruction_parser import InstructionError, Parser, read_marker
from pestfleet_worker.numbers import read_number

__all__ = ["InstructionError", "Instructions"]

_SPACES = bytes.maketrans(b"\r\v\f\0", b"    ")
_WHITESPACE = re.compile(rb" +(?=[^ ])")
_WORD = re.compile(rb"[ ,]*([^ ,]+)")


@dataclass(slots=True)
class _Block:
    """`count` instruction lines (with their continuations) of one shape, from `first` on."""

    first: int
    count: int
    operations: tuple[Operation, ...]
    quick: QuickReader | None = None


@dataclass(frozen=True, slots=True)
class Instructions:
    """A compiled instruction file. `names`: observations, lower case, in order of the file."""

    file: Path
    names: tuple[str, ...]
    _starts: tuple[int, ...] = field(repr=False)  # file line, from 0, of each instruction line
    _lines: tuple[str, ...] = field(repr=False)
    _blocks: tuple[_Block, ...] = field(repr=False)
    _marker: str = field(repr=False)

    @classmethod
    def parse(cls, path: Path) -> Instructions:
        """Read and compile an instruction file. Raises `InstructionError`."""
        try:
            text = path.read_bytes().decode("latin-1")
        except FileNotFoundError:
            raise InstructionError(
                "instruction file not found",
                file=path,
                remedy="Check its name in the control file.",
            ) from None
        except OSError as error:
            raise InstructionError(f"cannot be read: {error.strerror}", file=path) from error
        lines = text.replace("\r\n", "\n").split("\n")
        parser = Parser(path, read_marker(lines[0], path))
        for number, line in enumerate(lines[1:], start=1):
            parser.add(line, number)
        return cls(
            file=path,
            names=tuple(parser.seen),
            _starts=tuple(parser.starts),
            _lines=tuple(lines),
            _blocks=tuple(_make_blocks(parser.shapes)),
            _marker=parser.marker,
        )

    def line_of(self, name: str) -> int:
        """Line of the instruction file, from 1, that reads an observation; 0 if none does."""
        parser = Parser(self.file, self._marker)
        for number, line in enumerate(self._lines[1:], start=1):
            parser.add(line, number)
        return parser.seen.get(name.lower(), -1) + 1

    def read(self, output: Path) -> list[float]:
        """The observations in a model output, in the order of `names`.

        Raises `InstructionError`, and `OSError` where the output cannot be opened.
        """
        return _Reader(self, output).read()


class _Reader:
    """One reading of a model output: a stream of lines, a current line, a cursor in it."""

    def __init__(self, instructions: Instructions, output: Path) -> None:
        self.instructions = instructions
        self.output = output
        data = output.read_bytes()
        if any(blank in data for blank in (b"\r", b"\f", b"\v", b"\0")):
            data = data.translate(_SPACES)
        if b"\t" in data:
            data = data.expandtabs(8)
        self.data = data
        self.stream = io.BytesIO(data)
        self.commas = b"," in data
        # float() takes 1_000, PEST does not.
        self.number: Number = read_number if b"_" in data else float
        self.values: list[float] = []
        self.line = b""
        self.line_number = 0
        self.cursor = 0

    def read(self) -> list[float]:
        for block in self.instructions._blocks:
            if block.quick is None:
                for index in range(block.first, block.first + block.count):
                    self.run(block.operations, index)
            else:
                self.run_quickly(block, block.quick)
        return self.values

    def run_quickly(self, block: _Block, quick: QuickReader) -> None:
        step = block.operations[0].begin
        before = self.line_number
        lines = list(islice(self.stream, step * block.count))
        self.line_number += len(lines)
        if step > 1:
            lines = lines[step - 1 :: step]
        done = 0
        while done < len(lines):
            done = quick(lines, done, self.values, self.number, self.commas)
            if done < len(lines):
                self.number = read_number
                at_end = self.line_number
                self.line = lines[done].rstrip(b"\n")
                self.line_number = before + step * (done + 1)
                self.cursor = 0
                self.run(block.operations, block.first + done, start=1)
                self.line_number = at_end
                done += 1
        if done < block.count:  # the file has too few lines; this says so
            self.run(block.operations, block.first + done)

    def run(self, operations: tuple[Operation, ...], index: int, *, start: int = 0) -> None:
        """Follow the instructions of one line, from `start` on."""
        only_markers = start == 0
        position = start
        while position < len(operations):
            operation = operations[position]
            kind = operation.kind
            if kind == "marker":
                if position == 0:
                    self._find_line(operation, index)
                else:
                    found = self.line.find(operation.text, self.cursor)
                    if found < 0:
                        if only_markers:
                            position = 0
                            continue
                        raise self.error(
                            f"the marker {operation.text.decode('latin-1')!r} is not "
                            f"{'in' if self.cursor == 0 else 'in the rest of'} the line",
                            index,
                            position,
                        )
                    self.cursor = found + len(operation.text)
                position += 1
                continue
            only_markers = False
            if kind == "lines":
                self._advance(operation.begin, index)
            elif kind == "whitespace":
                match = _WHITESPACE.search(self.line, self.cursor)
                if match is None:
                    raise self.error("no whitespace with text after it", index, position)
                self.cursor = match.end()
            elif kind == "tab":
                column = operation.begin
                if column < self.cursor:
                    raise self.error(
                        f"t{column} would go back: the cursor is at column {self.cursor}",
                        index,
                        position,
                    )
                if column > len(self.line.rstrip()):
                    raise self.error(f"the line ends before column {column}", index, position)
                self.cursor = column
            else:
                value = self._read_observation(operations, index, position)
                if not operation.dummy:
                    self.values.append(value)
            position += 1

    def _find_line(self, operation: Operation, index: int) -> None:
        """Go to the next line with the primary marker."""
        here = self.stream.tell()
        found = self.data.find(operation.text, here)
        if found < 0:
            raise self.error(
                f"the marker {operation.text.decode('latin-1')!r} is not in any line from line "
                f"{self.line_number + 1} to the end of the file",
                index,
                0,
                at_line=False,
            )
        begin = self.data.rfind(b"\n", here, found) + 1 or here
        self.stream.seek(begin)
        self.line = self.stream.readline().rstrip(b"\n")
        self.line_number += self.data.count(b"\n", here, begin) + 1
        self.cursor = found - begin + len(operation.text)

    def _advance(self, lines: int, index: int) -> None:
        line = b""
        for _ in range(lines):
            line = self.stream.readline()
            if not line:
                ends = f"ends after line {self.line_number}" if self.line_number else "is empty"
                raise self.error(f"the file {ends}", index, 0, at_line=False)
            self.line_number += 1
        self.line = line.rstrip(b"\n")
        self.cursor = 0

    def _read_observation(
        self, operations: tuple[Operation, ...], index: int, position: int
    ) -> float:
        operation = operations[position]
        line = self.line
        if operation.kind == "fixed":
            begin, end = operation.begin, min(operation.end, len(line))
            if not line[begin:end].strip() and not operation.dummy:
                raise self._missing(
                    operation, index, position, f"in columns {begin + 1} to {operation.end}"
                )
        elif operation.kind == "semifixed":
            place = locate_semifixed(line, operation.begin, operation.end)
            if place is None:
                raise self._missing(
                    operation,
                    index,
                    position,
                    f"in columns {operation.begin + 1} to {operation.end}",
                )
            begin, end = place
        else:
            match = _WORD.match(line, self.cursor)
            if match is None:
                raise self._missing(operation, index, position, f"after column {self.cursor}")
            begin, end = match.span(1)
        text = line[begin:end]
        try:
            value = read_number(text)
        except ValueError:
            value = 0.0
            following = operations[position + 1] if position + 1 < len(operations) else None
            if operation.kind == "free" and following and following.kind == "marker":
                # 21.3% is read as far as the secondary marker that follows, here %.
                cut = line.find(following.text, begin)
                if begin < cut < end:
                    end = cut
                    text = line[begin:end]
            try:
                value = read_number(text)
            except ValueError:
                if not operation.dummy:
                    shown = text.decode("latin-1").strip()
                    raise self.error(
                        f"observation {self._name(operation)}: {shown!r} in columns {begin + 1} "
                        f"to {end} is not a number",
                        index,
                        position,
                    ) from None
        self.cursor = end
        return value

    def _name(self, operation: Operation) -> str:
        return "dum" if operation.dummy else self.instructions.names[len(self.values)]

    def _missing(
        self, operation: Operation, index: int, position: int, place: str
    ) -> InstructionError:
        problem = f"observation {self._name(operation)}: no number {place}"
        return self.error(problem, index, position)

    def error(
        self, problem: str, index: int, position: int, *, at_line: bool = True
    ) -> InstructionError:
        """An error in the instruction at `position` of the instruction line `index`."""
        source = self.instructions
        parser = Parser(source.file, source._marker)
        number = source._starts[index]
        left = position
        while True:
            tokens = parser.split(source._lines[number], number)
            left -= len(tokens) - (tokens[:1] == ["&"])
            if left < 0:
                break
            number += 1
        place = f"{self.output.name}:{self.line_number}" if at_line else self.output.name
        if at_line:
            shown = self.line.decode("latin-1").rstrip()
            problem += f"; the line is {shown if len(shown) <= 120 else shown[:117] + '...'!r}"
        return InstructionError(
            f"{place}: {problem}",
            file=source.file,
            line=number + 1,
            remedy="Compare the model output with the instruction file.",
        )


def _make_blocks(shapes: list[str]) -> list[_Block]:
    """Group neighbouring instruction lines of one shape."""
    counts = Counter(shapes)
    parsed: dict[str, tuple[tuple[Operation, ...], QuickReader | None]] = {}
    blocks: list[_Block] = []
    previous = ""
    for index, shape in enumerate(shapes):
        if shape == previous and blocks[-1].quick is not None:
            blocks[-1].count += 1
            continue
        if shape not in parsed:
            operations = read_operations(shape)
            parsed[shape] = operations, compile_block(operations, counts[shape])
        blocks.append(_Block(index, 1, *parsed[shape]))
        previous = shape
    return blocks
