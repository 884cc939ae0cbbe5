"""A store at a server's URL: against moto's server, over HTTP, as any that speaks S3."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.store import Mirror, SessionStore, Store, open_session
from pestfleet.store.client import make_client
from pestfleet.store.errors import NoBucket, NoCredentials, Unreachable
from pestfleet.store.mirror import Pace


@pytest.fixture(autouse=True)
def _login(s3_login: None) -> None: ...


@pytest.fixture
def place(s3_server: str) -> str:
    name = f"store-{secrets.token_hex(6)}"
    make_client(endpoint=s3_server, region="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}/team?endpoint={quote(s3_server, safe='')}&region=us-east-1"


def test_a_session_goes_there_and_back(place: str, tmp_path: Path) -> None:
    home = SessionFolder(tmp_path / "home" / "s1")
    home.create(SessionSpec("s1", "case.pst", "d", "ies", "ecs", 1, 1))
    home.case.mkdir()
    (home.case / "case.pst").write_text("pcf\n", encoding="utf-8")
    (home.case / "large").write_bytes(os.urandom(9 << 20))  # two parts
    user = open_session(place, "s1")
    user.put_case(home)
    user.push(home)
    there = SessionFolder(tmp_path / "there" / "s1")
    pace = Pace(requests=0.1, state=0.1, files=0.1)
    with Mirror(open_session(place, "s1"), there, holder="task-1", pace=pace):
        assert (there.case / "large").read_bytes() == (home.case / "large").read_bytes()
        there.write_state({"state": "finished"})
        (there.results / "case.par").parent.mkdir(exist_ok=True)
        (there.results / "case.par").write_text("k 1", encoding="utf-8")
    assert "results/case.par" in user.pull(home)
    assert user.read_state() == {"state": "finished"}
    claim = user.read_claim()
    assert claim is not None
    assert claim.free
    assert claim.age < 60
    user.remove()
    assert not user.exists()


def test_a_download_goes_on_in_another_process(place: str, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    store = Store(place)
    store.write("a", data)
    head = store.head("a")
    assert head is not None
    # What a process that was killed leaves.
    (tmp_path / "a.part").write_bytes(data[:1_000_000])
    (tmp_path / "a.part-of").write_text(head.etag, encoding="utf-8")
    told: list[int] = []
    Store(place).download("a", tmp_path / "a", on_progress=lambda done, _: told.append(done))
    assert (tmp_path / "a").read_bytes() == data
    assert told[0] > 1_000_000


def test_a_bucket_that_is_not_there_is_told(s3_server: str) -> None:
    options = f"?endpoint={quote(s3_server, safe='')}&region=us-east-1"
    with pytest.raises(NoBucket, match="nobody-has-this"):
        open_session(f"s3://nobody-has-this{options}", "s1").exists()


def test_missing_credentials_are_told(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps those of before
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(NoCredentials):
        open_session(place, "s1").exists()


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client: Any = make_client(endpoint=f"http://127.0.0.1:{port}", region="x", attempts=1)
    with pytest.raises(Unreachable, match="s3://bucket/"):
        SessionStore(Store("s3://bucket", client=client), "s1").exists()
