"""Matrices in PEST's and PEST++'s files.

Four layouts, all little-endian, told apart by the first three int32 (a, b, c):

* classic `.jco` (PEST manual part I, "The Jacobian matrix file"): a = -columns, b = -rows,
  c = number of elements; then c times (int32 index, float64), where index counts from 1 down the
  columns; then column names of 12 and row names of 20 characters.
* extended (PEST++ `.jcb`): a = columns, b = rows, both positive, c = number of elements; then
  c times (int32 row, int32 column, float64), counted from 0; then column and row names of 200
  characters.
* dense (PEST++ 5.2 `.jcb`, `.bin`): a = 0, b = c = -columns; the lengths of the column names, the
  names; then for each row the length of its name, the name, and its float64 values.
* text, the PEST "matrix file" (`.cov`, `.mat`; PEST manual part II, "Matrix file format"): rows,
  columns, ICODE; the elements; `* row names`, `* column names` or `* row and column names`.

Classic and extended files store non-zero elements only. Names are written as they are and read
in lower case.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pestfleet_worker.errors import CaseError

Matrix = NDArray[np.float64]

CLASSIC_COLUMN_NAME = 12
CLASSIC_ROW_NAME = 20
EXTENDED_NAME = 200

_HEADER = np.dtype([("a", "<i4"), ("b", "<i4"), ("c", "<i4")])
_CLASSIC = np.dtype([("index", "<i4"), ("value", "<f8")])
_EXTENDED = np.dtype([("row", "<i4"), ("column", "<i4"), ("value", "<f8")])
_LARGEST = 2**31 - 1


def write_jco(
    path: Path, matrix: Matrix, row_names: Sequence[str], column_names: Sequence[str]
) -> None:
    """Write a classic `.jco`; the extended layout where a name or an index does not fit in it.

    `matrix`: (rows, columns). pyEMU and PEST++ read both layouts from a file of either name.
    """
    _check_shape(matrix, row_names, column_names)
    fits = (
        all(len(_encode(n)) <= CLASSIC_COLUMN_NAME for n in column_names)
        and all(len(_encode(n)) <= CLASSIC_ROW_NAME for n in row_names)
        and matrix.size <= _LARGEST
    )
    if not fits:
        write_jcb(path, matrix, row_names, column_names)
        return
    rows, columns = matrix.shape
    column, row = np.nonzero(matrix.T)
    records = np.empty(len(row), dtype=_CLASSIC)
    records["index"] = column * rows + row + 1
    records["value"] = matrix[row, column]
    header = np.array([(-columns, -rows, len(records))], dtype=_HEADER)
    with path.open("wb") as file:
        file.write(header.tobytes())
        file.write(records.tobytes())
        file.write(_pad_names(column_names, CLASSIC_COLUMN_NAME))
        file.write(_pad_names(row_names, CLASSIC_ROW_NAME))


def write_jcb(
    path: Path, matrix: Matrix, row_names: Sequence[str], column_names: Sequence[str]
) -> None:
    """Write the extended layout of PEST++. Names of up to 200 characters, else `ValueError`."""
    _check_shape(matrix, row_names, column_names)
    for name in (*row_names, *column_names):
        if len(_encode(name)) > EXTENDED_NAME:
            raise ValueError(f"the name {name!r} is longer than {EXTENDED_NAME} characters")
    row, column = np.nonzero(matrix)
    records = np.empty(len(row), dtype=_EXTENDED)
    records["row"] = row
    records["column"] = column
    records["value"] = matrix[row, column]
    header = np.array([(matrix.shape[1], matrix.shape[0], len(records))], dtype=_HEADER)
    with path.open("wb") as file:
        file.write(header.tobytes())
        file.write(records.tobytes())
        file.write(_pad_names(column_names, EXTENDED_NAME))
        file.write(_pad_names(row_names, EXTENDED_NAME))


def write_dense(
    path: Path, matrix: Matrix, row_names: Sequence[str], column_names: Sequence[str]
) -> None:
    """Write the dense layout of PEST++ 5.2, its form for ensembles. Names of any length."""
    _check_shape(matrix, row_names, column_names)
    names = [_encode(n) for n in column_names]
    columns = len(names)
    with path.open("wb") as file:
        file.write(np.array([(0, -columns, -columns)], dtype=_HEADER).tobytes())
        file.write(np.array([len(n) for n in names], dtype="<i4").tobytes())
        file.write(b"".join(names))
        for name, values in zip(row_names, matrix, strict=True):
            encoded = _encode(name)
            file.write(len(encoded).to_bytes(4, "little") + encoded)
            file.write(values.astype("<f8").tobytes())


def write_text(
    path: Path, matrix: Matrix, row_names: Sequence[str], column_names: Sequence[str] | None = None
) -> None:
    """Write a PEST matrix file (text). Without `column_names` it is square and symmetric: ICODE 1.

    Values have 17 significant digits, so that reading gives the same float64.
    """
    _check_shape(matrix, row_names, row_names if column_names is None else column_names)
    lines = [f"{matrix.shape[0]:9d} {matrix.shape[1]:9d} {1 if column_names is None else 2:9d}"]
    lines += [" ".join(f"{value: .16E}" for value in row) for row in matrix]
    if column_names is None:
        lines += ["* row and column names", *row_names]
    else:
        lines += ["* row names", *row_names, "* column names", *column_names]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_matrix(path: Path) -> tuple[Matrix, list[str], list[str]]:
    """Read a matrix in any of the four layouts: (matrix, row names, column names).

    Raises `CaseError` for a file that is not there, is cut off or is no such matrix.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CaseError(
            f"{path}: cannot be read: {error.strerror}", remedy="Check the file's name and rights."
        ) from error
    try:
        return _read_text(data) if _is_text(data) else _read_binary(data)
    except (ValueError, IndexError) as error:
        raise CaseError(
            f"{path}: not a PEST or PEST++ matrix file, or cut off: {error}",
            remedy="Make the file again; pestfleet reads .jco, .jcb, .bin and text (.cov, .mat).",
        ) from error


