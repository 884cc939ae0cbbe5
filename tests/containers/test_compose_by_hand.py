"""compose.yaml, by the words of the README alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from compose_shell import Shell, read_results, read_runs
from pestfleet.images.base import name_image

pytestmark = pytest.mark.docker

SESSION, EXAMPLE = "by-hand", "oude-korendijk"


def read_words(root: Path) -> list[str]:
    """The commands of the README's section, without the comments."""
    section = (root / "README.md").read_text(encoding="utf-8").partition("### By hand\n")[2]
    block = section.partition("```console\n")[2].partition("```")[0]
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


@pytest.fixture
def clone(
    shell: Shell, root: Path, worker_image: str, master_image: str, broker_image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:  # fmt: skip
    """What the repository has of it, with the images there."""
    folder = shell.folder / "clone"
    shutil.copytree(root / "examples" / EXAMPLE, folder / "examples" / EXAMPLE)
    shutil.copy(root / "compose.yaml", folder)
    monkeypatch.setenv("BROKER_IMAGE", broker_image)
    yield folder
    shell.remove(SESSION)


def test_images_by_hand(
    clone: Path, root: Path, docker_engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_BUILDKIT", "0")  # the builder that the fixtures have used before
    done = subprocess.run(
        ["sh", "-c", f"set -e; {read_words(root)[0]}"],
        cwd=clone, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for role in ("worker", "master", "tunnel"):
        image = docker_engine.images.get(name_image(role))
        assert "pestfleet.context" not in image.labels  # built by hand


def test_by_hand(shell: Shell, each_compose: str, clone: Path, root: Path) -> None:
    build, *words = read_words(root)
    assert build == "python3 -m pestfleet.images build/images | sh"
    assert len(words) == 4
    for line in words:
        if each_compose == "compose_v1":
            line = line.replace("docker compose ", "docker-compose ")
        done = subprocess.run(
            line.split(),
            cwd=clone,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{line}:\n{done.stdout}"
    shell.check_nothing_left(SESSION)
    case = clone / "examples" / EXAMPLE
    how = ("--engine", "glm", "--workers", "2", "--session", "here", "--no-cache")
    shell.run("run", str(case), "--on", "local", *how)
    here = shell.open_folder("here").path
    # The results alone were copied.
    results = clone / "results"
    assert read_results(clone, EXAMPLE) == read_results(here, EXAMPLE)
    assert (results / f"{EXAMPLE}.rec").exists()
    assert read_runs(here)
