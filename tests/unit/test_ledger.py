"""The ledger: each vector is made once, journaled, remembered, and answered to all who asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import pytest

from pestfleet.fleet import Fleet
from pestfleet.journal import Journal, read_finished_runs, read_journal
from pestfleet.ledger import RunLedger
from pestfleet_worker.errors import SessionError
from pestfleet_worker.messages import CaseSpec, Failure, Result, Run, pack_vector

SPEC = CaseSpec("c", "d" * 64, ("a",), ("x", "y"), (), (), ("m",))
ONE, TWO = pack_vector([1.0]), pack_vector([2.0])
ANSWER = pack_vector([10.0, 20.0])


class FakeFleet:
    """Takes runs; a test finishes them by hand."""

    slots = 2

    def __init__(self) -> None:
        self.asked: list[Run] = []
        self.cancelled: list[int] = []
        self._takers: dict[int, Callable[[Run, Result], None]] = {}

    def submit(self, parameters: bytes, on_result: Callable[[Run, Result], None]) -> int:
        run = Run(len(self.asked) + 100, parameters)
        self.asked.append(run)
        self._takers[run.id] = on_result
        return run.id

    def cancel(self, runs: Iterable[int]) -> None:
        self.cancelled += runs

    def finish(
        self, run: Run, observations: bytes = ANSWER, failure: Failure | None = None
    ) -> None:
        self._takers[run.id](run, Result(run.id, "w", 0, 2.0, observations, failure))


class FakeStore:
    """A run cache in memory."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def lookup(self, parameters: bytes) -> bytes | None:
        return self.kept.get(parameters)

    def store(self, parameters: bytes, observations: bytes, seconds: float) -> None:
        self.kept[parameters] = observations


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def ledger(fleet: FakeFleet, store: FakeStore, tmp_path: Path) -> RunLedger:
    return RunLedger(
        cast(Fleet, fleet),
        SPEC,
        Journal(tmp_path / "journal.jsonl"),
        finished={},
        check_stop=lambda: None,
        store=store,
    )


def test_a_run_is_journaled_and_answered(
    ledger: RunLedger, fleet: FakeFleet, store: FakeStore, tmp_path: Path
) -> None:
    got: list[Result] = []
    number = ledger.request(ONE, got.append)
    assert not got
    fleet.finish(fleet.asked[0])
    assert [(r.id, r.observations) for r in got] == [(number, ANSWER)]
    assert read_finished_runs(tmp_path / "journal.jsonl") == {ONE: ANSWER}
    assert store.kept == {ONE: ANSWER}
    assert ledger.counts.mean_seconds == 2.0


def test_who_asks_for_the_same_waits_for_the_same_run(ledger: RunLedger, fleet: FakeFleet) -> None:
    got: list[Result] = []
    numbers = [ledger.request(ONE, got.append), ledger.request(ONE, got.append)]
    assert len(fleet.asked) == 1
    fleet.finish(fleet.asked[0])
    assert [result.id for result in got] == numbers
    third = ledger.request(ONE, got.append)
    assert len(fleet.asked) == 1 and got[-1].id == third
    counts = ledger.counts
    assert (counts.requested, counts.answered, counts.known, counts.made) == (3, 3, 1, 1)


def test_the_store_answers_before_the_fleet(
    ledger: RunLedger, fleet: FakeFleet, store: FakeStore
) -> None:
    store.kept[TWO] = ANSWER
    got: list[Result] = []
    ledger.request(TWO, got.append)
    assert got[0].observations == ANSWER and not fleet.asked


def test_a_stored_run_of_another_size_is_made_again(
    ledger: RunLedger, fleet: FakeFleet, store: FakeStore
) -> None:
    store.kept[TWO] = ANSWER[:8]
    ledger.request(TWO, lambda _: None)
    assert len(fleet.asked) == 1


