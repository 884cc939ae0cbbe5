"""Every check of a case: its exact message, its file and its line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pestfleet.case import check_case
from pestfleet.checks import files
from pestfleet.checks.command import check_commands
from pestfleet.checks.files import format_size
from pestfleet.checks.interface import count_digits
from pestfleet.checks.names import Folder, is_outside, to_posix
from pestfleet.checks.problem import Problem, Problems
from pestfleet.control.model import Place
from pestfleet.control.reader import read_control
from pestfleet_worker.errors import CaseError

DATA = Path(__file__).parent / "data" / "cases"


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A good case, to be spoilt."""
    folder = tmp_path / "case"
    shutil.copytree(DATA / "version1", folder)
    return folder


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def check(folder: Path, **options: int) -> list[str]:
    """Problems of a case as text, file names relative to its folder."""
    _, problems = check_case(folder, **options)
    for problem in problems:
        assert problem.remedy or "more problems" in problem.message, problem
        assert "Traceback" not in str(problem)
    return [tell(problem, folder) for problem in problems]


def tell(problem: Problem, folder: Path) -> str:
    place = str(problem.place).removeprefix(f"{folder}{os.sep}")
    return f"{place}: {problem.severity}: {problem.message}"


@pytest.mark.parametrize("version", [1, 2])
def test_a_good_case_has_no_problems(version: int) -> None:
    _, problems = check_case(DATA / f"version{version}", slots=4)
    assert [str(p) for p in problems] == []


def test_problem_as_text() -> None:
    problem = Problem("error", Place(Path("a.pst"), 7), "this is wrong", "Do that.")
    assert str(problem) == "a.pst:7: error: this is wrong\n    Do that."
    assert str(Problem("warning", Place(Path("a.pst")), "odd")) == "a.pst: warning: odd"


