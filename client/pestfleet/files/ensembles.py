"""Ensembles in files: CSV as PEST++ writes and reads it, and its binary formats.

CSV (PEST++ manual, "Initial Realizations" and "Using PESTPP-SWP"): the first row has names, the
first column names the realizations, every other cell is a number. Names are not case-sensitive.
Numbers are written with as many digits as a float64 needs to come back the same, bit for bit.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pestfleet.engines.base import Matrix
from pestfleet.files.matrix import read_matrix, write_jcb
from pestfleet_worker.errors import CaseError

BINARY_SUFFIXES = (".jcb", ".jco", ".bin")


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Realizations by name. `values`: (realizations, columns)."""

    realizations: tuple[str, ...]
    columns: tuple[str, ...]
    values: Matrix


class CsvEnsemble:
    """An ensemble CSV, read row by row, so that one of any length fits in memory.

    `columns`: names in the order of the file, lower case, without the first column.
    Raises `CaseError` with file, line and column for anything that is not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = next(self._lines(), (0, []))[1]
        names = [cell.strip().lower() for cell in header]
        while names and not names[-1]:  # PEST++ itself tolerates a comma at the end of a line
            names.pop()
        if len(names) < 2:
            raise CaseError(
                f"{path}:1: no header with a realization column and parameter names",
                remedy="The first row has the names, separated by commas.",
            )
        for number, name in enumerate(names[1:], start=2):
            if not name:
                raise CaseError(
                    f"{path}:1: column {number} has no name",
                    remedy="Give every column the name of a parameter or observation.",
                )
        seen: dict[str, int] = {}
        for number, name in enumerate(names[1:], start=2):
            if name in seen:
                raise CaseError(
                    f"{path}:1: columns {seen[name]} and {number} are both named {name!r}",
                    remedy="Remove one of them.",
                )
            seen[name] = number
        self.first = names[0]
        self.columns = tuple(names[1:])

    def rows(self) -> Iterator[tuple[int, str, list[float]]]:
        """(line, realization, values in the order of `columns`), from the start of the file."""
        lines = self._lines()
        next(lines)
        for line, cells in lines:
            while len(cells) > len(self.columns) + 1 and not cells[-1].strip():
                cells.pop()
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(self.columns) + 1:
                raise CaseError(
                    f"{self.path}:{line}: {len(cells)} cells, the header has "
                    f"{len(self.columns) + 1}",
                    remedy="Give every row one cell for each name in the header.",
                )
            yield line, cells[0].strip(), self._numbers(line, cells[1:])

    def _numbers(self, line: int, cells: list[str]) -> list[float]:
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            values = [_parse_number(cell) for cell in cells]
        if not all(map(math.isfinite, values)):
            at = next(i for i, value in enumerate(values) if not math.isfinite(value))
            raise CaseError(
                f"{self.path}:{line}: column {at + 2} ({self.columns[at]}): "
                f"{cells[at].strip()!r} is not a number",
                remedy="Write a number there, or remove the row.",
            )
        return values

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                for cells in reader:
                    yield reader.line_num, cells
        except OSError as error:
            raise CaseError(
                f"{self.path}: cannot be read: {error.strerror}",
                remedy="Put the file there, or correct its name in the control file.",
            ) from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise CaseError(
                f"{self.path}: not a CSV file: {error}", remedy="Save it as a CSV file in UTF-8."
            ) from error


def _parse_number(cell: str) -> float:
    """A number as Fortran writes it (1.5d+03) too; NaN for anything else."""
    try:
        return float(cell.strip().lower().replace("d", "e"))
    except ValueError:
        return math.nan


def read_ensemble(path: Path, *, limit: int | None = None) -> Ensemble:
    """An ensemble from CSV, `.jcb`, `.jco` or `.bin`; no more than `limit` realizations.

    Raises `CaseError` where the file is not one, has a value that is not finite, or names a
    realization twice.
    """
    if path.suffix.lower() in BINARY_SUFFIXES:
        ensemble = _read_binary(path, limit)
    else:
        table = CsvEnsemble(path)
        names: list[str] = []
        values: list[NDArray[np.float64]] = []
        for _, name, row in table.rows():
            if limit is not None and len(names) == limit:
                break
            names.append(name.lower())
            values.append(np.array(row))
        matrix = np.array(values).reshape(len(names), len(table.columns))
        ensemble = Ensemble(tuple(names), table.columns, matrix)
    if not ensemble.realizations:
        raise CaseError(f"{path}: no realization in it", remedy="Add a row for each realization.")
    if len(set(ensemble.realizations)) < len(ensemble.realizations):
        names = list(ensemble.realizations)
        twice = next(name for name in names if names.count(name) > 1)
        raise CaseError(
            f"{path}: more than one realization is named {twice!r}",
            remedy="Give every realization a name of its own.",
        )
    return ensemble


def _read_binary(path: Path, limit: int | None) -> Ensemble:
    matrix, rows, columns = read_matrix(path)
    matrix = np.asarray(matrix, dtype=np.float64)[:limit]
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise CaseError(
            f"{path}: realization {rows[row]}, column {columns[column]}: not a finite number",
            remedy="Write the file again without that realization.",
        )
    return Ensemble(
        tuple(name.lower() for name in rows[: len(matrix)]),
        tuple(name.lower() for name in columns),
        matrix,
    )


def format_row(name: str, values: Iterable[float]) -> str:
    """One line of an ensemble CSV; `values` come back bit-equal."""
    return ",".join([name, *map(repr, values)]) + "\n"


def write_ensemble(
    stem: Path, realizations: Sequence[str], columns: Sequence[str], values: Matrix
) -> list[Path]:
    """Write `<stem>.csv` and `<stem>.jcb`. Returns both paths.

    `values`: (realizations, columns). The first column of the CSV is named `real_name`, as
    pestpp-ies names it.
    """
    table = stem.with_name(stem.name + ".csv")
    with table.open("w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(["real_name", *columns]) + "\n")
        for name, row in zip(realizations, values, strict=True):
            file.write(format_row(name, row.tolist()))
    binary = stem.with_name(stem.name + ".jcb")
    write_jcb(binary, values, list(realizations), list(columns))
    return [table, binary]
