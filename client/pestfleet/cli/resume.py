"""`pestfleet resume`: goes on with a session."""

from __future__ import annotations

from pathlib import Path

import click

from pestfleet.cli.options import broker_option, open_session, session_argument, sessions_option


@click.command("resume", short_help="Go on with a session that stopped or died.")
@session_argument
@broker_option
@sessions_option
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object an event on stdout.")
def command(session: str | None, broker: str | None, sessions: Path | None, as_json: bool) -> None:
    """Go on with SESSION (the newest without one) where it stopped or died.

    It has the case, engine and options that it was started with. Runs that are finished are not
    made again.
    """
    from pestfleet.cli.hosting import host_session
    from pestfleet.config import read_settings

    opened = open_session(session, sessions)
    if opened.status().get("state") == "finished":
        words = opened.folder.words
        click.echo(f"session {opened.name} is finished; see pestfleet results {words}")
        return
    settings = read_settings(Path(opened.spec.control_file), given={"broker": broker})
    # A session with a broker of its own keeps to that, whatever the environment has.
    url = settings.broker_url if broker or not opened.spec.own_broker else ""
    host_session(
        opened,
        lambda tell: opened.make_host(
            broker_url=url, image=settings.image, on_event=tell, resume=True
        ),
        as_json=as_json,
    )