# The control file's own data: (old text, new text, all problems that this gives)
CONTROL_CHANGES = [
    ("k1 log factor 1.5 0.01 100.0", "k1 log factor 1000 0.01 100.0",
     ["case.pst:19: error: the initial value 1000 of parameter 'k1' is above its upper bound 100"]),
    ("s none relative 0.2 0.1 0.4", "s none relative 0.05 0.1 0.4",
     ["case.pst:21: error: the initial value 0.05 of parameter 's' is below its lower bound 0.1"]),
    ("t fixed factor 1.0 0.5 2.0", "t fixed factor 9.0 0.5 2.0",
     ["case.pst:23: warning: the initial value 9 of parameter 't' is above its upper bound 2"]),
    ("s none relative 0.2 0.1 0.4", "s none relative 0.2 0.4 0.1",
     ["case.pst:21: error: the lower bound 0.4 of parameter 's' is above its upper bound 0.1"]),
    ("s none relative 0.2 0.1 0.4", "s none relative 0.2 0.2 0.2",
     ["case.pst:21: error: both bounds of parameter 's' are 0.2, so that it cannot change"]),
    ("k1 log factor 1.5 0.01 100.0", "k1 log relative 1.5 0.0 100.0",
     ["case.pst:19: error: the parameter 'k1' is log-transformed, but its lower bound is 0"]),
    ("k1 log factor 1.5 0.01 100.0", "k1 log relative -1.5 -2.0 100.0",
     ["case.pst:19: error: the parameter 'k1' is log-transformed, but its initial value is -1.5"]),
    ("h0 none relative", "h0 none factor",
     ["case.pst:22: warning: the parameter 'h0' is factor-limited, but its bounds include 0"]),
    ("h0 none relative", "h0 none absolute(3)",
     ["case.pst:22: error: the change of parameter 'h0' is limited by absolute(3), but there is "
      "no ABSPARMAX(3)"]),
    ("0.4 hydraulic 1.0 0.0", "0.4 hydraulic 0.0 0.0",
     ["case.pst:21: error: the parameter 's' has SCALE 0: the model never sees it"]),
    ("s none relative", "k1 none relative",
     ["case.pst:21: error: the parameter 'k1' is there twice, first at line 19",
      "model.tpl:4: error: the parameter 's' is not in the control file"]),
    ("head_2 2.9d0", "head_1 2.9d0",
     ["case.pst:31: error: the observation 'head_1' is there twice, first at line 30",
      "out.ins:2: error: the observation 'head_2' is not in the control file"]),
    ("k2 k1\n", "k2 k2\n", ["case.pst:20: error: the parameter 'k2' is tied to itself"]),
    ("k2 k1\n", "k2 k7\n",
     ["case.pst:20: error: the parameter 'k2' is tied to 'k7', which is no parameter"]),
    ("k2 k1\n", "k2 t\n",
     ["case.pst:20: error: the parameter 'k2' is tied to 't', which is fixed itself"]),
    ("s none relative 0.2 0.1 0.4 hydraulic 1.0 0.0 1\nh0 none",
     "s tied relative 0.2 0.1 0.4 hydraulic 1.0 0.0 1\ns k2\nh0 none",
     ["case.pst:21: error: the parameter 's' is tied to 'k2', which is tied itself"]),
    ("0.4 hydraulic", "0.4 unknown",
     ["case.pst:21: error: the group 'unknown' of parameter 's' is not in '* parameter groups'"]),
    ("2.0 none 1.0", "2.0 unknown 1.0",
     ["case.pst:23: warning: the group 'unknown' of parameter 't' is not in "
      "'* parameter groups'"]),
    ("level absolute 0.05", "hydraulic absolute 0.05",
     ["case.pst:17: error: the parameter group 'hydraulic' is there twice, first at line 16",
      "case.pst:22: error: the group 'level' of parameter 'h0' is not in '* parameter groups'"]),
    ("level absolute 0.05", "level absolute 0.0",
     ["case.pst:17: error: DERINC of parameter group 'level' is 0"]),
    ("level absolute 0.05 0.0 always_2 2.0 parabolic\n* parameter data",
     "level relative 0.05 0.0 always_2 2.0 parabolic\n* parameter data", []),
    ("heads\nhead_2", "tails\nhead_2",
     ["case.pst:30: error: the group 'tails' of observation 'head_1' is not in "
      "'* observation groups'"]),
    ("3.1 1.0 heads", "3.1 -1.0 heads",
     ["case.pst:30: error: the weight of observation 'head_1' is -1"]),
    ("1.0 * log(k1)", "1.0 * k1",
     ["case.pst:40: error: the prior information 'pi1' must have log(k1): 'k1' is "
      "log-transformed"]),
    ("1.0 * log(k1)", "1.0 * log(s)",
     ["case.pst:40: error: the prior information 'pi1' must have s: 's' is not log-transformed"]),
    ("1.0 * log(k1)", "1.0 * log(k3)",
     ["case.pst:40: error: the prior information 'pi1' has 'k3', which is no parameter"]),
    ("1.0 * log(k1)", "1.0 * t",
     ["case.pst:40: error: the prior information 'pi1' has 't', which is fixed"]),
    ("2.0 prior", "-2.0 prior",
     ["case.pst:40: error: the prior information 'pi1' has a negative weight, -2"]),
    ("2.0 prior", "2.0 priors",
     ["case.pst:40: error: the group 'priors' of prior information 'pi1' is not in "
      "'* observation groups'"]),
    ("heads\nflows\nprior", "heads covariance.cov\nflows\nprior",
     ["case.pst:26: error: the covariance file of group 'heads' 'covariance.cov' does not exist"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), CONTROL_CHANGES)
def test_control_data(case: Path, old: str, new: str, expected: list[str]) -> None:
    replace(case / "case.pst", old, new)
    assert check(case) == expected


def test_tied_to_a_parent_that_is_zero(case: Path) -> None:
    replace(case / "case.pst", "h0 none relative -2.5", "h0 none relative 0.0")
    replace(case / "case.pst", "k2 k1\n", "k2 h0\n")
    assert check(case) == [
        "case.pst:20: error: the parameter 'k2' is tied to 'h0', whose initial value is 0: their "
        "ratio is not defined"
    ]


def test_increment_of_zero(case: Path) -> None:
    replace(case / "case.pst", "h0 none relative -2.5", "h0 none relative 0.0")
    replace(case / "case.pst", "level absolute", "level relative")
    assert check(case) == [
        "case.pst:22: warning: the increment of parameter 'h0' is 0: it is relative to an initial "
        "value of 0"
    ]


def test_nothing_to_estimate(case: Path) -> None:
    for name in ("k1 log", "s none", "h0 none"):
        replace(case / "case.pst", name, f"{name.split()[0]} fixed")
    replace(case / "case.pst", "k2 tied", "k2 fixed")
    replace(case / "case.pst", "k2 k1\n", "")
    replace(case / "case.pst", "* prior information\npi1 1.0 * log(k1) = 0.0 2.0 prior\n", "")
    replace(case / "case.pst", "5 4 2 1 3", "5 4 2 0 3")
    assert check(case) == [
        "case.pst:19: warning: no parameter is adjustable: all are fixed or tied"
    ]


def test_nothing_to_fit(case: Path) -> None:
    for old in ("3.1 1.0", "2.9d0 1.0", "0.12 10.0", "0.0 2.0 prior"):
        value, _, rest = old.partition(" ")
        replace(case / "case.pst", old, f"{value} 0.0{' prior' if 'prior' in rest else ''}")
    assert check(case) == ["case.pst:30: warning: all weights are 0: there is nothing to fit"]


def test_regularization_without_groups(case: Path) -> None:
    replace(case / "case.pst", "restart estimation", "restart regularization")
    replace(
        case / "case.pst", "++ies",
        "* regularization\n1.0 1.1 0.1\n1.0 1e-5 1e5\n1.3 0.01 1\n++ies",
    )  # fmt: skip
    assert check(case) == [
        "case.pst: error: PESTMODE is regularization, but no observation group begins with 'regul'"
    ]


# Options


@pytest.mark.parametrize(
    ("option", "expected", "remedy"),
    [
        ("lamdas(0.1)", "the option 'lamdas' is unknown: pestfleet ignores it, PEST++ refuses it",
         "Did you mean lambdas?"),
        ("ies_num_real(20)",
         "the option 'ies_num_real' is unknown: pestfleet ignores it, PEST++ refuses it",
         "Did you mean ies_num_reals?"),
        ("noptmx(3)", "the option 'noptmx' is unknown: pestfleet ignores it, PEST++ refuses it",
         "Did you mean noptmax? It belongs into '* control data'."),
        ("quux(3)", "the option 'quux' is unknown: pestfleet ignores it, PEST++ refuses it",
         "Correct the name, or remove it."),
        ("maxsing(3)", "'maxsing' is a control variable, not a '++' option: pestfleet ignores it "
         "here, PEST++ refuses it", "Write it into '* singular value decomposition'."),
        ("glm_num_reals(abc)", "the option 'glm_num_reals' is 'abc', not a whole number",
         "Correct the value."),
        ("par_sigma_range(wide)", "the option 'par_sigma_range' is 'wide', not a number",
         "Correct the value."),
        ("lambda_scale_fac(0.5,x)",
         "the option 'lambda_scale_fac' is '0.5,x', not numbers, separated by commas",
         "Correct the value."),
        ("da_use_mda(perhaps)", "the option 'da_use_mda' is 'perhaps', not true or false",
         "Correct the value."),
    ],
)  # fmt: skip
def test_options(case: Path, option: str, expected: str, remedy: str) -> None:
    replace(case / "case.pst", "++ies_num_reals(50)", f"++{option}")
    _, problems = check_case(case)
    assert [(p.place.line, p.severity, p.message, p.remedy) for p in problems] == [
        (41, "warning", expected, remedy)
    ]


@pytest.mark.parametrize(
    "option", ["ies_num_reals(2e2)", "par_sigma_range(4.0d0)", "lambdas(1 10, 100)",
               "parcov(prior.cov)", "ies_use_mda(True)", "da_num_reals(7)"],
)  # fmt: skip
def test_good_options(case: Path, option: str) -> None:
    replace(case / "case.pst", "++ies_num_reals(50) ++ lambdas(0.1, 1.0)", f"++{option}")
    assert check(case) == []


def test_misspelt_keyword_of_version2(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "version2", tmp_path / "case"))
    replace(folder / "case.pst", "noptmax ", "noptmx ")
    _, problems = check_case(folder)
    assert [(str(p.place), p.message, p.remedy) for p in problems] == [
        (f"{folder / 'case.pst'}:5",
         "the option 'noptmx' is unknown: pestfleet ignores it, PEST++ refuses it",
         "Did you mean noptmax?"),
    ]  # fmt: skip


