"""`pestfleet logs`: the log of a master or a worker."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import click

from pestfleet.cli.options import open_session, session_argument, sessions_option
from pestfleet_worker.errors import SessionError


@click.command("logs", short_help="Show the log of a master or a worker.")
@session_argument
@click.argument("worker", required=False)
@sessions_option
@click.option("--lines", default=50, show_default=True, help="Lines from the end to show.")
def command(session: str | None, worker: str | None, sessions: Path | None, lines: int) -> None:
    """Show the end of the log of SESSION's master, or of one of its workers.

    Without SESSION: of the newest session. Workers have names such as local-1.
    """
    opened = open_session(session, sessions)
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
    if worker is None and workers:
        click.echo(f"Workers' logs: pestfleet logs {opened.name} {' | '.join(workers)}", err=True)
