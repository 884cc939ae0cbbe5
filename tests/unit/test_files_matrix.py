from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyemu
import pytest

from pestfleet.files.matrix import read_matrix, write_dense, write_jcb, write_jco, write_text
from pestfleet_worker.errors import CaseError

Write = Callable[[Path, np.ndarray, Sequence[str], Sequence[str]], None]
BINARY: list[Write] = [write_jco, write_jcb, write_dense]
EVERY: list[Write] = [*BINARY, write_text]


def example(
    rows: int = 7, columns: int = 3, *, long: bool = False
) -> tuple[np.ndarray, list[str], list[str]]:
    matrix = np.random.default_rng(5).normal(size=(rows, columns)) * 10.0 ** np.arange(columns)
    matrix[1, :] = 0.0
    matrix[0, 1] = 0.0
    tail = "_with_a_name_that_does_not_fit_in_twenty" if long else ""
    return matrix, [f"obs{i}{tail}" for i in range(rows)], [f"par{i}{tail}" for i in range(columns)]


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("write", EVERY)
def test_matrix_comes_back_bit_for_bit(tmp_path: Path, write: Write, long: bool) -> None:
    matrix, rows, columns = example(long=long)
    write(tmp_path / "m", matrix, rows, columns)
    back, row_names, column_names = read_matrix(tmp_path / "m")
    assert (back == matrix).all()
    assert (row_names, column_names) == (rows, columns)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("write", BINARY)
def test_pyemu_reads_what_we_write(tmp_path: Path, write: Write, long: bool) -> None:
    matrix, rows, columns = example(long=long)
    path = tmp_path / "m.jcb"
    write(path, matrix, rows, columns)
    for reader in (pyemu.Jco, pyemu.Matrix):
        read = reader.from_binary(str(path))
        assert (read.x == matrix).all()
        assert (read.row_names, read.col_names) == (rows, columns)


def test_pyemu_reads_text(tmp_path: Path) -> None:
    matrix, rows, columns = example()
    write_text(tmp_path / "m.mat", matrix, rows, columns)
    read = pyemu.Matrix.from_ascii(str(tmp_path / "m.mat"))
    assert np.allclose(read.x, matrix, rtol=1e-15, atol=0)
    assert (read.row_names, read.col_names) == (rows, columns)
    square = matrix[:3, :] @ matrix[:3, :].T
    write_text(tmp_path / "m.cov", square, rows[:3])
    covariance = pyemu.Cov.from_ascii(str(tmp_path / "m.cov"))
    assert np.allclose(covariance.x, square, rtol=1e-15, atol=0)
    assert covariance.row_names == rows[:3]


def test_we_read_what_pyemu_writes(tmp_path: Path) -> None:
    matrix, rows, columns = example()
    made = pyemu.Matrix(x=matrix.copy(), row_names=rows, col_names=columns)
    made.to_binary(str(tmp_path / "classic.jco"))
    made.to_coo(str(tmp_path / "extended.jcb"))
    made.to_dense(str(tmp_path / "dense.bin"))
    for name in ("classic.jco", "extended.jcb", "dense.bin"):
        back, row_names, column_names = read_matrix(tmp_path / name)
        assert (back == matrix).all(), name
        assert (row_names, column_names) == (rows, columns), name
    made.to_ascii(str(tmp_path / "text.mat"))
    back, row_names, _ = read_matrix(tmp_path / "text.mat")
    assert np.allclose(back, matrix, rtol=1e-6)
    assert row_names == rows


def test_we_read_a_diagonal_covariance(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    made = pyemu.Cov(x=np.array([[1.0], [4.0], [9.0]]), names=names, isdiagonal=True)
    made.to_ascii(str(tmp_path / "d.cov"), icode=-1)
    back, row_names, column_names = read_matrix(tmp_path / "d.cov")
    assert (back == np.diag([1.0, 4.0, 9.0])).all()
    assert row_names == column_names == names


@pytest.mark.parametrize("write", [write_dense, write_jcb])
def test_pyemu_reads_an_ensemble(tmp_path: Path, write: Write) -> None:
    matrix, rows, columns = example(long=True)
    pst = pyemu.Pst.from_par_obs_names(par_names=["p"], obs_names=columns)
    write(tmp_path / "obs.jcb", matrix, rows, columns)
    ensemble = pyemu.ObservationEnsemble.from_binary(pst, str(tmp_path / "obs.jcb"))
    assert (ensemble.values == matrix).all()
    assert list(ensemble.columns) == columns
    assert list(ensemble.index) == rows


def test_classic_layout_is_used_where_names_fit(tmp_path: Path) -> None:
    matrix, rows, columns = example()
    write_jco(tmp_path / "short", matrix, rows, columns)
    write_jco(tmp_path / "long", matrix, rows, ["a" * 13, "b", "c"])
    assert pyemu.Matrix.read_binary_header(str(tmp_path / "short"))[0] == -3
    assert pyemu.Matrix.read_binary_header(str(tmp_path / "long"))[0] == 3


@pytest.mark.parametrize("write", EVERY)
def test_file_that_is_cut_off_says_so(tmp_path: Path, write: Write) -> None:
    matrix, rows, columns = example()
    write(tmp_path / "m", matrix, rows, columns)
    data = (tmp_path / "m").read_bytes()
    for size in (0, 1, 5, 12, 20, len(data) // 2, len(data) - 6):
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(CaseError, match="cut off"):
            read_matrix(tmp_path / "cut")
    with pytest.raises(CaseError, match="cannot be read"):
        read_matrix(tmp_path / "absent")


def test_names_must_fit_the_matrix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row names"):
        write_jco(tmp_path / "m", np.zeros((2, 2)), ["a"], ["b", "c"])
    with pytest.raises(ValueError, match="longer than 200"):
        write_jcb(tmp_path / "m", np.zeros((1, 1)), ["a" * 201], ["b"])