# Files


def test_missing_files(case: Path) -> None:
    (case / "model.tpl").unlink()
    (case / "out.ins").unlink()
    (case / "model.py").unlink()
    assert check(case) == [
        "case.pst:35: error: the script of the model command 'model.py' does not exist",
        "case.pst:37: error: the template 'model.tpl' does not exist",
        "case.pst:38: error: the instruction file 'out.ins' does not exist",
    ]


def test_names_that_differ_in_case(case: Path) -> None:
    (case / "model.tpl").rename(case / "Model.TPL")
    (case / "model.py").rename(case / "Model.py")
    (case / "In").mkdir()
    replace(case / "case.pst", "model.tpl model.in", "model.tpl in/model.in")
    assert check(case) == [
        "case.pst:35: error: the script of the model command 'model.py' is called 'Model.py' on "
        "disk",
        "case.pst:37: error: the template 'model.tpl' is called 'Model.TPL' on disk",
        "case.pst:37: error: the folder 'in' of the model input 'in/model.in' is called 'In'",
    ]


def test_two_files_that_are_one_on_windows(case: Path) -> None:
    (case / "grid.dat").write_text("1")
    (case / "Grid.dat").write_text("2")
    assert check(case) == [
        "grid.dat: warning: the names 'Grid.dat' and 'grid.dat' differ in case only: on Windows "
        "they are one file"
    ]


