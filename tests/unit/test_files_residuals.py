from __future__ import annotations

from pathlib import Path

import numpy as np
import pyemu
import pytest

from pestfleet.files.residuals import Residual, read_residuals, write_rei, write_res
from pestfleet_worker.errors import CaseError

ROWS = [
    Residual("head1", "heads", 10.0, 9.1 + 1e-12, 2.0),
    Residual("a_name_longer_than_twenty_characters", "a_group_with_a_long_name", -1e-9, 3e5, 0.25),
    Residual("unused", "heads", 1.0, 2.0, 0.0),
]


def test_rei_comes_back_bit_for_bit(tmp_path: Path) -> None:
    write_rei(tmp_path / "c.rei", ROWS, iteration=3)
    assert read_residuals(tmp_path / "c.rei") == ROWS


def test_pyemu_reads_both(tmp_path: Path) -> None:
    write_rei(tmp_path / "c.rei", ROWS, iteration=3)
    write_res(tmp_path / "c.res", ROWS, reference_variance=4.0)
    for name in ("c.rei", "c.res"):
        frame = pyemu.pst_utils.read_resfile(str(tmp_path / name))
        assert list(frame.name) == [r.name for r in ROWS]
        assert list(frame.group) == [r.group for r in ROWS]
        for column in ("measured", "modelled", "residual", "weight"):
            wanted = [getattr(r, column) for r in ROWS]
            assert frame[column].to_list() == pytest.approx(wanted, rel=1e-15)
    assert frame["weight*residual"].to_list() == pytest.approx(
        [r.weight * r.residual for r in ROWS], rel=1e-8
    )
    # sqrt(4) / weight
    assert frame["measurement_sd"].to_list()[:2] == [1.0, 8.0]
    assert np.isnan(frame["natural_weight"].iloc[2])


def test_pyemu_gets_phi_from_our_rei(tmp_path: Path) -> None:
    pst = pyemu.Pst.from_par_obs_names(par_names=["p"], obs_names=[r.name for r in ROWS])
    data = pst.observation_data
    data["obsval"] = data.index.map({r.name: r.measured for r in ROWS})
    data["weight"] = data.index.map({r.name: r.weight for r in ROWS})
    write_rei(tmp_path / "c.rei", ROWS, iteration=0)
    pst.set_res(str(tmp_path / "c.rei"))
    assert pst.phi == pytest.approx(sum((r.weight * r.residual) ** 2 for r in ROWS), rel=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": has no line with the column names"),
        ("Name Group Measured\n", ": has no line with the column names"),
        ("Name Group Measured Modelled Residual Weight\nh g 1 2 -1 1\nh2 g 1\n", ":3: cannot read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.rei"
    path.write_text(text)
    with pytest.raises(CaseError) as caught:
        read_residuals(path)
    assert caught.value.message.startswith(str(path) + message)
