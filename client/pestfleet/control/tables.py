"""Rows of a section: lines of the control file, or of the external tables that it names.

External tables: PEST++ users' manual, section "External file support".
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pestfleet.checks.names import is_file, is_folder
from pestfleet.checks.problem import Problems
from pestfleet.control.model import FilePair, Place
from pestfleet.control.sections import Section
from pestfleet.control.tokens import read_text, split_quoted

# What stands for "no value" in any table, besides its own `missing_values`.
_ALWAYS_MISSING = frozenset({"", "nan"})
_QUOTED_FIELD = re.compile(r'"([^"]*)"|(\S+)')


class Row(NamedTuple):
    """Values in the order of the columns asked for, None where there is none."""

    file: Path
    line: int
    values: Sequence[str | None]

    @property
    def place(self) -> Place:
        return Place(self.file, self.line)


@dataclass(slots=True)
class Rows:
    """All rows of a section, with the columns that it has beyond those asked for.

    `extra`: {column: {first value of the row: text}}, texts that are there only.
    `complete`: False if a table could not be read.
    """

    rows: list[Row] = field(default_factory=list)
    files: list[FilePair] = field(default_factory=list)
    extra: dict[str, dict[str, str]] = field(default_factory=dict)
    complete: bool = True

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a kind of table: `names` in the order of the inline form.

    `aliases`: other names of a column; `required`: those that an external table must have;
    `lower`: whether values are names and words, which PEST reads in lower case.
    """

    names: tuple[str, ...]
    aliases: dict[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    lower: bool = True


def read_rows(section: Section, columns: Columns, path: Path, problems: Problems) -> Rows:
    """The rows of a section of the control file `path`, wherever they stand."""
    if not section.external:
        if columns.lower:
            rows = [Row(path, number, text.lower().split()) for number, text in section.lines]
        else:
            rows = [Row(path, number, split_quoted(text)) for number, text in section.lines]
        return Rows(rows)
    found = Rows()
    if not section.lines:
        message = f"the section '* {section.title} external' names no file"
        problems.error(Place(path, section.line), message, "Name the table's file in it.")
        found.complete = False
    for number, text in section.lines:
        place = Place(path, number)
        tokens = split_quoted(text)
        options = _read_table_options(tokens[1:], place, problems)
        name = tokens[0].replace("\\", "/")
        found.files.append(FilePair(name, "", place))
        with problems.limited(f"rows of {name}"):
            if not _read_table(path.parent / name, place, columns, options, found, problems):
                found.complete = False
    return found


def _read_table_options(tokens: list[str], place: Place, problems: Problems) -> dict[str, str]:
    if len(tokens) % 2:
        message = (
            f"'{tokens[-1]}' has no partner: a file name is followed by pairs of option and value"
        )
        problems.error(place, message, "Write for example: table.csv sep w missing_values nan")
    options = {key.lower(): value for key, value in zip(tokens[::2], tokens[1::2], strict=False)}
    for key in options.keys() - {"sep", "missing_values"}:
        message = f"the table option '{key}' is unknown and ignored"
        problems.warning(place, message, "A table has the options 'sep' and 'missing_values'.")
    return options


def _read_table(
    table: Path,
    place: Place,
    columns: Columns,
    options: dict[str, str],
    found: Rows,
    problems: Problems,
) -> bool:
    if not is_file(table):
        what = "is a folder, not a file" if is_folder(table) else "does not exist"
        message = f"the external table '{table.name}' {what}"
        problems.error(place, message, "Correct the name, or add the file.")
        return False
    text = read_text(table, problems)
    if text is None:
        return False
    records = _split_records(text, options.get("sep", ","), table, problems)
    if not records:
        message = "the table is empty"
        problems.error(Place(table), message, "Give it a line of column names, then its rows.")
        return False
    header_line, header = records[0]
    lowered = [name.strip().lower() for name in header]
    names = [columns.aliases.get(name, name) for name in lowered]
    for name in names:
        if name and names.count(name) > 1:
            message = f"the column '{name}' is there twice (with its other name)"
            problems.error(Place(table, header_line), message, "Remove one of them.")
            return False
    missing_columns = [name for name in columns.required if name not in names]
    if missing_columns:
        message = f"the table has no column '{missing_columns[0]}'"
        if len(missing_columns) > 1:
            message = f"the table has no columns {', '.join(missing_columns)}"
        remedy = f"Its first line must name the columns {', '.join(columns.required)}."
        problems.error(Place(table, header_line), message, remedy)
        return False
    _take_records(records[1:], names, columns, options, table, found, problems)
    return True


def _take_records(
    records: list[tuple[int, list[str]]],
    names: list[str],
    columns: Columns,
    options: dict[str, str],
    table: Path,
    found: Rows,
    problems: Problems,
) -> None:
    missing = _ALWAYS_MISSING | {options.get("missing_values", "").lower()}
    order = [names.index(name) if name in names else None for name in columns.names]
    extras = [(index, found.extra.setdefault(name, {})) for index, name in enumerate(names)
              if name and name not in columns.names]  # fmt: skip
    key = order[0]
    for number, fields in records:
        if len(fields) != len(names):
            problems.error(
                Place(table, number),
                f"the row has {len(fields)} values, the table has {len(names)} columns",
                "Give every row one value a column; quote a value that holds the separator.",
            )
            fields = (fields + [""] * len(names))[: len(names)]
        cells = [None if (value := f.strip()).lower() in missing else value for f in fields]
        lowered = [c and c.lower() for c in cells] if columns.lower else cells
        found.rows.append(Row(table, number, [None if i is None else lowered[i] for i in order]))
        name = lowered[key] if key is not None else None
        if name:
            for index, column in extras:
                if (cell := cells[index]) is not None:
                    column[name] = cell


def _split_records(
    text: str, separator: str, table: Path, problems: Problems
) -> list[tuple[int, list[str]]]:
    """Line number and fields of every line that is not empty."""
    if separator.lower() == "w":
        return [
            (number, [a or b for a, b in _QUOTED_FIELD.findall(line)] if '"' in line
             else line.split())
            for number, line in enumerate(text.split("\n"), 1) if line.strip()
        ]  # fmt: skip
    separator = {"tab": "\t", "\\t": "\t"}.get(separator.lower(), separator)
    if len(separator) != 1:
        message = f"the separator '{separator}' of this table is not one character"
        problems.error(Place(table), message, "Write sep with one character, or sep w for blanks.")
        return []
    records: list[tuple[int, list[str]]] = []
    number = 0
    try:
        reader = csv.reader(text.split("\n"), delimiter=separator, skipinitialspace=True)
        for fields in reader:
            number = reader.line_num
            if any(fields):
                records.append((number, fields))
    except (csv.Error, ValueError, TypeError) as error:
        message = f"the table cannot be read: {error}"
        problems.error(Place(table, number + 1), message, "Check separator and quotes there.")
    return records
