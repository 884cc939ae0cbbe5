"""`pestfleet run`: a session from its launch to its end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.options import container_options, fleet_options
from pestfleet_worker.errors import ConfigurationError, SessionError

if TYPE_CHECKING:
    from pestfleet.config import Settings
    from pestfleet.host import Host, OnEvent
    from pestfleet.placement import Placement


@click.command("run", short_help="Run a case with an engine on a fleet of workers.")
@click.argument("case", type=click.Path(path_type=Path))
@fleet_options
@container_options
@click.option("--session", "name", metavar="ID", default="", help="Id of the session.  "
              "[default: the case's name with date and time]")  # fmt: skip
@click.option(
    "--i-know-the-port-is-open",
    is_flag=True,
    help="Run an external engine though its port is open to the network.",
)
@click.option(
    "--image", metavar="NAME", default="", help="Image with the case in it.  [default: it is built]"
)
@click.option(
    "--values",
    metavar="FILE",
    multiple=True,
    help="YAML file with values for the chart on Kubernetes. Repeatable.",
)
@click.option(
    "--set",
    "sets",
    metavar="NAME=VALUE",
    multiple=True,
    help="A value for the chart on Kubernetes, such as workers.spot=gke. Repeatable.",
)
@click.option("--detach", is_flag=True, help="Launch a session of containers, and leave it alone.")
@click.option("--dry-run", is_flag=True, help="Say what would be launched, and launch nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before a session on ecs that costs much.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object an event on stdout.")
def command(
    case: Path,
    *,
    name: str,
    i_know_the_port_is_open: bool,
    image: str,
    values: tuple[str, ...],
    sets: tuple[str, ...],
    detach: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run CASE, a case folder or control file, with an engine on a fleet of workers.

    Ctrl-C stops the session clean: finished runs are kept, and pestfleet resume goes on with
    them. A second Ctrl-C ends it at once.
    """
    from pestfleet.cli.cost import confirm_launch
    from pestfleet.cli.hosting import create_from_settings, host_session
    from pestfleet.cli.plan import print_plan
    from pestfleet.config import read_settings

    if i_know_the_port_is_open:
        given["engine_options"] = {**given["engine_options"], "i_know_the_port_is_open": "true"}
    settings = read_settings(case, given=given)
    _warn_of_cores(settings)
    place = make_placement(settings, image, values, sets)
    if detach and place.master == "here":
        raise ConfigurationError(
            "a session whose master is here cannot be left alone",
            remedy="Leave --detach out, or choose a target of containers with --master there.",
        )
    if dry_run:
        print_plan(case, settings, name, place, as_json=as_json)
        return

    confirm_launch(case, settings, place, yes=yes)
    session = create_from_settings(case, settings, name=name, place=place)

    def make_host(tell: OnEvent) -> Host:
        try:
            return session.make_host(
                broker_url=settings.broker_url, image=settings.image, on_event=tell
            )
        except SessionError:  # the id is another session's there, whose files may come here
            shutil.rmtree(session.path, ignore_errors=True)
            raise

    if detach:
        from rich.console import Console

        from pestfleet.cli.hosting import stop_on_signals

        host: Any = make_host(lambda event: click.echo(event.get("text", ""), err=True))
        with stop_on_signals(host, session, Console(stderr=True), keep_workers=False):
            host.launch()
        words = session.folder.words
        click.echo(f"session {session.name} is launched; pestfleet status {words} says how far")
        click.echo(f"it is, and pestfleet resume {words} follows it to its end.")
        if settings.on == "ecs" and place.amazon.network == "make":
            click.echo("The endpoints of its network cost by the hour, also after its end, until:")
            click.echo(f"pestfleet down {words}")
        return
    host_session(session, make_host, as_json=as_json)


def make_placement(
    settings: Settings, image: str, values: tuple[str, ...], sets: tuple[str, ...]
) -> Placement:
    """How the settings place a session on their target."""
    from pestfleet import targets
    from pestfleet.placement import AmazonPlace, Placement

    if not targets.is_remote(settings.on):
        return Placement()
    return Placement(
        master=settings.master,
        tunnel=settings.tunnel,
        memory=settings.memory,
        cpus=settings.cpus,
        pids=settings.pids,
        image=image,
        context=settings.context,
        namespace=settings.namespace,
        values=tuple(str(Path(file).resolve()) for file in values),
        sets=sets,
        least=settings.min_workers,
        amazon=AmazonPlace(
            region=settings.region,
            profile=settings.profile,
            capacity=settings.capacity,
            instances=settings.instances,
            bucket=settings.amazon.bucket,
            cluster=settings.amazon.cluster,
            subnets=tuple(settings.amazon.subnets),
            network=settings.amazon.network,
            public=settings.amazon.public,
            allow_from=settings.amazon.allow_from,
        ),
    )


def _warn_of_cores(settings: Settings) -> None:
    workers = max(settings.workers, settings.most)
    slots, cores = workers * settings.slots, os.cpu_count() or 1
    if settings.on == "local" and slots > cores:
        click.echo(
            f"warning: {slots:,} slots on this machine, which has {cores} "
            f"core{'s'[: cores > 1]}: models that compute will wait for each other\n"
            "    Ask for fewer workers or slots, unless the model mostly waits.",
            err=True,
        )
