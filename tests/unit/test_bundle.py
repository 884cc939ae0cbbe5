"""Which files a run reads, their digest, and the archive of them."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pestfleet.case import Case
from pestfleet_worker.errors import CaseError

DATA = Path(__file__).parent / "data" / "cases"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(DATA / "version1", tmp_path / "case")
    return tmp_path / "case"


def put(folder: Path, name: str, content: str = "x") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def names(folder: Path) -> list[str]:
    return [file.name for file in Case.read(folder / "case.pst").files()]


def digest(folder: Path) -> str:
    return Case.read(folder / "case.pst").digest


GOOD = ["case.pst", "model.py", "model.tpl", "out.ins"]

NOT_READ_BY_A_RUN = [
    "model.in", "model.out", "case.rec", "case.rei", "case.rei.3", "case.par", "case.7.par.csv",
    "case.jcb", "case.jco", "CASE.SEN", "case.rmr", "case.rst", "case.rns", "case.rnu",
    "case.rnj", "case.log", "case.post.cov", "case.phi.actual.csv", "case.obs+noise.csv",
    ".pestfleet/journal", "pestfleet-sessions/a/log", "case.pestfleet/x", ".git/HEAD",
    "sub/.svn/entries", "__pycache__/model.pyc", "pestfleet.toml", ".DS_Store", "model.py~",
]  # fmt: skip


@pytest.mark.parametrize("name", NOT_READ_BY_A_RUN)
def test_what_a_run_does_not_read(folder: Path, name: str) -> None:
    before = digest(folder)
    put(folder, name)
    assert names(folder) == GOOD
    assert digest(folder) == before


@pytest.mark.parametrize(
    "name", ["grid.dat", "sub/deep/grid.dat", "case.par_data.csv", "case.dat", "other.rec", ".env"]
)
def test_what_a_run_may_read(folder: Path, name: str) -> None:
    before = digest(folder)
    put(folder, name)
    assert names(folder) == sorted([*GOOD, name], key=str.encode)
    with_file = digest(folder)
    assert with_file != before
    put(folder, name, "y")
    assert digest(folder) not in (before, with_file)
    put(folder, name)
    assert digest(folder) == with_file


def test_ignore_file(folder: Path) -> None:
    for name in ("a.log", "sub/b.log", "old/x.dat", "sub/old/y.dat", "plots/p.png", "keep.dat"):
        put(folder, name)
    put(folder, ".pestfleetignore", "# not read\n*.log\n\nold/\n/plots/*.png\n")
    assert names(folder) == ["case.pst", "keep.dat", *GOOD[1:]]


def rename_model(folder: Path) -> None:
    (folder / "model.py").rename(folder / "model2.py")


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "case.pst").read_text()
        assert old in text
        (folder / "case.pst").write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    "change",
    [
        edit("python3 model.py", "python3 -O model.py"),
        edit("double point", "single point"),
        edit("double point", "double nopoint"),
        edit("s none relative", "s_ none relative"),
        edit("head_1 3.1 1.0 heads\nhead_2 2.9d0 1.0 heads",
             "head_2 2.9d0 1.0 heads\nhead_1 3.1 1.0 heads"),
        edit("model.tpl model.in", "model.tpl model_2.in"),
        rename_model,
    ],
)  # fmt: skip
def test_digest_changes_with_what_a_run_sees(folder: Path, change: Callable[[Path], None]) -> None:
    before = digest(folder)
    change(folder)
    assert digest(folder) != before


@pytest.mark.parametrize(
    "change",
    [
        edit("30 0.005", "0 0.005"),
        edit("3.1 1.0 heads", "3.2 5.0 heads"),
        edit("0.1 0.4 hydraulic", "0.15 0.45 hydraulic"),
        edit("++ies_num_reals(50)", "# none\n++ies_num_reals(500)"),
    ],
)
def test_digest_keeps_with_what_a_run_does_not_see(
    folder: Path, change: Callable[[Path], None]
) -> None:
    before = digest(folder)
    change(folder)
    assert digest(folder) == before
    # A model that may read the control file depends on all of it.
    put(folder, "model.py", "open('case.pst')")
    reading = digest(folder)
    edit("restart", "norestart")(folder)
    assert digest(folder) != reading


def test_digest_of_both_versions_is_one() -> None:
    assert digest(DATA / "version1") == digest(DATA / "version2")


def test_digest_of_a_model_that_reads_a_table(tmp_path: Path) -> None:
    shutil.copytree(DATA / "version2", tmp_path, dirs_exist_ok=True)
    put(tmp_path, "model.py", "open('Parameters.csv')")
    before = digest(tmp_path)
    table = tmp_path / "parameters.csv"
    table.write_text(table.read_text().replace("north", "south"))
    assert digest(tmp_path) != before


def test_digest_does_not_know_times_and_modes(folder: Path) -> None:
    before = digest(folder)
    (folder / "model.py").chmod(0o755)
    os.utime(folder / "model.tpl", (1, 1))
    assert digest(folder) == before
    shutil.copytree(folder, folder.parent / "elsewhere")
    assert digest(folder.parent / "elsewhere") == before


def test_contents_cannot_be_shifted_between_files(folder: Path) -> None:
    put(folder, "a", "one")
    put(folder, "b", "two")
    before = digest(folder)
    put(folder, "a", "onetwo")
    put(folder, "b", "")
    assert digest(folder) != before


def test_links_are_followed(folder: Path) -> None:
    outside = folder.parent / "outside"
    put(outside, "grid.dat", "1 2 3")
    (folder / "data").symlink_to(outside, target_is_directory=True)
    (outside / "loop").symlink_to(outside, target_is_directory=True)
    (folder / "grid.dat").symlink_to(outside / "grid.dat")
    (folder / "broken").symlink_to("nowhere")
    assert names(folder) == ["case.pst", "data/grid.dat", "grid.dat", *GOOD[1:]]
    before = digest(folder)
    put(outside, "grid.dat", "1 2 4")
    assert digest(folder) != before


def test_bundle(folder: Path) -> None:
    put(folder, "data/grid.dat", "1 2 3")
    put(folder, "run.sh", "#!/bin/sh\n")
    put(folder, "a" * 120 + "/" + "b" * 120, "long")
    (folder / "empty" / "inner").mkdir(parents=True)
    put(folder, "case.rec")
    edit("model.tpl model.in", "model.tpl input/model.in")(folder)
    path = Case.read(folder).bundle(folder.parent / "case.tar.gz")
    with tarfile.open(path) as archive:
        entries = {entry.name: entry for entry in archive}
        files = {name: entry for name, entry in entries.items() if entry.isfile()}
        assert set(files) == {file.name for file in Case.read(folder).files()}
        content = archive.extractfile("data/grid.dat")
        assert content is not None
        assert content.read() == b"1 2 3"
    assert {"data", "empty/inner", "input"} <= entries.keys()
    assert files["run.sh"].mode == 0o755
    assert files["model.py"].mode == 0o644
    assert {(e.mtime, e.uid, e.gid, e.uname) for e in entries.values()} == {(0, 0, 0, "")}
    assert not list(folder.parent.glob("*.part"))


def test_bundle_is_reproducible(folder: Path) -> None:
    first = Case.read(folder).bundle(folder.parent / "one.tar.gz").read_bytes()
    for file in folder.iterdir():
        os.utime(file, (5, 5))
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    # In the folder itself, and there already: it is never a part of itself.
    for _ in range(2):
        assert Case.read(copy).bundle(copy / "two.tar.gz").read_bytes() == first
    put(folder, "model.py", "changed")
    assert Case.read(folder).bundle(folder.parent / "one.tar.gz").read_bytes() != first


def test_bundle_that_cannot_be_written(folder: Path) -> None:
    with pytest.raises(CaseError, match="cannot be written"):
        Case.read(folder).bundle(folder.parent / "no" / "such" / "folder.tar.gz")


def test_a_file_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(path: Path, *args: object, **options: object) -> object:
        if path.name == "grid.dat":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)  # type: ignore[call-overload]

    put(folder, "grid.dat")
    case = Case.read(folder)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CaseError) as caught:
        _ = case.digest
    assert caught.value.message == f"{folder / 'grid.dat'}: cannot be read: Permission denied"
    assert caught.value.remedy == "Make the file readable, or name it in .pestfleetignore."
