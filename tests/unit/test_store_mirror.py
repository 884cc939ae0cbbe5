"""A master's folder that is kept in a store while it works, end to end against moto."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pestfleet.folder import SessionFolder
from pestfleet.store import ClaimHeld, ClaimLost, Mirror, SessionStore
from pestfleet.store import mirror as mirror_module
from pestfleet.store.claim import Claim
from pestfleet.store.client import make_client
from pestfleet.store.errors import NoPermission, NotStored, Unreachable
from pestfleet.store.mirror import Pace
from s3_fakes import (
    PART,
    Requests,
    await_true,
    make_bucket_anew,
    make_folder,
    make_store,
    mock_s3,
)

FAST = Pace(claim=0.1, requests=0.05, state=0.05, files=0.05, settled=0.0)


@pytest.fixture(scope="module", autouse=True)
def _aws() -> Iterator[None]:
    with mock_s3():
        yield


@pytest.fixture(autouse=True)
def _bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    make_bucket_anew()
    monkeypatch.setattr(mirror_module, "TICK", 0.02)


def make_session(client: Any = None) -> SessionStore:
    return SessionStore(make_store(client=client), "s1")


@pytest.fixture
def there(tmp_path: Path) -> SessionFolder:
    """The folder in the master's container: not yet made; the session is in the store."""
    home = make_folder(tmp_path / "home" / "s1")
    session = make_session()
    session.put_case(home)
    session.push(home)
    return SessionFolder(tmp_path / "there" / "s1")


def make_mirror(folder: SessionFolder, *, client: Any = None, **more: Any) -> Mirror:
    given = {"holder": "task-1", "pace": FAST, "patience": 0.0, **more}
    return Mirror(make_session(client), folder, **given)


def test_a_session_from_its_beginning_to_its_end(there: SessionFolder, tmp_path: Path) -> None:
    user = make_session()
    with make_mirror(there):
        assert there.read_spec().session == "s1"
        assert (there.case / "case.pst").exists()
        there.acquire()
        there.write_state({"state": "running"})
        await_true(lambda: user.read_state() == {"state": "running"})
        there.journal.write_text('{"event": "start"}\n', encoding="utf-8")
        there.results.mkdir(exist_ok=True)
        (there.results / "case.par").write_text("k 1", encoding="utf-8")
        home = SessionFolder(tmp_path / "fetched" / "s1")
        await_true(lambda: "results/case.par" in user.pull(home))
        claim = user.read_claim()
        assert claim is not None
        assert claim.holder == "task-1"
        assert not claim.free
        user.request_workers(7)
        await_true(lambda: there.take_workers_request() == 7)
        user.request_stop()
        await_true(lambda: there.stop_requested)
        assert user.take_requests() == {}
        there.write_state({"state": "finished"})
        there.log.write_text("the end\n", encoding="utf-8")
        (there.path / "ended").write_text("launch-1 0\n", encoding="utf-8")
        there.release()
    assert user.read_ended() == "launch-1 0"
    assert user.read_state() == {"state": "finished"}
    user.pull(home)
    assert home.log.read_text(encoding="utf-8") == "the end\n"
    claim = user.read_claim()
    assert claim is not None
    assert claim.free


def test_the_next_master_goes_on(there: SessionFolder, tmp_path: Path) -> None:
    with make_mirror(there):
        there.write_state({"state": "running"})
        there.journal.write_text('{"event": "start"}\n', encoding="utf-8")
    second = SessionFolder(tmp_path / "second" / "s1")
    with make_mirror(second, holder="task-2"):
        assert second.journal.read_text(encoding="utf-8") == '{"event": "start"}\n'
        assert second.read_state() == {"state": "running"}


def test_a_request_waits_for_the_master(there: SessionFolder) -> None:
    """A master removes what was asked of the one before, as it begins."""
    make_session().request_stop()
    with make_mirror(there) as mirror:
        polled = threading.Event()
        mirror._sessions.take_requests = lambda *_: polled.set() or {}  # type: ignore
        assert not polled.wait(0.5)
        del mirror._sessions.take_requests
        there.acquire()
        there.write_state({})
        await_true(lambda: there.stop_requested)
        there.release()


