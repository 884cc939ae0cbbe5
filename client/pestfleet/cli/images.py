"""`pestfleet images`: the case images that there are."""

from __future__ import annotations

import dataclasses
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.options import json_option
from pestfleet_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from docker import DockerClient

    from pestfleet.images.catalog import ImageEntry


@click.command("images", short_help="List the case images, or remove some.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "all_roles", is_flag=True, help="Also worker, master and other images.")
@click.option("--remove", is_flag=True, help="Remove the images that are named or older.")
@click.option("--older-than", metavar="TIME", help="Only those built before that: 30d, 12h.")
@click.option("--yes", is_flag=True, help="Do not ask before removing.")
@json_option
def command(
    names: tuple[str, ...],
    *,
    all_roles: bool,
    remove: bool,
    older_than: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """List the case images of this machine's Docker engine, the newest first.

    NAME is an image's name, a case's name, or the beginning of a case's digest or an image's id.
    --remove removes what is listed then; images that a container uses are kept.
    """
    from pestfleet.cli.quantities import parse_time
    from pestfleet.images.catalog import choose_images, list_images
    from pestfleet.images.engine import connect_engine
    from pestfleet.progress import dump_json

    before = time.time() - parse_time(older_than) if older_than else None
    if remove and not names and before is None and not all_roles:
        raise ConfigurationError(
            "--remove needs to know which images",
            remedy="Name them, or add --older-than 30d, or --all for all that pestfleet has made.",
        )
    with closing(connect_engine()) as engine:
        entries = choose_images(
            list_images(engine, all_roles=all_roles), names, created_before=before
        )
        if remove:
            # An image may have a name for somebody else, too.
            entries = [entry.keep_names(names) for entry in entries]
            _remove(engine, entries, yes=yes, as_json=as_json)
        elif as_json:
            click.echo(dump_json([dataclasses.asdict(entry) for entry in entries]))
        else:
            _print(entries)


def _print(entries: list[ImageEntry]) -> None:
    from pestfleet.cli.quantities import format_size
    from pestfleet.cli.tables import make_console, make_table

    if not entries:
        click.echo("there is no such image")
        return
    table = make_table()
    for column in ("image", "case", "digest", "created", "size", "of which case", "used by"):
        right = column in ("size", "of which case")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for entry in entries:
        table.add_row(
            _name(entry),
            entry.case or f"({entry.role})",
            entry.digest[:12],
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.created)),
            format_size(entry.size),
            "" if entry.added is None else format_size(entry.added),
            ", ".join(session or "a container" for session in entry.sessions),
        )
    make_console().print(table)


def _remove(engine: DockerClient, entries: list[ImageEntry], *, yes: bool, as_json: bool) -> None:
    from pestfleet.cli.quantities import format_count
    from pestfleet.images.catalog import remove_images
    from pestfleet.progress import dump_json

    if entries and not yes:
        for entry in entries:
            click.echo(f"  {_name(entry)}", err=True)
        click.confirm(f"Remove {format_count(len(entries), 'image')}?", abort=True, err=True)
    removed: list[str] = []
    kept: list[dict[str, Any]] = []
    for entry, reason in remove_images(engine, entries):
        if reason:
            kept.append({"image": _name(entry), "reason": reason})
        else:
            removed.append(_name(entry))
        if not as_json:
            click.echo(f"kept {_name(entry)}: {reason}" if reason else f"removed {_name(entry)}")
    if as_json:
        click.echo(dump_json({"removed": removed, "kept": kept}))
    elif not entries:
        click.echo("there is no such image")


def _name(entry: ImageEntry) -> str:
    return ", ".join(entry.names) or entry.id.removeprefix("sha256:")[:12]
