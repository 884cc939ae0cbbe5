"""`pestfleet check` and `pestfleet config`, and what `pestfleet run` does before it launches."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pestfleet.cli.main import cli
from session_files import CASE, EXAMPLE

PASSWORD = "s3cret"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def case(here: Path) -> Path:
    """The example, which runs with the Python that runs the tests."""
    folder = Path(shutil.copytree(EXAMPLE, here / "case"))
    control = folder / f"{CASE}.pst"
    text = control.read_text()
    assert "python3 model.py" in text
    control.write_text(text.replace("python3 model.py", f"{sys.executable} model.py"))
    return folder


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def misname_parameter(case: Path) -> None:
    path = case / "model_input.tpl"
    text = path.read_text()
    assert "storage" in text
    path.write_text(text.replace("storage", "storag3"))


def break_model(case: Path) -> None:
    (case / "model.py").write_text("print('no licence')\nraise SystemExit(7)\n")


def test_a_good_case(case: Path) -> None:
    result = call("check", case)
    assert result.exit_code == 0
    assert "2 parameters (2 adjustable), 69 observations" in result.stdout
    assert result.stdout.endswith("0 errors, 0 warnings\n")


def test_problems_come_with_file_line_and_remedy(case: Path) -> None:
    misname_parameter(case)
    result = call("check", case)
    assert result.exit_code == 3
    assert f"{case / 'model_input.tpl'}:" in result.stdout
    assert "error: the parameter 'storag3' is not in the control file\n    Add it" in result.stdout
    assert result.stdout.endswith("2 errors, 0 warnings\n")
    assert "Run with the initial values" not in call("check", case, "--run").stdout


def test_problems_as_json(case: Path) -> None:
    misname_parameter(case)
    result = call("check", case, "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert (report["errors"], report["warnings"]) == (2, 0)
    assert {problem["severity"] for problem in report["problems"]} == {"error"}
    assert all(problem["file"] and problem["remedy"] for problem in report["problems"])
    assert any(problem["line"] for problem in report["problems"])


def test_no_case(here: Path) -> None:
    result = call("check", here / "nowhere")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: {here / 'nowhere'}: does not exist\n  ")


def test_one_run_is_compared_with_the_measurements(here: Path, case: Path) -> None:
    before = sorted(case.rglob("*"))
    result = call("check", case, "--run", "--rows", "3", "--scratch", here / "scratch")
    assert result.exit_code == 0
    assert "s30_03" in result.stdout
    assert "s30_04" not in result.stdout
    assert "and 66 more observations" in result.stdout
    assert sorted(case.rglob("*")) == before  # the user's folder is not touched
    assert list((here / "scratch").iterdir()) == []


def test_one_run_as_json(case: Path) -> None:
    report = json.loads(call("check", case, "--run", "--json").stdout)
    run = report["run"]
    assert len(run["observations"]) == 69
    phi = sum((row["residual"] * row["weight"]) ** 2 for row in run["observations"])
    assert run["phi"] == pytest.approx(phi)
    first = run["observations"][0]
    assert first["residual"] == first["measured"] - first["modelled"]
    assert run["seconds"] > 0


def test_a_run_that_fails_shows_the_models_log(case: Path) -> None:
    break_model(case)
    result = call("check", case, "--run")
    assert result.exit_code == 5
    assert "(model-failed)" in result.stdout
    assert "ended with exit code 7" in result.stdout
    assert "the end of the model's log:\n  no licence\n" in result.stdout
    result = call("check", case, "--run", "--json")
    assert result.exit_code == 5
    failure = json.loads(result.stdout)["run"]["failure"]
    assert (failure["reason"], failure["exit_code"]) == ("model-failed", 7)


def test_a_run_that_takes_too_long(case: Path) -> None:
    (case / "model.py").write_text("import time\ntime.sleep(60)\n")
    result = call("check", case, "--run", "--time-limit", "0.2")
    assert result.exit_code == 5
    assert "(time-limit)" in result.stdout


def test_a_dry_run_says_what_would_be_launched(
    here: Path, case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PESTFLEET_BROKER", f"amqp://me:{PASSWORD}@host/x")
    result = call("run", case, "--dry-run", "--workers", "3", "--slots", "2", "--session", "mine")
    assert result.exit_code == 0
    assert len([line for line in result.stdout.splitlines() if "pestfleet_worker" in line]) == 3
    assert "--name local-3 --slots 2" in result.stdout
    assert "amqp://me:***@host/x" in result.stdout
    assert PASSWORD not in result.output
    assert sorted(path.name for path in here.iterdir()) == ["case"]


def test_a_dry_run_of_many_workers_is_short(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    result = call("run", case, "--dry-run", "--workers", "2000")
    assert result.exit_code == 0
    assert result.stdout.count("pestfleet_worker") == 5
    assert "\n  and 1,995 more\n" in result.stdout
    assert "warning: 2,000 slots on this machine, which has 4 cores" in result.stderr
    assert "core" not in call("run", case, "--dry-run", "--workers", "4").stderr


def test_check_with_slots_says_what_they_take(case: Path) -> None:
    result = call("check", case, "--slots", "1000000")
    assert "with 1,000,000 slots it takes up to" in result.stdout
    assert "1,000,000 slots: up to" in result.stdout
    assert call("check", case, "--slots", "0").exit_code == 4


def test_check_for_an_engine(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("check", case, "--engine", "glm").exit_code == 0
    result = call("check", case, "--engine", "sweep")
    assert result.exit_code == 3
    assert f"{case / 'sweep_in.csv'}: error: cannot be read" in result.stdout
    assert call("run", case, "--engine", "sweep", "--dry-run").exit_code == 3
    monkeypatch.setenv("PESTFLEET_ENGINE_OPTIONS__NOPT_MAX", "3")
    assert call("check", case).exit_code == 0
    result = call("check", case, "--engine", "glm")
    assert result.exit_code == 4
    assert "has no option 'nopt_max'\n  Did you mean noptmax?" in result.stderr


def test_a_dry_run_as_json(case: Path) -> None:
    result = call("run", case, "--dry-run", "--json", "--workers", "2", "--option", "NOPTMAX=3")
    plan = json.loads(result.stdout)
    assert plan["options"] == {"noptmax": "3"}
    assert len(plan["steps"]) == 2
    assert (plan["engine"], plan["slots"], plan["broker"]) == ("glm", 2, "its own")


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_case_with_errors_is_not_launched(here: Path, case: Path, arguments: list[str]) -> None:
    misname_parameter(case)
    result = call("run", case, *arguments)
    assert result.exit_code == 3
    assert "'storag3' is not in the control file" in result.stderr
    assert "error: the case has 2 errors, 0 warnings; nothing was launched" in result.stderr
    assert not (here / "pestfleet-sessions").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--engine", "gml"], 4, "error: there is no engine 'gml'\n  Engines: "),
        (["--on", "moon"], 4, "error: there is no target 'moon'\n  Targets: "),
        (["--workers", "0"], 4, "error: --workers is 0\n  Expected: a whole number"),
        (["--workers", "four"], 2, "'four' is not a number of workers, such as 8, or"),
        (["--option", "noptmax"], 2, "'noptmax' is not name=value"),
        (["--broker", f"http://me:{PASSWORD}@x"], 4, "error: --broker is wrong\n"),
    ],
)
def test_wrong_choices(case: Path, arguments: list[str], code: int, message: str) -> None:
    for more in ([], ["--dry-run"]):
        result = call("run", case, *arguments, *more)
        assert result.exit_code == code
        assert message in result.stderr
        assert PASSWORD not in result.output


def test_config_shows_where_values_come_from(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "pestfleet.toml").write_text("threads = 2\n[engine_options]\nnoptmax = 5\n")
    monkeypatch.setenv("PESTFLEET_BROKER", f"amqp://me:{PASSWORD}@host")
    rows = json.loads(call("config", "--json", "--workers", "9").stdout)
    assert rows["workers"] == {"value": 9, "from": "command line"}
    assert rows["threads"] == {"value": 2, "from": str(here / "pestfleet.toml")}
    assert rows["engine_options.noptmax"]["value"] == "5"
    assert rows["broker"] == {
        "value": "amqp://me:***@host",
        "from": "environment (PESTFLEET_BROKER)",
    }
    assert rows["slots"] == {"value": 1, "from": "default"}
    text = call("config").stdout
    assert re.search(r"time_limit +\(no limit\) +default", text)
    assert re.search(r"scratch +\(in the session's folder\) +default", text)
    assert PASSWORD not in text
    assert "environment (PESTFLEET_BROKER)" in text
