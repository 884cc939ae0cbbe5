"""A master that waits for its broker, and for the end of a master before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pestfleet import master as master_module
from pestfleet.master import Master
from pestfleet.targets.base import Site
from pestfleet.targets.joining import JoiningTarget
from pestfleet_worker.errors import (
    CaseError,
    ChannelError,
    Interrupted,
    PestfleetError,
    SessionError,
)
from session_files import make_session


class Broker:
    """Answers looks with these errors; `stop`: a file that is made meanwhile."""

    def __init__(self, *errors: PestfleetError) -> None:
        self.errors = list(errors)
        self.looks = 0
        self.stop: Path | None = None

    def check(self, url: str, session: str) -> None:
        self.looks += 1
        if self.stop is not None:
            self.stop.touch()
        raise self.errors.pop(0)


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_module, "BROKER_PAUSE", 0.0)


def make_master(root: Path, *, patience: float) -> Master:
    folder = make_session(root)
    site = Site(JoiningTarget, broker_patience=patience)
    return Master(folder, folder.read_spec(), broker_url="amqp://u:p@host//", site=site)


@pytest.mark.usefixtures("hold")
def test_a_master_waits_for_the_end_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(
        ChannelError("it starts"),
        SessionError("another master hosts a session s1"),
        CaseError("the test ends here"),
    )
    monkeypatch.setattr(master_module, "check_broker", broker.check)
    outcome = make_master(tmp_path, patience=60.0).host()
    assert broker.looks == 3
    assert isinstance(outcome.error, CaseError)


def test_without_patience_the_first_answer_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(SessionError("another master hosts a session s1"))
    monkeypatch.setattr(master_module, "check_broker", broker.check)
    outcome = make_master(tmp_path, patience=0.0).host()
    assert broker.looks == 1
    assert isinstance(outcome.error, SessionError)


@pytest.mark.usefixtures("hold")
def test_a_master_that_waits_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = make_master(tmp_path, patience=60.0)
    broker = Broker(ChannelError("it starts"), ChannelError("it starts"))
    broker.stop = tmp_path / "s1" / "stop"
    monkeypatch.setattr(master_module, "check_broker", broker.check)
    outcome = master.host()
    assert broker.looks == 1
    assert isinstance(outcome.error, Interrupted)
