"""The kit of a failed run: packed within its limit, kept within the session's, unpacked safely."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from click.testing import Result as CliResult
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pestfleet import kits as kept_kits
from pestfleet.cli.main import cli
from pestfleet.fleet import Fleet
from pestfleet.folder import SessionFolder
from pestfleet.journal import Journal, read_journal
from pestfleet.kits import KitFolder, find_kit, list_kits, unpack_kit
from pestfleet.ledger import RunLedger
from pestfleet_worker import runs
from pestfleet_worker.errors import SessionError
from pestfleet_worker.kits import KITS_A_REASON, KitQuota, Scene, pack_kit
from pestfleet_worker.messages import (
    CaseSpec,
    Failure,
    FilePair,
    Limits,
    Result,
    Run,
    decode,
    encode,
    pack_vector,
)
from pestfleet_worker.runs import Outcome, Slot
from session_files import make_session
from test_ledger import ONE, SPEC, FakeFleet

VALUES = (0.1, math.pi * 1e17)
LIMIT = 20_000
FAILED = Failure("model-failed", "the command './model' ended with exit code 3", exit_code=3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "case"
    source.mkdir()
    (source / "in.tpl").write_text("ptf ~\n~a                      ~ ~b                      ~\n")
    (source / "out.ins").write_text("pif ~\nl1 !o!\n")
    (source / "mesh.dat").write_text("never changed\n")
    return source


@pytest.fixture
def make_slot(source: Path, tmp_path: Path) -> Iterator[Callable[..., Slot]]:
    made: list[Slot] = []

    def make(model: str, *, limit: int = LIMIT, seconds: float = 0.0, name: str = "in.dat") -> Slot:
        (source / "model").write_text("#!/bin/sh\n" + model)
        (source / "model").chmod(0o755)
        spec = CaseSpec(
            "case", "", ("a", "b"), ("o",), (FilePair("in.tpl", name),),
            (FilePair("out.ins", "out.dat"),), ("./model",),
        )  # fmt: skip
        slot = Slot(
            spec,
            source=source,
            directory=tmp_path / "slots" / f"slot-{len(made)}",
            limits=Limits(seconds=seconds, kit_bytes=limit),
            worker_id="w-test",
        )
        made.append(slot)
        slot.prepare()
        return slot

    yield make
    for slot in made:
        slot.close()


def fail(slot: Slot, *, run: int = 12, quota: KitQuota | None = None) -> Outcome:
    packed = pack_vector(VALUES)
    return slot.add_kit(slot.execute(packed), Run(run, packed), quota or KitQuota())


def read_kit(kit: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(kit), mode="r:gz") as archive:
        members = archive.getmembers()
        files = {}
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            files[member.name] = file.read()
    assert len(files) == len(members)
    return files


def write_noise(path: Path, size: int) -> None:
    """A text that hardly shrinks."""
    digits = random.Random(size).choices("0123456789abcdefghijklmnopqrstuvwxyz\n", k=size)
    path.write_text("".join(digits))


# -- what the worker packs ---------------------------------------------------------------------


def test_a_kit_has_what_the_run_left(make_slot: Callable[..., Slot], source: Path) -> None:
    slot = make_slot("echo half > out.dat; echo seen > list.txt; echo boom; exit 3")
    outcome = fail(slot)
    assert outcome.failure == replace(FAILED, log="boom\n")
    files = read_kit(outcome.kit)
    assert sorted(files) == [
        "failure.txt", "inputs/in.dat", "model.log", "others/list.txt", "outputs/out.dat",
    ]  # fmt: skip
    assert list(map(float, files["inputs/in.dat"].split())) == list(VALUES)
    assert files["model.log"] == b"boom\n"
    assert files["outputs/out.dat"] == b"half\n"
    text = files["failure.txt"].decode()
    assert text.startswith("Run 12 of case case failed: model-failed\nthe command './model' ended")
    assert "  ./model\n" in text and "rm -f -- out.dat" in text
    assert f"a  {VALUES[0]!r}\n  b  {VALUES[1]!r}\n" in text
    assert "Not whole" not in text


def test_a_run_that_works_has_none(make_slot: Callable[..., Slot]) -> None:
    assert fail(make_slot("echo 1.0 > out.dat")).kit == b""


def test_no_kit_is_packed_where_the_limit_is_none(
    make_slot: Callable[..., Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(runs, "pack_kit")
    outcome = fail(make_slot("echo boom; exit 3", limit=0))
    assert outcome.failure == replace(FAILED, log="boom\n") and outcome.kit == b""


def test_the_log_of_an_earlier_run_is_no_part(make_slot: Callable[..., Slot], source: Path) -> None:
    slot = make_slot("echo old words; echo 1.0 > out.dat")
    slot.execute(pack_vector(VALUES))
    bad = pack_vector((math.nan, 1.0))
    outcome = slot.add_kit(slot.execute(bad), Run(2, bad), KitQuota())
    assert outcome.failure is not None and outcome.failure.reason == "bad-input"
    files = read_kit(outcome.kit)
    assert sorted(files) == ["failure.txt", "model.log"] and files["model.log"] == b""
    text = files["failure.txt"].decode()
    assert "inputs/in.dat: not there" in text and "a  nan" in text


def test_after_some_of_one_reason_the_master_has_enough(make_slot: Callable[..., Slot]) -> None:
    quota = KitQuota()
    slot = make_slot("exit 3")
    kits = [bool(fail(slot, quota=quota).kit) for _ in range(KITS_A_REASON + 2)]
    assert kits == [True] * KITS_A_REASON + [False] * 2
    silent = make_slot("exit 0")  # fails for another reason
    assert fail(silent, quota=quota).kit


def test_what_is_big_is_cut_to_head_and_tail(make_slot: Callable[..., Slot], source: Path) -> None:
    write_noise(source / "noise", 400_000)
    outcome = fail(make_slot("cp noise out.dat; echo first; cat noise; echo last; exit 3"))
    assert LIMIT / 2 < len(outcome.kit) <= LIMIT
    files = read_kit(outcome.kit)
    noise = (source / "noise").read_bytes()
    for name, whole in (
        ("model.log", b"first\n" + noise + b"last\n"),
        ("outputs/out.dat", noise),
    ):
        head, _, tail = files[name].partition(b"\n[... ")
        left_out, _, tail = tail.partition(b" bytes are left out here ...]\n\n")
        assert whole.startswith(head) and whole.endswith(tail)
        assert len(head) + int(left_out) + len(tail) == len(whole)
        assert len(head) > 1000 and len(tail) > 1000
    text = files["failure.txt"].decode()
    assert "outputs/out.dat: cut to head and tail, of 400,000 bytes" in text
    assert list(map(float, files["inputs/in.dat"].split())) == list(VALUES)


def test_a_file_of_gigabytes_is_not_read(make_slot: Callable[..., Slot]) -> None:
    outcome = fail(make_slot("truncate -s 50G out.dat; exit 3"))
    assert len(outcome.kit) <= LIMIT
    assert "outputs/out.dat: left out, 53,687,091,200 bytes" in (
        read_kit(outcome.kit)["failure.txt"].decode()
    )


def test_binary_files_are_whole_or_not_there(make_slot: Callable[..., Slot], source: Path) -> None:
    small = bytes(range(256)) * 8
    (source / "small").write_bytes(small)
    (source / "big").write_bytes(random.Random(1).randbytes(3 * LIMIT))
    model = "cp small heads.hds; cp big more.hds; head -c 30000 big > out.dat; exit 3"
    outcome = fail(make_slot(model))
    files = read_kit(outcome.kit)
    assert files["others/heads.hds"] == small
    assert not {"others/more.hds", "outputs/out.dat", "others/big"} & files.keys()
    text = files["failure.txt"].decode()
    assert "others/more.hds: left out, 60,000 bytes" in text
    assert "outputs/out.dat: left out, 30,000 bytes" in text


def test_what_is_no_readable_file_is_named(
    make_slot: Callable[..., Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = make_slot("mkfifo out.dat; ln -s /etc/passwd link; echo x > locked; exit 3")
    real = os.open

    def refuse(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)  # root may read all
    files = read_kit(fail(slot).kit)
    assert sorted(files) == ["failure.txt", "inputs/in.dat", "model.log"]
    text = files["failure.txt"].decode()
    assert "others/locked: cannot be read: Permission denied" in text
    assert "outputs/out.dat: cannot be read: not a plain file" in text


def test_a_link_is_not_followed(make_slot: Callable[..., Slot], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    files = read_kit(fail(make_slot(f"ln -s {tmp_path}/secret out.dat; exit 3")).kit)
    assert "outputs/out.dat" not in files
    assert "outputs/out.dat: cannot be read" in files["failure.txt"].decode()


def test_names_in_any_script(make_slot: Callable[..., Slot], tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.txt")
    slot = make_slot("echo 1 > 'Brunnen Süd 井.txt'; printf x > 'a\nb'; exit 3", name="größe.dat")
    (slot.directory / odd).write_bytes(b"latin-1")
    outcome = fail(slot)
    files = read_kit(outcome.kit)
    assert {"inputs/größe.dat", "others/Brunnen Süd 井.txt", "others/a\nb"} <= files.keys()
    assert files["others/" + odd] == b"latin-1"
    (tmp_path / "kit").write_bytes(outcome.kit)
    unpack_kit(tmp_path / "kit", tmp_path / "there")
    assert (tmp_path / "there" / "others" / odd).read_bytes() == b"latin-1"


def test_a_kit_that_cannot_be_packed_does_not_hide_the_failure(
    make_slot: Callable[..., Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(scene: Scene, limit: int) -> bytes:
        raise RuntimeError("a defect")

    monkeypatch.setattr(runs, "pack_kit", break_down)
    outcome = fail(make_slot("echo boom; exit 3"))
    assert outcome.kit == b"" and outcome.failure is not None
    assert outcome.failure == replace(FAILED, log="boom\npestfleet: the run has no kit: a defect\n")


def make_scene(folder: Path, sizes: list[int], *, parameters: int = 2) -> Scene:
    """Inputs, outputs and others in turn, of these sizes."""
    slot, source = folder / "slot", folder / "source"
    slot.mkdir()
    source.mkdir()
    names = [f"file-{number}" for number in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        write_noise(slot / name, size)
        os.utime(slot / name, (1e9, 1e9))
    (folder / "log").write_text("boom\n")
    os.utime(folder / "log", (1e9, 1e9))
    spec = CaseSpec(
        "case", "", tuple(f"p{number}" for number in range(parameters)), ("o",),
        tuple(FilePair("t", name) for name in names[::3]),
        tuple(FilePair("i", name) for name in names[1::3]), ("./model",),
    )  # fmt: skip
    values = [number / 7 for number in range(parameters)]
    return Scene(1, FAILED, values, spec, Limits(), source, slot, folder / "log")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 30_000), max_size=12),
    limit=st.integers(1, 40_000),
    parameters=st.integers(0, 2000),
)
def test_the_limit_holds_whatever_there_is(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int, parameters: int
) -> None:
    scene = make_scene(tmp_path_factory.mktemp("scene"), sizes, parameters=parameters)
    kit = pack_kit(scene, limit)
    assert len(kit) <= limit
    assert kit == pack_kit(scene, limit)
    if limit >= 4000:
        text = read_kit(kit)["failure.txt"].decode()
        assert text.startswith("Run 1 of case case failed") and '  cp -r "$CASE" again\n' in text


def test_many_files_share_the_room(tmp_path: Path) -> None:
    kit = pack_kit(make_scene(tmp_path, [300] * 300), LIMIT)
    assert LIMIT / 2 < len(kit) <= LIMIT
    text = read_kit(kit)["failure.txt"].decode()
    assert "left out" in text and " more\n" in text
    assert sum(name.startswith("inputs/") for name in read_kit(kit)) > 20


def test_small_files_are_whole_beside_big_ones(tmp_path: Path) -> None:
    files = read_kit(pack_kit(make_scene(tmp_path, [300, 90_000, 0, 400, 50_000, 0]), LIMIT))
    assert (len(files["inputs/file-0"]), len(files["inputs/file-3"])) == (300, 400)
    # What is cut has an equal share.
    assert len(files["outputs/file-1"]) == pytest.approx(len(files["outputs/file-4"]), rel=0.3)


def test_a_kit_travels_in_the_result() -> None:
    result = Result(1, "w", 0, 0.5, b"", FAILED, b"\0kit")
    assert decode(encode(result)) == result


# -- what the master keeps ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> SessionFolder:
    return make_session(tmp_path / "pestfleet-sessions")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_kits, "MOST", 4)
    monkeypatch.setattr(kept_kits, "MOST_BYTES", 1000)


def answer(run: int, kit: bytes, reason: str = "model-failed") -> Result:
    return Result(run, "w", 0, 1.0, b"", Failure(reason, "it failed"), kit)


def test_kits_are_kept_by_run(folder: SessionFolder) -> None:
    warnings: list[str] = []
    keeper = KitFolder(folder, warnings.append)
    assert keeper.keep(7, answer(7, b"seven")) == ""
    assert keeper.keep(8, Result(8, "w", 0, 1.0, bytes(8))) == ""
    assert list_kits(folder) == {7: 5} and warnings == []
    assert find_file_names(folder.kits) == ["run-7.tar.gz"]


def find_file_names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.usefixtures("few")
def test_the_first_of_each_reason_are_preferred(folder: SessionFolder) -> None:
    warnings: list[str] = []
    keeper = KitFolder(folder, warnings.append)
    lost = [keeper.keep(run, answer(run, b"x" * 10)) for run in range(1, 7)]
    assert lost[:4] == [""] * 4 and "keeps 4 kits" in lost[4] and "keeps 4 kits" in lost[5]
    assert len(warnings) == 1 and "run 5 failed and its kit is not kept" in warnings[0]
    for run, reason in ((8, "time-limit"), (9, "time-limit"), (10, "time-limit")):
        keeper.keep(run, answer(run, b"x" * 10, reason))
    assert list(list_kits(folder)) == [1, 2, 8, 9]


@pytest.mark.usefixtures("few")
def test_all_together_have_a_limit(folder: SessionFolder) -> None:
    keeper = KitFolder(folder, lambda _: None)
    assert keeper.keep(1, answer(1, bytes(600))) == ""
    assert "of at most" in keeper.keep(2, answer(2, bytes(600)))
    assert keeper.keep(3, answer(3, bytes(400))) == ""
    assert list_kits(folder) == {1: 600, 3: 400}


@pytest.mark.usefixtures("few")
def test_the_next_master_knows_what_there_is(folder: SessionFolder) -> None:
    first = KitFolder(folder, lambda _: None)
    journal = Journal(folder.journal)
    for run in range(1, 5):
        first.keep(run, answer(run, b"x"))
        journal.write_run(Run(run, bytes(8)), answer(run, b"x"))
    journal.close()
    second = KitFolder(folder, lambda _: None)
    assert second.keep(1_000_005, answer(1_000_005, b"x")) != ""
    assert second.keep(1_000_006, answer(1_000_006, b"x", "time-limit")) == ""
    assert list(list_kits(folder)) == [1, 2, 3, 1_000_006]


def test_a_full_disk_costs_the_kit_only(
    folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # the journal is on the same disk

    def write_half(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    keeper = KitFolder(folder, warn)
    assert keeper.keep(1, answer(1, b"x")) == "it could not be written: No space left on device"
    assert find_file_names(folder.kits) == []


def test_kits_leave_room_for_the_journal(
    folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_kits, "SPARE", 1 << 62)
    assert "left" in KitFolder(folder, lambda _: None).keep(1, answer(1, b"x"))


# -- what the user gets ------------------------------------------------------------------------


def call(*arguments: str | Path) -> CliResult:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def session(
    make_slot: Callable[..., Slot],
    folder: SessionFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> SessionFolder:
    """Run 1 works; 2 fails and has a kit; 3 and 4 fail and have none; the user is in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    outcome = fail(make_slot("echo boom; exit 3"), run=2)
    keeper = KitFolder(folder, lambda _: None)
    journal = Journal(folder.journal)
    results = [
        Result(1, "w", 0, 1.0, bytes(8)),
        Result(2, "w", 0, 1.0, b"", outcome.failure, outcome.kit),
        Result(3, "w", 0, 1.0, b"", Failure("killed-worker", "it died")),
        Result(4, "w", 0, 1.0, b"", FAILED),
    ]
    for result in results:
        lost = keeper.keep(result.id, result)
        journal.write_run(Run(result.id, pack_vector(VALUES)), result, kit_lost=lost)
    journal.close()
    return folder


