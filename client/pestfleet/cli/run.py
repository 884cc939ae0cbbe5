"""`pestfleet run`: a session from its launch to its end."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.options import fleet_options

if TYPE_CHECKING:
    from pestfleet.config import Settings


@click.command("run", short_help="Run a case with an engine on a fleet of workers.")
@click.argument("case", type=click.Path(path_type=Path))
@fleet_options
@click.option("--session", "name", metavar="ID", default="", help="Id of the session.  "
              "[default: the case's name with date and time]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be launched, and launch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object an event on stdout.")
def command(case: Path, *, name: str, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Run CASE, a case folder or control file, with an engine on a fleet of workers.

    Ctrl-C stops the session clean: finished runs are kept, and pestfleet resume goes on with
    them. A second Ctrl-C ends it at once.
    """
    from pestfleet.config import read_settings

    settings = read_settings(case, given=given)
    if dry_run:
        _print_plan(case, settings, name, as_json=as_json)
        return
    from pestfleet.cli.hosting import host_session
    from pestfleet.cli.problems import print_problem, refuse_case
    from pestfleet.session import CaseProblems, create_session

    try:
        session = create_session(
            case,
            engine=settings.engine,
            on=settings.on,
            workers=settings.workers,
            slots=settings.slots,
            session=name,
            root=settings.sessions,
            options=settings.engine_options,
            run_seconds=settings.time_limit,
            threads=settings.threads,
            deliveries=settings.deliveries,
            own_broker=not settings.broker_url,
            scratch=settings.scratch,
            mode=settings.mode,
            arguments=shlex.split(settings.engine_args),
            cache=settings.cache,
            on_problem=print_problem,
        )
    except CaseProblems as error:
        raise refuse_case(error.problems) from None
    host_session(session, broker_url=settings.broker_url, as_json=as_json)


def _print_plan(case: Path, settings: Settings, name: str, *, as_json: bool) -> None:
    """Check the case and describe the fleet; writes no file."""
    from pestfleet.case import check_case
    from pestfleet.cli.problems import print_problem, refuse_case
    from pestfleet.config import redact
    from pestfleet.engines import load_engine
    from pestfleet.progress import dump_json
    from pestfleet.targets import make_target
    from pestfleet.targets.base import FleetPlan

    load_engine(settings.engine)
    checked, problems = check_case(case, slots=settings.workers * settings.slots)
    if checked is None or any(problem.severity == "error" for problem in problems):
        raise refuse_case(problems)
    session = name or f"{checked.name}-DATE-TIME"
    folder = settings.sessions / session
    plan = FleetPlan(
        session=session,
        folder=folder,
        source=folder / "case",
        broker_url=settings.broker_url,
        workers=settings.workers,
        slots=settings.slots,
        scratch=Path(settings.scratch or folder / "slots").resolve(),
    )
    steps = [redact(step) for step in make_target(settings.on, plan).describe()]
    control = checked.control
    facts: dict[str, Any] = {
        "case": str(control.path),
        "parameters": len(control.parameters),
        "observations": len(control.observations),
        "engine": settings.engine,
        "options": settings.engine_options,
        "target": settings.on,
        "workers": settings.workers,
        "slots": settings.workers * settings.slots,
        "time_limit": settings.time_limit,
        "broker": redact(settings.broker_url) or "its own",
        "session": str(folder),
    }
    if as_json:
        click.echo(dump_json({**facts, "steps": steps}))
        return
    for problem in problems:
        print_problem(problem)
    facts["options"] = ", ".join(f"{key}={value}" for key, value in facts["options"].items())
    facts["time_limit"] = f"{settings.time_limit:g} s a run" if settings.time_limit else "none"
    for fact, value in facts.items():
        click.echo(f"{fact.replace('_', ' '):<13} {value if value != '' else 'none'}")
    click.echo("would start:")
    for step in steps:
        click.echo(f"  {step}")
    click.echo("Nothing was started.")
