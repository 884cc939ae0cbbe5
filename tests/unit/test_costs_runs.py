"""How many runs engines need, beside what they ask for when they run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fake_runner import FunctionRunner, make_control, make_job, make_parameter
from pestfleet.control.model import ControlFile, Observation, ParameterGroup
from pestfleet.costs.run_counts import RunCount, count_runs, fix_count
from pestfleet.engines import glm, ies, sweep
from pestfleet.engines.base import Vector
from pestfleet_worker.errors import CaseError

SLOTS = 6
ENGINES = {"glm": glm.run, "ies": ies.run, "sweep": sweep.run}


def model(parameters: Vector) -> Vector:
    """One that no step solves at once."""
    a, b, *_ = parameters
    return np.array([np.exp(a) - b, a * b, a**3 - 2 * b, np.sin(3 * b) + a])


def make_case(tmp_path: Path, noptmax: int | None, *, central: str = "switch") -> ControlFile:
    parameters = [
        make_parameter("a", 1.3, transform="log", lower=0.1, upper=8.0),
        make_parameter("b", 0.4, lower=-3.0, upper=3.0),
        make_parameter("fix", 7.0, transform="fixed"),
        make_parameter("child", 4.0, transform="tied", tied_to="a"),
    ]
    control = make_control(
        parameters,
        [Observation(f"o{i}", float(i), 1.0, "g") for i in range(1, 5)],
        groups=[ParameterGroup("pargp", central=central)],  # type: ignore[arg-type]
        control_data={} if noptmax is None else {"noptmax": noptmax},
    )
    return replace(control, path=tmp_path / "case.pst")


def run_engine(
    engine: str, control: ControlFile, tmp_path: Path, options: dict[str, str]
) -> FunctionRunner:
    job, runner, _ = make_job(control, model, tmp_path / "out", slots=SLOTS, options=options)
    ENGINES[engine](job)
    return runner


def count(engine: str, control: ControlFile, options: dict[str, str]) -> RunCount:
    found = count_runs(control, engine, options, slots=SLOTS)
    assert found is not None
    return found


@pytest.mark.parametrize("central", ["switch", "always_2", "always_3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lambdas": "0.1,1,10", "lambda_scale_fac": "0.5,1"},
        {"lambda_scale_fac": "0.5,1", "numlam": "3"},
        {"rlambda1": "0"},
        {"final_jacobian": "false"},
        {"numlam": "20"},
    ],
)
@pytest.mark.parametrize("noptmax", [-1, 0, 1, 4])
def test_glm_asks_for_as_many_as_were_counted(
    tmp_path: Path, noptmax: int, options: dict[str, str], central: str
) -> None:
    control = make_case(tmp_path, noptmax, central=central)
    least, most = count("glm", control, options).range
    made = run_engine("glm", control, tmp_path, options).runs
    if noptmax < 1:
        assert least == made == most
    else:
        # Trials that would be equal are left out.
        assert 3 <= made <= most
        assert least <= most


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"ies_num_reals": "30", "noptmax": "-1"}, [30]),
        ({"ies_num_reals": "30", "noptmax": "0"}, [1]),
        ({"ies_num_reals": "60", "noptmax": "1"}, [60, 54, 54]),
        ({"ies_num_reals": "60", "noptmax": "1", "ies_subset_size": "10",
          "ies_lambda_mults": "1", "lambda_scale_fac": "1,0.5"}, [60, 20, 50]),
        ({"ies_num_reals": "20", "noptmax": "2", "ies_use_mda": "true"}, [20, 20, 20]),
        ({"noptmax": "-1"}, [50]),
    ],
)  # fmt: skip
def test_ies_asks_for_the_batches_that_were_counted(
    tmp_path: Path, options: dict[str, str], sizes: list[int]
) -> None:
    control = make_case(tmp_path, None)
    found = count("ies", control, options)
    assert list(found.most) == sizes
    runner = run_engine("ies", control, tmp_path, options)
    assert [len(matrix) for _, matrix in runner.asked] == sizes
    assert sum(found.least) <= runner.runs


def test_ies_takes_the_realizations_of_the_user_s_ensemble(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},1.{i},0.{i}" for i in range(1, 8))
    (tmp_path / "par.csv").write_text(f"real,a,b\n{rows}\n", encoding="utf-8")
    control = make_case(tmp_path, -1)
    options = {"ies_par_en": "par.csv"}
    found = count("ies", control, options)
    assert found.range == (8, 8)  # the base realization comes on top
    assert run_engine("ies", control, tmp_path, options).runs == 8


def test_a_sweep_has_as_many_runs_as_rows(tmp_path: Path) -> None:
    rows = "\n".join(f"run{i},1.{i},0.5" for i in range(620))
    (tmp_path / "sweep_in.csv").write_text(f"run,a,b\n{rows}\n", encoding="utf-8")
    control = make_case(tmp_path, None)
    found = count("sweep", control, {})
    runner = run_engine("sweep", control, tmp_path, {})
    assert list(found.most) == [len(matrix) for _, matrix in runner.asked] == [500, 120]
    (tmp_path / "sweep_in.csv").unlink()
    with pytest.raises(CaseError):
        count("sweep", control, {})


@pytest.mark.parametrize(
    ("engine", "noptmax", "options", "least", "most"),
    [
        # Two adjustable parameters; central derivatives later. PEST++ manual, the programs' own
        # chapters.
        ("pestpp-glm", 3, {}, (3, 15), (3, 15, 4, 15, 4, 15)),
        ("pestpp-glm", -1, {"glm_num_reals": "20"}, (3, 20), (3, 20)),
        ("pestpp-glm", 2, {"lambdas": "1,10", "lambda_scale_fac": "1.0"}, (3, 2), (3, 2, 4, 2)),
        ("pestpp-ies", 1, {"ies_num_reals": "100"}, (100, 90), (100, 90, 90)),
        (
            "pestpp-ies",
            1,
            {"ies-num-reals": "100", "ies_use_mda": "true"},
            (100, 10),
            (100, 10, 90),
        ),
        ("pestpp-ies", -1, {}, (50,), (50,)),
        ("pestpp-ies", 0, {}, (1,), (1,)),
        ("pestpp-sen", None, {}, (12,), (12,)),
        ("pestpp-sen", None, {"gsa_method": "SOBOL", "gsa_sobol_samples": "100"}, (400,), (400,)),
        ("pestpp-mou", 2, {"mou_population_size": "40"}, (40, 40, 40), (40, 40, 40)),
        ("beopest", 2, {}, (3, 1), (3, 10, 4, 10)),
        ("pest_hp", 0, {}, (1,), (1,)),
        ("pest_hp", -2, {}, (3,), (3,)),
    ],
)
def test_runs_of_programs(
    tmp_path: Path,
    engine: str,
    noptmax: int | None,
    options: dict[str, str],
    least: tuple[int, ...],
    most: tuple[int, ...],
) -> None:
    found = count(engine, make_case(tmp_path, noptmax), options)
    assert (found.least, found.most) == (least, most)
    assert found.source.startswith("PEST")
    assert found.formula


@pytest.mark.parametrize("engine", ["pestpp-opt", "pestpp-da", "pestpp-sqp"])
def test_of_some_programs_nobody_knows(tmp_path: Path, engine: str) -> None:
    assert count_runs(make_case(tmp_path, 2), engine, {}, slots=SLOTS) is None


def test_the_user_may_say_it() -> None:
    assert fix_count(1200).range == (1200, 1200)


def test_a_huge_number_of_iterations_is_no_trouble(tmp_path: Path) -> None:
    assert len(count("ies", make_case(tmp_path, 10**9), {}).most) < 100_000