def test_fetch_unpacks_and_says_how_to_go_on(session: SessionFolder, tmp_path: Path) -> None:
    result = call("fetch", "2")
    assert result.exit_code == 0, result.output
    target = tmp_path / "run-2"
    written = (target / "inputs" / "in.dat").read_text()
    assert list(map(float, written.split())) == list(VALUES)
    assert (target / "model.log").read_text() == "boom\n"
    assert find_file_names(tmp_path) == ["case", "pestfleet-sessions", "run-2", "slots"]
    for part in (
        "Run 2 of case case failed: model-failed\n",
        str(Path("run-2", "inputs", "in.dat")),
        f"  cd run-2\n  CASE={session.case}\n",
        '  cp -r "$CASE" again\n',
        "  ./model\n",
    ):
        assert part in result.stdout


def test_fetch_does_not_overwrite_unasked(session: SessionFolder, tmp_path: Path) -> None:
    assert call("fetch", "2", "--to", "mine").exit_code == 0
    (tmp_path / "mine" / "notes").touch()
    again = call("fetch", "2", "--to", "mine")
    assert again.exit_code == 8 and "is there already" in again.stderr
    assert call("fetch", "2", "--to", "mine", "--force").exit_code == 0
    assert not (tmp_path / "mine" / "notes").exists()
    other = call("fetch", "2", "--to", "case", "--force")
    assert other.exit_code == 8 and "not one of a kit" in other.stderr
    assert (tmp_path / "case" / "mesh.dat").exists()
    (tmp_path / "file").touch()
    assert "not a folder" in call("fetch", "2", "--to", "file", "--force").stderr


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        ("1", "run 1 did not fail"),
        ("9", "has no run 9 that is finished"),
        ("x", "'x' is not the number of a run"),
        ("3", "no kit of run 3: its workers were killed before they could pack one"),
        ("last", "no kit of run 4: its worker had sent 5 of other runs that failed alike"),
    ],
)
def test_why_there_is_nothing_to_fetch(session: SessionFolder, run: str, problem: str) -> None:
    result = call("fetch", run)
    assert result.exit_code == 8 and problem in result.stderr
    if "no kit" in problem:
        assert "Runs that have one: 2." in result.stderr


