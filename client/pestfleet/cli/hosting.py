"""Hosts a session in a terminal: display, Ctrl-C, and the summary at its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from pestfleet_worker.errors import Interrupted, RunsFailedError

if TYPE_CHECKING:
    from rich.console import Console

    from pestfleet.master import Master
    from pestfleet.session import Session


def host_session(session: Session, *, broker_url: str, as_json: bool) -> None:
    """Host the session to its end and show how it went.

    Raises the `PestfleetError` that ended it; `Interrupted` after Ctrl-C or SIGTERM.
    """
    from rich.console import Console

    from pestfleet.progress import make_display

    console = Console()

    def tell(event: dict[str, Any]) -> None:
        display.tell(event)

    master = session.make_master(broker_url=broker_url, on_event=tell)
    display = make_display(master.snapshot, console=console, stream=sys.stdout, as_json=as_json)
    with _stop_on_signals(master, session.name, console), display:
        outcome = master.host()
    if outcome.error is not None:
        if isinstance(outcome.error, RunsFailedError):
            click.echo(f"Which runs, and why: pestfleet runs {session.name} --failed", err=True)
        raise outcome.error
    if not as_json:
        from pestfleet.cli.tables import print_summary

        print_summary(console, session, outcome.summary)


@contextmanager
def _stop_on_signals(master: Master, name: str, console: Console) -> Iterator[None]:
    """First signal: stop clean. Second one: end at once; workers notice and end by themselves."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            click.echo(f"ended at once; finished runs are kept: pestfleet resume {name}", err=True)
            console.show_cursor(True)  # the live display hides it
            os._exit(Interrupted.exit_code)
        stopping = True
        click.echo("stopping: workers are sent home; again, and it ends at once", err=True)
        master.interrupt()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
