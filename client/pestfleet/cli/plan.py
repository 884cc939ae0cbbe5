"""What `pestfleet run --dry-run` shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pestfleet.case import Case
    from pestfleet.config import Settings
    from pestfleet.folder import SessionSpec
    from pestfleet.placement import Placement

_SHOWN_WORKERS = 5


def print_plan(
    case: Path, settings: Settings, name: str, place: Placement, *, as_json: bool
) -> None:
    """Check the case and describe the fleet; writes no file.

    For a target of containers stdout has what its own tool reads, such as a compose file.
    """
    from pestfleet.case import check_case
    from pestfleet.cli.problems import print_problem, refuse_case
    from pestfleet.config import redact
    from pestfleet.engines import check_name
    from pestfleet.progress import dump_json
    from pestfleet.targets import is_remote, load_launch, make_target
    from pestfleet.targets.base import FleetPlan

    check_name(settings.engine)
    checked, problems = check_case(
        case,
        slots=max(settings.workers, settings.most) * settings.slots,
        local=settings.on == "local",
        engine=settings.engine,
        options=settings.engine_options,
    )
    if checked is None or any(problem.severity == "error" for problem in problems):
        raise refuse_case(problems)
    session = name or f"{checked.name}-DATE-TIME"
    folder = settings.sessions / session
    if is_remote(settings.on):
        for problem in problems:
            print_problem(problem)
        spec = make_spec(checked, settings, session, place)
        describe = load_launch(settings.on).describe
        text = describe(spec, folder, image=settings.image, broker_url=settings.broker_url)
        click.echo(text, nl=False)
        return
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
        "most_workers": settings.most or settings.workers,
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


def make_spec(case: Case, settings: Settings, session: str, place: Placement) -> SessionSpec:
    """The spec of a session that is not created."""
    from pestfleet.cli.hosting import split_words
    from pestfleet.engines import choose_mode
    from pestfleet.folder import SessionSpec

    return SessionSpec(
        session=session,
        control_file=str(case.control.path.resolve()),
        digest=case.digest,
        engine=settings.engine,
        target=settings.on,
        workers=settings.workers,
        slots=settings.slots,
        seconds=settings.time_limit,
        threads=settings.threads,
        deliveries=settings.deliveries,
        options=settings.engine_options,
        mode=choose_mode(settings.engine, settings.mode),
        arguments=split_words(settings.engine_args),
        cache=settings.cache,
        place=place,
        most=settings.most,
        idle_minutes=settings.idle_minutes or 0.0,
        max_hours=settings.max_hours or 0.0,
        budget=settings.budget,
    )
