"""Hosts a session in a terminal: display, signals, and the summary at its end."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO, cast

from pestfleet.cli.commands import say
from pestfleet_worker.errors import (
    ConfigurationError,
    Interrupted,
    PestfleetError,
    RunsFailedError,
    SentAway,
)

if TYPE_CHECKING:
    from rich.console import Console

    from pestfleet.config import Settings
    from pestfleet.host import Host, OnEvent
    from pestfleet.placement import Placement
    from pestfleet.session import Session


def create_from_settings(
    case: Path, settings: Settings, *, name: str, place: Placement | None = None
) -> Session:
    """A new session; problems of the case are printed. Raises as `create_session` does."""
    from pestfleet.cli.problems import print_problem, refuse_case
    from pestfleet.session import CaseProblems, create_session

    try:
        return create_session(
            case,
            engine=settings.engine,
            on=settings.on,
            workers=settings.workers,
            slots=settings.slots,
            session=name,
            root=settings.sessions,
            options=settings.engine_options,
            run_seconds=settings.time_limit,
            threads=settings.threads,
            deliveries=settings.deliveries,
            own_broker=not settings.broker_url,
            scratch=settings.scratch,
            mode=settings.mode,
            arguments=split_words(settings.engine_args),
            cache=settings.cache,
            place=place,
            most=settings.most,
            idle_minutes=settings.idle_minutes or 0.0,
            max_hours=settings.max_hours or 0.0,
            budget=settings.budget,
            on_problem=print_problem,
        )
    except CaseProblems as error:
        raise refuse_case(error.problems) from None


def split_words(words: str) -> list[str]:
    """The engine's arguments of a setting. Raises `ConfigurationError`."""
    try:
        return shlex.split(words)
    except ValueError as error:
        raise ConfigurationError(
            f"the engine's arguments cannot be read: {error}: {words}",
            remedy="Quotation marks come in pairs, as in a shell.",
        ) from error


def host_session(
    session: Session,
    make_host: Callable[[OnEvent], Host],
    *,
    as_json: bool,
    keep_workers: bool = False,
) -> None:
    """Host the session to its end and show how it went. `make_host` gets who shows the events.

    Where nobody reads stdout or stderr any more it goes on silently. Raises the `PestfleetError`
    that ended it; `Interrupted` after Ctrl-C, SIGTERM or SIGHUP, `SentAway` where the host then
    leaves its workers to another (`keep_workers`).
    """
    from rich.console import Console

    from pestfleet.progress import make_display
    from pestfleet.quiet import QuietStream

    stream = QuietStream(sys.stdout)
    console = Console(file=cast(TextIO, stream))

    def tell(event: dict[str, Any]) -> None:
        display.tell(event)

    host = make_host(tell)
    display = make_display(host.snapshot, console=console, stream=stream, as_json=as_json)
    with stop_on_signals(host, session, console, keep_workers=keep_workers), display:
        outcome = host.host()
    if outcome.summary and not as_json:
        from pestfleet.cli.tables import print_summary

        print_summary(console, session, outcome.summary)
    if outcome.error is not None:
        if isinstance(outcome.error, RunsFailedError):
            say(f"Which runs, and why: pestfleet runs {session.folder.words} --failed")
        raise outcome.error


@contextmanager
def stop_on_signals(
    host: Host, session: Session, console: Console, *, keep_workers: bool
) -> Iterator[None]:
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
        if stopping and keep_workers:
            os._exit(SentAway.exit_code)
        if stopping:
            with suppress(PestfleetError):  # for `status`: it was the user who ended it
                session.folder.request_stop()
            say(f"ended at once; finished runs are kept: pestfleet resume {session.name}")
            console.show_cursor(True)  # the live display hides it
            os._exit(Interrupted.exit_code)
        stopping = True
        if keep_workers:
            say("ending: the workers wait for the next master")
        else:
            say("stopping: workers are sent home; again, and it ends at once")
        host.interrupt()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
