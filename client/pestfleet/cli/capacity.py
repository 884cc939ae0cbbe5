"""`pestfleet capacity`: whole machines of EC2."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.commands import say
from pestfleet.cli.options import Function, json_option
from pestfleet_worker.errors import ConfigurationError, SessionError, TargetError

if TYPE_CHECKING:
    from pestfleet.capacity.changes import Outcome
    from pestfleet.capacity.machines import Machine
    from pestfleet.capacity.request import MachineRequest
    from pestfleet.capacity.site import MachineSite
    from pestfleet.settings import Settings
    from pestfleet.targets.ecs.access import Cloud

_WHERE = (
    click.option(
        "--region",
        metavar="NAME",
        help="Region of Amazon.  [default: the session's, or that of your AWS configuration]",
    ),
    click.option(
        "--profile", metavar="NAME", help="Profile of your AWS configuration.  [default: current]"
    ),
)
_SELECTION = (
    click.argument("machines", metavar="[MACHINE]...", nargs=-1),
    click.option("--session", metavar="ID", help="The machines of this session."),
    click.option("--all", "everything", is_flag=True, help="The machines of all sessions."),
    click.option("--yes", is_flag=True, help="Do not ask."),
    click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
    *_WHERE,
    json_option,
)


def _where(function: Function) -> Function:
    return reduce(lambda wrapped, option: option(wrapped), reversed(_WHERE), function)


def _selection(function: Function) -> Function:
    return reduce(lambda wrapped, option: option(wrapped), reversed(_SELECTION), function)


@click.group("capacity", short_help="Machines of EC2: images, list, run, start, stop, terminate.")
def command() -> None:
    """Whole machines of EC2, for who needs them.

    For licences that are bound to machines, for images of your own, or to work on them. What a
    session on Amazon needs (pestfleet run --on ecs) it starts and ends by itself.

    Numbers are those of pestfleet capacity list: a machine keeps its number, and no other gets it.
    """


@command.command("images", short_help="List the machine images that can be started.")
@_where
@json_option
def images_command(region: str | None, profile: str | None, *, as_json: bool) -> None:
    """List your machine images, the newest first, and Amazon's for containers."""
    from pestfleet.capacity.images import list_images
    from pestfleet.capacity.numbers import Numbers
    from pestfleet.cli.machine_tables import print_images
    from pestfleet.progress import dump_json

    cloud = _connect(region, profile)
    images = list_images(cloud)
    numbers = Numbers(cloud, "images").assign([image.id for image in images])
    if as_json:
        rows = [{"number": numbers[image.id], **image.to_dict()} for image in images]
        click.echo(dump_json(rows))
    else:
        print_images(images, numbers)


@command.command("list", short_help="List the machines.")
@click.option("--session", metavar="ID", help="Only those of this session.")
@_where
@json_option
def list_command(
    session: str | None, region: str | None, profile: str | None, *, as_json: bool
) -> None:
    """List the machines of all sessions, or of one: by session, and by when they were started."""
    from pestfleet.capacity.machines import list_machines

    cloud = _connect(region, profile, session)
    _show(cloud, list_machines(cloud, session or ""), as_json=as_json, all_of_them=not session)


@command.command("run", short_help="Start new machines.")
@click.option("--count", type=click.IntRange(1, 1000), default=1, show_default=True, metavar="N")
@click.option("--instances", metavar="TYPE", help="Type of the machines, such as c7i.4xlarge.")
@click.option("--session", metavar="ID", help="The session that they are for.")
@click.option(
    "--join",
    type=click.Choice(["worker", "cluster", "none"]),
    help="What they do: worker, they are workers of the session; cluster, ECS places tasks of the "
    "session on them; none, they are yours.  [default: worker; none without a session]",
)
@click.option(
    "--image",
    metavar="IMAGE",
    help="Machine image: its id, its name, or its number.  [default: Amazon's for containers]",
)
@click.option("--spot/--on-demand", default=None, help="How they are paid for.  [default: spot]")
@click.option("--disk", type=int, default=0, metavar="GB", help="Disk.  [default: the image's]")
@click.option(
    "--slots", type=int, default=0, metavar="N", help="Runs at a time.  [default: processors]"
)
@click.option("--max-hours", type=float, metavar="H", help="Then they end.  [default: 72]")
@click.option("--ssh", is_flag=True, help="Make a key, and let ssh in from --allow-from.")
@click.option("--allow-from", metavar="CIDR", help="Addresses for ssh, such as 203.0.113.7/32.")
@click.option("--subnet", "subnets", multiple=True, metavar="ID", help="May be given often.")
@click.option("--public/--no-public", default=None, help="Public addresses.  [default: no]")
@click.option("--dry-run", is_flag=True, help="Print the requests as JSON, and start nothing.")
@_where
@json_option
def run_command(
    count: int, session: str | None, join: str | None, image: str | None, region: str | None,
    profile: str | None, *, dry_run: bool, as_json: bool, **choices: Any,
) -> None:  # fmt: skip
    """Start machines for a session; as many as can be had, if not all.

    They end by themselves: when the session is over, and after --max-hours.
    """
    from pestfleet.capacity.launch import launch, plan_machines
    from pestfleet.capacity.machines import await_machines
    from pestfleet.capacity.numbers import Numbers
    from pestfleet.progress import dump_json

    cloud = _connect(region, profile, session)
    settings = _read_settings()
    if image and image.isdecimal():
        image = Numbers(cloud, "images").find(int(image))
    request = _make_request(
        cloud, settings, count=count, session=session, join=join, image=image, **choices
    )
    plan = plan_machines(cloud, request, lambda: _find_site(cloud, settings, request, choices))
    if dry_run:
        click.echo(dump_json(plan.to_dict(cloud), indent=2))
        return
    result = launch(cloud, plan, say=say)
    started = await_machines(cloud, result.machines)
    if result.missing:
        say(f"{len(result.machines)} of {count} machines were started:")
        for reason in result.reasons:
            say(f"  {reason}")
        say(f"  {result.remedy}")
    if as_json:
        listed = [machine.to_dict() for machine in started]
        report = {"session": request.session, "machines": listed, "missing": result.missing,
                  "reasons": result.reasons}  # fmt: skip
        click.echo(dump_json(report))
        return
    _show(cloud, started)
    end = f"pestfleet capacity terminate --session {request.session}"
    click.echo(
        f"They end {request.hours:g} hours after their start at the latest; {end} ends them."
    )


