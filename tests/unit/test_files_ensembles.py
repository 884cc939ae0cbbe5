from __future__ import annotations

from pathlib import Path

import numpy as np
import pyemu
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pestfleet.files.ensembles import CsvEnsemble, format_row, read_ensemble, write_ensemble
from pestfleet.files.matrix import write_dense
from pestfleet_worker.errors import CaseError


def test_csv_and_jcb_come_back_bit_equal(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4)) * 10.0 ** np.arange(-200, 200, 100)
    values[1, 2] = 0.0
    names = ["0", "1", "base"]
    columns = ["a", "b", "a_much_longer_name_than_twelve_characters", "d"]
    paths = write_ensemble(tmp_path / "case.0.par", names, columns, values)
    assert [path.name for path in paths] == ["case.0.par.csv", "case.0.par.jcb"]
    for path in paths:
        ensemble = read_ensemble(path)
        assert ensemble.realizations == tuple(names)
        assert ensemble.columns == tuple(columns)
        assert ensemble.values.tobytes() == values.tobytes()
    assert read_ensemble(paths[0], limit=2).realizations == ("0", "1")
    assert read_ensemble(paths[1], limit=2).values.tobytes() == values[:2].tobytes()


def test_reads_what_pyemu_writes(tmp_path: Path) -> None:
    pst = pyemu.Pst.from_par_obs_names(["p1", "p2"], ["o1"])
    ensemble = pyemu.ParameterEnsemble.from_uniform_draw(pst, num_reals=4)
    ensemble.to_csv(str(tmp_path / "e.csv"))
    ensemble.to_binary(str(tmp_path / "e.jcb"))
    ensemble.to_dense(str(tmp_path / "e.bin"))
    for suffix in ("csv", "jcb", "bin"):
        found = read_ensemble(tmp_path / f"e.{suffix}")
        assert found.realizations == ("0", "1", "2", "3")
        assert found.columns == ("p1", "p2")
        assert (found.values == ensemble.values).all()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_every_number_survives_a_row(values: list[float]) -> None:
    cells = format_row("r", values).rstrip("\n").split(",")
    assert np.array([float(cell) for cell in cells[1:]]).tobytes() == np.array(values).tobytes()


def test_what_spreadsheets_and_fortran_do_to_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_bytes(
        b'\xef\xbb\xbf,"P1", p2 ,\r\n"a, first",1.5d+02, -2 ,\r\n\r\n,,,\r\nb,1E0,.5\r\n'
    )
    ensemble = read_ensemble(path)
    assert ensemble.columns == ("p1", "p2")
    assert ensemble.realizations == ("a, first", "b")
    assert ensemble.values.tolist() == [[150.0, -2.0], [1.0, 0.5]]
    assert [line for line, _, _ in CsvEnsemble(path).rows()] == [2, 5]


def test_errors_say_where(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    for text, message in (
        ("n,a\n1,2\n1,3\n", ": more than one realization is named '1'"),
        ("n,a\n", ": no realization in it"),
        ("n,a\n1,inf\n", ":2: column 2 (a): 'inf' is not a number"),
    ):
        path.write_text(text)
        with pytest.raises(CaseError) as caught:
            read_ensemble(path)
        assert caught.value.message == f"{path}{message}"
        assert caught.value.remedy
    path.write_bytes(b"n,a\n1,\xff\xfe\n")
    with pytest.raises(CaseError, match="not a CSV file"):
        read_ensemble(path)
    binary = tmp_path / "e.bin"
    write_dense(binary, np.array([[1.0, 2.0], [np.nan, 1.0]]), ["x", "y"], ["a", "b"])
    with pytest.raises(CaseError) as caught:
        read_ensemble(binary)
    assert caught.value.message == f"{binary}: realization y, column a: not a finite number"
