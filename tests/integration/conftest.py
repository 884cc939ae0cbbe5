"""Brokers for the tests: a real RabbitMQ, and the one that a master embeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