@command.command("start", short_help="Start machines that are stopped.")
@_selection
def start_command(machines: tuple[str, ...], **choices: Any) -> None:
    """Start machines that are stopped: by number (1,3-5), by id, or all of a session."""
    _change("start", machines, **choices)


@command.command("stop", short_help="Stop machines; their disks stay.")
@_selection
def stop_command(machines: tuple[str, ...], **choices: Any) -> None:
    """Stop machines: by number (1,3-5), by id, or all of a session.

    A machine that is stopped costs its disk only. Spot machines cannot be stopped.
    """
    _change("stop", machines, **choices)


@command.command("terminate", short_help="End machines, and remove what was made for them.")
@_selection
def terminate_command(machines: tuple[str, ...], **choices: Any) -> None:
    """End machines for good: by number (1,3-5), by id, or all of a session.

    With the last machine of a session goes what was made for them: launch template, key, security
    group and role.
    """
    _change("terminate", machines, **choices)


def _change(
    change: str, words: tuple[str, ...], *, session: str | None, everything: bool, yes: bool,
    dry_run: bool, region: str | None, profile: str | None, as_json: bool,
) -> None:  # fmt: skip
    from pestfleet.capacity.changes import change_machines, end_machines
    from pestfleet.capacity.numbers import Numbers
    from pestfleet.capacity.removal import list_leftovers, remove_leftovers
    from pestfleet.capacity.selection import choose_machines
    from pestfleet.cli.quantities import format_count

    if everything and (words or session):
        raise click.UsageError("Name machines or a session, or say --all: not both.")
    if not (words or session or everything):
        raise click.UsageError("Say which machines: 1,3-5, --session ID, or --all.")
    cloud = _connect(region, profile, session)
    chosen = choose_machines(cloud, words, session=session or "", everything=everything)
    terminate = change == "terminate"
    if not chosen and not terminate:
        raise SessionError("there is no such machine", remedy="See pestfleet capacity list.")
    names = [machine.id for machine in chosen]
    numbers = Numbers(cloud, "machines").assign(names) if chosen else {}
    shown = [f"{numbers[machine.id]:>4}  {_describe(machine)}" for machine in chosen]
    if dry_run:
        for line in shown:
            click.echo(f"would {change} {line.strip()}")
        return
    if chosen and not yes and (terminate or everything):
        for line in shown:
            say(line)
        question = f"{change.capitalize()} {format_count(len(chosen), 'machine')}?"
        try:
            agreed = click.confirm(question, err=True)
        except click.Abort as error:  # a script has nobody who answers
            raise ConfigurationError(
                "the question was not answered", remedy="Say --yes."
            ) from error
        if not agreed:
            raise click.Abort
    if not terminate:
        _report(change, change_machines(cloud, chosen, change), [], numbers, as_json=as_json)
        return
    outcomes, removed = end_machines(cloud, chosen, say=say)
    # Also what a launch left that was killed before its first machine.
    others = list_leftovers(cloud) if everything else [session] if session and not words else []
    removed += [line for name in others for line in remove_leftovers(cloud, name)]
    _report(change, outcomes, removed, numbers, as_json=as_json)


