"""`pestfleet cost` as a user types it. No account answers here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pestfleet import targets
from pestfleet.case import Case
from pestfleet.cli.cost import confirm_cost, confirm_launch, plan_costs
from pestfleet.cli.cost_tables import format_range
from pestfleet.cli.main import cli
from pestfleet.cli.run import make_placement
from pestfleet.config import read_settings
from pestfleet.costs.charges import Charge
from pestfleet.costs.plan import CostPlan, Range
from pestfleet.folder import SessionFolder
from pestfleet.placement import Placement
from pestfleet.targets.base import SessionInfo
from pestfleet.targets.ecs import launch
from pestfleet_worker.errors import ConfigurationError, TargetError
from session_files import EXAMPLE, make_session, make_state, write_events

PRICES = {
    "worker": 0.36,
    "rest": 0.1,
    "worker/fargate-vcpu-hour": 0.36,
    "rest/fargate-gb-hour": 0.1,
}
PLAN = ("cost", "--plan", EXAMPLE, "--on", "ecs", "--region", "eu-central-1")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands look for sessions; the account does not answer."""

    def refuse(*_: Any, **__: Any) -> None:
        raise TargetError("Amazon does not answer sts:GetCallerIdentity")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "gather_facts", refuse)
    return tmp_path / "pestfleet-sessions"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def read_plan(*arguments: str) -> dict[str, Any]:
    result = call(*PLAN, "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_plan_lists_what_costs_and_what_does_not() -> None:
    result = call(*PLAN, "--workers", "50", "--run-seconds", "600", "--option", "noptmax=-1")
    assert result.exit_code == 0, result.output
    for text in (
        "worker × 50", "fargate-spot-vcpu-hour", "secret-month", "dns-zone-month", "log-gb",
        "1 + a Jacobian of 2", "an hour ", "session ", "after it ", "by use", "free:",
        "the list prices of 20",
    ):  # fmt: skip
        assert text in result.stdout
    assert "placeholders: Amazon does not answer" in result.stderr


def test_a_plan_by_hand() -> None:
    found = read_plan(
        "--workers", "4", "--run-seconds", "600", "--runs", "40", "--capacity", "ondemand"
    )
    hours = (60 + 10 * 600) / 3600
    assert found["hours"] == pytest.approx([hours] * 2)
    worker = 4 * hours * (0.04656 + 2 * 0.00511)  # 1 vCPU and 2 GB each
    rest = hours * (1.5 * 0.04656 + 6 * 0.00511)  # broker and master
    months = hours / 730 * (0.10 + 0.0245 + 3 * 0.40)  # image, results, secrets
    assert found["usd"] == pytest.approx([worker + rest + months + 0.063] * 2)
    assert found["usd_a_month_after"] == pytest.approx(0.0245)


def test_elastic_fleets_and_slots() -> None:
    found = read_plan("--workers", "2..20", "--slots", "4", "--run-seconds", "60", "--runs", "800")
    assert (found["workers"], found["slots"]) == ([2, 20], 4)
    assert found["hours"] == pytest.approx([(60 + 10 * 60) / 3600] * 2)
    assert found["worker_hours"] == pytest.approx([1.1 * 800 * 60 / 4 / 3600] * 2)


def test_the_engine_s_own_number_of_runs_counts() -> None:
    found = read_plan("--engine", "ies", "--option", "noptmax=1", "--option", "ies_num_reals=100")
    assert found["runs"] == [190, 280]
    assert found["run_seconds"] is None
    assert found["hours"] == [0.0, 72.0]  # ecs: a session ends after three days
    assert found["usd"][1] > 0


def test_one_run_is_made_here_to_know_how_long_it_is() -> None:
    found = read_plan("--run", "--workers", "1", "--runs", "10")
    assert 0.0 < found["run_seconds"] < 60.0


def test_a_run_that_fails_is_told() -> None:
    result = call(*PLAN, "--run", "--time-limit", "0.000001")
    assert result.exit_code == 5
    assert "the run with the initial values failed" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plan", EXAMPLE), "knows of nothing that costs on local"),
        (("--plan", EXAMPLE, "--on", "compose"), "knows of nothing that costs on compose"),
        (("--plan", EXAMPLE, "s1"), "about a case, not about a session"),
        (("--runs", "5"), "belong to --plan"),
        (
            ("--plan", EXAMPLE, "--on", "ecs", "--instances", "c7i.large", "--region", "eu-west-1"),
            "does not answer",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str | Path, ...], message: str) -> None:
    result = call("cost", *arguments)
    assert result.exit_code not in (0, 1)
    assert message in result.stderr


