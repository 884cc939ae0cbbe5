"""A group of commands that are imported when they are used, and that turns errors into words."""

from __future__ import annotations

import difflib
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from pestfleet.quiet import discard
from pestfleet_worker.errors import Interrupted, PestfleetError


class Commands(click.Group):
    """`modules`: command -> module that has it, as an attribute named `command`."""

    def __init__(self, *arguments: Any, modules: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._modules)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._modules:
            return None
        command: click.Command = import_module(self._modules[name]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self._modules:
            near = difflib.get_close_matches(name, self._modules, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"There is no command {name!r}.{hint} See pestfleet --help.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except BrokenPipeError:
            if _flush():
                raise  # another pipe than ours
            return None  # who reads it has seen enough
        finally:
            _flush()

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PestfleetError as error:
            show_error(error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            say("stopped")
            ctx.exit(Interrupted.exit_code)
        except (
            click.ClickException,
            click.exceptions.Exit,
            click.Abort,
            EOFError,
            BrokenPipeError,
        ):
            raise  # click's own ways to end
        except Exception as error:
            if ctx.params.get("traceback"):
                raise
            _show_defect(error)
            ctx.exit(1)


def say(text: str) -> None:
    """A line on stderr, if somebody reads it: an error's exit code counts in any case."""
    with suppress(OSError, ValueError):
        click.echo(text, err=True)


def _flush() -> bool:
    """Flush what is left, so that Python has nothing to complain about at its end.

    False when nobody reads stdout or stderr any more.
    """
    read = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)
            read = False
    return read


def show_error(error: PestfleetError) -> None:
    """`error: …` and the remedy, on stderr."""
    from pestfleet.config import redact

    prefix = "" if isinstance(error, Interrupted) else "error: "
    say(f"{prefix}{redact(error.message)}")
    if error.remedy:
        say(f"  {redact(error.remedy)}")


def _show_defect(error: Exception) -> None:
    """One line; the traceback goes into a file, for whoever mends it."""
    from pestfleet.config import redact

    text = redact("".join(traceback.format_exception(error)))
    with tempfile.NamedTemporaryFile(
        "w", prefix="pestfleet-traceback-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    what = redact(f"{type(error).__name__}: {error}").splitlines()[0]
    say(f"error: a defect in pestfleet: {what}")
    say(f"  Please report it, with the traceback in {file.name}")
