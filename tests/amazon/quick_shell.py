"""Sessions in Amazon's cloud by commands, where no image is built and no container runs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from amazon_shell import PUBLIC
from fake_docker_engine import run_fake_engine
from forked_commands import Commands, Ended, run_commands
from moto_server import Amazon
from session_files import EXAMPLE

ON = ("--on", "ecs")


class QuickShell:
    """Commands in `folder`, which has the case `case`; in `elsewhere` nothing is known of it."""

    def __init__(self, amazon: Amazon, commands: Commands, folder: Path) -> None:
        self.amazon = amazon
        self.folder = folder
        self.case = folder / "case"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        shutil.copytree(EXAMPLE, self.case)
        self._commands = commands
        self.before = amazon.snapshot()

    def launch(self, session: str, *more: str) -> Ended:
        """`pestfleet run` that leaves the session alone when it is launched."""
        return self.run(*self._words(session), "--yes", "--detach", *more)

    def plan(self, session: str, *more: str) -> dict[str, Any]:
        """What `pestfleet run --dry-run` says of the same."""
        ended = self.run(*self._words(session), "--dry-run", *more)
        assert ended.code == 0, ended.text
        plan: dict[str, Any] = json.loads(ended.text[ended.text.index("{") :])
        return plan

    def _words(self, session: str) -> tuple[str, ...]:
        words = ("run", str(self.case), "--engine", "glm", "--workers", "2", "--session", session)
        return (*words, *ON, "--no-cache")

    def run(self, *words: str) -> Ended:
        """A command in the folder of whoever launches."""
        return self._commands.run(*words)

    def run_elsewhere(self, *words: str) -> Ended:
        """A command of somebody who has credentials of the account, and no folder of ours."""
        return self._commands.run(*words, folder=self.elsewhere)

    def remove(self, session: str) -> Ended:
        """All of a session, with its results, by tags."""
        return self.run_elsewhere("down", session, *ON, "--discard-results")

    def expect(self, *words: str, code: int = 0) -> str:
        """What a command about Amazon says to somebody who knows the account only."""
        ended = self.run_elsewhere(*words, *ON)
        assert ended.code == code, ended.text
        return ended.text

    def wait_for_text(self, text: str, *words: str) -> str:
        """What such a command says when this text is in it."""
        deadline = time.monotonic() + 60
        while text not in (said := self.expect(*words)):
            assert time.monotonic() < deadline, said
        return said

    def empty_account(self) -> None:
        """Nothing is in it but what was there before; network interfaces go with their tasks."""
        self.amazon.reset()
        self.amazon.linger = 0.0

    def list_left(self) -> set[str]:
        """What is in the account now and was not before."""
        return self.amazon.snapshot() - self.before


@contextmanager
def open_quick_shell(
    amazon: Amazon, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[QuickShell]:
    """A shell while the block runs."""
    for name, value in PUBLIC.items():
        monkeypatch.setenv(name, value)
    own = folder / "tmp"  # nobody else builds images in it meanwhile
    own.mkdir()
    monkeypatch.setenv("TMPDIR", str(own))
    with run_fake_engine() as engine, run_commands(folder) as commands:
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        shell = QuickShell(amazon, commands, folder)
        shell.empty_account()
        yield shell
