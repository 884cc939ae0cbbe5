"""A worker's decisions about runs and exit codes, without a broker."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pestfleet_worker import worker as worker_module
from pestfleet_worker.__main__ import _parse_arguments
from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.health import Health
from pestfleet_worker.messages import (
    Announce,
    Cancel,
    CaseSpec,
    Failure,
    Farewell,
    GivenBack,
    Limits,
    MasterBeat,
    Refusal,
    Result,
    Run,
    RunConfig,
    Stop,
    decode,
)
from pestfleet_worker.runs import Outcome
from pestfleet_worker.worker import BROKEN, MASTER_GONE, REFUSED, SENT_AWAY, SESSION_OVER, Worker

SPEC = CaseSpec("case", "d", ("p",), ("o",), (), (), ("./model",))
CONFIG = RunConfig("s", "queue", SPEC, Limits(), "/case", heartbeat=1.0, master_timeout=5.0)
RUN = Run(7, bytes(8))


class FakeOutbox:
    """Takes every parcel and confirms it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.said: list[Any] = []

    def publish(self, parcel: Any) -> Any:
        self.said.append(decode(parcel.body))
        return SimpleNamespace(wait=lambda timeout: True)

    def close(self, *, timeout: float) -> bool:
        return True


class FakeSlot:
    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.directory = Path("slot")

    def execute(self, parameters: bytes) -> Outcome:
        return self.outcome

    def cancel(self) -> bool:
        return True

    def close(self) -> None:
        raise OSError("a process still writes there")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Worker:
    monkeypatch.setattr(worker_module, "Outbox", FakeOutbox)
    worker = Worker("amqp://host//", "s", name="w", slots=1, scratch=tmp_path)
    worker._outbox = FakeOutbox()  # type: ignore[assignment]
    return worker


def make_run(
    worker: Worker, outcome: Outcome | None = None, *, slot: FakeSlot | None = None
) -> list[Any]:
    worker._place.slots = [slot or FakeSlot(outcome)]  # type: ignore[list-item, arg-type]
    worker._place.free.put(0)
    worker._make_run(RUN)
    said: list[Any] = worker._outbox.said  # type: ignore[attr-defined]
    return said


CANCELLED = Outcome(b"", Failure("cancelled", "the run was cancelled"), 0.1)


def test_a_finished_run_is_answered(worker: Worker) -> None:
    assert make_run(worker, Outcome(bytes(8), None, 0.5)) == [
        Result(7, "w", 0, 0.5, bytes(8), parameters=RUN.parameters)
    ]


def test_a_cancelled_run_is_neither_answered_nor_given_back(worker: Worker) -> None:
    worker._cancelled.add(7)
    assert make_run(worker, CANCELLED) == []


def test_a_run_that_was_hit_by_the_end_of_another_is_given_back(worker: Worker) -> None:
    worker._cancelled.add(6)  # it was in the slot a moment before
    assert make_run(worker, CANCELLED) == [GivenBack(7, "w")]


def test_a_run_that_fails_while_the_worker_leaves_is_given_back(worker: Worker) -> None:
    class Struck(FakeSlot):
        def execute(self, parameters: bytes) -> Outcome:
            worker._leaving.set()
            return self.outcome

    struck = Struck(Outcome(b"", Failure("model-failed", "killed by SIGTERM"), 0.1))
    assert make_run(worker, slot=struck) == [GivenBack(7, "w")]


def test_what_comes_while_a_worker_drains_is_given_back(worker: Worker) -> None:
    worker._drainage.active = True
    assert make_run(worker, Outcome(bytes(8), None, 0.5)) == [GivenBack(7, "w")]
    assert worker._place.free.get_nowait() == 0


