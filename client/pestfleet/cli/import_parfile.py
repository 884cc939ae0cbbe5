"""`pestfleet import-parfile`: from cloudPEST's parameter file to a pestfleet.toml."""

from __future__ import annotations

from pathlib import Path

import click

from pestfleet_worker.errors import ConfigurationError


@click.command("import-parfile", short_help="Turn cloudPEST's parameter file into pestfleet.toml.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--case",
    type=click.Path(file_okay=False, path_type=Path),
    help="Case folder, where pestfleet.toml is written.  [default: the folder of FILE]",
)
@click.option("--force", is_flag=True, help="Replace a pestfleet.toml that is there.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
def command(file: Path, *, case: Path | None, force: bool, dry_run: bool) -> None:
    """Write a pestfleet.toml that does what cloudPEST's parameter FILE did.

    FILE is node_start_runs.par, or node_start_ftp.par with the other beside it. Several node
    directories become slots. docs/from-cloudpest.md has each field.
    """
    from pestfleet.config import FILE_NAME
    from pestfleet.parfile import choose_engine, make_toml, read_parfile

    parfile = read_parfile(file)
    folder = case if case is not None else file.parent
    target = folder / FILE_NAME
    text = make_toml(parfile)
    if dry_run:
        click.echo(text, nl=False)
    else:
        _write(target, text, force=force)
        click.echo(f"wrote {target}")
    engine, certain = choose_engine(parfile.runs.program)
    if not certain:
        click.echo(
            f"warning: {parfile.runs.program} is taken for {engine}; change engine in {FILE_NAME} "
            "where that is wrong",
            err=True,
        )
    control = folder / parfile.control_name
    if not control.is_file():
        click.echo(
            f"warning: {control} is not there; {FILE_NAME} belongs into the folder of the case: "
            "name that with --case",
            err=True,
        )
    click.echo(f"next: pestfleet check {control}", err=dry_run)


def _write(target: Path, text: str, *, force: bool) -> None:
    try:
        with target.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigurationError(
            f"{target} is there already",
            remedy="Look at what would be written with --dry-run; replace it with --force.",
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {error.strerror}") from error
