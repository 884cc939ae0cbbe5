"""What tells others that a worker is connected."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hosting import wait_for
from pestfleet.targets.addresses import find_free_port
from pestfleet_worker import health as module
from pestfleet_worker.health import Health


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "GLANCE", 0.01)
    return find_free_port()


def test_the_port_is_open_while_there_is_a_connection(tmp_path: Path, port: int) -> None:
    health = Health(tmp_path, port=port)
    assert not is_open(port)
    health.touch()
    wait_for(lambda: is_open(port), what="the port")
    for _ in range(200):  # more than would wait in a queue that nobody takes from
        assert is_open(port)
    health.remove()
    wait_for(lambda: not is_open(port), what="the port's end")


def test_a_connection_that_is_lost_closes_the_port(tmp_path: Path, port: int) -> None:
    health = Health(tmp_path, port=port, lasting=2.0)
    health.touch()
    wait_for(lambda: is_open(port), what="the port")
    wait_for(lambda: not is_open(port), what="the port's end")
    health.touch()
    wait_for(lambda: is_open(port), what="the port")
    health.remove()


def test_a_drained_worker_is_not_ready(tmp_path: Path, port: int) -> None:
    health = Health(tmp_path, port=port)
    health.touch()
    wait_for(lambda: is_open(port), what="the port")
    health.hide(True)
    health.touch()
    wait_for(lambda: not is_open(port), what="the port's end")
    assert not health.path.exists()
    health.hide(False)
    health.touch()
    wait_for(lambda: is_open(port), what="the port")
    health.remove()


def test_a_port_that_is_taken_is_no_reason_to_fail(
    tmp_path: Path, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("", port)):
        health = Health(tmp_path, port=port)
        health.touch()
        wait_for(lambda: "cannot be opened" in caplog.text, what="a warning")
    health.touch()
    wait_for(lambda: is_open(port), what="the port")
    health.remove()
