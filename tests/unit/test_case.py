"""A case as the rest of pestfleet sees it, and cases that are damaged."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pestfleet.case import Case, check_case, find_control
from pestfleet_worker.errors import CaseError
from pestfleet_worker.instructions import Instructions
from pestfleet_worker.messages import CaseSpec, FilePair, decode, encode
from pestfleet_worker.templates import Template

DATA = Path(__file__).parent / "data" / "cases"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(DATA / "version1", tmp_path / "case")
    return tmp_path / "case"


@pytest.mark.parametrize("version", [1, 2])
def test_spec(version: int) -> None:
    case = Case.read(DATA / f"version{version}")
    assert case.spec == CaseSpec(
        name="case",
        digest=case.digest,
        parameters=("k1", "k2", "s", "h0", "t"),
        observations=("head_1", "head_2", "flow_1", "flow_2"),
        templates=(FilePair("model.tpl", "model.in"),),
        instructions=(FilePair("out.ins", "model.out"),),
        commands=("python3 model.py",),
        precision="double",
        decimal_point="point",
    )
    assert decode(encode(case.spec)) == case.spec
    assert case.folder == DATA / f"version{version}"


def test_spec_has_posix_paths(folder: Path) -> None:
    text = (folder / "case.pst").read_text()
    text = text.replace("model.tpl model.in", ".\\in\\model.tpl in\\\\.\\model.in")
    (folder / "case.pst").write_text(text)
    assert Case.read(folder).spec.templates == (FilePair("in/model.tpl", "in/model.in"),)


def test_values() -> None:
    case = Case.read(DATA / "version1")
    initial = case.initial_values()
    np.testing.assert_array_equal(initial, [1.5, 3.0, 0.2, -2.5, 1.0])
    runs = np.array([initial, [6.0, 99.0, 0.3, 1.0, 2.0]])
    tied = case.resolve_tied(runs)
    np.testing.assert_array_equal(tied, [[1.5, 3.0, 0.2, -2.5, 1.0], [6.0, 12.0, 0.3, 1.0, 2.0]])
    assert runs[1, 1] == 99.0
    np.testing.assert_array_equal(case.resolve_tied(runs[1]), tied[1])
    np.testing.assert_array_equal(
        case.model_values(tied), [[1.5, 3.0, 0.2, 95.0, 1.0], [6.0, 12.0, 0.3, 102.0, 2.0]]
    )
    assert case.model_values(tied).dtype == np.float64


def test_a_run_by_hand_fits_the_case(tmp_path: Path) -> None:
    """Template, model and instructions of the good case agree with what the tests say of it."""
    case = Case.read(DATA / "version1")
    shutil.copytree(case.folder, tmp_path, dirs_exist_ok=True)
    values = case.model_values(case.initial_values()[None])[0]
    template = Template.parse(tmp_path / case.spec.templates[0].pest)
    text = template.bind(case.spec.parameters).render(values.tolist())
    (tmp_path / case.spec.templates[0].model).write_bytes(text)
    subprocess.run([sys.executable, "model.py"], cwd=tmp_path, check=True)
    instructions = Instructions.parse(tmp_path / case.spec.instructions[0].pest)
    assert instructions.names == case.spec.observations
    found = instructions.read(tmp_path / case.spec.instructions[0].model)
    assert found == [95.0 / 1.5, 95.0 / 3.0, 1.5 * 0.2, 3.0 * 1.0]


def test_find_control(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="there is no control file"):
        find_control(tmp_path)
    (tmp_path / "b.PST").write_text("pcf\n")
    assert find_control(tmp_path) == tmp_path / "b.PST"
    (tmp_path / "a.pst").write_text("pcf\n")
    with pytest.raises(CaseError) as caught:
        find_control(tmp_path)
    assert caught.value.message == (
        f"{tmp_path}: there are 2 control files in this folder: a.pst, b.PST"
    )
    assert caught.value.remedy == "Name the one to use."
    assert find_control(tmp_path / "a.pst") == tmp_path / "a.pst"
    with pytest.raises(CaseError, match="does not exist"):
        Case.read(tmp_path / "c.pst")


def test_read_raises_for_what_is_no_control_file(tmp_path: Path) -> None:
    (tmp_path / "a.pst").write_text("ptf ~\n")
    with pytest.raises(CaseError) as caught:
        Case.read(tmp_path)
    assert caught.value.exit_code == 3
    assert caught.value.message == (
        f"{tmp_path / 'a.pst'}:1: not a PEST control file: it begins with 'ptf ~', not 'pcf'"
    )
    case, problems = check_case(tmp_path)
    assert case is None
    assert len(problems) == 1


def test_problems_start_with_those_of_the_control_file(folder: Path) -> None:
    text = (folder / "case.pst").read_text()
    (folder / "case.pst").write_text(text.replace("k1 log", "k1 lag").replace("4 2 1 3", "5 2 1 3"))
    (folder / "out.ins").unlink()
    found = [p.message for p in Case.read(folder).problems()]
    assert found[:2] == ["PARTRANS of 'k1' is 'lag'",
                         "NOBS is 5, but '* observation data' has 4 entries"]  # fmt: skip
    assert found[-1] == "the instruction file 'out.ins' does not exist"


def test_a_relative_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    case = Case.read(".")
    assert case.problems() == []
    assert case.digest == Case.read(folder).digest


def test_import_is_light() -> None:
    code = (
        "import sys, pestfleet.case; "
        "print([m for m in ('pandas', 'pyemu', 'scipy', 'matplotlib', 'celery', 'numpy') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


# Damage

CUTS = random.Random(11)


@pytest.mark.parametrize("version", [1, 2])
def test_cut_off_anywhere(tmp_path: Path, version: int) -> None:
    shutil.copytree(DATA / f"version{version}", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "case.pst"
    data = path.read_bytes()
    for cut in sorted(CUTS.sample(range(len(data)), 100)):
        path.write_bytes(data[:cut])
        try:
            problems = Case.read(tmp_path).problems()
        except CaseError as error:
            assert cut < 4, error
            continue
        for problem in problems:
            assert str(problem).count("\n") <= 1
        # What is left out at the very end is optional: options, or the table of priors.
        if cut < len(data) - 80:
            assert [p for p in problems if p.severity == "error"], cut


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    version=st.sampled_from([1, 2]),
    target=st.integers(0, 30),
    edits=st.lists(
        st.tuples(st.integers(0, 1000), st.integers(0, 8), st.binary(max_size=8)),
        min_size=1, max_size=5,
    ),
)  # fmt: skip
def test_changed_bytes_never_raise(
    tmp_path: Path, version: int, target: int, edits: list[tuple[int, int, bytes]]
) -> None:
    files = sorted((DATA / f"version{version}").iterdir())
    for file in files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    victim = tmp_path / files[target % len(files)].name
    data = bytearray(victim.read_bytes())
    for start, length, new in edits:
        start %= len(data) + 1
        data[start : start + length] = new
    victim.write_bytes(bytes(data))
    try:
        case, problems = check_case(tmp_path / "case.pst", slots=2)
    except CaseError:
        return
    for problem in problems:
        assert problem.message
    if case is not None:
        assert len(case.digest) == 64
