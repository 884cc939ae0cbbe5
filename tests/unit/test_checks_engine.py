"""What an engine needs of a case and of the user's options, told before a session is made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fake_runner import make_control, make_parameter
from pestfleet.case import check_case
from pestfleet.checks.engine import add_problems, check_options
from pestfleet.checks.problem import Problem
from pestfleet.control.keywords import describe_expected, find_nearest, pestpp_options
from pestfleet.control.model import Place
from pestfleet.engines import NAMES
from pestfleet_worker.errors import ConfigurationError

DATA = Path(__file__).parent / "data" / "cases"


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "version1", tmp_path / "case"))


def replace(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def check(case: Path, engine: str, **options: str) -> list[str]:
    _, problems = check_case(case, engine=engine, options=options)
    assert all(problem.remedy for problem in problems)
    names = [str(problem.place).removeprefix(f"{case}/") for problem in problems]
    return [f"{n}: {p.severity}: {p.message}" for n, p in zip(names, problems, strict=True)]


def fix_all(case: Path) -> None:
    replace(
        case / "case.pst",
        ("k1 log", "k1 fixed"), ("s none", "s fixed"), ("h0 none", "h0 fixed"),
        ("k2 tied", "k2 fixed"), ("k2 k1\n", ""), ("5 4 2 1 3", "5 4 2 0 3"),
        ("* prior information\npi1 1.0 * log(k1) = 0.0 2.0 prior\n", ""),
    )  # fmt: skip


def set_weights_to_0(case: Path) -> None:
    replace(
        case / "case.pst",
        ("3.1 1.0", "3.1 0.0"), ("2.9d0 1.0", "2.9d0 0.0"), ("0.12 10.0", "0.12 0.0"),
        ("0.0 2.0 prior", "0.0 0.0 prior"),
    )  # fmt: skip


NOT_ADJUSTABLE = "no parameter is adjustable: all are fixed or tied"
NO_WEIGHT = "all weights are 0: there is nothing to fit"


@pytest.mark.parametrize("engine", [name for name in NAMES if name != "sweep"])
def test_a_good_case_suits_every_engine(case: Path, engine: str) -> None:
    replace(case / "case.pst", ("++ies_num_reals(50) ++ lambdas(0.1, 1.0)", ""))
    assert check(case, engine) == []


@pytest.mark.parametrize("engine", ["glm", "ies"])
@pytest.mark.parametrize("mode", ["prediction", "pareto"])
def test_modes(case: Path, engine: str, mode: str) -> None:
    replace(case / "case.pst", ("restart estimation", f"restart {mode}"))
    errors = [line for line in check(case, engine) if "embedded engine" in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"case.pst: error: PESTMODE is {mode}")
    assert f"the embedded engine {engine}" in errors[0]
    assert not any("embedded engine" in line for line in check(case, "beopest"))


def test_nothing_to_estimate(case: Path) -> None:
    fix_all(case)
    for engine in ("", "beopest"):
        assert check(case, engine) == [f"case.pst:19: warning: {NOT_ADJUSTABLE}"]
    for engine in ("glm", "ies"):
        assert check(case, engine) == [f"case.pst:19: error: {NOT_ADJUSTABLE}"]
        # One run with the initial values needs no adjustable parameter.
        assert check(case, engine, noptmax="0") == [f"case.pst:19: warning: {NOT_ADJUSTABLE}"]


def test_nothing_to_fit(case: Path) -> None:
    set_weights_to_0(case)
    assert check(case, "") == [f"case.pst:30: warning: {NO_WEIGHT}"]
    assert check(case, "glm") == [f"case.pst:30: error: {NO_WEIGHT}"]
    assert check(case, "ies") == [f"case.pst:30: error: {NO_WEIGHT}"]
    assert check(case, "ies", noptmax="-1") == [f"case.pst:30: warning: {NO_WEIGHT}"]


def test_ies_fits_observations_only(case: Path) -> None:
    replace(
        case / "case.pst",
        ("3.1 1.0", "3.1 0.0"), ("2.9d0 1.0", "2.9d0 0.0"), ("0.12 10.0", "0.12 0.0"),
    )  # fmt: skip
    assert check(case, "glm") == []
    (error,) = check(case, "ies")
    assert "error: no observation has a weight above 0" in error


def test_what_only_the_engine_refuses(case: Path) -> None:
    replace(case / "case.pst", ("h0 none relative", "h0 none factor"))
    found = check(case, "glm")
    assert [line.split()[1] for line in found] == ["warning:", "error:"]
    assert "case.pst:22: error: parameter h0 is factor-limited" in found[1]


def test_a_mistake_in_a_line_is_told_once(case: Path) -> None:
    replace(case / "case.pst", ("1.5 0.01 100.0", "1.5 2.0 100.0"))
    (only,) = check(case, "glm")
    assert "case.pst:19: error: the initial value 1.5 of parameter 'k1' is below" in only


def test_input_of_sweep(case: Path) -> None:
    assert check(case, "sweep") == [
        "sweep_in.csv: error: cannot be read: No such file or directory"
    ]
    table = case / "sweep_in.csv"
    table.write_text("run,k1,s\n1,2.0,not read\n")
    assert check(case, "sweep") == ["sweep_in.csv: error: no column for h0"]
    table.write_text("k1,s,h0\n")
    assert "sweep_in.csv:1: error: the first column is parameter 'k1'" in check(case, "sweep")[0]
    table.write_text("run,k1,s,h0\n")
    assert check(case, "sweep") == []
    missing = check(case, "sweep", sweep_parameter_csv_file="more.jcb")
    assert missing == ["more.jcb: error: no such file"]
    assert "none.par: error" in check(case, "sweep", sweep_parameter_csv_file="none.par")[0]


def test_files_of_ies(case: Path) -> None:
    assert check(case, "ies", parcov="prior.cov", ies_par_en="par.csv") == [
        "prior.cov: error: the covariance matrix of the parameters, 'prior.cov', does not exist",
        "par.csv: error: the parameter ensemble, 'par.csv', does not exist",
    ]


def test_what_an_engine_ignores(case: Path) -> None:
    replace(case / "case.pst", ("++ies_num_reals(50)", "++glm_num_reals(5) ies_localizer(loc.mat)"))
    assert check(case, "") == []
    assert check(case, "glm") == ["case.pst: warning: the engine glm does not use: glm_num_reals"]
    assert check(case, "ies") == [
        "case.pst: warning: ies does not honour these options: ies_localizer"
    ]


@pytest.mark.parametrize(
    ("engine", "option", "value", "message", "remedy"),
    [
        ("glm", "nopt_max", "3", "the engine glm has no option 'nopt_max'",
         "Did you mean noptmax?"),
        ("ies", "nopt_max", "3", "the engine ies has no option 'nopt_max'",
         "Did you mean noptmax?"),
        ("ies", "++IES_num_real", "3", "the engine ies has no option 'ies_num_real'",
         "Did you mean ies_num_reals?"),
        ("ies", "quux", "3", "the engine ies has no option 'quux'",
         "Its options have the names that they have in PEST++."),
        ("sweep", "sweep_forgiv", "t", "the engine sweep has no option 'sweep_forgiv'",
         "Did you mean sweep_forgive?"),
        ("pestpp-ies", "ies-num-real", "3", "the engine pestpp-ies has no option 'ies-num-real'",
         "Did you mean ies_num_reals?"),
        ("glm", "noptmax", "abc", "engine option noptmax=abc: it must be a number",
         "Correct the option."),
        ("ies", "noptmax", "abc", "engine option noptmax=abc: it must be a whole number",
         "Correct the option."),
        ("pestpp-glm", "noptmax", "abc", "engine option noptmax=abc: it must be a whole number",
         "Correct the option."),
        ("ies", "ies_num_reals", "1", "engine option ies_num_reals: '1'",
         "Give ies_num_reals as a whole number, 2 or more."),
    ],
)  # fmt: skip
def test_wrong_options(
    case: Path, engine: str, option: str, value: str, message: str, remedy: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check(case, engine, **{option: value})
    assert (caught.value.message, caught.value.remedy) == (message, remedy)


def test_options_of_a_newer_program_are_let_be() -> None:
    control = make_control([make_parameter("a", 1.0)], [0.0])
    options = {"brand_new_option": "1", "allow-open-port": "true", "pest_hp_thing": "x"}
    assert check_options("pestpp-ies", options, control) == []
    assert check_options("beopest", {"allow-open-port": "true"}, control) == []
    with pytest.raises(
        ConfigurationError, match="takes no options from pestfleet: brand_new_option"
    ):
        check_options("beopest", options, control)
    with pytest.raises(ConfigurationError, match="there is no engine 'gml'"):
        check_options("gml", {}, control)


def test_a_warning_that_the_engine_makes_an_error_is_left_out() -> None:
    place, other = Place(Path("case.pst"), 3), Place(Path("case.pst"))
    soft = Problem("warning", place, "nothing to fit")
    hard = Problem("error", place, "nothing to fit")
    rest = Problem("error", other, "something else")
    assert add_problems([soft, rest], [hard]) == [rest, hard]
    # Without a line two errors of one file are two mistakes.
    assert add_problems([rest], [Problem("error", other, "third")])[-1].message == "third"


def test_names_of_pestpp_options() -> None:
    known = pestpp_options()
    assert {"lambdas", "ies_num_reals", "da_num_reals", "mou_generator", "sqp_num_reals"} <= known
    assert "noptmax" not in known
    assert all(name == name.lower().strip("+") for name in known)
    assert find_nearest("LAMDAS", known) == "lambdas"
    assert find_nearest("weather", known) == ""
    assert describe_expected("noptmax", "1.5") == "a whole number"
    assert describe_expected("unheard_of", "1.5") == ""