def test_a_second_master_is_kept_out(there: SessionFolder, tmp_path: Path) -> None:
    with make_mirror(there):
        second = SessionFolder(tmp_path / "second" / "s1")
        with pytest.raises(ClaimHeld, match="task-1"):
            make_mirror(second, holder="task-2").__enter__()
        assert not second.path.exists()
    assert threading.active_count() < 20


def test_a_session_without_a_case_is_given_back(tmp_path: Path) -> None:
    folder = SessionFolder(tmp_path / "s1")
    with pytest.raises(NotStored):
        make_mirror(folder).__enter__()
    claim = make_session().read_claim()
    assert claim is not None
    assert claim.free
    assert [thread.name for thread in threading.enumerate() if thread.name == "mirror"] == []


def test_a_master_that_lost_its_claim_sends_nothing_more(there: SessionFolder) -> None:
    lost: list[ClaimLost] = []
    told: list[str] = []
    session = make_session()
    mirror = make_mirror(there, on_lost=lost.append, on_warning=told.append)
    with pytest.raises(ClaimLost, match="task-2"), mirror:
        Claim(session.store, "sessions/s1/claim", "s1").take("task-2", stale=-1)
        await_true(lambda: bool(lost))
        there.write_state({"state": "of the wrong master"})
    assert session.read_state() == {}
    assert any("not all of session s1 is in the store" in text for text in told)
    claim = session.read_claim()
    assert claim is not None
    assert (claim.holder, claim.free) == ("task-2", False)


def test_an_error_of_the_session_is_not_hidden(there: SessionFolder) -> None:
    session = make_session()
    with pytest.raises(KeyError), make_mirror(there):
        Claim(session.store, "sessions/s1/claim", "s1").take("task-2", stale=-1)
        raise KeyError("the session's own")


def test_a_store_that_fails_for_long_is_asked_again(
    there: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "SILENCE", 0.3)
    monkeypatch.setattr(mirror_module, "LONGEST_PAUSE", 0.1)
    client = make_client(region="us-east-1", attempts=1)
    requests, told = Requests(client), list[str]()
    with make_mirror(there, client=client, on_warning=told.append):
        requests.fail("", 100_000)
        there.write_state({"state": "running"})
        await_true(lambda: bool(told))
        assert "have not been sent for" in told[0]
        assert make_session().read_state() == {}
        requests.recover()
        await_true(lambda: make_session().read_state() == {"state": "running"})
        await_true(lambda: len(told) == 2)
        assert "answers again" in told[1]


def test_the_end_waits_for_the_store(there: SessionFolder) -> None:
    client = make_client(region="us-east-1", attempts=1)
    requests = Requests(client)
    with make_mirror(there, client=client):
        (there.path / "ended").write_text("launch-1 0\n", encoding="utf-8")
        requests.fail("", 3)
    assert make_session().read_ended() == "launch-1 0"


def test_an_end_that_cannot_be_sent_is_told(there: SessionFolder) -> None:
    client = make_client(region="us-east-1", attempts=1)
    requests, told = Requests(client), list[str]()
    mirror = make_mirror(there, client=client, on_warning=told.append, end_patience=0.1)
    with pytest.raises(Unreachable), mirror:
        requests.fail("", 100_000)
    assert "not all of session s1 is in the store" in told[-1]


def test_a_refusal_is_told_and_the_master_goes_on(
    there: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "SILENCE", 0.0)
    client = make_client(region="us-east-1")
    requests, told = Requests(client), list[str]()
    mirror = make_mirror(there, client=client, on_warning=told.append, end_patience=0.0)
    with pytest.raises(NoPermission), mirror:
        requests.fail("PutObject", 100_000, status=403, code="AccessDenied")
        await_true(lambda: bool(told))
    assert "cannot write" in told[0]


def test_a_request_that_says_nothing_is_told(there: SessionFolder) -> None:
    told: list[str] = []
    with make_mirror(there, on_warning=told.append):
        there.write_state({})
        make_session().request("scale", "many")
        await_true(lambda: bool(told))
    assert told == ["a request for workers does not say how many: 'many'"]


