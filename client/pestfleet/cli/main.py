"""The `pestfleet` command. It only registers the commands, each imported when it is used."""

from __future__ import annotations

import click

from pestfleet.cli.commands import Commands

COMMANDS = {
    "check": "pestfleet.cli.check",
    "run": "pestfleet.cli.run",
    "resume": "pestfleet.cli.resume",
    "status": "pestfleet.cli.status",
    "results": "pestfleet.cli.results",
    "runs": "pestfleet.cli.runs",
    "cost": "pestfleet.cli.cost",
    "fetch": "pestfleet.cli.fetch",
    "sessions": "pestfleet.cli.sessions",
    "stop": "pestfleet.cli.stop",
    "logs": "pestfleet.cli.logs",
    "scale": "pestfleet.cli.scale",
    "down": "pestfleet.cli.down",
    "orphans": "pestfleet.cli.orphans",
    "build": "pestfleet.cli.build",
    "images": "pestfleet.cli.images",
    "capacity": "pestfleet.cli.capacity",
    "cache": "pestfleet.cli.cache",
    "import-parfile": "pestfleet.cli.import_parfile",
    "config": "pestfleet.cli.config",
    "host": "pestfleet.cli.host",
    "tunnel": "pestfleet.cli.tunnel",
    "credentials": "pestfleet.cli.credentials",
}


@click.group(
    cls=Commands, modules=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="pestfleet", prog_name="pestfleet")
@click.option("--traceback", is_flag=True, help="Show where a defect of pestfleet itself arose.")
def cli(traceback: bool) -> None:
    """Run PEST-style parameter estimation on a fleet of workers.

    A case is a folder with a PEST control file (.pst) and all that it needs: templates,
    instruction files, the model and its input. Workers make the model runs, each slot of a
    worker one at a time; an engine (glm, ies or sweep) decides which runs.

    \b
    The usual order:
      pestfleet check CASE --run        every problem at once, then one run of the model
      pestfleet run CASE --workers 4    the calibration; Ctrl-C stops it
      pestfleet results                 tables and a picture of the newest session
      pestfleet resume                  goes on where a session stopped
    """


def main() -> None:
    """The entry point; ends the process with the exit code that docs/exit-codes.md lists."""
    cli(prog_name="pestfleet")


if __name__ == "__main__":
    main()
