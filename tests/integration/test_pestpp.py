"""Real PEST++ through gateway and enclosure, against its own serial run manager.

The model's runs come from a Python function, so that no fleet is needed; the serial run manager
runs the same model as a program. Fields are wide enough for a double: results must be equal in
every digit.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pestfleet.engines.base import Job
from pestfleet.engines.pestpp import FOLDER, OUTPUT, run
from pestfleet.files.ensembles import read_ensemble
from pestfleet_worker.errors import (
    CaseError,
    ConfigurationError,
    Interrupted,
    PestfleetError,
    RunsFailedError,
)
from pestpp_cases import FunctionService, Notebook, make_case, make_job, run_serially

pytestmark = pytest.mark.pestpp

# Files that have times, memory addresses or the run manager's name in them.
_DIFFER = (".log", ".rec", ".rid", ".rmr", ".out")


def _service(job: Job) -> FunctionService:
    assert isinstance(job.service, FunctionService)
    return job.service


def _report(job: Job) -> Notebook:
    assert isinstance(job.report, Notebook)
    return job.report


def _compare(job: Job, serial: Path) -> list[str]:
    """Names of the files that are equal; fails for the first that is not."""
    compared = []
    for path in sorted(job.output.iterdir()):
        if path.is_file() and path.suffix not in _DIFFER:
            assert (serial / path.name).read_bytes() == path.read_bytes(), path.name
            compared.append(path.name)
    return compared


def _run_both(tmp_path: Path, engine: str, wanted: str, **case: object) -> tuple[Job, dict]:
    job = make_job(make_case(tmp_path / "case", **case), tmp_path / "out", engine)
    summary = run(job)
    make_case(tmp_path / "serial", **case)
    serial = run_serially(engine, tmp_path / "serial", os.environ["PATH"])
    assert serial.returncode == 0, serial.stdout[-2000:]
    assert wanted in _compare(job, tmp_path / "serial")
    assert summary["failed_runs"] == 0
    assert "incomplete" not in summary
    assert summary["runs"] == len(_service(job).asked)
    assert _report(job).warnings == []
    return job, summary


@pytest.mark.parametrize("version", [1, 2])
def test_glm_gives_the_same_files_as_its_serial_run_manager(tmp_path: Path, version: int) -> None:
    job, summary = _run_both(tmp_path, "pestpp-glm", "case.par", noptmax=3, version=version)
    iterations = _report(job).iterations
    assert [row["number"] for row in iterations] == [0, 1, 2, 3]
    assert summary["phi"] == iterations[-1]["phi"] < iterations[0]["phi"]
    assert {"case.jcb", "case.rei", "case.rec"} <= set(summary["files"])


def test_ies_with_50_realizations_gives_the_same_ensembles(tmp_path: Path) -> None:
    options = {"ies_num_reals": "50", "rand_seed": "5"}
    job, summary = _run_both(tmp_path, "pestpp-ies", "case.2.obs.csv", options=options)
    assert summary["realizations"] == 50
    assert [row["realizations"] for row in _report(job).iterations] == [50, 50, 50]
    assert (job.output / "case.phi.actual.csv").exists()


def test_an_options_alias_is_not_set_a_second_time(tmp_path: Path) -> None:
    options = {"ies_num_reals": "5", "random_seed": "6", "yamr_poll_interval": "1"}
    _run_both(tmp_path, "pestpp-ies", "case.1.par.csv", options=options, noptmax=1)


@pytest.mark.parametrize("engine", ["pestpp-sen", "pestpp-da"])
def test_other_programs_give_the_same_files(tmp_path: Path, engine: str) -> None:
    wanted = {"pestpp-sen": "case.msn", "pestpp-da": "case.global.phi.actual.csv"}[engine]
    _run_both(tmp_path, engine, wanted, options={"da_num_reals": "6"})


def test_opt_gives_the_same_files(tmp_path: Path) -> None:
    _run_both(
        tmp_path, "pestpp-opt", "case.par", noptmax=1, transform="none", group="less_og",
    )  # fmt: skip


def test_mou_gives_the_same_populations(tmp_path: Path) -> None:
    options = {"mou_population_size": "8", "mou_objectives": "o0,o1", "mou_generator": "de"}
    _run_both(
        tmp_path, "pestpp-mou", "case.pareto.summary.csv",
        options=options, transform="none", group="less_og",
    )  # fmt: skip


def _make_sweep(folder: Path, runs: int) -> Path:
    path = make_case(folder, options={"sweep_parameter_csv_file": "in.csv"})
    rows = [f"r{i},{0.5 + 9.5 * i / runs!r},{0.05 + 1.9 * i / runs!r},0.1" for i in range(runs)]
    (folder / "in.csv").write_text("\n".join(["run_id,a,b,c", *rows]) + "\n")
    return path


def test_a_sweep_of_1000_runs(tmp_path: Path) -> None:
    job = make_job(_make_sweep(tmp_path / "case", 1000), tmp_path / "out", "pestpp-swp")
    summary = run(job)
    assert (summary["runs"], summary["failed_runs"], summary["file"]) == (1000, 0, "sweep_out.csv")
    assert len(_service(job).asked) == 1000
    assert "incomplete" not in summary
    _make_sweep(tmp_path / "serial", 20)
    run_serially("pestpp-swp", tmp_path / "serial", os.environ["PATH"])
    _make_sweep(tmp_path / "case20", 20)
    short = make_job(tmp_path / "case20" / "case.pst", tmp_path / "out20", "pestpp-swp")
    run(short)
    assert _compare(short, tmp_path / "serial") == ["sweep_out.csv"]


def test_failed_runs_of_a_sweep_are_counted_and_said(tmp_path: Path) -> None:
    job = make_job(
        _make_sweep(tmp_path / "case", 40), tmp_path / "out", "pestpp-swp",
        fails=lambda values: values[0] > 9,
    )  # fmt: skip
    summary = run(job)
    failed = sum(values[0] > 9 for values in _service(job).asked)
    assert 0 < failed < 40
    assert summary["failed_runs"] == failed
    assert summary["incomplete"] == f"{failed} of 40 runs of the sweep failed"
    assert f"{failed} times: the model ended with exit code 3" in _report(job).warnings[-1]
    assert len(_service(job).asked) == 40  # a model that fails is not asked again


@pytest.mark.parametrize("engine", ["pestpp-swp", "pestpp-sen", "pestpp-ies"])
def test_nothing_but_failed_runs_is_an_error(tmp_path: Path, engine: str) -> None:
    job = make_job(
        _make_sweep(tmp_path / "case", 4), tmp_path / "out", engine, fails=lambda values: True
    )
    with pytest.raises(RunsFailedError, match="the model ended with exit code 3"):
        run(job)


def test_lost_realizations_make_the_result_incomplete(tmp_path: Path) -> None:
    control = make_case(tmp_path / "case", options={"ies_num_reals": "20"}, noptmax=1)
    prior: list[tuple[float, ...]] = []

    def fails(values: object) -> bool:
        prior.append(tuple(values))  # type: ignore[arg-type]
        return len(prior) in (3, 7)

    job = make_job(control, tmp_path / "out", "pestpp-ies", fails=fails, slots=1)
    summary = run(job)
    assert summary["realizations"] == 18
    assert summary["incomplete"] == "2 of 20 realizations were dropped"
    assert len(read_ensemble(job.output / "case.0.obs.csv").realizations) == 18


def test_a_derivative_that_failed_makes_the_result_incomplete(tmp_path: Path) -> None:
    control = make_case(tmp_path / "case", noptmax=1)
    calls: list[int] = []

    def fails(values: object) -> bool:
        calls.append(1)
        return len(calls) == 2  # the first after the initial values

    job = make_job(control, tmp_path / "out", "pestpp-glm", fails=fails, slots=1)
    summary = run(job)
    assert summary["failed_runs"] == 1
    assert (
        summary["incomplete"]
        == "derivatives are missing in Jacobian matrices (1): their runs failed"
    )


def test_a_slow_run_costs_no_realization(tmp_path: Path) -> None:
    """pestpp-ies alone gives a run up after twice the average of at least 0.6 s."""
    control = make_case(tmp_path / "case", options={"ies_num_reals": "6"}, noptmax=-1)
    calls: list[int] = []

    def seconds(values: object) -> float:
        calls.append(1)
        return 3.5 if len(calls) == 6 else 0.7

    job = make_job(control, tmp_path / "out", "pestpp-ies", seconds=seconds, slots=2)
    summary = run(job)
    assert summary["realizations"] == 6
    assert len(calls) == 6  # nor is it asked for twice
    assert _service(job).cancelled == []


def test_the_users_options_win_and_are_warned_of(tmp_path: Path) -> None:
    control = make_case(tmp_path / "case", options={"ies_num_reals": "6", "max_run_fail": "3"})
    options = {"ies-num-reals": "4", "noptmax": "1", "overdue_giveup_fac": "3"}
    job = make_job(control, tmp_path / "out", "pestpp-ies", options=options)
    summary = run(job)
    assert (summary["realizations"], summary["iterations"]) == (4, 1)
    text = (job.output / FOLDER / "case.rec").read_text()
    assert "overdue_giveup_fac: 3" in text
    assert "max_run_fail: 3" in text
    assert [line.partition(":")[0] for line in _report(job).warnings] == [
        "overdue_giveup_fac(3)",
        "max_run_fail(3)",
    ]
    assert "ies_num_reals(6)" in control.read_text()


def test_pestpp_takes_every_option_as_we_mean_it(tmp_path: Path) -> None:
    job = make_job(make_case(tmp_path / "case", noptmax=0), tmp_path / "out", "pestpp-glm")
    run(job)
    text = (job.output / "case.rec").read_text().lower()
    for line in (
        "max_run_fail: 1", "overdue_resched_fac: 1e+30", "overdue_giveup_fac: 1e+30",
        "overdue_giveup_minutes: 1e+30", "panther_poll_interval: 0", "panther_echo: 1",
        "panther_timeout_milliseconds: 10", "panther_echo_interval_milliseconds: 1000",
        "panther_persistent_workers: 1", "random_seed: 358183147",
    ):  # fmt: skip
        assert f"\n{line}\n" in text, line


def test_a_mistake_in_the_case_comes_with_the_engines_words(tmp_path: Path) -> None:
    control = make_case(tmp_path / "case", options={"nonsense": "1"})
    with pytest.raises(CaseError, match=r"(?s)exit code 1.*nonsense,.*master\.out"):
        run(make_job(control, tmp_path / "out", "pestpp-glm"))


def test_a_stop_ends_the_engine_and_cancels_its_runs(tmp_path: Path) -> None:
    control = make_case(tmp_path / "case", options={"ies_num_reals": "50"})
    job = make_job(
        control, tmp_path / "out", "pestpp-ies",
        seconds=lambda values: 0.5, stop_after=4, error=Interrupted,
    )  # fmt: skip
    with pytest.raises(Interrupted):
        run(job)
    assert _service(job).cancelled
    assert _find_engines(job) == []
    _service(job).close()


def test_a_killed_engine_is_said(tmp_path: Path) -> None:
    control = make_case(tmp_path / "case", options={"ies_num_reals": "50"})
    job = make_job(control, tmp_path / "out", "pestpp-ies", seconds=lambda values: 0.2, slots=2)

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(_service(job).asked) < 3:
            time.sleep(0.02)
        for process in _find_engines(job):
            os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(PestfleetError, match="killed by SIGKILL"):
        run(job)
    killer.join()
    _service(job).close()


def test_a_second_start_asks_for_the_same_runs(tmp_path: Path) -> None:
    control = make_case(tmp_path / "case", options={"ies_num_reals": "12"})
    asked = []
    for _ in range(2):  # into the same folder, as a resumed session does
        job = make_job(control, tmp_path / "out", "pestpp-ies", slots=1)
        run(job)
        asked.append(sorted(values.tobytes() for values in _service(job).asked))
    assert asked[0] == asked[1]


def test_an_older_pestpp_gets_only_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses two options in 5.2.23's words; else it is the real program."""
    import shutil

    real = shutil.which("pestpp-glm")
    folder = tmp_path / "old"
    folder.mkdir()
    script = folder / "pestpp-glm"
    script.write_text(
        "#!/bin/sh\n"
        "if grep -q panther_persistent_workers $1; then\n"
        "  echo \"control file parsing error:  the following '++' args were not accepted:\"\n"
        "  echo panther_persistent_workers,panther_master_timeout_milliseconds,; exit 1\n"
        "fi\n"
        f'exec {real} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PESTFLEET_ENGINES", str(folder))
    job = make_job(make_case(tmp_path / "case", noptmax=1), tmp_path / "out", "pestpp-glm")
    summary = run(job)
    assert summary["iterations"] == 1
    written = (job.output / FOLDER / "case.pst").read_text()
    assert "panther_master_timeout_milliseconds" not in written
    assert "overdue_giveup_fac" in written


def test_without_a_service_it_says_which_mode_it_needs(tmp_path: Path) -> None:
    job = replace(
        make_job(make_case(tmp_path / "case"), tmp_path / "out", "pestpp-ies"), service=None
    )
    with pytest.raises(ConfigurationError, match="nothing that makes its runs"):
        run(job)
    assert not (job.output / OUTPUT).exists()


def _find_engines(job: Job) -> list[int]:
    """Processes whose working directory is the engine's folder, without the helper."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                folder = (entry / "cwd").readlink()
                program = (entry / "comm").read_text().strip()
            except OSError:
                continue
            if folder == job.output / FOLDER and program.startswith("pestpp"):
                found.append(int(entry.name))
    return found
