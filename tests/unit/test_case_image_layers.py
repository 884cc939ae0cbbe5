"""A case's files in layers: which goes where, and the same bytes for the same files."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from cases import make_case
from elf_files import make_elf
from pestfleet.case import Case
from pestfleet.images.layers import (
    LARGE,
    Layer,
    hash_layer,
    list_named_files,
    measure_layer,
    plan_layers,
    stream_context,
    stream_layer,
)
from pestfleet_worker.errors import CaseError


@pytest.fixture
def case(tmp_path: Path) -> Case:
    control = make_case(tmp_path / "case")
    folder = control.parent
    (folder / "mf6").write_bytes(make_elf())
    (folder / "mf6").chmod(0o755)
    (folder / "lib").mkdir()
    (folder / "lib" / "libx.so").write_bytes(make_elf())
    (folder / "field.bin").write_bytes(bytes(LARGE))
    (folder / "wells.dat").write_text("1 2\n")
    (folder / "out" / "deep").mkdir(parents=True)
    return Case.read(control)


def name_files(layers: list[Layer]) -> dict[str, list[str]]:
    return {layer.name: [file.name for file in layer.files] for layer in layers}


def read_archive(layer: Layer) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(b"".join(stream_layer(layer))))


def test_files_are_in_layers_by_how_often_they_change(case: Case) -> None:
    layers = plan_layers(case.control, {})
    assert list(name_files(layers).items()) == [
        ("programs", ["lib/libx.so", "mf6"]),
        ("large", ["field.bin"]),
        ("inputs", ["model.sh", "wells.dat"]),
        ("control", ["input.tpl", "output.ins", "small.pst"]),
    ]


def test_a_large_table_of_the_control_file_does_not_go_with_each_edit(case: Case) -> None:
    path = case.folder / "input.tpl"
    path.write_text(path.read_text() + " " * LARGE)
    files = name_files(plan_layers(case.control, {}))
    assert "input.tpl" in files["inputs"]
    assert "input.tpl" not in files["control"]


def test_a_layer_without_files_is_left_out(tmp_path: Path) -> None:
    layers = plan_layers(Case.read(make_case(tmp_path)).control, {})
    assert [layer.name for layer in layers] == ["inputs", "control"]


def test_files_that_options_name_go_along(case: Case) -> None:
    for name in ("small.0.par.csv", "small.1.par.csv", "small.obs.csv"):
        (case.folder / name).write_text("x\n")
    control = case.folder / "small.pst"
    control.write_text(control.read_text() + "++ies_par_en(small.0.par.csv)\n")
    read = Case.read(control)
    options = {"ies_obs_en": "'small.obs.csv'", "forgive": "true", "other": "/etc/passwd,../x"}
    (case.folder.parent / "x").touch()
    named = [file.name for file in list_named_files(read.control, options)]
    assert named == ["small.0.par.csv", "small.obs.csv", "small.pst"]
    inputs = name_files(plan_layers(read.control, options))["inputs"]
    assert {"small.0.par.csv", "small.obs.csv"} < set(inputs)
    assert "small.1.par.csv" not in inputs


def test_archives_have_plain_entries_below_one_folder(case: Case) -> None:
    for layer in plan_layers(case.control, {}):
        with read_archive(layer) as archive:
            members = archive.getmembers()
            assert members[0].name == "case" and members[0].isdir()
            files = [member for member in members if member.isfile()]
            assert [f"case/{file.name}" for file in layer.files] == [f.name for f in files]
            assert {(m.uid, m.gid, m.mtime) for m in members} == {(0, 0, 0)}
            programs = {m.name for m in files if m.mode == 0o755}
            assert programs <= {"case/mf6", "case/lib/libx.so", "case/model.sh"}
            assert {m.mode for m in members} <= {0o755, 0o644}


def test_empty_folders_come_with_their_parents(case: Case) -> None:
    inputs = next(layer for layer in plan_layers(case.control, {}) if layer.name == "inputs")
    with read_archive(inputs) as archive:
        folders = [member.name for member in archive if member.isdir()]
    assert folders == ["case", "case/lib", "case/out", "case/out/deep"]


def test_the_same_files_give_the_same_bytes(case: Case) -> None:
    before = [hash_layer(layer) for layer in plan_layers(case.control, {})]
    for path in case.folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    (case.folder / "wells.dat").chmod(0o600)
    assert [hash_layer(layer) for layer in plan_layers(case.control, {})] == before
    (case.folder / "wells.dat").write_text("1 3\n")
    after = [hash_layer(layer) for layer in plan_layers(case.control, {})]
    assert [one == other for one, other in zip(before, after, strict=True)] == [
        True, True, False, True
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["plain", "größe.txt", "x" * 150, "水", "a b", "-rf"])
def test_the_size_is_known_before_a_file_is_read(tmp_path: Path, name: str) -> None:
    control = make_case(tmp_path / "case")
    (control.parent / name).write_bytes(b"1" * 700)
    for layer in plan_layers(Case.read(control).control, {}):
        assert measure_layer(layer) == sum(map(len, stream_layer(layer)))


def test_the_context_is_an_archive_of_archives(case: Case) -> None:
    layers = plan_layers(case.control, {})
    context = b"".join(stream_context({"Dockerfile": b"FROM x\n"}, layers))
    with tarfile.open(fileobj=io.BytesIO(context)) as archive:
        names = [member.name for member in archive]
        assert names == ["Dockerfile", *(layer.archive for layer in layers)]
        inner = archive.extractfile("control.tar")
        assert inner is not None
        with tarfile.open(fileobj=inner) as control:
            assert control.getnames()[-1] == "case/small.pst"


@pytest.mark.parametrize("content", ["1 2 3 4\n", "1\n"])
def test_a_file_that_changes_while_it_is_read_is_told(case: Case, content: str) -> None:
    inputs = next(layer for layer in plan_layers(case.control, {}) if layer.name == "inputs")
    (case.folder / "wells.dat").write_text(content)
    with pytest.raises(CaseError, match="changed while it was read"):
        hash_layer(inputs)