def test_the_journal_knows_why_a_kit_was_not_kept(session: SessionFolder) -> None:
    journal = Journal(session.journal)
    journal.write_run(Run(5, bytes(16)), answer(5, b"x"), kit_lost="the disk was full")
    journal.close()
    assert list(read_journal(session.journal))[-1]["kit_lost"] == "the disk was full"
    with pytest.raises(SessionError, match="no kit of run 5: the disk was full"):
        find_kit(session, "last")


def test_a_session_without_runs_has_no_last_one(folder: SessionFolder) -> None:
    with pytest.raises(SessionError, match="no run that failed"):
        find_kit(folder, "last")


def test_runs_shows_the_names_that_the_user_gave(session: SessionFolder) -> None:
    assert " name " not in call("runs").stdout
    journal = Journal(session.journal)
    journal.write_run(Run(5, bytes(16)), answer(5, b""), name="r[17]")
    journal.close()
    starts = [line.split()[:3] for line in call("runs", "--failed").stdout.splitlines()]
    assert ["run", "name", "kit"] in starts
    assert ["5", "r[17]", "w"] in starts


def test_runs_shows_which_have_a_kit(session: SessionFolder) -> None:
    shown = call("runs", "--failed").stdout
    rows = [line.split()[:2] for line in shown.splitlines() if line.lstrip()[:1] in "234"]
    assert ["2", "yes"] in rows and ["3", "w"] in rows
    assert "pestfleet fetch 2 s1" in shown
    listed = json.loads(call("runs", "--json").stdout)
    assert [row["kit"] for row in listed] == [False, True, False, False]
    assert "fetch" not in call("runs").stdout


