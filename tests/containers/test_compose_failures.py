"""Launches that fail, at each of their steps: said in plain words, and nothing is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import docker
import pytest

from base_image import BASE
from cases import make_case, write_sweep
from compose_shell import Shell
from pestfleet_worker.errors import (
    ConfigurationError,
    RunsFailedError,
    SessionError,
    TargetError,
)

pytestmark = pytest.mark.docker

SESSION = "pf-fail"
# It does what docker-compose does, with a changed file or a changed end.
_WRAPPER = """#!/bin/sh
case "$*" in
*" up "*) {script} ;;
*) exec {program} "$@" ;;
esac
"""


def run(
    shell: Shell,
    *words: str,
    code: int = TargetError.exit_code,
    model: str = "",
    but_results: bool = False,
) -> str:
    """What a launch says that fails; it leaves nothing, `but_results` where runs were made."""
    case = make_case(shell.folder / "case", model=model)
    write_sweep(case.parent, runs=4)
    how = ("--engine", "sweep", "--workers", "2", "--session", SESSION, "--no-cache")
    said = shell.run("run", str(case), "--on", "compose", *how, *words, code=code)
    assert "Traceback" not in said and "defect" not in said
    assert "error: " in said
    shell.check_nothing_left(SESSION, but_results=but_results)
    return said


def wrap(shell: Shell, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a docker-compose in front of the real one that does `script` in place of `up`."""
    program = shutil.which("docker-compose")
    assert program is not None
    wrapper = shell.folder / "programs" / "docker-compose"
    wrapper.parent.mkdir()
    wrapper.write_text(_WRAPPER.format(program=program, script=script.replace("REAL", program)))
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")


def test_no_engine(shell: Shell, compose_v1: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{shell.folder}/none.sock")
    assert "no Docker engine" in run(shell)


def test_no_compose(shell: Shell, compose_v1: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.folder / "bin").mkdir()
    for name in ("sh", "sleep", "awk"):
        program = shutil.which(name)
        assert program is not None
        (shell.folder / "bin" / name).symlink_to(program)
    monkeypatch.setenv("PATH", str(shell.folder / "bin"))
    assert "docker compose is not installed" in run(shell)


def test_compose_fails_halfway(
    shell: Shell, compose_v1: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap(shell, monkeypatch, 'REAL "$@" credentials broker; echo "no more disk"; exit 14')
    said = run(shell)
    assert "ended with exit code 14" in said and "no more disk" in said


def test_credentials_fail(shell: Shell, compose_v1: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(shell, monkeypatch, "sed 's/- --part/- --prat/' | REAL \"$@\"")
    said = run(shell)
    assert "credentials ended with exit code 2" in said and "--prat" in said


def test_the_broker_s_image_cannot_be_had(
    shell: Shell, compose_v1: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PESTFLEET_IMAGE__BROKER", "127.0.0.1:1/no-such-broker:1")
    assert "127.0.0.1:1" in run(shell)


def test_the_broker_ends_at_once(
    shell: Shell, worker_image: str, compose_v1: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PESTFLEET_IMAGE__BROKER", worker_image)
    said = run(shell)
    assert "broker ended with exit code" in said and "again and again" in said


def test_the_case_cannot_be_copied(
    shell: Shell, compose_v1: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap(shell, monkeypatch, "sed 's:- /case$:- /no-case:' | REAL \"$@\"")
    said = run(shell)
    assert "case ended with exit code 1" in said and "/no-case" in said


@pytest.mark.parametrize("image", [BASE, "127.0.0.1:1/no-such-image:1"])
def test_the_image_has_no_case(shell: Shell, compose_v1: None, image: str) -> None:
    said = run(shell, "--image", image, code=ConfigurationError.exit_code)
    assert f"image {image} is no" in said and "leave --image out" in said


@pytest.fixture
def other_image(shell: Shell, docker_engine: docker.DockerClient) -> Iterator[str]:
    """An image with a case that differs in the number of parameters."""
    other = make_case(shell.folder / "other", parameters=4)
    shell.run("build", str(other), "-t", "pestfleet-test-other")
    yield "pestfleet-test-other"
    docker_engine.images.remove("pestfleet-test-other", force=True)


def test_the_image_has_another_case(shell: Shell, compose_v1: None, other_image: str) -> None:
    said = run(shell, "--image", other_image, code=ConfigurationError.exit_code)
    assert f"the image {other_image} has another case in it" in said


def test_a_worker_has_another_case(
    shell: Shell, compose_v1: None, other_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The desk has the last word, whatever was checked before."""
    wrap(
        shell,
        monkeypatch,
        f"sed '/^  worker:/,$s/image: .*case.*/image: {other_image}/' | REAL \"$@\"",
    )
    said = run(shell)
    assert "worker-1 ended with exit code 10" in said or "worker-2 ended with exit code 10" in said
    assert "build the image again" in said


def test_the_master_cannot_start(
    shell: Shell, compose_v1: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap(shell, monkeypatch, "sed 's/- sweep$/- sweeep/' | REAL \"$@\"")
    said = run(shell)
    assert f"master ended with exit code {ConfigurationError.exit_code}" in said
    assert "sweeep" in said


def test_the_engine_fails_and_its_id_is_in_use(shell: Shell, compose_v1: None) -> None:
    said = run(shell, model="#!/bin/sh\nexit 3\n", code=RunsFailedError.exit_code, but_results=True)
    assert "4 of 4 runs" in said
    shutil.rmtree(shell.folder / "pestfleet-sessions")
    said = run(shell, code=SessionError.exit_code, but_results=True)
    assert "the results of another session pf-fail are kept" in said
