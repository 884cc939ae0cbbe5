"""Prior parameter uncertainty in files: `.unc` and covariance matrices.

Sources: PEST manual part II, "Uncertainty files" and "Matrix file format"; PEST++ manual,
appendix B. A covariance is kept as blocks, so that independent parameters cost no matrix.
Values pertain to log10 of a parameter that is log-transformed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pestfleet.engines.base import Matrix
from pestfleet.files.matrix import read_matrix
from pestfleet_worker.errors import CaseError


@dataclass(frozen=True, slots=True)
class CovarianceBlock:
    """Covariance of some parameters, independent of all others.

    `covariance`: (n,) variances of independent parameters, or an (n, n) symmetric matrix.
    """

    names: tuple[str, ...]
    covariance: Matrix

    def select(self, wanted: set[str]) -> CovarianceBlock | None:
        """The block for those of its parameters that are wanted; None if there is none."""
        keep = [i for i, name in enumerate(self.names) if name in wanted]
        if not keep:
            return None
        names = tuple(self.names[i] for i in keep)
        if self.covariance.ndim == 1:
            return CovarianceBlock(names, self.covariance[keep])
        return CovarianceBlock(names, self.covariance[np.ix_(keep, keep)])


def read_covariance(path: Path, *, parameters: Sequence[str] = ()) -> list[CovarianceBlock]:
    """Covariance blocks from a file, by its suffix: `.unc`, else a matrix file.

    `parameters`: every parameter in the control file's order, for `first_parameter` and
    `last_parameter` in a `.unc` file. Raises `CaseError` with file and line.
    """
    if path.suffix.lower() == ".unc":
        return _read_uncertainty_file(path, parameters)
    return [_read_matrix_block(path)]


def _read_matrix_block(path: Path) -> CovarianceBlock:
    """A matrix in any of PEST's and PEST++'s layouts, as one block."""
    diagonal = _read_diagonal(path)
    if diagonal is not None:
        return diagonal
    matrix, rows, columns = read_matrix(path)
    return _make_block(path, matrix, rows, columns)


def _read_diagonal(path: Path) -> CovarianceBlock | None:
    """The block of a text matrix file with ICODE -1, which has the diagonal only; else None.

    Read here, since `read_matrix` would make a full matrix of it.
    """
    try:
        with path.open("rb") as file:
            first = file.readline(100).split()
    except OSError:
        return None  # read_matrix says what is wrong
    if len(first) < 3 or first[2] != b"-1":
        return None
    lines = _read_lines(path)
    heading = next((i for i, line in enumerate(lines) if line.lstrip().startswith("*")), len(lines))
    values = [
        _parse(path, number, word)
        for number, line in enumerate(lines[1:heading], start=2)
        for word in line.split()
    ]
    names = tuple(line.strip().lower() for line in lines[heading + 1 :] if line.strip())
    if not len(values) == len(names) == int(first[0]):
        raise CaseError(
            f"{path}: {len(values)} values and {len(names)} names for {int(first[0])} rows",
            remedy="Make the file again; it may be cut off.",
        )
    return _make_block(path, np.array(values), names, names)


def _make_block(
    path: Path, matrix: Matrix, rows: Sequence[str], columns: Sequence[str]
) -> CovarianceBlock:
    names = tuple(name.lower() for name in rows)
    if names != tuple(name.lower() for name in columns):
        raise CaseError(
            f"{path}: not a covariance matrix: its rows and columns have different names",
            remedy="Write the same names in the same order for both.",
        )
    if not np.isfinite(matrix).all():
        raise CaseError(f"{path}: has values that are not finite", remedy="Write it again.")
    if matrix.ndim == 2 and not np.allclose(matrix, matrix.T, rtol=1e-6, atol=0.0):
        raise CaseError(
            f"{path}: not a covariance matrix: it is not symmetric", remedy="Write it again."
        )
    return CovarianceBlock(names, matrix)


def _read_uncertainty_file(path: Path, parameters: Sequence[str]) -> list[CovarianceBlock]:
    blocks: list[CovarianceBlock] = []
    content: list[tuple[int, list[str]]] = []
    kind = ""
    for number, line in enumerate(_read_lines(path), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        head = words[0].lower()
        if head == "start" and not kind and len(words) > 1:
            kind, content = words[1].lower(), []
        elif head == "end" and kind:
            if kind == "standard_deviation":
                blocks.append(_read_deviations(path, content))
            elif kind == "covariance_matrix":
                blocks.append(_read_matrix_section(path, number, content, parameters))
            else:
                raise CaseError(
                    f"{path}:{number}: blocks of kind {kind!r} are not supported",
                    remedy="Use standard_deviation and covariance_matrix blocks.",
                )
            kind = ""
        elif kind:
            content.append((number, words))
        else:
            raise CaseError(
                f"{path}:{number}: {words[0]!r} outside of a block",
                remedy="Blocks begin with START and end with END.",
            )
    if kind:
        raise CaseError(f"{path}: block {kind!r} has no END", remedy="Add the END line.")
    seen: set[str] = set()
    for name in (name for block in blocks for name in block.names):
        if name in seen:
            raise CaseError(
                f"{path}: parameter {name!r} is in it more than once", remedy="Remove one of them."
            )
        seen.add(name)
    return blocks


def _read_deviations(path: Path, content: list[tuple[int, list[str]]]) -> CovarianceBlock:
    multiplier = 1.0
    names: list[str] = []
    deviations: list[float] = []
    for number, words in content:
        value = _parse(path, number, words[1] if len(words) > 1 else "")
        if value < 0.0:
            raise CaseError(
                f"{path}:{number}: a negative standard deviation", remedy="Write a positive one."
            )
        if words[0].lower() == "std_multiplier":
            multiplier = value
        else:
            names.append(words[0].strip("'\"").lower())
            deviations.append(value)
    return CovarianceBlock(tuple(names), (np.array(deviations) * multiplier) ** 2)


def _read_matrix_section(
    path: Path, end: int, content: list[tuple[int, list[str]]], parameters: Sequence[str]
) -> CovarianceBlock:
    words_of = {words[0].lower(): (number, words[1:]) for number, words in content}
    for key, (number, words) in words_of.items():
        if key not in ("file", "variance_multiplier", "first_parameter", "last_parameter"):
            raise CaseError(
                f"{path}:{number}: keyword {key!r} is not supported in a covariance_matrix block",
                remedy="Use file, variance_multiplier, first_parameter and last_parameter.",
            )
        if not words:
            raise CaseError(f"{path}:{number}: {key} has no value", remedy="Give it one.")
    if "file" not in words_of:
        raise CaseError(f"{path}:{end}: the block names no file", remedy="Add a FILE line.")
    source = path.parent / " ".join(words_of["file"][1]).strip("'\"")
    block = _read_matrix_block(source)
    covariance = block.covariance
    if "variance_multiplier" in words_of:
        number, words = words_of["variance_multiplier"]
        covariance = covariance * _parse(path, number, words[0])
    names = block.names
    if "first_parameter" in words_of or "last_parameter" in words_of:
        names = _select_range(path, end, words_of, parameters)
        if len(names) != len(block.names):
            raise CaseError(
                f"{path}:{end}: {len(names)} parameters from first_parameter to last_parameter, "
                f"but {source.name} has {len(block.names)}",
                remedy="Correct the two names.",
            )
    return CovarianceBlock(names, covariance)


def _select_range(
    path: Path, end: int, words_of: dict[str, tuple[int, list[str]]], parameters: Sequence[str]
) -> tuple[str, ...]:
    places = []
    for key in ("first_parameter", "last_parameter"):
        number, words = words_of.get(key, (end, [""]))
        name = words[0].lower()
        if name not in parameters:
            raise CaseError(
                f"{path}:{number}: {key} {name!r} is not a parameter of the control file",
                remedy="Give both first_parameter and last_parameter, as the control file does.",
            )
        places.append(list(parameters).index(name))
    return tuple(parameters[places[0] : places[1] + 1])


def _parse(path: Path, number: int, word: str) -> float:
    try:
        value = float(word.lower().replace("d", "e"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CaseError(
            f"{path}:{number}: {word!r} is not a number", remedy="Write a number there."
        )
    return value


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise CaseError(
            f"{path}: cannot be read: {error.strerror}",
            remedy="Put the file there, or correct its name in the control file.",
        ) from error
    if not lines:
        raise CaseError(f"{path}: the file is empty", remedy="Write it again.")
    return lines