def test_folders_in_place_of_files(case: Path) -> None:
    (case / "model.tpl").unlink()
    (case / "model.tpl").mkdir()
    (case / "model.out").mkdir()
    assert check(case) == [
        "case.pst:37: error: the template 'model.tpl' is a folder, not a file",
        "case.pst:38: error: the model output 'model.out' is a folder, not a file",
    ]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_broken_link(case: Path) -> None:
    (case / "model.tpl").unlink()
    (case / "model.tpl").symlink_to("gone.tpl")
    assert check(case) == [
        "case.pst:37: error: the template 'model.tpl' leads to nothing (a broken link)"
    ]


def test_missing_folder_of_a_model_input(case: Path) -> None:
    replace(case / "case.pst", "model.tpl model.in", "model.tpl input/model.in")
    assert check(case) == [
        "case.pst:37: error: the folder 'input' of the model input 'input/model.in' does not exist"
    ]


@pytest.mark.parametrize("name", ["/data/model.in", "C:\\data\\model.in", "../model.in"])
def test_files_outside_of_the_case(case: Path, name: str) -> None:
    replace(case / "case.pst", "model.tpl model.in", f"model.tpl {name}")
    message = f"case.pst:37: error: the model input '{name}' is outside of the case folder"
    assert check(case)[-1] == message
    replace(case / "case.pst", f"model.tpl {name}", f"{name} model.in")
    message = f"case.pst:37: error: the template '{name}' is outside of the case folder"
    assert check(case)[-1] == message


