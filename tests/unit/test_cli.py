"""The command line around the commands: help, errors, exit codes, weight."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pestfleet.cli.main import COMMANDS, cli
from pestfleet_worker import errors
from source import run_python


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `pestfleet sessions` meet an error."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("pestfleet.config.read_settings", fail)


def test_help_lists_every_command_in_a_modellers_words() -> None:
    result = call("--help")
    assert result.exit_code == 0
    listed = re.findall(r"^  ([a-z-]+)  +\S", result.output.partition("Commands:")[2], re.M)
    assert listed == list(COMMANDS)
    assert "..." not in result.output.partition("Commands:")[2]  # no line is cut off
    assert "control file" in result.output
    for word in ("AMQP", "Celery", "queue", "pydantic"):
        assert word not in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = call(name, "-h")
    assert result.exit_code == 0
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help
    assert command.name == name
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_an_unknown_command_is_met_with_the_nearest() -> None:
    result = call("resutls")
    assert result.exit_code == 2
    assert "There is no command 'resutls'. Did you mean results?" in result.stderr


def test_no_heavy_package_is_imported_before_it_is_needed() -> None:
    modules = list(COMMANDS.values())
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "heavy = ['numpy', 'pandas', 'matplotlib', 'scipy', 'celery', 'kombu', 'pydantic']\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    assert run_python(script).strip() == "[]"


@pytest.mark.parametrize(
    "kind",
    [
        errors.CaseError,
        errors.ConfigurationError,
        errors.RunsFailedError,
        errors.ChannelError,
        errors.TargetError,
        errors.SessionError,
        errors.Interrupted,
        errors.PestfleetError,
    ],
)
def test_errors_become_words_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, kind: type[errors.PestfleetError]
) -> None:
    fail_with(monkeypatch, kind("what is wrong", remedy="What to do."))
    result = call("sessions")
    assert result.exit_code == kind.exit_code
    assert result.stdout == ""
    prefix = "" if kind is errors.Interrupted else "error: "
    assert result.stderr == f"{prefix}what is wrong\n  What to do.\n"


def test_passwords_in_errors_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, errors.ChannelError("amqp://me:s3cret@host does not answer"))
    assert call("sessions").stderr == "error: amqp://me:***@host does not answer\n"


def test_ctrl_c_ends_any_command_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    result = call("sessions")
    assert result.exit_code == 130
    assert result.stderr == "stopped\n"


def test_a_defect_is_one_line_and_a_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(here))
    fail_with(monkeypatch, ZeroDivisionError("with amqp://me:s3cret@host\nand more"))
    result = call("sessions")
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first == "error: a defect in pestfleet: ZeroDivisionError: with amqp://me:***@host"
    (path,) = here.glob("pestfleet-traceback-*.txt")
    assert str(path) in second
    text = path.read_text(encoding="utf-8")
    assert text.startswith("Traceback")
    assert "s3cret" not in text


def test_traceback_flag_shows_the_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError("oh"))
    assert isinstance(call("--traceback", "sessions").exception, ZeroDivisionError)


def test_the_module_can_be_run() -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['pestfleet', 'config']\n"
        "runpy.run_module('pestfleet', run_name='__main__')\n"
    )
    assert "workers" in run_python(script)
