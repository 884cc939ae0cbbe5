"""Programs, progress and endings of PEST++, without PEST++: scripts stand in for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pestfleet.case import Case
from pestfleet.engines.base import Job
from pestfleet.engines.pestpp import prepare_folder, run
from pestfleet.engines.pestpp.outcome import Ending, find_unknown_options, read_tail, summarize
from pestfleet.engines.pestpp.programs import PROGRAMS, find_program
from pestfleet.engines.pestpp.progress import OutputParser, PhiReader, Tail
from pestfleet.engines.pestpp.supply import has_cycles
from pestfleet_worker.errors import (
    CaseError,
    ConfigurationError,
    PestfleetError,
    RunsFailedError,
)
from pestfleet_worker.slots import prepare_slot

CASE = Path(__file__).parent / "data" / "cases" / "version1"


class Notebook:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, object]] = []
        self.lines: list[str] = []

    def iteration(self, number: int, *, phi: float, **detail: float | int | str) -> None:
        self.iterations.append({"number": number, "phi": phi, **detail})

    def note(self, text: str) -> None:
        self.lines.append(text)

    warn = note


class NoRuns:
    """A run service that nobody asks."""

    slots = 1

    def __init__(self, case: Case) -> None:
        self.spec = case.spec

    def check_stop(self) -> None:
        return None


def _make_job(folder: Path, engine: str, source: Path = CASE, **options: str) -> Job:
    (control,) = source.glob("*.pst")
    case = Case.read(control)
    output = folder / "results"
    output.mkdir()
    return Job(
        control=case.control, runner=None, report=Notebook(), output=output,  # type: ignore[arg-type]
        options=options, engine=engine, service=NoRuns(case),  # type: ignore[arg-type]
    )  # fmt: skip


def _make_program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


# -- programs -----------------------------------------------------------------------------------


def test_a_missing_program_gets_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigurationError) as caught:
        find_program("pestpp-ies", case=tmp_path)
    assert "no program pestpp-ies" in caught.value.message
    assert "PESTFLEET_ENGINES" in caught.value.remedy
    monkeypatch.setenv("PESTFLEET_ENGINES", str(tmp_path))
    path = _make_program(tmp_path, "pestpp-ies", "")
    assert find_program("pestpp-ies", case=Path("/")) == path


# -- progress -----------------------------------------------------------------------------------

_BATCH = """    running model 50 times
    starting at 11/21/26 10:50:10
11/21 10:50 mn:0.01  runs(C3    |F0    |T0    ) agents(R4   |W0   |U0   ) 0  \r\
11/21 10:50 mn:0.01  runs(C41   |F2    |T1    ) agents(R4   |W0   |U0   ) 0  \r
   48 runs complete :  2 runs failed
    running model 7 times
