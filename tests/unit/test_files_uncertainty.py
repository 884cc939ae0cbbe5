from __future__ import annotations

from pathlib import Path

import numpy as np
import pyemu
import pytest

from pestfleet.engines.base import Matrix
from pestfleet.files.matrix import write_jcb, write_text
from pestfleet.files.uncertainty import CovarianceBlock, read_covariance
from pestfleet_worker.errors import CaseError

COVARIANCE = np.array([[4.0, 1.0], [1.0, 2.0]])
MIXED = """# prior
START STANDARD_DEVIATION
  P1 0.5
  std_multiplier 2.0
  p2 3.0d0   # a comment
END STANDARD_DEVIATION
start covariance_matrix
  file "sub/m.cov"
  variance_multiplier 0.5
end covariance_matrix
"""


def expand(blocks: list[CovarianceBlock]) -> tuple[list[str], Matrix]:
    names = [name for block in blocks for name in block.names]
    full = np.zeros((len(names), len(names)))
    at = 0
    for block in blocks:
        end = at + len(block.names)
        matrix = block.covariance
        full[at:end, at:end] = np.diag(matrix) if matrix.ndim == 1 else matrix
        at = end
    return names, full


def write_mixed(folder: Path) -> Path:
    (folder / "sub").mkdir(exist_ok=True)
    write_text(folder / "sub" / "m.cov", COVARIANCE, ["p3", "p4"])
    path = folder / "prior.unc"
    path.write_text(MIXED)
    return path


def test_uncertainty_file(tmp_path: Path) -> None:
    blocks = read_covariance(write_mixed(tmp_path))
    names, full = expand(blocks)
    assert names == ["p1", "p2", "p3", "p4"]
    assert np.diag(full).tolist() == [1.0, 36.0, 2.0, 1.0]
    assert full[2, 3] == full[3, 2] == 0.5
    assert blocks[0].covariance.ndim == 1


def test_agrees_with_pyemu(tmp_path: Path) -> None:
    (tmp_path / "m.cov").write_text("2 2 1\n4.0 1.0\n1.0 2.0\n* row and column names\np3\np4\n")
    path = tmp_path / "p.unc"
    path.write_text(
        "START STANDARD_DEVIATION\n std_multiplier 2.0\n p1 0.5\n p2 3.0\nEND STANDARD_DEVIATION\n"
        "START COVARIANCE_MATRIX\n file m.cov\n variance_multiplier 0.5\nEND COVARIANCE_MATRIX\n"
    )
    names, full = expand(read_covariance(path))
    expected = pyemu.Cov.from_uncfile(str(path))
    assert names == expected.row_names
    assert np.allclose(full, expected.as_2d)


@pytest.mark.parametrize("name", ["c.cov", "c.mat", "c.jcb"])
def test_full_matrix(tmp_path: Path, name: str) -> None:
    write = write_jcb if name.endswith("jcb") else write_text
    write(tmp_path / name, COVARIANCE, ["p2", "p1"], ["p2", "p1"])
    (block,) = read_covariance(tmp_path / name)
    assert block.names == ("p2", "p1")
    assert (block.covariance == COVARIANCE).all()


def test_diagonal_file_of_pyemu_is_not_expanded(tmp_path: Path) -> None:
    pst = pyemu.Pst.from_par_obs_names(["p1", "p2", "p3"], ["o1"])
    expected = pyemu.Cov.from_parameter_data(pst)
    expected.to_ascii(str(tmp_path / "c.cov"), icode=-1)
    (block,) = read_covariance(tmp_path / "c.cov")
    assert block.names == ("p1", "p2", "p3")
    assert block.covariance.shape == (3,)
    assert np.allclose(block.covariance, np.diag(expected.as_2d))


def test_select_keeps_order_and_correlation() -> None:
    block = CovarianceBlock(("a", "b", "c"), np.arange(9.0).reshape(3, 3))
    chosen = block.select({"c", "a", "x"})
    assert chosen is not None
    assert chosen.names == ("a", "c")
    assert chosen.covariance.tolist() == [[0.0, 2.0], [6.0, 8.0]]
    assert block.select({"x"}) is None


def test_first_and_last_parameter(tmp_path: Path) -> None:
    write_text(tmp_path / "m.cov", COVARIANCE, ["x", "y"])
    path = tmp_path / "p.unc"
    text = "START COVARIANCE_MATRIX\nfile m.cov\nfirst_parameter {}\nlast_parameter {}\nEND x\n"
    path.write_text(text.format("b", "c"))
    (block,) = read_covariance(path, parameters=["a", "b", "c", "d"])
    assert block.names == ("b", "c")
    for first, last, message in (
        ("b", "d", ":5: 3 parameters from first_parameter to last_parameter, but m.cov has 2"),
        ("b", "z", ":4: last_parameter 'z' is not a parameter of the control file"),
    ):
        path.write_text(text.format(first, last))
        with pytest.raises(CaseError) as caught:
            read_covariance(path, parameters=["a", "b", "c", "d"])
        assert caught.value.message == f"{path}{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("START STANDARD_DEVIATION\np1 x\nEND STANDARD_DEVIATION\n", ":2: 'x' is not a number"),
        ("START STANDARD_DEVIATION\np1\nEND STANDARD_DEVIATION\n", ":2: '' is not a number"),
        ("START STANDARD_DEVIATION\np1 -1\nEND x\n", ":2: a negative standard deviation"),
        ("START STANDARD_DEVIATION\np1 1\n", ": block 'standard_deviation' has no END"),
        ("p1 1\n", ":1: 'p1' outside of a block"),
        ("START PEST_CONTROL_FILE\nEND x\n", ":2: blocks of kind 'pest_control_file' are not"),
        ("START COVARIANCE_MATRIX\nEND x\n", ":2: the block names no file"),
        ("START COVARIANCE_MATRIX\nfile\nEND x\n", ":2: file has no value"),
        ("START COVARIANCE_MATRIX\nfoo 1\nEND x\n", ":2: keyword 'foo' is not supported"),
        ("START STANDARD_DEVIATION\np 1\nP 2\nEND x\n", ": parameter 'p' is in it more than once"),
    ],
)
def test_bad_uncertainty_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.unc"
    path.write_text(text)
    with pytest.raises(CaseError) as caught:
        read_covariance(path)
    assert caught.value.message.startswith(f"{path}{message}")
    assert caught.value.remedy


def test_bad_matrix(tmp_path: Path) -> None:
    path = tmp_path / "c.cov"
    write_text(path, np.array([[1.0, 2.0], [3.0, 4.0]]), ["a", "b"])
    with pytest.raises(CaseError, match="it is not symmetric"):
        read_covariance(path)
    write_text(path, COVARIANCE, ["a", "b"], ["b", "a"])
    with pytest.raises(CaseError, match="its rows and columns have different names"):
        read_covariance(path)
    path.write_text("3 3 -1\n1.0 2.0\n* row and column names\na\nb\nc\n")
    with pytest.raises(CaseError, match="2 values and 3 names for 3 rows"):
        read_covariance(path)
    with pytest.raises(CaseError, match="cannot be read"):
        read_covariance(tmp_path / "missing.cov")


def test_a_cut_off_file_gives_an_error_or_a_shorter_prior(tmp_path: Path) -> None:
    path = write_mixed(tmp_path)
    text = path.read_text()
    outcomes = set()
    for length in range(len(text)):
        path.write_text(text[:length])
        try:
            read_covariance(path)
            outcomes.add("read")
        except CaseError as error:
            assert str(tmp_path) in error.message
            outcomes.add("error")
    assert outcomes == {"read", "error"}
