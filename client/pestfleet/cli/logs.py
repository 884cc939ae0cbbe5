"""`pestfleet logs`: the log of a master or a worker."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pestfleet.cli.elsewhere import find_session, on_option
from pestfleet.cli.options import session_argument, sessions_option
from pestfleet_worker.errors import SessionError

if TYPE_CHECKING:
    from pestfleet.session import Session

GLANCE = 0.5  # seconds between two looks for more


@click.command("logs", short_help="Show the log of a master or a worker.")
@session_argument
@click.argument("worker", required=False)
@sessions_option
@on_option
@click.option("--lines", default=50, show_default=True, help="Lines from the end to show.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
def command(
    session: str | None,
    worker: str | None,
    sessions: Path | None,
    on: str | None,
    lines: int,
    follow: bool,
) -> None:
    """Show the end of the log of SESSION's master, or of one of its workers.

    Without SESSION: of the newest session. Workers have names such as local-1 or worker-1.
    """
    local, remote = find_session(session, sessions, on, needed=False)
    here = local is not None and local.spec.place.master == "here"
    if remote is not None and (worker is not None or not here):
        from pestfleet.narration import narrate_log

        log = remote.follow_log(worker, lines=max(0, lines), follow=follow)
        for line in narrate_log(log):
            click.echo(line)
        return
    assert local is not None
    _show_file(local, worker, lines=lines, follow=follow)


def _show_file(opened: Session, worker: str | None, *, lines: int, follow: bool) -> None:
    workers = {path.stem: path for path in sorted((opened.path / "logs").glob("*.log"))}
    path = opened.folder.log if worker is None else workers.get(worker.partition(".")[0])
    if path is None:
        raise SessionError(
            f"session {opened.name} has no log of a worker {worker}",
            remedy=f"Logs there: {', '.join(workers) or 'none'}.",
        )
    if not path.exists():
        raise SessionError(f"session {opened.name} has no log yet")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in deque(file, maxlen=max(0, lines)):
            click.echo(line.rstrip("\n"))
        while follow and opened.folder.running:
            click.echo(file.read(), nl=False)
            time.sleep(GLANCE)  # a file has no event to wait for
        click.echo(file.read() if follow else "", nl=False)
    if worker is None and workers:
        click.echo(f"Workers' logs: pestfleet logs {opened.name} {' | '.join(workers)}", err=True)
