from __future__ import annotations

from pathlib import Path

import pyemu
import pytest

from pestfleet.files.parameters import ParameterValue, read_par, write_par
from pestfleet_worker.errors import CaseError

VALUES = [
    ParameterValue("hk", 0.1 + 0.2, 2.0, -1.5),
    ParameterValue("a_parameter_with_a_very_long_name_indeed", -1.2345678901234567e-300),
    ParameterValue("zero", 0.0),
]


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    write_par(tmp_path / "c.par", VALUES)
    back = read_par(tmp_path / "c.par")
    assert list(back.values) == VALUES
    assert (back.precision, back.decimal_point) == ("double", "point")
    write_par(tmp_path / "c.par", VALUES, precision="single", decimal_point="nopoint")
    assert (tmp_path / "c.par").read_text().startswith("single nopoint\n")


def test_pyemu_reads_it(tmp_path: Path) -> None:
    write_par(tmp_path / "c.par", VALUES)
    frame = pyemu.pst_utils.read_parfile(str(tmp_path / "c.par"))
    assert list(frame.parnme) == [v.name for v in VALUES]
    assert frame.parval1.to_list() == pytest.approx([v.value for v in VALUES], rel=1e-15)
    assert frame.scale.to_list() == [2.0, 1.0, 1.0]
    assert frame.offset.to_list() == [-1.5, 0.0, 0.0]


def test_we_read_what_pyemu_writes(tmp_path: Path) -> None:
    pst = pyemu.Pst.from_par_obs_names(par_names=["p1", "p2"], obs_names=["o"])
    pst.parameter_data["parval1"] = [3.25, -4.5]
    pyemu.pst_utils.write_parfile(pst.parameter_data, str(tmp_path / "c.par"))
    back = read_par(tmp_path / "c.par")
    assert [(v.name, v.value) for v in back.values] == [("p1", 3.25), ("p2", -4.5)]
    assert back.precision == "single"


def test_fortran_numbers_and_missing_columns(tmp_path: Path) -> None:
    (tmp_path / "c.par").write_text("double point\nHK 1.5D-3 1 0\n\nss 2\n")
    values = read_par(tmp_path / "c.par").values
    assert values == (ParameterValue("hk", 1.5e-3), ParameterValue("ss", 2.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: a parameter value file starts"),
        ("pcf\nhk 1 1 0\n", ":1: a parameter value file starts"),
        ("single point\nhk 1 1 0\nss one 1 0\n", ":3: cannot read 'ss one 1 0'"),
        ("single point\nhk\n", ":2: cannot read 'hk'"),
        ("single point\nhk 1\nHK 2\n", ":3: parameter hk is on line 2 already"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.par"
    path.write_text(text)
    with pytest.raises(CaseError) as caught:
        read_par(path)
    assert caught.value.message.startswith(str(path) + message)
    assert caught.value.remedy
