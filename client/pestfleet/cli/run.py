"""`pestfleet run`: a session from its launch to its end."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.options import fleet_options
from pestfleet_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from pestfleet.config import Settings

_SHOWN_WORKERS = 5


@click.command("run", short_help="Run a case with an engine on a fleet of workers.")
@click.argument("case", type=click.Path(path_type=Path))
@fleet_options
@click.option("--session", "name", metavar="ID", default="", help="Id of the session.  "
              "[default: the case's name with date and time]")  # fmt: skip
@click.option(
    "--i-know-the-port-is-open",
    is_flag=True,
    help="Run an external engine though its port is open to the network.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be launched, and launch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object an event on stdout.")
def command(
    case: Path,
    *,
    name: str,
    i_know_the_port_is_open: bool,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run CASE, a case folder or control file, with an engine on a fleet of workers.

    Ctrl-C stops the session clean: finished runs are kept, and pestfleet resume goes on with
    them. A second Ctrl-C ends it at once.
    """
    from pestfleet.config import read_settings

    if i_know_the_port_is_open:
        given["engine_options"] = {**given["engine_options"], "i_know_the_port_is_open": "true"}
    settings = read_settings(case, given=given)
    _warn_of_cores(settings)
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
            arguments=_split(settings.engine_args),
            cache=settings.cache,
            on_problem=print_problem,
        )
    except CaseProblems as error:
        raise refuse_case(error.problems) from None
    host_session(session, broker_url=settings.broker_url, as_json=as_json)


def _split(words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError as error:
        raise ConfigurationError(
            f"the engine's arguments cannot be read: {error}: {words}",
            remedy="Quotation marks come in pairs, as in a shell.",
        ) from error


def _warn_of_cores(settings: Settings) -> None:
    slots, cores = settings.workers * settings.slots, os.cpu_count() or 1
    if settings.on == "local" and slots > cores:
        click.echo(
            f"warning: {slots:,} slots on this machine, which has {cores} "
            f"core{'s'[: cores > 1]}: models that compute will wait for each other\n"
            "    Ask for fewer workers or slots, unless the model mostly waits.",
            err=True,
        )


def _print_plan(case: Path, settings: Settings, name: str, *, as_json: bool) -> None:
    """Check the case and describe the fleet; writes no file."""
    from pestfleet.case import check_case
    from pestfleet.cli.problems import print_problem, refuse_case
    from pestfleet.config import redact
    from pestfleet.engines import check_name
    from pestfleet.progress import dump_json
    from pestfleet.targets import make_target
    from pestfleet.targets.base import FleetPlan

    check_name(settings.engine)
    checked, problems = check_case(
        case,
        slots=settings.workers * settings.slots,
        engine=settings.engine,
        options=settings.engine_options,
    )
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
    # On this machine each step is a worker, and they differ in their number only.
    shown = steps[:_SHOWN_WORKERS] if settings.on == "local" else steps
    for step in shown:
        click.echo(f"  {step}")
    if len(steps) > len(shown):
        click.echo(f"  and {len(steps) - len(shown):,} more")
    click.echo("Nothing was started.")