def test_a_failed_run_is_answered_and_not_remembered(
    ledger: RunLedger, fleet: FakeFleet, store: FakeStore, tmp_path: Path
) -> None:
    got: list[Result] = []
    ledger.request(ONE, got.append)
    fleet.finish(fleet.asked[0], b"", Failure("model-failed", "exit code 3"))
    assert got[0].failure is not None and not store.kept
    ledger.request(ONE, got.append)
    assert len(fleet.asked) == 2
    events = list(read_journal(tmp_path / "journal.jsonl"))
    assert events[0]["failure"]["reason"] == "model-failed"


def test_a_run_has_the_name_that_it_was_asked_for_by(
    ledger: RunLedger, fleet: FakeFleet, tmp_path: Path
) -> None:
    ledger.request(ONE, lambda _: None, name="first")
    ledger.request(ONE, lambda _: None, name="again")
    ledger.request(TWO, lambda _: None)
    for run in fleet.asked:
        fleet.finish(run)
    events = list(read_journal(tmp_path / "journal.jsonl"))
    assert [event.get("name") for event in events] == ["first", None]


def test_an_answer_of_the_wrong_size_is_a_failure(ledger: RunLedger, fleet: FakeFleet) -> None:
    got: list[Result] = []
    ledger.request(ONE, got.append)
    fleet.finish(fleet.asked[0], b"12345678")
    assert got[0].failure is not None
    assert got[0].failure.message == "worker w sent 8 bytes, not 16"


def test_cancelling_spares_a_run_that_others_wait_for(ledger: RunLedger, fleet: FakeFleet) -> None:
    got: list[Result] = []
    first, second = ledger.request(ONE, got.append), ledger.request(ONE, got.append)
    ledger.cancel([first])
    assert fleet.cancelled == []
    ledger.cancel([second, second, 999])
    assert fleet.cancelled == [fleet.asked[0].id]
    assert ledger.counts.requested == 0


def test_a_journal_that_cannot_be_written_stops_the_session(
    ledger: RunLedger, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "write_run", fail)
    got: list[Result] = []
    ledger.request(ONE, got.append)
    fleet.finish(fleet.asked[0])
    assert not got
    with pytest.raises(SessionError, match=r"the journal cannot be written: .*No space left"):
        ledger.check_stop()


def earlier(
    parameters: bytes, observations: bytes = ANSWER, failure: Failure | None = None
) -> Result:
    """What a worker answered to a master before ours."""
    return Result(7, "w", 0, 2.0, observations, failure, parameters=parameters)


def test_a_run_that_an_earlier_master_wanted_is_not_made_again(
    ledger: RunLedger, fleet: FakeFleet, store: FakeStore, tmp_path: Path
) -> None:
    ledger.adopt(earlier(ONE))
    answers: list[Result] = []
    ledger.request(ONE, answers.append)
    assert [answer.observations for answer in answers] == [ANSWER]
    assert fleet.asked == [] and store.kept == {ONE: ANSWER}
    assert read_finished_runs(tmp_path / "journal.jsonl") == {ONE: ANSWER}


def test_a_run_that_is_under_way_twice_counts_once(
    ledger: RunLedger, fleet: FakeFleet, tmp_path: Path
) -> None:
    answers: list[Result] = []
    number = ledger.request(ONE, answers.append, name="mine")
    ledger.adopt(earlier(ONE))
    assert [(a.id, a.observations, a.parameters) for a in answers] == [(number, ANSWER, b"")]
    assert fleet.cancelled == [fleet.asked[0].id]
    ledger.adopt(earlier(ONE))
    (run,) = [e for e in read_journal(tmp_path / "journal.jsonl") if e["event"] == "run"]
    assert (run["id"], run["name"]) == (7, "mine")
    assert ledger.counts.made == ledger.counts.answered == 1


@pytest.mark.parametrize(
    "result",
    [earlier(ONE, b"", Failure("model-failed", "no")), earlier(ONE, ANSWER[:8]), earlier(ONE, b"")],
)
def test_a_failure_of_before_is_no_answer(
    ledger: RunLedger, fleet: FakeFleet, result: Result, tmp_path: Path
) -> None:
    answers: list[Result] = []
    ledger.request(ONE, answers.append)
    ledger.adopt(result)
    assert answers == [] and fleet.cancelled == []
    fleet.finish(fleet.asked[0])
    assert len(answers) == 1
