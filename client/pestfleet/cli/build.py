"""`pestfleet build`: the image of a case."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.options import json_option
from pestfleet_worker.errors import CaseError, RunsFailedError, TargetError

if TYPE_CHECKING:
    from docker import DockerClient

    from pestfleet.case import Case
    from pestfleet.checks.problem import Problem
    from pestfleet.config import Settings
    from pestfleet.images.case import CaseImage, CasePlan
    from pestfleet_worker.messages import Failure

_SHOWN_NAMES = 5


@click.command("build", short_help="Build the image of a case: the worker with its files.")
@click.argument("case", type=click.Path(path_type=Path))
@click.option("-t", "--tag", default="", metavar="NAME", help="Name of the image.  "
              "[default: pestfleet-case-CASE:HASH]")  # fmt: skip
@click.option("--push", is_flag=True, help="Push the image to the registry that its name says.")
@click.option("--dry-run", is_flag=True, help="Show what would be built, and build nothing.")
@click.option("--no-trial", is_flag=True, help="Make no run in the image.")
@json_option
def command(
    case: Path, *, tag: str, push: bool, dry_run: bool, no_trial: bool, as_json: bool
) -> None:
    """Build the image of CASE, a case folder or control file: the worker image with its files.

    All problems are told before anything is built. Then the model runs once in the image, with
    the initial values, and once here: both should give the same. Nothing is built when nothing
    has changed.

    Exit code 3 when the case has errors, 5 when the run in the image fails.
    """
    from pestfleet.case import Case
    from pestfleet.cli.problems import count_problems, print_problem, problem_to_dict
    from pestfleet.config import read_settings
    from pestfleet.images.case import ImageProblems, ensure_case_image, name_case_image
    from pestfleet.images.catalog import check_pushable, push_image
    from pestfleet.images.engine import connect_engine
    from pestfleet.progress import dump_json

    settings = read_settings(case)
    checked = Case.read(case)
    if push:
        check_pushable(name_case_image(checked.name, "0" * 64, settings.image, tag=tag))
    if dry_run:
        _show_plan(checked, settings, as_json=as_json)
        return
    found: list[Problem] = []
    report: dict[str, Any] = {}
    failure: Failure | None = None

    def say(line: str) -> None:
        # The bookkeeping of the engine and of dpkg tells a modeller nothing.
        if not line.startswith((" --->", "Removing intermediate container", "(Reading database")):
            click.echo(line, err=True)

    with closing(connect_engine()) as engine:
        try:
            image = ensure_case_image(
                checked,
                settings.image,
                options=settings.engine_options,
                tag=tag,
                on_line=say,
                on_problem=found.append,
                engine=engine,
            )
        except ImageProblems as error:
            if as_json:
                told = [problem_to_dict(problem) for problem in error.problems]
                click.echo(dump_json({"image": None, "problems": told}))
            for problem in error.problems:
                print_problem(problem)
            raise CaseError(
                f"the case has {count_problems(error.problems)}; no image was built",
                remedy="Correct the errors, and build again.",
            ) from None
        for problem in found:
            print_problem(problem)
        report = _describe(engine, image)
        report["problems"] = [problem_to_dict(problem) for problem in found]
        if not as_json:
            _print_image(report)
        if not no_trial:
            report["trial"], failure = _try(engine, image, checked, settings)
            if not as_json:
                _print_trial(report["trial"], failure)
        if push and failure is None:
            report["pushed"] = push_image(engine, image.reference, on_line=say)
            if not as_json:
                click.echo(f"pushed  {report['pushed']}")
    if as_json:
        click.echo(dump_json(report))
    if failure is not None:
        click.get_current_context().exit(RunsFailedError.exit_code)


def _describe(engine: DockerClient, image: CaseImage) -> dict[str, Any]:
    from pestfleet.images.catalog import list_images

    entry = next((entry for entry in list_images(engine) if entry.id == image.id), None)
    return {
        "image": image.reference,
        "id": image.id,
        "digest": image.digest,
        "context": image.context,
        "built": image.built,
        "size": entry.size if entry is not None else None,
        "added": entry.added if entry is not None else None,
    }


def _print_image(report: dict[str, Any]) -> None:
    from pestfleet.cli.quantities import format_size

    size = f", {format_size(report['size'])}" if report["size"] is not None else ""
    if report["added"] is not None:
        size += f", of which {format_size(report['added'])} are the case's"
    click.echo(f"image   {report['image']}{size}{'' if report['built'] else ' (nothing changed)'}")
    click.echo(f"digest  {report['digest']}")


def _try(
    engine: DockerClient, image: CaseImage, case: Case, settings: Settings
) -> tuple[dict[str, Any], Failure | None]:
    """One run in the image and one here; what came of it, and the failure of that in the image."""
    from pestfleet.images.trial import advise, compare, run_in_image
    from pestfleet.initial_run import make_initial_run
    from pestfleet_worker.messages import Limits

    limits = Limits(settings.time_limit, settings.threads)
    click.echo("one run in the image", err=True)
    result = run_in_image(engine, image.reference, case, limits=limits)
    report: dict[str, Any] = {"seconds": result.seconds}
    if result.failure is not None:
        failure = result.failure
        report["failure"] = {"reason": failure.reason, "message": str(failure), "log": failure.log}
        report["remedy"] = advise(failure)
        return report, failure
    click.echo("one run on this machine", err=True)
    try:
        local = make_initial_run(case, settings)
    except CaseError as error:
        report["not_compared"] = error.message
        return report, None
    if local.failure is not None:
        report["not_compared"] = f"the run on this machine failed: {local.failure}"
        return report, None
    difference = compare(case.spec, result.observations, local.observations)
    report["same"] = difference.values == 0
    report["differing"] = difference.values
    report["largest_relative_difference"] = difference.relative
    report["observations"] = list(difference.names[:_SHOWN_NAMES])
    return report, None


def _print_trial(trial: dict[str, Any], failure: Failure | None) -> None:
    from pestfleet.narration import format_duration

    seconds = format_duration(trial["seconds"])
    if failure is not None:
        click.echo(f"the run in the image failed after {seconds} ({failure.reason}):", err=True)
        click.echo(f"  {failure}", err=True)
        if failure.log:
            click.echo("the end of the model's log:", err=True)
            for line in failure.log.rstrip().splitlines():
                click.echo(f"  {line}", err=True)
        if trial["remedy"]:
            click.echo(trial["remedy"], err=True)
    elif "not_compared" in trial:
        click.echo(f"run     in the image: {seconds}; not compared: {trial['not_compared']}")
    elif trial["same"]:
        click.echo(f"run     in the image: {seconds}; the same bits as on this machine")
    else:
        names = ", ".join(trial["observations"])
        count = trial["differing"]
        click.echo(
            f"run     in the image: {seconds}; {count:,} observation"
            f"{'s differ' if count != 1 else ' differs'} from this machine's, at most by "
            f"{trial['largest_relative_difference']:.2g} of the value: {names}"
            f"{', …' if count > _SHOWN_NAMES else ''}"
        )


def _show_plan(case: Case, settings: Settings, *, as_json: bool) -> None:
    """Dockerfile, files by layer, problems. Exit code 3 with errors."""
    from pestfleet.cli.problems import count_problems, print_problem, problem_to_dict
    from pestfleet.images.case import check_image, plan_image
    from pestfleet.progress import dump_json

    plan = plan_image(case, settings.image, options=settings.engine_options)
    contents, whole, why = None, False, ""
    try:
        contents, whole, why = _look(plan)
    except TargetError as error:
        why = error.message
    problems = check_image(plan, contents, whole=whole)
    errors = sum(problem.severity == "error" for problem in problems)
    if as_json:
        layers = {
            layer.name: [{"name": file.name, "size": file.size} for file in layer.files]
            for layer in plan.layers
        }
        report = {
            "dockerfile": plan.dockerfile,
            "digest": case.digest,
            "layers": layers,
            "problems": [problem_to_dict(problem) for problem in problems],
            "not_checked": why,
        }
        click.echo(dump_json(report))
    else:
        click.echo(plan.dockerfile)
        _print_layers(plan)
        for problem in problems:
            print_problem(problem, err=False)
        if why:
            click.echo(f"programs and libraries were not looked for in the image: {why}")
        click.echo(f"{count_problems(problems)}; nothing was built.")
    if errors:
        click.get_current_context().exit(CaseError.exit_code)


def _look(plan: CasePlan) -> tuple[Any, bool, str]:
    from pestfleet.images.case import find_contents
    from pestfleet.images.engine import connect_engine

    with closing(connect_engine()) as engine:
        contents, whole = find_contents(engine, plan)
    return contents, whole, "" if contents is not None else "there is no worker image yet"


def _print_layers(plan: CasePlan) -> None:
    from pestfleet.cli.quantities import format_count, format_size

    for layer in plan.layers:
        count = format_count(len(layer.files), "file")
        click.echo(f"{layer.archive}: {count}, {format_size(layer.size)}")
        for file in layer.files:
            click.echo(f"  {format_size(file.size):>8}  {file.name}")
