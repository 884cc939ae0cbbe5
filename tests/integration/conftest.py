"""Servers for the tests: a real RabbitMQ, the broker that a master embeds, and a fake S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from rabbitmq import RabbitMQ


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """One RabbitMQ for all tests; a test that stops it starts it again."""
    broker = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    try:
        broker.start()
        yield broker
    finally:
        broker.remove()


@pytest.fixture(params=["embedded", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """ "": the master embeds its broker; else RabbitMQ's URL."""
    if request.param == "embedded":
        return ""
    broker: RabbitMQ = request.getfixturevalue("rabbitmq")
    return broker.url


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    """The folder for a test's sessions."""
    return tmp_path / "sessions"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server (moto: a fake, but it answers over HTTP)."""
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    try:
        host, port = started.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        started.stop()


@pytest.fixture
def s3_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials for that server, and nothing of this machine's own."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
