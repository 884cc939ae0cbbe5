"""`pestfleet cost`: what a session will cost, costs, and has cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.commands import say
from pestfleet.cli.elsewhere import fetch_option, find_session, keep_where, open_fetched
from pestfleet.cli.options import container_options, fleet_options, json_option, session_argument
from pestfleet_worker.errors import ConfigurationError, PestfleetError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pestfleet.case import Case
    from pestfleet.config import Settings
    from pestfleet.costs.charges import Charge
    from pestfleet.costs.plan import CostPlan
    from pestfleet.folder import SessionSpec
    from pestfleet.placement import Placement

_WHERE = ("context", "namespace", "region", "profile")


@click.command("cost", short_help="Say what a session will cost, costs, or has cost.")
@session_argument
@click.option(
    "--plan",
    "case",
    type=click.Path(path_type=Path),
    metavar="CASE",
    help="Say what a session of CASE would cost; takes the options of pestfleet run.",
)
@click.option(
    "--run-seconds",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="S",
    help="With --plan: what one run takes, as pestfleet check --run says it.",
)
@click.option(
    "--run",
    "make_run",
    is_flag=True,
    help="With --plan: make one run here, to know how long it is.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --plan: runs that the engine needs.  [default: what its settings say]",
)
@fleet_options
@container_options
@json_option
@fetch_option
def command(
    session: str | None,
    *,
    case: Path | None,
    run_seconds: float | None,
    make_run: bool,
    runs: int | None,
    as_json: bool,
    fetch: bool,
    **given: Any,
) -> None:
    """Say what SESSION (the newest without one) has cost so far; with --plan, what one would cost.

    So far: paid worker time, model time and their ratio, by the session's journal, and US dollars
    by the prices that were known at its launch.
    """
    if case is not None:
        if session is not None or fetch:
            raise ConfigurationError("--plan is about a case, not about a session")
        plan = plan_case(case, given, run_seconds=run_seconds, make_run=make_run, runs=runs)
        if as_json:
            from pestfleet.progress import dump_json

            click.echo(dump_json(plan.to_json()))
        else:
            from pestfleet.cli.cost_tables import print_plan

            print_plan(plan)
        return
    if run_seconds is not None or make_run or runs is not None:
        raise ConfigurationError("--run-seconds, --run and --runs belong to --plan CASE")
    keep_where({name: given[name] for name in _WHERE})
    _report(session, given["sessions"], given["on"], fetch=fetch, as_json=as_json)


# -- before -----------------------------------------------------------------------------------


def plan_case(
    path: Path,
    given: dict[str, Any],
    *,
    run_seconds: float | None,
    make_run: bool,
    runs: int | None,
) -> CostPlan:
    """What a session of a case would cost. `given`: options of `pestfleet run`."""
    from pestfleet.case import check_case
    from pestfleet.cli.problems import print_problem, refuse_case
    from pestfleet.cli.run import make_placement
    from pestfleet.config import read_settings
    from pestfleet.engines import check_name

    settings = read_settings(path, given=given)
    check_name(settings.engine)
    checked, problems = check_case(
        path, local=False, engine=settings.engine, options=settings.engine_options
    )
    for problem in problems:
        print_problem(problem)
    if checked is None or any(problem.severity == "error" for problem in problems):
        raise refuse_case(problems)
    if make_run and run_seconds is None:
        run_seconds = _measure_run(checked, settings)
    place = make_placement(settings, "", (), ())
    return _plan_launch(checked, settings, place, run_seconds=run_seconds, runs=runs)


def _plan_launch(
    case: Case,
    settings: Settings,
    place: Placement,
    *,
    run_seconds: float | None = None,
    runs: int | None = None,
    placeholders: bool = True,
) -> CostPlan:
    from pestfleet.cli.plan import make_spec

    spec = make_spec(case, settings, case.name, place)
    charges, region, cloud = _list_charges(spec, settings, placeholders=placeholders)
    return plan_costs(
        case, spec, charges, region=region, cloud=cloud, run_seconds=run_seconds, runs=runs
    )


def plan_costs(
    case: Case,
    spec: SessionSpec,
    charges: Iterable[Charge],
    *,
    region: str,
    cloud: Any = None,
    run_seconds: float | None = None,
    runs: int | None = None,
) -> CostPlan:
    """What a session would cost. `charges`: of its plan (`AmazonPlan.charges`).

    `cloud`: is asked for prices (`pestfleet.targets.ecs.access.Cloud`). `run_seconds`, `runs`: of
    one run, and how many; None where nobody says it.
    """
    from pestfleet.costs.plan import make_plan
    from pestfleet.costs.prices import find_prices
    from pestfleet.costs.run_counts import count_runs, fix_count

    charges = tuple(charges)
    slots = max(spec.workers, spec.most) * spec.slots
    count = (
        fix_count(runs)
        if runs is not None
        else count_runs(case.control, spec.engine, spec.options, slots=slots)
    )
    items = [*(charge.item for charge in charges), "data-out-gb"]
    return make_plan(
        charges,
        find_prices(region, items, cloud),
        workers=spec.workers,
        most=spec.most,
        slots=spec.slots,
        runs=count,
        run_seconds=run_seconds,
        max_hours=spec.max_hours,
        budget=spec.budget,
    )


def _list_charges(
    spec: SessionSpec, settings: Settings, *, placeholders: bool
) -> tuple[tuple[Charge, ...], str, Any]:
    """What costs, where, and whom to ask for prices: None where no account answers.

    Raises `ConfigurationError` for a target whose prices nobody knows.
    """
    from pestfleet import targets
    from pestfleet.targets.base import Where

    if spec.target != "ecs":
        raise ConfigurationError(
            f"pestfleet knows of nothing that costs on {spec.target}",
            remedy="Fleets in Amazon's cloud cost: --on ecs.",
        )
    launch = targets.load_launch(spec.target)
    amazon = spec.place.amazon
    # Prices are those of a region.
    cloud = launch.connect(Where(region=amazon.region, profile=amazon.profile))
    plan, note = launch.plan_ahead(
        spec,
        settings.sessions / spec.session,
        image=settings.image,
        broker_url=settings.broker_url,
        placeholders=placeholders,
    )
    if note:
        if placeholders:
            say(note)
        return plan.charges, plan.region, None
    return plan.charges, plan.region, cloud


def _measure_run(case: Case, settings: Settings) -> float:
    from pestfleet.initial_run import make_initial_run
    from pestfleet_worker.errors import RunsFailedError

    outcome = make_initial_run(case, settings)
    if outcome.failure is not None:
        raise RunsFailedError(
            f"the run with the initial values failed: {outcome.failure}",
            remedy="pestfleet check --run says more; --run-seconds takes what you know.",
        )
    return outcome.seconds


def confirm_launch(case: Path, settings: Settings, place: Placement, *, yes: bool) -> None:
    """For `pestfleet run`, before it launches what costs: see `confirm_cost`.

    `yes`: of its option --yes. Asks the account and its prices, with reading requests only.
    """
    if settings.on != "ecs":
        return
    from pestfleet.case import Case

    plan = _plan_launch(Case.read(case), settings, place, placeholders=False)
    # What the master counts from the first second on, however short the session is.
    once = sum(line.charge.amount * line.price for line in plan.lines
               if line.price and line.charge.item == "log-gb")  # fmt: skip
    if 0 < settings.budget <= once:
        raise ConfigurationError(
            f"--budget is {settings.budget:g} USD; logs count {once:.2f} from the start",
            remedy="Give it more, or none: pestfleet cost --plan says what costs.",
        )
    confirm_cost(
        plan,
        ask_above=settings.amazon.ask_above,
        yes=yes,
        interactive=sys.stdin.isatty() and sys.stderr.isatty(),
    )


def confirm_cost(plan: CostPlan, *, ask_above: float, yes: bool, interactive: bool) -> None:
    """Ask before a session that may cost more than `ask_above` US dollars.

    `yes`: it is allowed already. Where nobody can be asked (not `interactive`), raises
    `ConfigurationError`; where the answer is no, `click.Abort`.
    """
    from pestfleet.cli.cost_tables import format_range

    total, unknown = plan.total, ", ".join(plan.unknown)
    if total is not None and total.most <= ask_above and not unknown:
        return
    if unknown:
        text = f"Nobody knows what this session may cost: no price is known of {unknown}"
    elif total is None:
        text = "Nobody knows what this session may cost: it has neither --max-hours nor a run time"
    else:
        text = f"This session may cost up to {total.most:,.2f} USD"
    text += f" ({format_range(plan.hourly)} USD an hour)"
    if yes:
        say(text)
    elif interactive:
        click.confirm(f"{text}. Launch it?", abort=True, err=True)
    elif unknown:
        raise ConfigurationError(
            f"{text[0].lower()}{text[1:]}",
            remedy="Say --yes; pestfleet cost --plan says what costs.",
        )
    else:
        above = f", which is above {ask_above:g} USD (amazon.ask_above)" if total else ""
        raise ConfigurationError(
            f"{text[0].lower()}{text[1:]}{above}",
            remedy="Say --yes, or give it a lower --budget or --max-hours; pestfleet cost --plan "
            "says what costs.",
        )


# -- during and after -------------------------------------------------------------------------


def _report(
    name: str | None, sessions: Path | None, on: str | None, *, fetch: bool, as_json: bool
) -> None:
    import time

    from pestfleet.cli.cost_tables import print_report
    from pestfleet.costs.report import make_report
    from pestfleet.progress import dump_json

    if fetch:
        local, remote = open_fetched(name, sessions, on), None
    else:
        local, remote = find_session(name, sessions, on, needed=False)  # type: ignore[assignment]
    journaled = local is not None and local.folder.journal.exists()
    state: dict[str, Any] = {}
    if remote is not None:
        # Its master counts on there; a journal here is of the last --fetch, or an earlier launch.
        here = local is not None and local.spec.place.master == "here"
        if not journaled or (remote.info.state == "running" and not here):
            state = remote.read_state()
    if local is not None and journaled and not state.get("cost"):
        running = local.folder.running
        report = make_report(
            local.events(), local.spec.prices, now=time.time() if running else None
        )
        if as_json:
            click.echo(dump_json({"session": local.name, "running": running, **report.to_json()}))
        else:
            print_report(local.name, report, running=running)
        return
    cost = state.get("cost")
    title = remote.info.name if remote is not None else (local.name if local is not None else "")
    if not cost:
        raise PestfleetError(
            f"nothing is known of what session {title} has cost",
            remedy=f"pestfleet cost {title} --fetch reads it from the session's files there.",
        )
    if as_json:
        click.echo(dump_json({"session": title, **cost}))
        return
    click.echo(f"session {title} has cost {cost['usd']:,.2f} USD so far, "
               f"{cost['usd_an_hour']:,.2f} USD an hour now")  # fmt: skip
    click.echo(f"pestfleet cost {title} --fetch says by what")