"""


@pytest.mark.parametrize("size", [1, 7, 10000])
def test_runs_are_counted_in_pieces_of_any_size(size: int) -> None:
    parser = OutputParser()
    begun = [
        runs for at in range(0, len(_BATCH), size) for runs in parser.feed(_BATCH[at : at + size])
    ]
    assert begun == [50, 7]
    counts = parser.counts
    assert (counts.batches, counts.asked, counts.done, counts.failed) == (2, 57, 48, 2)
    assert (counts.batch_asked, counts.batch_done, counts.batch_failed) == (7, 0, 0)


def test_counts_within_a_batch() -> None:
    parser = OutputParser()
    parser.feed(_BATCH[: _BATCH.index("   48 runs")])
    assert (parser.counts.batch_done, parser.counts.batch_failed) == (41, 2)
    assert parser.counts.batch_given_up == 1
    assert parser.counts.done == 0


def test_a_file_is_followed_also_when_it_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tail = Tail(path)
    assert tail.read() == b""
    path.write_bytes(b"one two")
    assert tail.read() == b"one two"
    assert tail.read() == b""
    path.write_bytes(b"new")
    assert tail.read() == b"new"


def test_phi_of_an_ensemble_is_read_line_by_line(tmp_path: Path) -> None:
    path, report = tmp_path / "case.phi.actual.csv", Notebook()
    reader = PhiReader(path, PROGRAMS["pestpp-ies"])
    reader.look(report)
    path.write_text("iteration,total_runs,mean,standard_deviation,min,max,0,1,base\n0,3,10,2,8,12,")
    reader.look(report)
    assert report.iterations == []
    with path.open("a") as file:
        file.write("8,10,12\n1,6,4.5,1,4,5,4,,5\n")
    reader.look(report)
    assert report.iterations == [
        {"number": 0, "phi": 10, "phi_min": 8, "phi_max": 12, "phi_std": 2, "realizations": 3},
        {"number": 1, "phi": 4.5, "phi_min": 4, "phi_max": 5, "phi_std": 1, "realizations": 2},
    ]
    assert (reader.first_phi, reader.phi, reader.number) == (10, 4.5, 1)


def test_phi_of_glm_and_of_cycles(tmp_path: Path) -> None:
    report = Notebook()
    glm = tmp_path / "case.iobj"
    glm.write_text(
        "iteration,model_runs_completed,total_phi,measurement_phi,regularization_phi,og\n"
        "0,0,409.5,400.5,9,400.5\nrubbish\n1,19,10.25,10,0.25,10\n"
    )
    PhiReader(glm, PROGRAMS["pestpp-glm"]).look(report)
    assert report.iterations == [
        {"number": 0, "phi": 409.5, "phi_regularization": 9},
        {"number": 1, "phi": 10.25, "phi_regularization": 0.25},
    ]
    report = Notebook()
    da = tmp_path / "case.global.phi.actual.csv"
    da.write_text(
        "cycle,iteration,mean,standard_deviation,min,max,0,1\n0,0,5,1,4,6,4,6\n1,0,3,1,2,4,2,4\n"
    )
    PhiReader(da, PROGRAMS["pestpp-da"]).look(report)
    assert [(row["number"], row["cycle"]) for row in report.iterations] == [(0, 0), (1, 1)]


# -- the engine's folder ------------------------------------------------------------------------


def test_the_folder_is_a_copy_without_an_earlier_engines_leftovers(tmp_path: Path) -> None:
    source = tmp_path / "case"
    prepare_slot(CASE, source)
    (source / ".pestfleet-slot").unlink()
    (control,) = source.glob("*.pst")
    name = control.stem
    for left in ("pest.stp", f"{name}.rec", f"{name}.iobj", f"{name}.0.par.csv"):
        (source / left).write_text("old")
    job = _make_job(tmp_path, "pestpp-ies", source)
    folder = prepare_folder(job)
    present = {path.name for path in folder.iterdir()}
    assert {control.name, f"{name}.0.par.csv"} <= present
    assert not {"pest.stp", f"{name}.rec", f"{name}.iobj"} & present
    assert (source / "pest.stp").exists()
    assert any("pest.stp" in line for line in job.report.lines)  # type: ignore[attr-defined]
    assert not has_cycles(job.control)


# -- endings ------------------------------------------------------------------------------------


def _end(job: Job, code: int, output: str = "", **files: str) -> Ending:
    folder = job.output / "master"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    path = job.output / "master.out"
    path.write_text(output)
    parser = OutputParser()
    parser.feed(output)
    return Ending(folder, path, code, parser.counts, None, {})


def test_a_signal_a_refusal_and_failed_runs_are_told_apart(tmp_path: Path) -> None:
    job = _make_job(tmp_path, "pestpp-glm")
    with pytest.raises(PestfleetError, match="killed by SIGSEGV") as killed:
        summarize(job, _end(job, -11))
    assert killed.value.exit_code == 1
    with pytest.raises(CaseError, match=r"(?s)exit code 1\n  \| no such file"):
        summarize(job, _end(job, 1, "no such file\n"))
    with pytest.raises(RunsFailedError, match="2 of 57 runs had failed"):
        summarize(job, _end(job, 1, _BATCH))


def test_a_cut_off_sweep_and_hidden_failures_are_incomplete(tmp_path: Path) -> None:
    job = _make_job(tmp_path, "pestpp-swp")
    text = (
        "run_id,input_run_id,failed_flag,phi,o1,o2\n"
        "0,a,0,7.5,1,2\n1,b,0,,-1e+100,-1e+100\n2,c,1,,,\n3,d,0,6.5,1,2\n4,e,0,8.5,1\n"
    )
    summary = summarize(job, _end(job, 0, _BATCH, sweep_out__csv=text))
    assert summary["incomplete"] == "3 of 5 runs of the sweep failed"
    assert (summary["phi"], summary["best"]) == (6.5, "d")
    assert (job.output / "sweep_out.csv").read_text() == text
    assert summary["files"] == ["sweep_out.csv"]


def test_a_sweep_without_output_is_incomplete(tmp_path: Path) -> None:
    job = _make_job(tmp_path, "pestpp-swp", sweep_output_file="other.csv")
    summary = summarize(job, _end(job, 0, _BATCH))
    assert summary["incomplete"] == "pestpp-swp wrote no other.csv"


def test_missing_derivatives_are_incomplete(tmp_path: Path) -> None:
    job = _make_job(tmp_path, "pestpp-glm")
    name = f"{job.control.name}__rec"
    bound = " warning: failed to compute parameter derivative for K\n"  # it is at its bound
    assert "incomplete" not in summarize(job, _end(job, 0, _BATCH, **{name: bound}))
    said = "    Parameters whose perturbation runs failed while computing jacobian: \n  K\n"
    summary = summarize(job, _end(job, 0, _BATCH, **{name: said * 2}))
    assert "derivatives are missing in Jacobian matrices (2)" in summary["incomplete"]
    assert summary["failed_runs"] == 2


def test_the_tail_is_what_a_terminal_would_show(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("first\n\n 1%\r 50%\r100%\r\n" + "last\n")
    assert read_tail(path) == ["first", "100%", "last"]
    path.write_text("".join(f"line {i}\n" for i in range(10000)))
    assert read_tail(path)[-1] == "line 9999"


def test_only_our_own_options_count_as_unknown(tmp_path: Path) -> None:
    job = _make_job(tmp_path, "pestpp-glm")
    text = " the following '++' args were not accepted:\nnonsense,panther_echo,\n"
    assert find_unknown_options(_end(job, 1, text)) == {"panther_echo"}
    assert find_unknown_options(_end(job, 0, text)) == frozenset()
    assert find_unknown_options(_end(job, 1, "panther_echo: true\n")) == frozenset()


def test_an_engine_that_ends_before_it_listens_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_program(tmp_path, "pestpp-opt", 'echo "words: $*"; env | grep PESTFLEET_; exit 3')
    monkeypatch.setenv("PESTFLEET_ENGINES", str(tmp_path))
    monkeypatch.setenv("PESTFLEET_BROKER", "amqp://user:secret@host")
    job = _make_job(tmp_path, "pestpp-opt")
    with pytest.raises(CaseError, match=r"exit code 3\n  \| words: \S+\.pst /h :\d+") as caught:
        run(job)
    assert "secret" not in str(caught.value)
    assert os.environ["PESTFLEET_BROKER"]