def test_a_case_with_errors_is_refused(tmp_path: Path) -> None:
    assert call("cost", "--plan", tmp_path / "none", "--on", "ecs").exit_code == 3


def test_a_session_that_runs_there_says_what_its_master_counts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal here is that of the last fetch."""
    make_finished(root, prices=PRICES, target="ecs", place=Placement(master="there"))

    class Remote:
        info = SessionInfo("s1", "ecs", "running", 2, 0.0)

        def read_state(self) -> dict[str, Any]:
            return make_state(cost={"usd": 12.345, "usd_an_hour": 3.6})

    monkeypatch.setattr(targets, "open_remote_session", lambda *_: Remote())
    assert "12.35 USD so far, 3.60 USD an hour now" in call("cost", "s1").stdout
    assert json.loads(call("cost", "s1", "--json").stdout)["usd"] == 12.345


def make_finished(root: Path, **changes: Any) -> SessionFolder:
    folder = make_session(root, **changes)
    write_events(
        folder,
        {"event": "start"},
        {"event": "worker-joined", "worker": "w1", "slots": 1},
        {"event": "run", "id": 1, "seconds": 30.0},
        {"event": "end", "state": "finished"},
    )
    return folder


def test_what_a_session_has_cost(root: Path) -> None:
    make_finished(root, prices=PRICES)
    result = call("cost", "s1")
    assert result.exit_code == 0, result.output
    for text in ("Session s1, US dollars", "worker: fargate-vcpu-hour", "paid worker time  1 min",
                 "model time        30 s of 1 run", "ratio 2.00"):  # fmt: skip
        assert text in result.stdout
    found = json.loads(call("cost", "s1", "--json").stdout)
    assert found["session"] == "s1" and found["running"] is False
    assert found["worker_seconds"] == pytest.approx(60.0, abs=1.0)
    assert found["usd"] == pytest.approx(60 * 0.0001, abs=1e-3)
    assert found["usd_by_item"].keys() >= {"worker/fargate-vcpu-hour"}


def test_a_session_without_prices_has_its_times(root: Path) -> None:
    make_finished(root)
    result = call("cost")
    assert "it costs nothing that pestfleet knows of" in result.stdout
    assert "model time        30 s" in result.stdout


def test_a_session_whose_files_are_elsewhere_says_what_its_state_does(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    class Remote:
        info = SessionInfo("far", "ecs", "running", 2, 0.0)

        def read_state(self) -> dict[str, Any]:
            return state

    monkeypatch.setattr(targets, "open_remote_session", lambda *_: Remote())
    state = make_state(cost={"usd": 12.345, "usd_an_hour": 3.6})
    result = call("cost", "far", "--on", "ecs", "--region", "eu-west-1")
    assert "session far has cost 12.35 USD so far, 3.60 USD an hour now" in result.stdout
    state = make_state()
    result = call("cost", "far", "--on", "ecs", "--region", "eu-west-1")
    assert result.exit_code == 1 and "nothing is known" in result.stderr
    assert "pestfleet cost far --fetch" in result.stderr


def test_status_says_what_a_session_has_cost(root: Path) -> None:
    folder = make_session(root)
    folder.write_state(make_state(state="finished", cost={"usd": 2.5, "usd_an_hour": 0.0}))
    assert "it has cost 2.50 USD" in call("status", "s1").stdout


# -- the question before a launch -------------------------------------------------------------


def make_cost_plan(**limits: float) -> CostPlan:
    """50 workers for a dollar each and hour."""
    folder = make_session(Path.cwd() / "for-plans", workers=50, target="ecs", **limits)
    charges = (Charge("fargate-vcpu-hour", 1 / 0.04656, "worker", "a dollar"),)
    case = Case.read(EXAMPLE)
    return plan_costs(case, folder.read_spec(), charges, region="eu-central-1")


def test_prices_are_those_of_the_region_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("cost", "--plan", str(EXAMPLE), "--on", "ecs", "--json")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    found = json.loads(call(*words).stdout)
    assert (found["region"], found["unknown"]) == ("eu-central-1", [])
    monkeypatch.delenv("AWS_REGION")
    result = call(*words)
    assert result.exit_code == 4
    assert "no region of Amazon is given" in result.stderr


def test_a_launch_below_the_amount_asks_nothing() -> None:
    plan = make_cost_plan(max_hours=1.0)
    assert plan.total == Range(0.0, pytest.approx(50.0))
    confirm_cost(plan, ask_above=50.01, yes=False, interactive=False)


def test_a_launch_above_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_cost_plan(max_hours=2.0)
    asked: list[str] = []

    def confirm(text: str, **_: Any) -> None:
        asked.append(text)
        raise click.Abort

    monkeypatch.setattr(click, "confirm", confirm)
    with pytest.raises(click.Abort):
        confirm_cost(plan, ask_above=50.0, yes=False, interactive=True)
    assert asked == ["This session may cost up to 100.00 USD (50.00 USD an hour). Launch it?"]
    confirm_cost(plan, ask_above=50.0, yes=True, interactive=True)
    assert len(asked) == 1


def test_where_nobody_can_be_asked_it_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"may cost up to 100\.00 USD .* above 50 USD"
    ) as e:
        confirm_cost(make_cost_plan(max_hours=2.0), ask_above=50.0, yes=False, interactive=False)
    assert "--yes" in e.value.remedy and "--budget" in e.value.remedy


def test_a_launch_asks_by_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def confirm(*, yes: bool, **given: Any) -> None:
        settings = read_settings(given={"on": "ecs", "region": "eu-central-1", **given})
        confirm_launch(EXAMPLE, settings, make_placement(settings, "", (), ()), yes=yes)

    def miss(*_: Any, **__: Any) -> None:
        raise ConfigurationError("no credentials of Amazon are to be had")

    with pytest.raises(TargetError, match="does not answer"):
        confirm(yes=True)  # who launches must know it
    monkeypatch.setattr(launch, "gather_facts", miss)
    with pytest.raises(ConfigurationError, match="above 25 USD"):
        confirm(yes=False, workers=50)
    confirm(yes=True, workers=50)
    confirm(yes=False, workers=50, budget=25.0)
    confirm(yes=False, workers=50, max_hours=1.0)  # about a dollar
    with pytest.raises(ConfigurationError, match=r"logs count 0\.06 from the start"):
        confirm(yes=True, budget=0.05)
    confirm_launch(EXAMPLE, read_settings(given={"workers": 50}), Placement(), yes=False)  # local
    with pytest.raises(ConfigurationError, match=r"no price is known of .*fargate-spot-vcpu-hour"):
        confirm(yes=False, workers=1, max_hours=0.1, region="mars-north-1")


def test_a_session_without_an_end_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="nobody knows what this session may cost"):
        confirm_cost(make_cost_plan(), ask_above=1e9, yes=False, interactive=False)


def test_a_budget_is_the_most_that_a_session_costs() -> None:
    plan = make_cost_plan(max_hours=2.0, budget=20.0)
    confirm_cost(plan, ask_above=20.0, yes=False, interactive=False)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (Range(0.0, 0.0), "0.00"), (Range(1.0, 1.001), "1.00"),
        (Range(0.00001, 2.5), "<0.001 to 2.50"),
        (Range(0.012, 1234.5), "0.012 to 1,234.50"), (None, ""),
    ],
)  # fmt: skip
def test_ranges_in_words(values: Range | None, text: str) -> None:
    assert format_range(values) == text
