"""A session's secrets in a Secret of Kubernetes: filled once, never emptied or mixed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from json_server import serve_json
from pestfleet import cluster_api
from pestfleet.cli.main import cli
from pestfleet.cluster_api import ClusterApi
from pestfleet.credentials import Choices, write_credentials
from pestfleet.credentials.cluster import fill_secret
from pestfleet_worker.errors import ConfigurationError

PARTS = ("broker", "master", "worker")
PATH = "/api/v1/namespaces/here/secrets/credentials"


@dataclass
class FakeApi:
    """One Secret behind the API; `answers`: error codes to give first."""

    secret: dict[str, Any] = field(
        default_factory=lambda: {"metadata": {"name": "credentials", "resourceVersion": "1"}}
    )
    answers: list[int] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    before_patch: dict[str, str] | None = None
    url: str = ""
    token: Path = Path("token")

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any]:
        self.asked.append((handler.command, handler.headers["Authorization"]))
        if self.answers:
            return self.answers.pop(0), {}
        if handler.path != PATH:
            return 404, {}
        if handler.command == "GET":
            return 200, self.secret
        assert handler.headers["Content-Type"] == "application/merge-patch+json"
        if self.before_patch is not None:
            self.secret["data"], self.before_patch = self.before_patch, None
            self.secret["metadata"]["resourceVersion"] = "2"
        change = json.loads(body)
        if change["metadata"]["resourceVersion"] != self.secret["metadata"]["resourceVersion"]:
            return 409, {}
        self.secret["data"] = change["data"]
        return 200, self.secret


@pytest.fixture
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeApi]:
    found = FakeApi(token=tmp_path_factory.mktemp("account") / "token")
    found.token.write_text("a-token\n")
    with serve_json(found.answer) as found.url:
        yield found


def connect(fake: FakeApi, *, patience: float = 30.0) -> ClusterApi:
    return ClusterApi(fake.url, "here", fake.token, None, patience=patience)


def make(folder: Path, session: str = "s") -> Path:
    write_credentials(folder, Choices(session), parts=PARTS)
    return folder


def test_an_empty_secret_is_filled_with_every_file(fake: FakeApi, tmp_path: Path) -> None:
    made = make(tmp_path)
    assert fill_secret(connect(fake), "credentials", made, parts=PARTS) is True
    there = {key: base64.b64decode(text) for key, text in fake.secret["data"].items()}
    assert there == {
        f"{part}.{path.name}": path.read_bytes()
        for part in PARTS
        for path in (made / part).iterdir()
    }
    assert {"broker.rabbitmq.conf", "master.broker-url", "worker.ca.pem"} <= set(there)
    assert {authorization for _, authorization in fake.asked} == {"Bearer a-token"}


def test_what_a_secret_has_is_kept(fake: FakeApi, tmp_path: Path) -> None:
    fill_secret(connect(fake), "credentials", make(tmp_path / "first"), parts=PARTS)
    kept = dict(fake.secret["data"])
    other = make(tmp_path / "other")
    assert fill_secret(connect(fake), "credentials", other, parts=PARTS) is False
    assert fake.secret["data"] == kept


def test_of_two_at_a_time_one_wins(fake: FakeApi, tmp_path: Path) -> None:
    one = make(tmp_path / "one")
    fill_secret(connect(fake), "credentials", one, parts=PARTS)
    fake.before_patch = fake.secret.pop("data")
    kept = dict(fake.before_patch)
    other = make(tmp_path / "other")
    assert fill_secret(connect(fake), "credentials", other, parts=PARTS) is False
    assert fake.secret["data"] == kept


def test_credentials_of_another_session_are_not_taken(fake: FakeApi, tmp_path: Path) -> None:
    fill_secret(connect(fake), "credentials", make(tmp_path / "one", "first"), parts=PARTS)
    kept = dict(fake.secret["data"])
    with pytest.raises(ConfigurationError, match="another session or broker") as caught:
        fill_secret(connect(fake), "credentials", make(tmp_path / "two", "second"), parts=PARTS)
    assert "kubectl patch secret credentials" in caught.value.remedy
    assert fake.secret["data"] == kept


def test_a_server_that_is_not_ready_is_asked_again(
    fake: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_api, "PAUSE", 0.01)
    fake.answers = [503, 500]
    assert fill_secret(connect(fake), "credentials", make(tmp_path), parts=PARTS) is True
    assert len(fake.asked) == 4


@pytest.mark.parametrize("code", [403, 404])
def test_a_refusal_is_explained_at_once(fake: FakeApi, tmp_path: Path, code: int) -> None:
    fake.answers = [code]
    with pytest.raises(ConfigurationError, match=f"namespace here: .* {code}"):
        fill_secret(connect(fake), "credentials", make(tmp_path), parts=PARTS)
    assert len(fake.asked) == 1


def test_a_server_that_is_not_there_is_an_error(fake: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token")
    nowhere = ClusterApi("http://127.0.0.1:1", "here", tmp_path / "token", None, patience=0.0)
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        fill_secret(nowhere, "credentials", make(tmp_path), parts=PARTS)


def test_outside_of_a_pod_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_api, "ACCOUNT", tmp_path)
    done = CliRunner().invoke(
        cli,
        ["credentials", str(tmp_path / "made"), "--session", "s", "--into-secret", "credentials"],
    )
    assert done.exit_code == ConfigurationError.exit_code
    assert "no pod with a service account" in done.output
