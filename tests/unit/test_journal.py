"""The journal: what a killed master, a full disk or a stranger's hand leaves is still readable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pestfleet.journal import Journal, failure_of, read_finished_runs, read_journal
from pestfleet_worker.messages import Failure, Result, Run, pack_vector

FULL = Path("/dev/full")  # every write to it finds no space


def run_of(number: int) -> tuple[Run, Result]:
    parameters, observations = pack_vector([number + 0.1, -0.0]), pack_vector([number / 3.0])
    return Run(number, parameters), Result(number, "w", 1, 0.25, observations)


def write_runs(path: Path, *numbers: int) -> None:
    journal = Journal(path)
    for number in numbers:
        journal.write_run(*run_of(number))
    journal.close()


def test_runs_come_back_to_the_last_bit(tmp_path: Path) -> None:
    write_runs(tmp_path / "j", 1, 2)
    expected = {run.parameters: result.observations for run, result in (run_of(1), run_of(2))}
    assert read_finished_runs(tmp_path / "j") == expected


def test_a_line_cut_off_anywhere_costs_that_run_only(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write_runs(path, 1, 2)
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    for cut in range(second, len(whole) - 1):
        path.write_bytes(whole[:cut])
        write_runs(path, 3)  # the next master goes on in the same file
        assert set(read_finished_runs(path)) == {run_of(n)[0].parameters for n in (1, 3)}, cut


def test_other_damage_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write_runs(path, 1)
    with path.open("ab") as file:
        file.write(b"\0\0\0\0\n\xff\xfe\n17\n[1]\n{}\n")
        file.write(b'{"time":1.0,"event":"run","id":7,"observations":"AAAA"}\n')
        file.write(b'{"time":1.0,"event":"run","id":8,"parameters":"A","observations":"AAAA"}\n')
        file.write(
            b'{"time":1.0,"event":"run","id":9,"parameters":"AAAA","observations":"A?AA="}\n'
        )
    write_runs(path, 2)
    assert set(read_finished_runs(path)) == {run_of(n)[0].parameters for n in (1, 2)}


def test_a_failed_run_is_not_finished_and_tells_why(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    failure = Failure("model-failed", "exit code 3", exit_code=3, log="a\nb")
    journal.write_run(run_of(1)[0], Result(1, "w", 0, 0.1, b"", failure))
    journal.close()
    (event,) = read_journal(tmp_path / "j")
    assert failure_of(event) == failure
    assert read_finished_runs(tmp_path / "j") == {}


def test_another_process_reads_each_event_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for number in range(3):
        journal.write("note", text=f"ü{number}")
        events = [event["text"] for event in read_journal(tmp_path / "j")]
        assert events == [f"ü{k}" for k in range(number + 1)]
    journal.close()


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.write("note", text="a")
    journal.close()
    journal.write("note", text="b")  # by a thread that comes late
    journal.close()
    assert len([json.loads(line) for line in (tmp_path / "j").open()]) == 1


def test_a_full_disk_is_told_once_and_does_not_hinder_the_end() -> None:
    journal = Journal(FULL)
    with pytest.raises(OSError, match="No space left"):
        journal.write("note", text="a")
    journal.close()


def test_a_flipped_bit_costs_that_run_only(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write_runs(path, 1, 2)
    data = bytearray(path.read_bytes())
    data[data.index(b'"parameters":"') + 16] ^= 0x80
    path.write_bytes(data)
    assert set(read_finished_runs(path)) == {run_of(2)[0].parameters}
