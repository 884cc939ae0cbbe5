"""`pestfleet fetch`: the kit of a failed run, unpacked."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from pestfleet.cli.elsewhere import on_option, open_fetched
from pestfleet.cli.options import open_session, session_argument, sessions_option
from pestfleet_worker.errors import SessionError

SHOWN = 20  # files of a kit that are listed


@click.command("fetch", short_help="Get a failed run's inputs, outputs and log.")
@click.argument("run")
@session_argument
@sessions_option
@on_option
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder to make.  [default: run-RUN, here]",
)
@click.option("--force", is_flag=True, help="Replace the folder, if it is one of a kit.")
def command(
    run: str,
    session: str | None,
    sessions: Path | None,
    on: str | None,
    target: Path | None,
    force: bool,
) -> None:
    """Unpack the kit of a failed run of SESSION (the newest without one).

    RUN is its number in pestfleet runs --failed, or last for the last one that failed. The kit
    has the model inputs that the run wrote, the outputs there were, the model's log, and in
    failure.txt what failed, the parameter values, and how to make the run again by hand.
    """
    from pestfleet.cli.tables import shorten_path
    from pestfleet.kits import find_kit, unpack_kit
    from pestfleet_worker.kits import TEXT

    try:
        opened = open_session(session, sessions)
        kit = find_kit(opened.folder, run)
    except SessionError:  # it may still be where the session is
        opened = open_fetched(session, sessions, on)
        kit = find_kit(opened.folder, run)
    target = target or Path(kit.name.removesuffix(".tar.gz"))
    files = unpack_kit(kit, target, force=force)
    text = (target / TEXT).read_text(encoding="utf-8", errors="replace") if TEXT in files else ""
    failure, notes, recipe = _read_text(text)
    click.echo(failure)
    for name, size in list(files.items())[:SHOWN]:
        click.echo(f"{size:>11,}  {_show(shorten_path(target / name))}")
    if len(files) > SHOWN:
        click.echo(f"{len(files) - SHOWN:>11,}  more files")
    if notes:
        click.echo(notes)
    if recipe:
        case = opened.folder.case
        if not case.is_dir():  # the master, and so the copy that it made, is elsewhere
            case = Path(opened.spec.control_file).parent
        click.echo("To make the run again:")
        click.echo(f"  cd {shlex.quote(str(target))}")
        click.echo(f"  CASE={shlex.quote(os.path.abspath(case))}")  # noqa: PTH100 (links stay)
        click.echo(recipe)


def _read_text(text: str) -> tuple[str, str, str]:
    """What failed, what is not whole, and the commands that make the run again."""
    from pestfleet_worker.kits import AGAIN

    failure, *sections = text.split("\n\n")
    notes = recipe = ""
    for section in sections:
        head, _, lines = section.partition("\n")
        if head.startswith("Not whole"):
            notes = section
        elif head.startswith(AGAIN) and not recipe:
            recipe = lines
    return _show(failure), _show(notes), _show(recipe)


def _show(text: object) -> str:
    """Without what would command the terminal: a worker wrote it."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))