def configured(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A worker with a run config; gives the exit codes with which it leaves."""
    left: list[int] = []
    monkeypatch.setattr(worker, "leave", lambda code, reason: left.append(code))
    worker._config = replace(CONFIG, master="first")
    return left


def test_a_new_master_is_told_who_is_there(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    left = configured(worker, monkeypatch)
    worker._on_control(MasterBeat("first"))
    assert worker._outbox.said == []  # type: ignore[attr-defined]
    worker._on_control(MasterBeat("second"))
    (announcement,) = worker._outbox.said  # type: ignore[attr-defined]
    assert isinstance(announcement, Announce)
    worker._on_control(replace(CONFIG, master="second", master_timeout=900.0))
    worker._on_control(MasterBeat("second"))
    assert len(worker._outbox.said) == 1  # type: ignore[attr-defined]
    assert worker._config is not None and worker._config.master_timeout == 900.0
    assert left == []


@pytest.mark.parametrize(
    "other",
    [
        replace(CONFIG, limits=Limits(seconds=9.0)),
        replace(CONFIG, case=replace(SPEC, digest="e")),
        replace(CONFIG, mode="agent"),
        replace(CONFIG, source="/elsewhere"),
    ],
)
def test_a_worker_does_not_go_on_with_another_run_config(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, other: RunConfig
) -> None:
    left = configured(worker, monkeypatch)
    worker._on_control(other)
    assert left == [MASTER_GONE]


def test_a_worker_that_the_next_master_refuses_leaves(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = configured(worker, monkeypatch)
    worker._on_control(Refusal("its image holds another case"))
    assert left == [MASTER_GONE]


def test_what_one_master_cancelled_another_may_want(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(worker, monkeypatch)
    worker._on_control(Cancel((RUN.id,)))
    worker._on_control(MasterBeat("second"))
    worker._on_control(Cancel((8,)))
    worker._on_control(MasterBeat("second"))
    worker._on_control(replace(CONFIG, master="second"))
    said = make_run(worker, Outcome(bytes(8), None, 0.5))
    assert [type(one) for one in said] == [Announce, Announce, Result]
    worker._place.free.put(0)
    worker._make_run(Run(8, bytes(8)))
    assert len(said) == 3, "what the second one cancelled stays so"


def test_the_end_of_the_session_is_told_even_if_it_takes_long(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(worker_module.os, "_exit", codes.append)
    worker._drop_everything()
    worker._exit_code = SESSION_OVER
    worker._drop_everything()
    assert codes == [MASTER_GONE, SESSION_OVER]


def serve(worker: Worker, monkeypatch: pytest.MonkeyPatch, **parts: Any) -> int:
    monkeypatch.setattr(worker_module, "await_run_config", lambda *_, **__: CONFIG)
    monkeypatch.setattr(worker, "_prepare_slots", lambda config: None)
    for name, part in parts.items():
        monkeypatch.setattr(worker, name, part)
    return worker.serve()


def fail(error: Exception) -> Any:
    def raise_it(*_: object) -> None:
        raise error

    return raise_it


def test_only_the_end_of_the_session_looks_like_success(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Celery's loop ends by itself on what it takes for unrecoverable.
    assert serve(worker, monkeypatch, _serve_runs=lambda config: None) == BROKEN

    def be_stopped(config: RunConfig) -> None:
        worker._exit_code = SESSION_OVER

    assert serve(worker, monkeypatch, _serve_runs=be_stopped) == SESSION_OVER
    monkeypatch.setattr(worker_module, "await_run_config", lambda *_, **__: Stop("over"))
    assert worker.serve() == SESSION_OVER


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ConfigurationError("no such case"), REFUSED, "no such case"),
        (OSError(28, "No space left on device"), BROKEN, "OSError: [Errno 28] No space left"),
        (KeyError("x"), BROKEN, "KeyError: 'x'"),
    ],
)
def test_a_worker_that_cannot_begin_says_why(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: int,
    reason: str,
) -> None:
    assert serve(worker, monkeypatch, _prepare_slots=fail(error)) == code
    assert reason in caplog.messages[-1]
    (farewell,) = worker._outbox.said  # type: ignore[attr-defined]
    assert isinstance(farewell, Farewell) and reason in farewell.reason


def test_slots_that_cannot_be_removed_do_not_change_the_exit_code(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker._place.slots = [FakeSlot(CANCELLED)]  # type: ignore[list-item]
    worker._exit_code = SENT_AWAY
    assert serve(worker, monkeypatch, _serve_runs=lambda config: None) == SENT_AWAY


def test_a_pulse_that_fails_ends_the_worker(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_slot_state", fail(RuntimeError("a defect")))
    left = threading.Event()
    monkeypatch.setattr(worker, "_leave", lambda reason: left.set())
    config = RunConfig("s", "queue", SPEC, Limits(), "", heartbeat=0.01, master_timeout=5.0)
    worker._keep_pulse(config)
    assert left.wait(5) and worker._exit_code == BROKEN


def test_workers_of_one_name_have_slots_of_their_own(tmp_path: Path) -> None:
    one, other = (Worker("amqp://h//", "s", name="w", slots=1, scratch=tmp_path) for _ in range(2))
    assert one._place.directory_of(0) != other._place.directory_of(0)


def test_a_worker_without_a_slot_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least 1 slot, not 0"):
        Worker("amqp://h//", "s", name="w", slots=0, scratch=tmp_path)


def test_the_health_file_is_no_reason_to_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    health = Health(tmp_path / "scratch")
    health.touch()
    assert (tmp_path / "scratch" / "alive").exists()
    health.remove()
    health.remove()
    assert not list((tmp_path / "scratch").iterdir())
    (tmp_path / "file").touch()
    broken = Health(tmp_path / "file")
    broken.touch()
    assert "cannot be touched" in caplog.messages[-1]
    broken.remove()
    assert "stays" in caplog.messages[-1]


def test_the_digest_may_come_from_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pestfleet-worker", "--session", "s"])
    assert _parse_arguments().digest == ""
    monkeypatch.setenv("PESTFLEET_DIGEST", "d" * 64)
    assert _parse_arguments().digest == "d" * 64
    monkeypatch.setattr("sys.argv", ["pestfleet-worker", "--session", "s", "--digest", "e"])
    assert _parse_arguments().digest == "e"
