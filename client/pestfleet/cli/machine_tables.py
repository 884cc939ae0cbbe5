"""Machines and their images, as tables."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pestfleet.cli.quantities import format_count
from pestfleet.cli.tables import make_console, make_table

if TYPE_CHECKING:
    from pestfleet.capacity.images import MachineImage
    from pestfleet.capacity.machines import Machine


def print_images(images: list[MachineImage], numbers: dict[str, int]) -> None:
    """A row an image, under its number."""
    if not images:
        click.echo("there is no image that could be started")
        return
    table = make_table()
    for column in ("", "image", "whose", "name", "made", "GB", "architecture"):
        right = column in ("", "GB")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for image in images:
        table.add_row(
            str(numbers[image.id]),
            image.id,
            image.whose,
            image.name,
            image.created[:10],
            str(image.size or ""),
            image.architecture + (" (Windows)" if image.windows else ""),
        )
    make_console().print(table)


def print_machines(
    machines: list[Machine], numbers: dict[str, int], prices: dict[str, float], *, source: str
) -> None:
    """A row a machine, under its number. `prices`: US dollars an hour by id; `source`: of them."""
    if not machines:
        click.echo("there is no machine")
        return
    now = time.time()
    table = make_table()
    for column in ("", "machine", "session", "state", "type", "zone", "paid", "started", "hours",
                   "USD/h", "address"):  # fmt: skip
        right = column in ("", "hours", "USD/h")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for machine in machines:
        price = prices.get(machine.id)
        table.add_row(
            str(numbers[machine.id]),
            machine.id,
            machine.session,
            machine.state,
            machine.kind,
            machine.zone,
            "spot" if machine.spot else "on demand",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(machine.launched)),
            f"{machine.count_hours(now):.1f}" if machine.paid else "",
            f"{price:.4f}" if price is not None and machine.paid else "",
            machine.address or machine.private_address,
        )
    make_console().print(table)
    paid = [machine for machine in machines if machine.paid]
    total = sum(prices.get(machine.id, 0.0) for machine in paid)
    cost = f", {total:.2f} USD an hour by {source}" if total else ""
    click.echo(f"{format_count(len(paid), 'machine')} of {len(machines)} paid for{cost}")
