"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pestfleet.session import Session

Function = TypeVar("Function", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON on stdout.")
sessions_option = click.option(
    "--sessions",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with the sessions.  [default: pestfleet-sessions]",
)
session_argument = click.argument("session", required=False)
broker_option = click.option(
    "--broker",
    metavar="URL",
    help="RabbitMQ to use: amqp://… or amqps://…; better set PESTFLEET_BROKER, for others see "
    "the command line of your processes.  [default: one of its own]",
)


def _parse_options(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    options = {}
    for value in values:
        name, equals, text = value.partition("=")
        # `++` is how a control file marks the same option.
        name = name.strip().removeprefix("++").lower()
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not name=value, such as noptmax=20.")
        options[name] = text.strip()
    return options


def _parse_workers(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    """A number, or a range as text, which the settings take apart; they say what is too small."""
    if text is None:
        return None
    if re.fullmatch(r"\d+\.\.\d+", text):
        return text
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a number of workers, such as 8, or a range, such as 4..50."
        ) from None


_FLEET_OPTIONS = (
    click.option(
        "--engine",
        metavar="NAME",
        help="glm, ies, sweep, pestpp-ies and its kin, beopest, pest_hp.  [default: glm]",
    ),
    click.option("--on", metavar="TARGET", help="Where the workers live.  [default: local]"),
    click.option(
        "--workers",
        metavar="N|A..B",
        callback=_parse_workers,
        help="Workers; A..B: as many as the runs need.  [default: the cores here]",
    ),
    click.option("--slots", type=int, metavar="N", help="Slots a worker.  [default: 1]"),
    click.option(
        "--option",
        "engine_options",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_parse_options,
        help="An option of the engine, such as noptmax=20; wins over the control file. Repeatable.",
    ),
    click.option(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="A run that takes longer fails.  [default: no limit]",
    ),
    click.option(
        "--threads", type=int, metavar="N", help="Threads that a model may use.  [default: 1]"
    ),
    click.option(
        "--deliveries",
        type=int,
        metavar="N",
        help="A run that so many workers died of fails.  [default: 3]",
    ),
    click.option(
        "--mode",
        type=click.Choice(["queue", "agent"]),
        help="How an external engine gets its runs: over the queue, or by its own agents.",
    ),
    click.option("--engine-args", metavar="TEXT", help="Arguments for an external engine."),
    click.option(
        "--cache",
        metavar="PLACE",
        help="Folder or s3:// URL that keeps finished runs.  [default: your user's cache folder]",
    ),
    click.option(
        "--no-cache", "cache", flag_value="none", help="Take no run from the cache; keep none."
    ),
    click.option(
        "--idle-minutes",
        type=float,
        metavar="M",
        help="End the session when no run was wanted for so long; 0: never.  "
        "[default: 20 where the workers are containers]",
    ),
    click.option(
        "--max-hours",
        type=float,
        metavar="H",
        help="End the session after so long; 0: never.  [default: 72 on kubernetes and ecs]",
    ),
    click.option(
        "--budget",
        type=float,
        metavar="USD",
        help="End the session when it has cost so many US dollars; 0: never.  [default: 0]",
    ),
    broker_option,
    sessions_option,
    click.option(
        "--scratch",
        type=click.Path(file_okay=False),
        help="Folder for the slots' copies of the case.  [default: the session's folder]",
    ),
)


_CONTAINER_OPTIONS = (
    click.option(
        "--master",
        type=click.Choice(["there", "here"]),
        help="Where a fleet of containers has its master.  [default: there, beside the workers]",
    ),
    click.option(
        "--tunnel/--no-tunnel",
        default=None,
        help="Let workers reach a master here through an SSH tunnel.",
    ),
    click.option(
        "--context", metavar="NAME", help="Context of the kubeconfig.  [default: the current one]"
    ),
    click.option(
        "--namespace", metavar="NAME", help="Namespace of Kubernetes.  [default: the context's]"
    ),
    click.option(
        "--region",
        metavar="NAME",
        help="Region of Amazon.  [default: that of your AWS configuration]",
    ),
    click.option(
        "--profile", metavar="NAME", help="Profile of your AWS configuration.  [default: current]"
    ),
    click.option(
        "--capacity",
        metavar="KIND",
        help="How workers on Amazon are paid for: spot, ondemand, or mixed:20 for 20 percent on "
        "demand.  [default: spot]",
    ),
    click.option(
        "--instances",
        metavar="TYPE",
        help="EC2 machines for the workers on Amazon, such as c7i.4xlarge.  [default: Fargate]",
    ),
    click.option(
        "--min-workers",
        type=int,
        metavar="N",
        help="So many workers will do where not all can start.  [default: 1]",
    ),
    click.option(
        "--memory",
        metavar="SIZE",
        help="Memory a slot, such as 512m.  [default: 2g on kubernetes, else no limit]",
    ),
    click.option(
        "--cpus",
        type=float,
        metavar="N",
        help="Processor time a slot, in cores.  [default: 1 on kubernetes, else any]",
    ),
    click.option(
        "--pids", type=int, metavar="N", help="Processes and threads a slot.  [default: 256]"
    ),
)


def container_options(function: Function) -> Function:
    """How a target of containers places a session; each is None when it is not given."""
    return reduce(lambda wrapped, option: option(wrapped), reversed(_CONTAINER_OPTIONS), function)


def fleet_options(function: Function) -> Function:
    """Engine, workers and their limits; each is None (options: {}) when it is not given."""
    return reduce(lambda wrapped, option: option(wrapped), reversed(_FLEET_OPTIONS), function)


def open_session(name: str | None, sessions: Path | None) -> Session:
    """The session of that id, or the newest, where the settings say that sessions are."""
    from pestfleet.config import read_settings
    from pestfleet.session import Session

    return Session.open(name, root=read_settings(given={"sessions": sessions}).sessions)