def test_backslashes(case: Path) -> None:
    (case / "input").mkdir()
    (case / "model.tpl").rename(case / "input" / "model.tpl")
    replace(case / "case.pst", "model.tpl model.in", "input\\model.tpl model.in")
    assert check(case) == [
        "case.pst:37: warning: the template 'input\\model.tpl' is written with a backslash: "
        "pestfleet takes it for '/', but other programs on Linux take it for a letter"
    ]


def test_two_templates_for_one_model_input(case: Path) -> None:
    replace(case / "case.pst", "1 1 double", "2 1 double")
    replace(case / "case.pst", "model.tpl model.in", "model.tpl model.in\nsecond.tpl ./model.in")
    (case / "second.tpl").write_text("ptf #\n#k1        #\n")
    assert check(case) == [
        "case.pst:38: error: two templates write 'model.in': 'model.tpl' and 'second.tpl'"
    ]


def test_template_over_itself_and_over_an_output(case: Path) -> None:
    replace(case / "case.pst", "model.tpl model.in", "model.tpl model.tpl")
    assert check(case) == [
        "case.pst:37: error: the template 'model.tpl' would be overwritten by its own model input"
    ]
    replace(case / "case.pst", "model.tpl model.tpl", "model.tpl model.out")
    assert check(case) == [
        "case.pst:38: error: 'model.out' is written by the template 'model.tpl' and read as a "
        "model output: its values would be results without any model run"
    ]