def _is_text(data: bytes) -> bool:
    """The first line of a matrix file in text has digits and blanks only; binary has NUL bytes."""
    line = data[:200].splitlines()[0] if data[:200].splitlines() else b""
    return bool(line.strip()) and set(line) <= set(b"0123456789+- \t\r")


def _read_binary(data: bytes) -> tuple[Matrix, list[str], list[str]]:
    if len(data) < _HEADER.itemsize:
        raise ValueError("it has no header")
    a, b, c = (int(n) for n in np.frombuffer(data, dtype=_HEADER, count=1)[0])
    if a == 0 and b == c and b < 0:
        return _read_dense(data, columns=-b)
    classic = a < 0
    if a == 0 or b == 0 or (a < 0) != (b < 0) or c < 0:
        raise ValueError(f"its header is {a}, {b}, {c}")
    columns, rows = abs(a), abs(b)
    dtype = _CLASSIC if classic else _EXTENDED
    widths = (CLASSIC_COLUMN_NAME, CLASSIC_ROW_NAME) if classic else (EXTENDED_NAME, EXTENDED_NAME)
    names_at = _HEADER.itemsize + c * dtype.itemsize
    if len(data) < names_at + columns * widths[0] + rows * widths[1]:
        raise ValueError("it is shorter than its header says")
    records = np.frombuffer(data, dtype=dtype, count=c, offset=_HEADER.itemsize)
    if classic:
        position = records["index"].astype(np.int64) - 1
        row, column = position % rows, position // rows
    else:
        row, column = records["row"].astype(np.int64), records["column"].astype(np.int64)
    if c and (row.min() < 0 or column.min() < 0 or row.max() >= rows or column.max() >= columns):
        raise ValueError("an element lies outside the matrix")
    matrix = np.zeros((rows, columns))
    matrix[row, column] = records["value"]
    column_names = _read_names(data, names_at, columns, widths[0])
    row_names = _read_names(data, names_at + columns * widths[0], rows, widths[1])
    return matrix, row_names, column_names


def _read_dense(data: bytes, *, columns: int) -> tuple[Matrix, list[str], list[str]]:
    at = _HEADER.itemsize
    lengths = np.frombuffer(data, dtype="<i4", count=columns, offset=at)
    at += 4 * columns
    if (lengths < 0).any():
        raise ValueError("a name has a negative length")
    column_names = []
    for length in lengths.tolist():
        column_names.append(_decode(data[at : at + length]))
        at += length
    row_names: list[str] = []
    values: list[NDArray[np.float64]] = []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little", signed=True)
        end = at + 4 + length + 8 * columns
        if length < 0 or end > len(data):
            raise ValueError(f"row {len(row_names) + 1} is not complete")
        row_names.append(_decode(data[at + 4 : at + 4 + length]))
        values.append(np.frombuffer(data, dtype="<f8", count=columns, offset=at + 4 + length))
        at = end
    matrix = np.array(values, dtype=np.float64).reshape(len(values), columns)
    return matrix, row_names, column_names


def _read_text(data: bytes) -> tuple[Matrix, list[str], list[str]]:
    lines = data.decode("utf-8", errors="replace").splitlines()
    rows, columns, code = (int(word) for word in lines[0].split()[:3])
    headings = [i for i, line in enumerate(lines) if line.lstrip().startswith("*")]
    if not headings:
        raise ValueError("it has no names")
    elements = np.array(" ".join(lines[1 : headings[0]]).split(), dtype=np.float64)
    diagonal = code == -1
    if len(elements) != (rows if diagonal else rows * columns):
        raise ValueError(f"it has {len(elements)} elements for {rows} rows and {columns} columns")
    matrix = np.diag(elements) if diagonal else elements.reshape(rows, columns)
    names = [line.strip().lower() for line in lines[headings[0] + 1 :] if line.strip()]
    if code in (1, -1):
        row_names = column_names = names[:rows]
    else:
        row_names, column_names = names[:rows], names[rows + 1 : rows + 1 + columns]
    if len(row_names) != rows or len(column_names) != columns:
        raise ValueError("it has fewer names than rows or columns")
    return matrix, list(row_names), list(column_names)


def _check_shape(matrix: Matrix, row_names: Sequence[str], column_names: Sequence[str]) -> None:
    if matrix.shape != (len(row_names), len(column_names)):
        raise ValueError(
            f"a matrix of {matrix.shape} has {len(row_names)} row names "
            f"and {len(column_names)} column names"
        )


def _encode(name: str) -> bytes:
    return name.encode("utf-8")


def _decode(name: bytes) -> str:
    return name.decode("utf-8", errors="replace").strip(" \0").lower()


def _pad_names(names: Sequence[str], width: int) -> bytes:
    return b"".join(_encode(n).ljust(width) for n in names)


def _read_names(data: bytes, at: int, count: int, width: int) -> list[str]:
    return [_decode(data[i : i + width]) for i in range(at, at + count * width, width)]
