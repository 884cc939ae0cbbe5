"""What a user is told when the Docker engine is not there, or a build fails."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest
from docker.errors import APIError, DockerException

from pestfleet.images.engine import (
    build_image,
    connect_engine,
    explain_errors,
    find_engine_host,
    find_remedy,
)
from pestfleet_worker.errors import TargetError


class FakeEngine:
    """An engine whose builds give these messages."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = messages
        self.asked: dict[str, Any] = {}
        self.api = SimpleNamespace(build=self._build)

    def _build(self, **asked: Any) -> Iterator[dict[str, Any]]:
        self.asked = asked
        return iter(self.messages)


@pytest.mark.parametrize("listened", [False, True])
def test_no_engine(listened: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    if listened:  # there was one, once
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")

    with pytest.raises(TargetError, match="no Docker engine runs here") as caught:
        connect_engine()

    assert "DOCKER_HOST" in caught.value.remedy


def test_a_socket_for_others_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: object) -> None:
        aborted = ConnectionError("Connection aborted.", PermissionError(13, "Permission denied"))
        raise DockerException(f"Error while fetching server API version: {aborted}") from aborted

    monkeypatch.setattr(docker, "from_env", refuse)

    with pytest.raises(TargetError, match="may not be opened by this user") as caught:
        connect_engine()

    assert "group docker" in caught.value.remedy


def test_an_engine_whose_name_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "nonsense://x")

    with pytest.raises(TargetError, match="cannot be reached: Invalid bind address"):
        connect_engine()


def test_a_build_tells_its_lines_and_returns_the_id() -> None:
    engine = FakeEngine(
        {"stream": "Step 1/2 : FROM base"},
        {"stream": "\n"},
        {"stream": "one\r\n\x1b[91mtwo \n"},
        {"stream": "\x1b[0m\n"},
        {"aux": {"ID": "sha256:1"}},
        {"status": "no stream"},
    )
    lines: list[str] = []

    image = build_image(
        engine,  # type: ignore[arg-type]
        b"archive",
        tag="a:b",
        build_args={"BASE": "base"},
        labels={"l": "1"},
        network="host",
        on_line=lines.append,
    )

    assert image == "sha256:1"
    assert lines == ["Step 1/2 : FROM base", "one", "two"]
    assert engine.asked["fileobj"].read() == b"archive"
    assert (engine.asked["buildargs"], engine.asked["labels"]) == ({"BASE": "base"}, {"l": "1"})
    assert (engine.asked["network_mode"], engine.asked["tag"]) == ("host", "a:b")


def test_a_build_that_fails_tells_its_last_lines_and_what_to_do() -> None:
    lines = [{"stream": f"line {number}\n"} for number in range(40)]
    trouble = {"stream": "SSLError(SSLCertVerificationError: certificate verify failed)\n"}
    engine = FakeEngine(*lines, trouble, {"error": "returned a non-zero code: 1"})

    with pytest.raises(TargetError) as caught:
        build_image(engine, b"", tag="a:b")  # type: ignore[arg-type]

    message = caught.value.message
    assert message.startswith("image a:b cannot be built: returned a non-zero code: 1")
    assert "line 39" in message and "line 12\n" not in message
    assert "PESTFLEET_IMAGE__CA" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "pull access denied for x, repository does not exist or may require 'docker login'",
            "IMAGE__BASE",
        ),
        (
            'Get "https://registry.example/v2/": dial tcp: lookup registry.example: no such host',
            "IMAGE__BASE",
        ),
        ("manifest for debian:nonsense not found: manifest unknown", "IMAGE__BASE"),
        ("Temporary failure resolving 'deb.example'", "IMAGE__NETWORK"),
        ("NewConnectionError: [Errno -3] Temporary failure in name resolution", "IMAGE__NETWORK"),
        ("SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate", "IMAGE__CA"),
        ("ERROR: No matching distribution found for celery==9", "IMAGE__INDEX"),
        ("ERROR: ResolutionImpossible: for help visit https://…", "IMAGE__INDEX"),
        ("network nonet not found", "docker network ls"),
        ("E: Unable to locate package modflow", "[image] apt"),
        ("write /x: no space left on device", "docker system df"),
        ("something else", ""),
    ],
)
def test_remedies(text: str, part: str) -> None:
    remedy = find_remedy(text)

    assert part in remedy
    assert bool(remedy) == bool(part)


def test_an_answer_of_the_engine_becomes_an_error_of_ours() -> None:
    answer = SimpleNamespace(status_code=404, reason="Not Found", url="http+docker://x")

    with (
        pytest.raises(TargetError, match=r"^image x cannot be tagged: no such image") as caught,
        explain_errors("image x cannot be tagged"),
    ):
        raise APIError("404", response=answer, explanation="no such image")

    assert isinstance(caught.value.__cause__, APIError)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("unix:///run/docker.sock", "127.0.0.1"),
        ("npipe:////./pipe/docker_engine", "127.0.0.1"),
        ("tcp://10.1.2.3:2376", "10.1.2.3"),
        ("ssh://me@cloud.example.org", "cloud.example.org"),
    ],
)
def test_the_machine_that_an_engine_publishes_on(
    address: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    assert find_engine_host() == host
    # Without the variable the docker command's context counts.
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert find_engine_host() == "127.0.0.1"
    meta = {"Name": "c", "Metadata": {}, "Endpoints": {"docker": {"Host": address}}}
    folder = tmp_path / "contexts" / "meta" / hashlib.sha256(b"c").hexdigest()
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "config.json").write_text('{"currentContext": "c"}')
    assert find_engine_host() == host
