"""The program docker compose: version 2, a plugin of the docker command, or docker-compose 1.29."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from pestfleet.apart import run_apart
from pestfleet.targets.compose.document import Document, dump_document
from pestfleet_worker.errors import TargetError

logger = logging.getLogger(__name__)

_WAYS = (("docker", "compose"), ("docker-compose",))
_LINES = 12  # of what a failed command wrote
# They would choose other files and projects than ours.
_FOREIGN = ("COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES", "COMPOSE_ENV_FILES")


@dataclass(frozen=True, slots=True)
class Compose:
    """The program with the words that start it."""

    words: tuple[str, ...]
    version: str

    def up(
        self, project: str, document: Document, services: Sequence[str] = (), *, workers: int = 0
    ) -> None:
        """Make and start these services (all without any) with what they depend on.

        `workers`: how many of those there shall be. Raises `TargetError` with what the program
        wrote.
        """
        words = ["up", "--detach", "--no-build", "--no-recreate"]
        if workers:
            words += ["--scale", f"worker={workers}"]
        self._run(project, document, [*words, *services])

    def _run(self, project: str, document: Document, words: Sequence[str]) -> None:
        command = [*self.words, "--project-name", project, "--file", "-", *words]
        logger.info("%s", " ".join(command))
        with tempfile.TemporaryDirectory(prefix="pestfleet-compose-") as folder:  # has no .env
            done = subprocess.run(
                command,
                input=dump_document(document),
                cwd=folder,
                env={name: value for name, value in os.environ.items() if name not in _FOREIGN},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                check=False,
                **run_apart(),
            )
        logger.info("%s", done.stdout)
        if done.returncode:
            lines = [line for line in done.stdout.splitlines() if line.strip()][-_LINES:]
            raise TargetError(
                f"{' '.join(self.words)} ended with exit code {done.returncode}:\n    "
                + "\n    ".join(lines),
                remedy="What was started is removed again. Mend what the lines above say, and try "
                "again.",
            )


def find_compose() -> Compose:
    """The program that is there, the newer one first. Raises `TargetError` without one."""
    for words in _WAYS:
        if shutil.which(words[0]) is None:
            continue
        done = subprocess.run(
            [*words, "version", "--short"], capture_output=True, text=True, check=False
        )
        version = done.stdout.strip().removeprefix("v")
        if done.returncode == 0 and version[:1].isdigit():
            return Compose(words, version)
    raise TargetError(
        "docker compose is not installed",
        remedy="Install Docker's compose plugin, or docker-compose 1.29 or newer; see "
        "docs/images.md.",
    )
