"""The private directory of a slot: what is copied, shared and left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pestfleet_worker import slots
from pestfleet_worker.slots import SlotError, prepare_slot, remove_slot

LARGE = 1000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "case"
    (source / "grid").mkdir(parents=True)
    (source / "case.pst").write_bytes(b"pcf\n")
    (source / "model").write_bytes(b"#!/bin/sh\n")
    (source / "model").chmod(0o750)
    (source / "grid" / "big.bin").write_bytes(b"x" * LARGE)
    (source / "in.dat").write_bytes(b"old input")
    (source / "grid" / "out.dat").write_bytes(b"y" * 2 * LARGE)
    return source


@pytest.fixture(autouse=True)
def no_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some file systems clone; these tests are about those that do not."""
    monkeypatch.setattr(slots, "_clone", lambda path, target: False)


def list_names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_small_files_are_copied_and_big_ones_shared(source: Path, tmp_path: Path) -> None:
    written = ["in.dat", "grid/out.dat", "new/made.dat"]
    made = [
        prepare_slot(source, tmp_path / "w" / f"slot-{n}", large=LARGE, written=written)
        for n in range(2)
    ]
    for slot in made:
        assert list_names(slot.directory) == [
            slots.MARKER, "case.pst", "grid/big.bin", "model",
        ]  # fmt: skip
        assert (slot.directory / "new").is_dir()
        assert (slot.directory / "model").stat().st_mode & 0o777 == 0o750
        assert (slot.directory / "model").stat().st_ino != (source / "model").stat().st_ino
        assert (slot.bytes, slot.shared, slot.files) == (4 + 10, LARGE, 3)
        assert slot.notes == []
        assert slot.repair() == []
    inodes = {(slot.directory / "grid/big.bin").stat().st_ino for slot in made}
    assert len(inodes) == 1
    assert (source / "grid/big.bin").stat().st_ino not in inodes


def test_a_model_that_writes_in_place_never_reaches_the_case(source: Path, tmp_path: Path) -> None:
    first, second = (prepare_slot(source, tmp_path / f"slot-{n}", large=LARGE) for n in range(2))
    with (first.directory / "grid/big.bin").open("r+b") as file:
        file.write(b"changed")
    assert (source / "grid/big.bin").read_bytes() == b"x" * LARGE
    for slot in (first, second):
        assert slot.repair() == ["grid/big.bin", "grid/out.dat"][:1]
        assert (slot.directory / "grid/big.bin").read_bytes() == b"x" * LARGE
        assert "the model writes to grid/big.bin" in slot.notes[0]
        assert slot.repair() == []
    (first.directory / "grid/big.bin").write_bytes(b"mine")
    assert (second.directory / "grid/big.bin").read_bytes() == b"x" * LARGE
    third = prepare_slot(source, tmp_path / "slot-2", large=LARGE)
    assert (third.directory / "grid/big.bin").read_bytes() == b"x" * LARGE


def test_links_are_followed_and_loops_left_out(source: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data.txt").write_bytes(b"data")
    (source / "linked").symlink_to(outside)
    (source / "file").symlink_to(outside / "data.txt")
    (source / "broken").symlink_to("nowhere")
    (source / "grid" / "loop").symlink_to(source)
    os.mkfifo(source / "pipe")
    slot = prepare_slot(source, tmp_path / "slot")
    names = list_names(slot.directory)
    assert "linked/data.txt" in names and "file" in names
    assert not (slot.directory / "file").is_symlink()
    assert not {"broken", "pipe", "grid/loop"} & set(names)
    assert slot.notes == [
        "broken is a link to nowhere, which is not there",
        "grid/loop is a link to a folder that it is in; left out",
    ]


def test_sessions_and_slots_within_the_case_are_left_out(source: Path) -> None:
    for folder in (".pestfleet", "case.pestfleet", "pestfleet-sessions"):
        (source / folder).mkdir()
        (source / folder / "journal").write_bytes(b"j")
    prepare_slot(source, source / "work" / "slot-0", large=LARGE)
    again = prepare_slot(source, source / "work" / "slot-0", large=LARGE)
    assert list_names(again.directory) == [
        slots.MARKER, "case.pst", "grid/big.bin", "grid/out.dat", "in.dat", "model",
    ]  # fmt: skip


def test_an_old_slot_is_replaced_and_any_other_folder_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "slot"
    prepare_slot(source, target)
    (target / "left.over").write_bytes(b"")
    prepare_slot(source, target)
    assert not (target / "left.over").exists()
    remove_slot(target)
    assert not target.exists()

    target.mkdir()
    (target / "thesis.doc").write_bytes(b"precious")
    with pytest.raises(SlotError, match="is not empty"):
        prepare_slot(source, target)
    remove_slot(target)
    assert (target / "thesis.doc").read_bytes() == b"precious"


def test_what_cannot_be_copied_is_said(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SlotError, match=r"case folder .* is not there"):
        prepare_slot(tmp_path / "none", tmp_path / "slot")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SlotError, match="cannot copy the case to the slot's directory"):
        prepare_slot(source, tmp_path / "file" / "slot")


def test_without_hard_links_big_files_are_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(os, "link", refuse)
    slot = prepare_slot(source, tmp_path / "slot", large=LARGE)
    assert (slot.directory / "grid/big.bin").read_bytes() == b"x" * LARGE
    assert slot.shared == 0
    assert slot.bytes == 4 + 10 + 9 + 3 * LARGE