def test_large_files(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE_FILE", 1_000_000)
    with (case / "grid.dat").open("wb") as file:
        file.truncate(2_500_000)
    assert check(case, slots=8) == [
        "grid.dat: warning: the case has 2.5 MB, 'grid.dat' alone 2.5 MB: with 8 slots it takes "
        "up to 20.2 MB of disk"
    ]
    monkeypatch.setattr(files, "LARGE_FILE", 10**9)
    assert check(case, slots=8) == []
    monkeypatch.setattr(files, "LARGE_FLEET", 15_000_000)
    _, problems = check_case(case, slots=8)
    assert [p.message for p in problems] == [
        "the case has 2.5 MB: with 8 slots it takes up to 20.2 MB of disk"
    ]


def test_small_files_take_whole_blocks_of_every_slot(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGE_FLEET", 4096 * 1000)
    assert check(case, slots=100) == []
    (warning,) = check(case, slots=1_000)
    assert "with 1,000 slots it takes up to" in warning


def test_format_size() -> None:
    sizes = [0, 999, 1000, 1_550_000, 2_000_000_000, 3 * 10**15]
    assert [format_size(n) for n in sizes] == [
        "0 bytes", "999 bytes", "1.0 kB", "1.6 MB", "2.0 GB", "3000.0 TB",
    ]  # fmt: skip


# Templates and instruction files


def test_template_that_breaks_the_rules(case: Path) -> None:
    template = case / "model.tpl"
    good = template.read_text()
    template.write_text(good.replace("ptf ~", "tpl ~"))
    assert check(case) == [
        "model.tpl:1: error: the first line must be ptf, a space and one marker character, not "
        "'tpl ~'"
    ]
    template.write_text(good.replace("~s              ~", "~s              "))
    assert check(case) == [
        "model.tpl:4: error: the marker ~ opens a parameter space that is not closed on this line"
    ]
    template.write_bytes(bytes(range(256)) * 50)
    (only,) = check(case)
    assert only.startswith("model.tpl:1: error: the first line must be ptf")
    assert len(only) < 300


def test_every_bad_line_of_a_template_is_told(case: Path) -> None:
    template = case / "model.tpl"
    text = template.read_text()
    text = text.replace("~s              ~", "~s              ").replace("~h0   ", "~h 0   ")
    template.write_text(text)
    assert check(case) == [
        "model.tpl:4: error: the marker ~ opens a parameter space that is not closed on this line",
        "model.tpl:5: error: a parameter name must not have spaces: 'h 0'",
    ]
    template.write_text("ptf ~\n" + "~s\n" * 30)
    found = check(case)
    assert len(found) == 21
    assert found[-1] == "model.tpl: error: 10 more problems like these: template files"


def test_windows_line_ends_are_fine_in_pest_files(case: Path) -> None:
    for name in ("case.pst", "model.tpl", "out.ins"):
        (case / name).write_bytes((case / name).read_bytes().replace(b"\n", b"\r\n"))
    assert check(case) == []


def test_names_of_templates_and_control_file(case: Path) -> None:
    replace(case / "model.tpl", "~k2             ~", "~k3             ~\n~k3 ~")
    replace(case / "out.ins", "!flow_2!", "!flow_9!")
    assert check(case) == [
        "model.tpl:3: error: the parameter 'k3' is not in the control file",
        "case.pst:20: error: the parameter 'k2' is in no template file",
        "out.ins:4: error: the observation 'flow_9' is not in the control file",
        "case.pst:33: error: the observation 'flow_2' is in no instruction file",
    ]


def test_many_unknown_names_are_counted(case: Path) -> None:
    more = "".join(f"~n{i}        ~\n" for i in range(30))
    (case / "model.tpl").write_text((case / "model.tpl").read_text() + more)
    lines = "".join(f"l1 !n{i}!\n" for i in range(30))
    (case / "out.ins").write_text((case / "out.ins").read_text() + lines)
    found = check(case)
    assert len(found) == 42
    assert found[20] == "model.tpl: error: 10 more problems like these: parameters of this template"
    assert found[21] == "out.ins:5: error: the observation 'n0' is not in the control file"
    assert found[41] == "out.ins: error: 10 more problems like these: observations of this file"


def test_cut_off_control_file_is_not_blamed_name_by_name(case: Path) -> None:
    text = (case / "case.pst").read_text()
    (case / "case.pst").write_text(text[: text.index("h0 none")])
    found = check(case)
    assert "case.pst:18: error: NPAR is 5, but '* parameter data' has 3 entries" in found
    assert not [line for line in found if "is not in the control file" in line]


def test_observation_in_two_instruction_files(case: Path) -> None:
    replace(case / "case.pst", "1 1 double", "1 2 double")
    replace(case / "case.pst", "out.ins model.out", "out.ins model.out\nmore.ins more.out")
    (case / "more.ins").write_text("pif #\nl1 !flow_2!\n")
    assert check(case) == [
        "more.ins:2: error: the observation 'flow_2' is read by another instruction file too"
    ]


def test_instruction_file_that_breaks_the_rules(case: Path) -> None:
    replace(case / "out.ins", "pif @", "pif")
    assert check(case) == [
        "out.ins:1: error: the first line must be pif, a space and one marker delimiter, not 'pif'"
    ]


def test_every_bad_line_of_an_instruction_file_is_told(case: Path) -> None:
    (case / "out.ins").write_text(
        "pif @\nl1 !head_1! !head_2\n& !head_2!\n@flows@ !flow_1!\nl1 x !flow_2!\nl0\n"
    )
    assert check(case) == [
        "out.ins:2: error: cannot understand the instruction '!head_2'",
        "out.ins:5: error: cannot understand the instruction 'x'",
        "out.ins:6: error: cannot understand the instruction 'l0'",
    ]


def test_narrow_spaces(case: Path) -> None:
    replace(case / "model.tpl", "~k1             ~", "~k1 ~")
    replace(case / "model.tpl", "~h0             ~", "~h0~")
    replace(case / "case.pst", "h0 none relative -2.5 -10.0 10.0", "h0 none relative -2.5 -9.9e5 1")
    assert check(case) == [
        "model.tpl:2: warning: the space of parameter 'k1' has 5 characters: only 3 digits of its "
        "value fit",
        "model.tpl:5: error: the space of parameter 'h0' has 4 characters: its lower bound "
        "-1.9799e+06 does not fit",
    ]


def test_several_spaces_of_one_parameter_count_the_narrowest(case: Path) -> None:
    with (case / "model.tpl").open("a") as file:
        file.write("and again ~k1 ~\n")
    assert check(case) == [
        "model.tpl:7: warning: the space of parameter 'k1' has 5 characters: only 3 digits of its "
        "value fit"
    ]


def test_count_digits() -> None:
    assert count_digits(0, False, 23) == 17
    assert count_digits(0, False, 10) == 9
    assert count_digits(0, True, 10) == 8
    assert count_digits(-100, False, 10) < count_digits(0, False, 10)
    assert count_digits(9, False, 3) == 0
    assert count_digits(0, False, 20, "single") == 8


# The model command


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("no_such_program_anywhere -x",
         "the model command 'no_such_program_anywhere' is neither in the case folder nor on the "
         "PATH"),
        ("./run.sh", "the model command './run.sh' does not exist"),
        ("./MODEL.PY", "the model command './MODEL.PY' is called 'model.py' on disk"),
        ("./model.py", "the model command './model.py' is not executable"),
        ("model.exe in", "the model command 'model.exe' is a Windows program, and the model runs "
         "on Linux here"),
        (".\\model.bat",
         "the model command '.\\model.bat' has a backslash, which Linux takes for a letter"),
        ("python3 'model.py", "a quote in the model command 'python3 'model.py' is not closed"),
        ("python3 -u -B run.py", "the script of the model command 'run.py' does not exist"),
        ("/opt/no/such/program",
         "the model command '/opt/no/such/program' does not exist, or is not executable"),
        ("../model", "the model command '../model' does not exist, or is not executable"),
    ],
)  # fmt: skip
def test_model_command(case: Path, command: str, expected: str) -> None:
    replace(case / "case.pst", "python3 model.py", command)
    assert check(case) == [f"case.pst:35: error: {expected}"]


