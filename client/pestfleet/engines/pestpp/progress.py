"""How far the engine is: from its standard output and from the file that has phi by iteration."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pestfleet.engines.base import Report
from pestfleet.engines.pestpp.programs import Program

_BATCH = re.compile(r"running model (\d+) times")
_ECHO = re.compile(r"runs\(C\s*(\d+)\s*\|F\s*(\d+)\s*\|T\s*(\d+)\s*\)")
_END = re.compile(r"(\d+) runs complete :\s+(\d+) runs failed")
_LONGEST_LINE = 1 << 16
_CHUNK = 1 << 20


@dataclass(slots=True)
class RunCounts:
    """Runs of the whole session, and of the batch that the engine waits for."""

    batches: int = 0
    asked: int = 0
    done: int = 0
    failed: int = 0
    batch_asked: int = 0
    batch_done: int = 0
    batch_failed: int = 0
    batch_given_up: int = 0


class Tail:
    """Reads what has been added to a file since the last look. The file may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._offset = 0  # begun anew
                file.seek(self._offset)
                data = file.read(_CHUNK)
        except FileNotFoundError:
            return b""
        self._offset += len(data)
        return data


class OutputParser:
    """The engine's standard output, in pieces of any size, as counts of runs."""

    def __init__(self) -> None:
        self.counts = RunCounts()
        self._rest = ""

    def feed(self, text: str) -> list[int]:
        """Take text; returns the sizes of the batches that begin in it."""
        *lines, rest = re.split(r"[\r\n]", self._rest + text)
        self._rest = rest[-_LONGEST_LINE:]
        begun = []
        counts = self.counts
        for line in lines:
            if (match := _BATCH.search(line)) is not None:
                counts.batches += 1
                counts.batch_asked = int(match[1])
                counts.asked += counts.batch_asked
                counts.batch_done = counts.batch_failed = counts.batch_given_up = 0
                begun.append(counts.batch_asked)
            elif (match := _ECHO.search(line)) is not None:
                counts.batch_done, counts.batch_failed, counts.batch_given_up = map(
                    int, match.groups()
                )
            elif (match := _END.search(line)) is not None:
                counts.batch_done, counts.batch_failed = int(match[1]), int(match[2])
                counts.done += counts.batch_done
                counts.failed += counts.batch_failed
        return begun


class PhiReader:
    """The CSV file that PEST++ appends a line to at the end of each iteration."""

    def __init__(self, path: Path, program: Program) -> None:
        self._tail = Tail(path)
        self._program = program
        self._columns: list[str] = []
        self._rest = b""
        self.realizations: list[int] = []  # by iteration, where it is an ensemble
        self.phi: float | None = None
        self.first_phi: float | None = None
        self.number = -1

    def look(self, report: Report) -> None:
        """Report the iterations that ended since the last look."""
        while data := self._tail.read():
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                (cells,) = csv.reader([line.decode("utf-8", "replace").strip()])
                self._take(cells, report)

    def _take(self, cells: list[str], report: Report) -> None:
        if self._program.iteration in cells:
            self._columns = cells
            return
        row = dict(zip(self._columns, cells, strict=False))
        try:
            phi = float(row[self._program.phi])
            detail: dict[str, float | int | str] = {
                ours: float(row[theirs]) for ours, theirs in self._program.detail if theirs in row
            }
            number = int(row[self._program.iteration])
        except (KeyError, ValueError):
            return  # not a row of numbers: the engine says elsewhere what is wrong
        if "cycle" in row:
            detail["cycle"] = int(row["cycle"])
            number = self.number + 1  # iterations begin anew in each cycle
        if self._program.ensemble:
            start = self._columns.index("max") + 1
            self.realizations.append(sum(1 for cell in cells[start:] if cell.strip()))
            detail["realizations"] = self.realizations[-1]
        if self.first_phi is None:
            self.first_phi = phi
        self.phi, self.number = phi, number
        report.iteration(number, phi=phi, **detail)
