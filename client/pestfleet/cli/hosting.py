"""Hosts a session in a terminal: display, signals, and the summary at its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, cast

from pestfleet.cli.commands import say
from pestfleet_worker.errors import Interrupted, PestfleetError, RunsFailedError

if TYPE_CHECKING:
    from rich.console import Console

    from pestfleet.master import Master
    from pestfleet.session import Session


def host_session(session: Session, *, broker_url: str, as_json: bool) -> None:
    """Host the session to its end and show how it went.

    Where nobody reads stdout or stderr any more it goes on silently. Raises the `PestfleetError`
    that ended it; `Interrupted` after Ctrl-C, SIGTERM or SIGHUP.
    """
    from rich.console import Console

    from pestfleet.progress import make_display
    from pestfleet.quiet import QuietStream

    stream = QuietStream(sys.stdout)
    console = Console(file=cast(TextIO, stream))

    def tell(event: dict[str, Any]) -> None:
        display.tell(event)

    master = session.make_master(broker_url=broker_url, on_event=tell)
    display = make_display(master.snapshot, console=console, stream=stream, as_json=as_json)
    with _stop_on_signals(master, session, console), display:
        outcome = master.host()
    if outcome.summary and not as_json:
        from pestfleet.cli.tables import print_summary

        print_summary(console, session, outcome.summary)
    if outcome.error is not None:
        if isinstance(outcome.error, RunsFailedError):
            say(f"Which runs, and why: pestfleet runs {session.folder.words} --failed")
        raise outcome.error


@contextmanager
def _stop_on_signals(master: Master, session: Session, console: Console) -> Iterator[None]:
    """First signal: stop clean. Second one: end at once; workers notice and end by themselves.

    A terminal that closes (SIGHUP, where the platform has it) may send it more than once, and
    asks for a clean stop only. Under nohup it is ignored, and stays so.
    """
    stopping = False
    hangup = getattr(signal, "SIGHUP", None)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping and number == hangup:
            return
        if stopping:
            with suppress(PestfleetError):  # for `status`: it was the user who ended it
                session.folder.request_stop()
            say(f"ended at once; finished runs are kept: pestfleet resume {session.name}")
            console.show_cursor(True)  # the live display hides it
            os._exit(Interrupted.exit_code)
        stopping = True
        say("stopping: workers are sent home; again, and it ends at once")
        master.interrupt()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