def _report(
    change: str, outcomes: list[Outcome], removed: list[str], numbers: dict[str, int], *,
    as_json: bool,
) -> None:  # fmt: skip
    from pestfleet.capacity.changes import DONE
    from pestfleet.progress import dump_json

    if as_json:
        left = [{"machine": one.machine.id, "reason": one.reason} for one in outcomes
                if not one.done]  # fmt: skip
        done = [one.machine.id for one in outcomes if one.done]
        click.echo(dump_json({DONE[change]: done, "left": left, "removed": removed}))
    else:
        for one in outcomes:
            name = f"{numbers[one.machine.id]} {one.machine.id}"
            click.echo(f"{DONE[change]} {name}" if one.done else f"left {name}: {one.reason}")
        for line in removed:
            click.echo(f"removed {line}")
        if not outcomes and not removed:
            click.echo("there is nothing to remove")
    for remedy in dict.fromkeys(one.remedy for one in outcomes if one.remedy):
        say(f"  {remedy}")
    if any(one.error for one in outcomes):
        click.get_current_context().exit(TargetError.exit_code)


def _describe(machine: Machine) -> str:
    spot = ", spot" if machine.spot else ""
    return (
        f"{machine.id} ({machine.kind}{spot}, {machine.state}, session {machine.session}"
        f"{f', of {machine.owner}' if machine.owner else ''})"
    )


def _show(
    cloud: Cloud, machines: list[Machine], *, as_json: bool = False, all_of_them: bool = False
) -> None:
    from pestfleet.capacity.numbers import Numbers
    from pestfleet.cli.machine_tables import print_machines
    from pestfleet.costs.prices import find_prices
    from pestfleet.progress import dump_json

    names = [machine.id for machine in machines]
    numbers = Numbers(cloud, "machines").assign(names, all_of_them=all_of_them)
    items = {machine.id: f"ec2{'-spot' if machine.spot else ''}:{machine.kind}-hour"
             for machine in machines}  # fmt: skip
    found = find_prices(cloud.region, items.values(), cloud)
    prices = {name: price for name, item in items.items()
              if (price := found.find(item)) is not None}  # fmt: skip
    if as_json:
        now = time.time()
        rows = [{"number": numbers[machine.id], **machine.to_dict(now),
                 "price": prices.get(machine.id)} for machine in machines]  # fmt: skip
        click.echo(dump_json(rows))
        return
    print_machines(machines, numbers, prices, source=found.source)


def _read_settings() -> Settings:
    from pestfleet.config import read_settings

    return read_settings(given={"on": "ecs"})  # whose limits are meant


def _connect(region: str | None, profile: str | None, session: str | None = None) -> Cloud:
    """Where the command line says, else the session's folder here, else the settings."""
    from pestfleet.cli.elsewhere import read_where
    from pestfleet.session import Session

    settings = _read_settings()
    local = None
    if session:
        try:
            found = Session.open(session, root=settings.sessions)
            local = found if found.spec.target == "ecs" else None
        except SessionError:
            local = None  # the session is of another computer's, or of machines only
    where = read_where(local)
    from pestfleet.targets.ecs.access import connect

    return connect(replace(where, region=region or where.region, profile=profile or where.profile))


def _make_request(
    cloud: Cloud, settings: Settings, *, count: int, session: str | None, join: str | None,
    image: str | None, instances: str | None, spot: bool | None, disk: int, slots: int,
    max_hours: float | None, ssh: bool, allow_from: str | None, **_: Any,
) -> MachineRequest:  # fmt: skip
    from pestfleet.capacity.request import MachineRequest

    join = join or ("worker" if session else "none")
    if join != "none" and not session:
        raise ConfigurationError(
            "machines that work need a session", remedy="Name it with --session, or --join none."
        )
    kind = instances or settings.instances
    if not kind:
        raise ConfigurationError(
            "no type of machine is given", remedy="Say --instances, such as c7i.4xlarge."
        )
    source = (allow_from or settings.amazon.allow_from) if ssh else ""
    if ssh and not source:
        raise ConfigurationError(
            "--ssh needs to know from where", remedy="Add --allow-from, such as 203.0.113.7/32."
        )
    if allow_from and not ssh:
        raise ConfigurationError("--allow-from is for ssh", remedy="Add --ssh, or leave it out.")
    return MachineRequest(
        session=session or time.strftime("machines-%Y%m%d-%H%M%S"),
        count=count,
        kind=kind,
        hours=settings.max_hours or 0.0 if max_hours is None else max_hours,
        join=join,
        image=image or "",
        spot=settings.capacity != "ondemand" if spot is None else spot,
        disk=disk,
        slots=slots,
        allow_from=source,
        owner=cloud.identity["Arn"].rsplit("/", 1)[-1].rsplit(":", 1)[-1],
    )


def _find_site(
    cloud: Cloud, settings: Settings, request: MachineRequest, choices: dict[str, Any]
) -> MachineSite:
    from pestfleet.capacity.site import find_plain_site, find_session_site

    amazon, public = settings.amazon, choices["public"]
    given = choices["subnets"]
    if request.join == "none":
        return find_plain_site(
            cloud, subnets=given or amazon.subnets,
            public=amazon.public if public is None else public,
        )  # fmt: skip
    site = find_session_site(cloud, request.session, cluster=amazon.cluster, subnets=given)
    return site if public is None else replace(site, public=public)