@pytest.mark.parametrize(
    "command",
    ["python3 -c 'print(1)'", "python3 -m this", "A=1 ./run", "cd sub && ./run", "sh -c ./x",
     "(echo hi)", "/bin/sh -u model.py", "true; ./x", "env python3 model.py"],
)  # fmt: skip
def test_model_commands_that_are_fine(case: Path, command: str) -> None:
    replace(case / "case.pst", "python3 model.py", command)
    assert check(case) == []


def script(case: Path, content: bytes, mode: int = 0o755) -> None:
    (case / "run.sh").write_bytes(content)
    (case / "run.sh").chmod(mode)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"#!/bin/sh\r\necho\r\n",
         "run.sh:1: error: the script has Windows line ends, which a shell on Linux cannot read"),
        (b"#!/no/such/shell\n",
         "run.sh:1: error: the interpreter '/no/such/shell' of this script is not there"),
        (b"#!/usr/bin/env -S no_such_shell -x\n",
         "run.sh:1: error: the interpreter 'no_such_shell' of this script is not there"),
        (b"#!\n", "run.sh:1: error: '#!' names no interpreter"),
        (b"MZ\x90\0", "run.sh: error: the program was built for Windows, and the model runs on "
         "Linux here"),
    ],
)  # fmt: skip
def test_scripts(case: Path, content: bytes, expected: str) -> None:
    script(case, content)
    replace(case / "case.pst", "python3 model.py", "./run.sh")
    assert check(case) == [expected]


def test_script_for_a_shell_with_windows_line_ends(case: Path) -> None:
    script(case, b"echo\necho 2\r\n")
    replace(case / "case.pst", "python3 model.py", "bash run.sh")
    assert check(case) == [
        "run.sh:2: error: the script has Windows line ends, which a shell on Linux cannot read"
    ]


def test_good_script(case: Path) -> None:
    script(case, b"#!/bin/sh\necho\n")
    for command in ("./run.sh -a", "run.sh", "sh run.sh"):
        text = (DATA / "version1" / "case.pst").read_text()
        (case / "case.pst").write_text(text.replace("python3 model.py", command))
        assert check(case) == []


def test_commands_elsewhere(case: Path) -> None:
    """A program of the container's image need not be on this machine."""
    replace(case / "case.pst", "python3 model.py", "mf6_of_the_image")
    _, problems = check_case(case, local=False)
    assert problems == []