def test_the_claim_is_renewed_while_a_large_file_is_sent(there: SessionFolder) -> None:
    client = make_client(region="us-east-1")
    requests = Requests(client)
    pace = Pace(claim=0.0, requests=1e9, state=1e9, files=1e9)
    with make_mirror(there, client=client, pace=pace):
        there.results.mkdir(exist_ok=True)
        (there.results / "large").write_bytes(bytes(2 * PART + 1))
    names = [
        "claim" if "claim" in key else operation
        for operation, key in requests.keys
        if "claim" in key or operation == "UploadPart"
    ]
    parts = [index for index, name in enumerate(names) if name == "UploadPart"]
    assert len(parts) == 3
    assert "claim" in names[parts[0] : parts[-1]] or names[parts[-1] + 1 :].count("claim") >= 3


class Stepper:
    """Steps a mirror by hand, with a clock of its own; requests are counted."""

    def __init__(self, folder: SessionFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        client = make_client(region="us-east-1")
        self.requests = Requests(client)
        self.mirror = Mirror(make_session(client), folder, holder="task-1")
        self.folder = folder
        self._monkeypatch = monkeypatch
        self.mirror._sessions.claim("task-1")
        self.mirror._sessions.get_case(folder)
        self.mirror._sessions.pull(folder)
        self.mirror._ready = True
        self.mirror._counted = self.now
        monkeypatch.setattr(mirror_module.time, "monotonic", lambda: self.now)
        self.requests.keys.clear()

    def run(self, seconds: float, each: Any = None) -> None:
        for _ in range(int(seconds)):
            self.now += 1.0
            if each is not None:
                each()
            self.mirror._step()

    def count(self, part: str, operation: str = "PutObject") -> int:
        return sum(op == operation and part in key for op, key in self.requests.keys)


def test_an_hour_has_a_bounded_number_of_requests(
    there: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.path.mkdir(parents=True)
    stepper = Stepper(there, monkeypatch)
    number = 0

    def work() -> None:
        nonlocal number
        number += 1
        there.write_state({"state": "running", "runs": number})
        with there.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": "run", "id": number}) + "\n")

    stepper.run(300, work)
    assert stepper.count("state.json") == 60
    assert stepper.count("journal.jsonl") == 30
    assert stepper.count("claim") == 20
    lists = [key for op, key in stepper.requests.keys if op == "ListObjectsV2"]
    assert len(lists) <= 61
    assert len(stepper.requests.keys) <= 200  # 2,400 an hour


def test_what_does_not_change_is_not_sent(
    there: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.path.mkdir(parents=True)
    stepper = Stepper(there, monkeypatch)
    there.write_state({})
    stepper.run(100)
    assert stepper.count("/files/") == 1


def test_large_files_are_sent_less_often(
    there: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.path.mkdir(parents=True)
    stepper = Stepper(there, monkeypatch)
    data = bytes(4 << 20)
    stepper.mirror._pace = Pace(rate=(4 << 20) / 60)  # one minute's worth

    def work() -> None:
        there.log.write_bytes(data + str(stepper.now).encode())

    stepper.run(240, work)
    assert 3 <= stepper.count("master.log") <= 4


def test_results_are_sent_when_they_are_written(
    there: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.path.mkdir(parents=True)
    stepper = Stepper(there, monkeypatch)
    there.results.mkdir(exist_ok=True)
    path = there.results / "case.par"

    def work() -> None:
        path.write_text(str(stepper.now), encoding="utf-8")  # its time is the machine's

    stepper.run(290, work)
    assert stepper.count("case.par") == 0
    stepper.run(30, work)  # it never comes to rest
    assert stepper.count("case.par") == 1
    os.utime(path, (time.time() - 10,) * 2)
    stepper.run(10)
    assert stepper.count("case.par") == 2


def test_many_results_are_sent_bit_by_bit(
    there: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.path.mkdir(parents=True)
    stepper = Stepper(there, monkeypatch)
    stepper.mirror._pace = Pace(burst=20, per_second=0.5, settled=0.0)
    there.kits.mkdir(exist_ok=True)
    for number in range(60):
        there.kit_of(number).write_text(str(number), encoding="utf-8")
    stepper.run(10)
    assert stepper.count("/kits/") == 20
    stepper.run(40)
    assert stepper.count("/kits/") == 40
