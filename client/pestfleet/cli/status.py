"""`pestfleet status`: how far a session is, and what each slot does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pestfleet.cli.elsewhere import find_session, on_option
from pestfleet.cli.options import json_option, session_argument, sessions_option
from pestfleet.targets.base import KEPT
from pestfleet_worker.errors import SessionError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pestfleet.session import Session
    from pestfleet.targets.base import RemoteSession

WATCH_INTERVAL = 0.5  # seconds; the master writes its state that often
FAR_INTERVAL = 2.0  # seconds, where each look is several requests to an engine or a cloud
SLOTS = 200  # as many are shown: more take a second to lay out
SILENT = 5.0  # seconds without a word after which that is told of a worker


@click.command("status", short_help="Show how far a session is, and what each slot does.")
@session_argument
@sessions_option
@json_option
@on_option
@click.option("--watch", is_flag=True, help="Go on until the session ends or Ctrl-C.")
def command(
    session: str | None, sessions: Path | None, as_json: bool, on: str | None, watch: bool
) -> None:
    """Show how far SESSION (the newest without one) is, and what each slot does."""
    from pestfleet.cli.tables import make_console
    from pestfleet.progress import dump_json

    local, remote = find_session(session, sessions, on, needed=False)
    look = _make_look(local, remote)
    far = remote is not None and not (local is not None and local.folder.running)
    pause = FAR_INTERVAL if far else WATCH_INTERVAL
    if as_json:
        for status in _follow(look, pause) if watch else [look()]:
            click.echo(dump_json(status))
    elif watch:
        _watch(look, pause)
    else:
        asked = local is not None and local.folder.stop_requested
        make_console().print(render_status(look(), ended_by_user=asked))


def _make_look(local: Session | None, remote: RemoteSession | None) -> Callable[[], dict[str, Any]]:
    """What looks at the session; `remote` has just been found."""
    found = [remote]

    def look() -> dict[str, Any]:
        return _look(local, remote, found.pop() if found else None)

    return look


def _look(
    local: Session | None, remote: RemoteSession | None, found: RemoteSession | None
) -> dict[str, Any]:
    """The session's state; that of a master there where it is not followed here.

    `found`: the session there as it is now; None where it must be looked for.
    """
    from pestfleet import targets

    if local is not None and (remote is None or local.folder.running or not remote.info.parts):
        return local.status()
    assert remote is not None
    info = remote.info
    try:
        remote = found or targets.open_remote_session(info.target, info.name, info.where)
    except SessionError:  # somebody has removed it meanwhile
        if local is None:
            raise
        return local.status()
    info = remote.info
    if local is not None and local.spec.place.master == "here":  # it died, its workers are left
        return {**local.status(), "containers": list(info.parts)}
    state = remote.read_state()
    if local is not None and not state and info.state == KEPT:
        known = local.status()
        if known.get("state") not in ("running", "died"):  # it was followed to its end
            return {**known, "containers": list(info.parts)}
    if info.state != "running" and state.get("state", "running") == "running":
        # Of a volume alone nobody knows how the session ended; else it died before it wrote that.
        state["state"] = KEPT if not state and info.state == KEPT else "died"
    return {"session": info.name, "state": "running", **state, "containers": list(info.parts)}


def _follow(look: Callable[[], dict[str, Any]], pause: float) -> Iterator[dict[str, Any]]:
    """Its status from time to time, at last the one that it ended with."""
    while True:
        status = look()
        yield status
        if status.get("state", "running") != "running":
            return
        time.sleep(pause)  # a file has no event to wait for


def _watch(look: Callable[[], dict[str, Any]], pause: float) -> None:
    from rich.live import Live

    from pestfleet.cli.tables import make_console

    with Live(console=make_console(), auto_refresh=False) as live:
        for status in _follow(look, pause):
            live.update(render_status(status), refresh=True)


def render_status(status: dict[str, Any], *, ended_by_user: bool = False) -> RenderableType:
    """The state of a session with a line for each slot.

    `ended_by_user`: it was asked to stop; then it died of the second Ctrl-C, not by itself.
    """
    from rich.console import Group
    from rich.text import Text

    from pestfleet.progress import render_state

    state = status.get("state", "running")
    name = status["session"]
    lines: list[RenderableType] = []
    if "batch" not in status:
        texts = {"running": "is starting", KEPT: "has ended", "died": "died before its first run"}
        lines.append(f"session {name} {texts.get(state, 'ended before its first run')}")
    else:
        lines.append(render_state(status))
        if state == "running":
            lines.append(_list_slots(status))
        runs = status["runs"]
        failed = f", {runs['failed']:,} failed" if runs["failed"] else ""
        known = f", {runs['known']:,} known from before" if runs.get("known") else ""
        lines.append(f"{runs['made']:,} runs made{failed}{known}")
    if cost := status.get("cost"):
        now = f", {cost['usd_an_hour']:,.2f} USD an hour now" if state == "running" else ""
        lines.append(f"it has cost {cost['usd']:,.2f} USD{now}")
    if state != "running":
        style = "green" if state == "finished" else "yellow" if state == "stopped" else "red"
        lines.append(Text(state, style=f"bold {style}"))
    lines += [f"  {part}" for part in status.get("containers", ())]
    if state == "died" and ended_by_user:
        lines.append("it was asked to stop, and was ended before it had")
    if state == KEPT:
        lines.append(f"See them with: pestfleet results {name} --fetch")
    if state in ("stopped", "died", "failed"):
        lines.append(f"Go on with: pestfleet resume {name}")
    return Group(*lines)


def _list_slots(status: dict[str, Any]) -> RenderableType:
    from rich.console import Group

    from pestfleet.cli.tables import make_table

    workers = status["workers"]
    if not workers:
        return "no worker is there yet"
    more = sum(len(worker["slots"]) for worker in workers) - SLOTS
    if more > 0:  # those that are silent are what matters
        workers = sorted(workers, key=lambda worker: worker["silent_seconds"] <= SILENT)
    table = make_table()
    for column in ("worker", "host", "slot", "does", "runs made"):
        table.add_column(column)
    for worker in workers:
        for number, slot in enumerate(worker["slots"]):
            if table.row_count == SLOTS:
                break
            first = (worker["name"], worker["host"]) if number == 0 else ("", "")
            made = str(worker["finished"]) if number == 0 else ""
            table.add_row(*first, str(number), _describe_slot(worker, slot), made)
    return Group(table, f"and {more:,} more slots; --json has all") if more > 0 else table


def _describe_slot(worker: dict[str, Any], slot: dict[str, Any]) -> str:
    from pestfleet.narration import format_duration

    silent = worker["silent_seconds"]
    does = "idle"
    if slot["run"] is not None:
        does = f"run {slot['run']}, {format_duration(slot['seconds'])}"
    return f"{does} (silent for {format_duration(silent)})" if silent > SILENT else does