def test_commands_on_windows(case: Path) -> None:
    replace(case / "case.pst", "python3 model.py", ".\\run in.dat")
    (case / "run.bat").write_text("")
    problems = Problems()
    check_commands(read_control(case / "case.pst"), Folder(case), problems, windows=True)
    assert problems == []


def test_commands_by_parameter(case: Path) -> None:
    replace(case / "case.pst", "double point 1", "double point 2")
    replace(case / "case.pst", "python3 model.py", "python3 model.py\npython3 model.py")
    replace(case / "case.pst", "0.4 hydraulic 1.0 0.0 1", "0.4 hydraulic 1.0 0.0 2")
    assert check(case) == [
        "case.pst:35: warning: DERCOM names different model commands, but every run executes all "
        "2, one after the other"
    ]


# Whatever the files are


def junk(path: Path) -> None:
    path.write_bytes(os.urandom(3000))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def long_line(path: Path) -> None:
    path.write_bytes(b"ptf ~\n" + b"~x~ t" + b"9" * 6000 + b" [x]1:" + b"9" * 6000)


def instructions_of_digits(path: Path) -> None:
    path.write_bytes(b"pif ~\nl" + b"9" * 6000 + b" !x!\n")


@pytest.mark.parametrize("name", ["case.pst", "model.tpl", "out.ins", "model.py"])
@pytest.mark.parametrize("spoil", [junk, empty, folder, long_line, instructions_of_digits])
def test_no_traceback(case: Path, name: str, spoil: Callable[[Path], None]) -> None:
    spoil(case / name)
    try:
        found = check(case)
    except CaseError as error:
        assert (name, spoil) == ("case.pst", folder)
        assert "no control file" in error.message
        return
    assert found or name == "model.py"


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "b", "x\\y" * 50, "..", ".", "..."])
@pytest.mark.parametrize("old", ["model.tpl model.in", "out.ins model.out", "python3 model.py"])
def test_odd_names(case: Path, name: str, old: str) -> None:
    for new in (f"{old.split()[0]} {name}", f"{name} {old.split()[1]}"):
        shutil.copy(DATA / "version1" / "case.pst", case / "case.pst")
        replace(case / "case.pst", old, new)
        # What a run makes may have any name, and `.` is a word of the shell.
        assert check(case) or new.endswith(name) or new == ". model.py"


def test_odd_names_of_tables(tmp_path: Path) -> None:
    shutil.copytree(DATA / "version2", tmp_path, dirs_exist_ok=True)
    (tmp_path / "table").mkdir()
    for name, what in (("x" * 300, "does not exist"), ("table", "is a folder, not a file")):
        shutil.copy(DATA / "version2" / "case.pst", tmp_path / "case.pst")
        replace(tmp_path / "case.pst", "parameters.csv", name)
        assert f"case.pst:12: error: the external table '{name}' {what}" in check(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_link_to_itself(case: Path) -> None:
    (case / "loop").symlink_to("loop")
    (case / "model.tpl").unlink()
    (case / "model.tpl").symlink_to("model.tpl")
    assert check(case) == [
        "case.pst:37: error: the template 'model.tpl' leads to nothing (a broken link)"
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("case.pst", "case.pst: error: the file cannot be read: permission denied"),
        ("model.tpl", "model.tpl: error: cannot be read: Permission denied"),
        ("out.ins", "out.ins: error: cannot be read: Permission denied"),
    ],
)
def test_permission_denied(
    case: Path, name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by chmod: tests may be run by root, who reads everything.
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    _, problems = check_case(case)
    assert [tell(problem, case) for problem in problems] == [expected]


def test_names() -> None:
    assert to_posix(".\\a\\.\\b//c.dat") == "a/b/c.dat"
    assert [is_outside(n) for n in ("a/../b", "a/../../b", "..", "/a", "c:\\a", "\\\\host\\a")] == [
        False, True, True, True, True, True,
    ]  # fmt: skip
