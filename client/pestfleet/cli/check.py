"""`pestfleet check`: every problem of a case, and one run with the initial values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.options import json_option
from pestfleet_worker.errors import CaseError, ConfigurationError, RunsFailedError

if TYPE_CHECKING:
    from pestfleet.case import Case
    from pestfleet.config import Settings
    from pestfleet_worker.messages import Failure


@click.command("check", short_help="Tell every problem of a case, before anything runs.")
@click.argument("case", type=click.Path(path_type=Path))
@click.option("--engine", metavar="NAME", help="Check also what this engine needs of the case.")
@click.option(
    "--slots", type=int, metavar="N", help="Slots of the whole fleet, for the disk they need."
)
@click.option("--run", "make_run", is_flag=True, help="Make one run with the initial values.")
@click.option("--time-limit", type=float, metavar="SECONDS", help="Time limit of that run.")
@click.option(
    "--scratch", type=click.Path(file_okay=False), help="Folder for the slot of that run."
)
@click.option("--rows", default=20, show_default=True, help="Observations to show of that run.")
@json_option
def command(
    case: Path,
    *,
    engine: str | None,
    slots: int | None,
    make_run: bool,
    rows: int,
    as_json: bool,
    **given: Any,
) -> None:
    """Tell every problem of CASE, a case folder or control file, with file, line and remedy.

    What only some engines refuse, such as a case without weights, is a warning; with --engine
    it is an error where that engine refuses it.

    Exit code 3 when there are errors, 5 when the run of --run fails.
    """
    from pestfleet.case import check_case
    from pestfleet.cli.problems import count_problems, print_problem, problem_to_dict
    from pestfleet.config import read_settings
    from pestfleet.progress import dump_json

    if slots is not None and slots < 1:
        raise ConfigurationError(f"--slots is {slots}", remedy="Expected: 1 or more.")
    settings = read_settings(case, given=given)
    fleet = slots if slots is not None else settings.workers * settings.slots
    checked, problems = check_case(
        case, slots=fleet, engine=engine or "", options=settings.engine_options
    )
    errors = [problem for problem in problems if problem.severity == "error"]
    report: dict[str, Any] = {
        "case": str(checked.control.path) if checked is not None else str(case),
        "errors": len(errors),
        "warnings": len(problems) - len(errors),
        "problems": [problem_to_dict(problem) for problem in problems],
    }
    if not as_json:
        for problem in problems:
            print_problem(problem, err=False)
        if checked is not None:
            click.echo(_describe_case(checked))
            if slots is not None and not errors:
                click.echo(_describe_disk(checked, slots))
        click.echo(count_problems(problems))
    failure: Failure | None = None
    try:
        if checked is not None and not errors and make_run:
            report["run"], failure = run_once(checked, settings)
            if not as_json:
                _print_run(report["run"], failure, rows=rows)
    finally:
        if as_json:
            click.echo(dump_json(report))
    context = click.get_current_context()
    if errors:
        context.exit(CaseError.exit_code)
    if failure is not None:
        context.exit(RunsFailedError.exit_code)


def run_once(case: Case, settings: Settings) -> tuple[dict[str, Any], Failure | None]:
    """One run with the initial values in a temporary slot.

    Returns what happened (seconds, phi, observations with name, measured, modelled, residual,
    weight; or failure) and the failure, if it failed. Raises `CaseError`, `ConfigurationError`.
    """
    import numpy as np

    from pestfleet.initial_run import make_initial_run

    outcome = make_initial_run(case, settings)
    if outcome.failure is not None:
        failure = outcome.failure
        fields = ("reason", "message", "file", "line", "exit_code", "signal", "log")
        report = {name: getattr(failure, name) for name in fields}
        return {"seconds": outcome.seconds, "failure": report}, failure
    modelled = np.frombuffer(outcome.observations, dtype="<f8").tolist()
    observations = [
        {
            "name": o.name,
            "measured": o.value,
            "modelled": value,
            "residual": o.value - value,
            "weight": o.weight,
        }
        for o, value in zip(case.control.observations, modelled, strict=True)
    ]
    phi = sum((row["weight"] * row["residual"]) ** 2 for row in observations)
    return {"seconds": outcome.seconds, "phi": phi, "observations": observations}, None


def _describe_case(case: Case) -> str:
    control = case.control
    adjustable = sum(p.transform in ("none", "log") for p in control.parameters)
    return (
        f"{control.path}: {len(control.parameters):,} parameters ({adjustable:,} adjustable), "
        f"{len(control.observations):,} observations, {len(control.templates):,} template and "
        f"{len(control.instructions):,} instruction files"
    )


def _describe_disk(case: Case, slots: int) -> str:
    from pestfleet.checks.files import format_size, measure_slots

    size = format_size(measure_slots(case.files(), slots))
    return f"{slots:,} slot{'s'[: slots > 1]}: up to {size} of disk"


def _print_run(run: dict[str, Any], failure: Failure | None, *, rows: int) -> None:
    from pestfleet.cli.tables import format_number, make_console, make_table
    from pestfleet.narration import format_duration, format_phi

    seconds = format_duration(run["seconds"])
    if failure is not None:
        click.echo(f"the run with the initial values failed after {seconds} ({failure.reason}):")
        click.echo(f"  {failure}")
        if failure.log:
            click.echo("the end of the model's log:")
            for line in failure.log.rstrip().splitlines():
                click.echo(f"  {line}")
        return
    console = make_console()
    table = make_table("Run with the initial values")
    table.add_column("observation")
    for column in ("measured", "modelled", "residual", "weight"):
        table.add_column(column, justify="right")
    for row in run["observations"][:rows]:
        numbers = (format_number(row[name]) for name in ("measured", "modelled", "residual"))
        table.add_row(row["name"], *numbers, format_number(row["weight"]))
    console.print(table)
    more = len(run["observations"]) - rows
    if more > 0:
        click.echo(f"and {more:,} more observations; --rows N or --json shows them")
    click.echo(f"phi {format_phi(run['phi'])}, run time {seconds}: the case works")