def pack_evil(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def make_member(name: str, **fields: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


@pytest.mark.parametrize(
    "member",
    [
        make_member("../out", size=1),
        make_member("inputs/../../out", size=1),
        make_member("link", type=tarfile.SYMTYPE, linkname="/etc"),
        make_member("link", type=tarfile.LNKTYPE, linkname="failure.txt"),
        make_member("pipe", type=tarfile.FIFOTYPE),
    ],
    ids=lambda member: member.name + member.type.decode(),
)
def test_a_kit_writes_into_its_own_folder_only(tmp_path: Path, member: tarfile.TarInfo) -> None:
    kit = pack_evil(tmp_path / "kit", make_member("failure.txt", size=1), member)
    with pytest.raises(SessionError, match="damaged or not a kit"):
        unpack_kit(kit, tmp_path / "there")
    assert find_file_names(tmp_path) == ["kit"]


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_kits, "MOST_UNPACKED", 1000)
    kit = pack_evil(tmp_path / "kit", *(make_member(f"f{n}", size=400) for n in range(3)))
    with pytest.raises(SessionError, match="more than 1,000 bytes"):
        unpack_kit(kit, tmp_path / "there")
    assert find_file_names(tmp_path) == ["kit"]


@pytest.mark.parametrize("content", [b"", b"no kit", "cut"])
def test_a_damaged_kit(
    make_slot: Callable[..., Slot], tmp_path: Path, content: bytes | str
) -> None:
    whole = fail(make_slot("exit 3")).kit
    (tmp_path / "kit").write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(SessionError, match="kit"):
        unpack_kit(tmp_path / "kit", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_the_ledger_hands_kits_to_the_folder_and_not_on(folder: SessionFolder) -> None:
    fleet = FakeFleet()
    journal = Journal(folder.journal)
    keeper = KitFolder(folder, lambda _: None)
    ledger = RunLedger(
        cast(Fleet, fleet),
        SPEC,
        journal,
        finished={},
        check_stop=lambda: None,
        kits=keeper,
    )
    got: list[Result] = []
    ledger.request(ONE, got.append)
    (run,) = fleet.asked
    fleet._takers[run.id](run, answer(run.id, b"a kit"))
    journal.close()
    assert [result.kit for result in got] == [b""] and got[0].failure is not None
    assert find_kit(folder, "last").read_bytes() == b"a kit"
    assert "a kit" not in folder.journal.read_text()
