"""`pestfleet credentials`: makes the secrets of one session."""

from __future__ import annotations

from pathlib import Path

import click

from pestfleet.credentials import PARTS, Choices, write_credentials


@click.command("credentials", short_help="Make the secrets of a session, as files.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--session", required=True, metavar="ID", help="The session that they are for.")
@click.option(
    "--broker-host",
    default="broker",
    show_default=True,
    metavar="HOST",
    help="Where master and workers find the broker.",
)
@click.option(
    "--broker-port",
    default=5671,
    show_default=True,
    metavar="PORT",
    help="The port of its TLS listener.",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(PARTS),
    help="Make this part only; may be repeated.",
)
@click.option(
    "--mount",
    default="/secrets",
    show_default=True,
    metavar="PATH",
    help='Where each container sees its own part; "": where it is written.',
)
@click.option(
    "--into-secret",
    metavar="NAME",
    help="In a pod: put them into this Secret, which is there and empty.",
)
def command(
    folder: Path,
    session: str,
    broker_host: str,
    broker_port: int,
    parts: tuple[str, ...],
    mount: str,
    into_secret: str | None,
) -> None:
    """Make the secrets of a session, each part in a folder below FOLDER.

    broker: configuration, users and certificate of a RabbitMQ; master, worker: a URL for it with
    a password, and the authority that has signed its certificate; tunnel, home: the keys of the
    tunnel's two ends. What is there already is kept. No secret is printed. The Secret of
    --into-secret has a key PART.FILE for each file.
    """
    choices = Choices(session, broker_host, broker_port, mount)
    written = write_credentials(folder, choices, parts=parts or PARTS)
    kept = [part for part in parts or PARTS if part not in written]
    if written:
        click.echo(f"made in {folder}: {', '.join(written)}")
    if kept:
        click.echo(f"kept in {folder}: {', '.join(kept)}")
    if into_secret:
        from pestfleet.cluster_api import ClusterApi
        from pestfleet.credentials.cluster import fill_secret

        filled = fill_secret(ClusterApi.find(), into_secret, folder, parts=parts or PARTS)
        click.echo(f"{'put into' if filled else 'kept in'} Secret {into_secret}")
