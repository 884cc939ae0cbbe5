"""A worker in a task of ECS that is not ended while it has a run; the agent is a fake."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fake_ecs_agent import FakeEcsAgent, serve_agent
from hosting import wait_for
from pestfleet_worker.ecs_agent import name_task, name_worker
from pestfleet_worker.protection import IDLE, MINUTES, OFTEN, RENEWAL, SPAN, Protection


class Clock:
    """Time as the test says; whoever waits for a moment looks often."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class QuickCondition(threading.Condition):
    """Waits are short: the clock is moved by the test."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(timeout if timeout is None else 0.005)


@pytest.fixture
def agent() -> Iterator[FakeEcsAgent]:
    with serve_agent() as agent:
        yield agent


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def protection(
    agent: FakeEcsAgent, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Protection]:
    monkeypatch.setenv("ECS_AGENT_URI", f"{agent.url}/api/1")
    protection = Protection.find()
    # For good: its thread may still be asking when the test is over.
    protection._clock = clock
    protection._changed = QuickCondition()
    yield protection
    protection.close()


def wait_for_states(agent: FakeEcsAgent, *states: bool) -> None:
    wait_for(lambda: len(agent.asked) >= len(states), what=f"requests {states}")
    settle()
    assert agent.states == list(states)


def settle() -> None:
    """Long enough for the thread to have asked for more, were it to."""
    time.sleep(0.05)


def test_a_run_protects_its_task_and_its_end_does_not_expose_it_at_once(
    protection: Protection, agent: FakeEcsAgent, clock: Clock
) -> None:
    protection.update(busy=False, drained=False)
    settle()
    assert agent.asked == []
    protection.update(busy=True, drained=False)
    wait_for_states(agent, True)
    assert agent.asked == [{"ProtectionEnabled": True, "ExpiresInMinutes": MINUTES}]
    protection.update(busy=False, drained=False)
    clock.now += IDLE - 1
    wait_for_states(agent, True)
    protection.update(busy=True, drained=False)
    protection.update(busy=False, drained=False)
    clock.now += IDLE - 1
    wait_for_states(agent, True)
    clock.now += 2
    wait_for_states(agent, True, False)
    assert agent.asked[-1] == {"ProtectionEnabled": False}


def test_a_drained_worker_may_go_at_once(
    protection: Protection, agent: FakeEcsAgent, clock: Clock
) -> None:
    protection.update(busy=True, drained=False)
    wait_for_states(agent, True)
    protection.update(busy=False, drained=True)
    wait_for_states(agent, True, False)
    protection.update(busy=True, drained=False)  # it was wanted again
    wait_for_states(agent, True, False, True)


def test_a_long_run_renews_it_before_it_expires(
    protection: Protection, agent: FakeEcsAgent, clock: Clock
) -> None:
    assert RENEWAL < MINUTES * 60 / 2
    protection.update(busy=True, drained=False)
    wait_for_states(agent, True)
    for count in range(2, 6):
        wait_for(lambda: protection._protected == clock.now, what="the answer's time")
        clock.now += RENEWAL - 1
        wait_for_states(agent, *[True] * (count - 1))
        clock.now += 2
        wait_for_states(agent, *[True] * count)


def test_many_short_runs_make_few_requests(
    protection: Protection, agent: FakeEcsAgent, clock: Clock
) -> None:
    for _ in range(20):
        protection.update(busy=True, drained=False)
        settle()
        protection.update(busy=False, drained=True)
        settle()
    assert len(agent.asked) == OFTEN
    protection.update(busy=True, drained=False)
    clock.now += SPAN - 1
    settle()
    assert len(agent.asked) == OFTEN
    clock.now += 1
    wait_for(lambda: len(agent.asked) == OFTEN + 1, what="the request that was due")
    assert agent.states[-1] is True


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (400, {"error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}),
        (200, {"failure": {"Arn": "a", "Detail": None, "Reason": "TASK_NOT_VALID"}}),
        (500, "broken"),
        (404, []),
    ],
)
def test_trouble_with_the_agent_is_told_once_and_met_with_patience(
    status: int,
    content: object,
    protection: Protection,
    agent: FakeEcsAgent,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent.answers = [(status, content)] * 3
    protection.update(busy=True, drained=False)
    wait_for_states(agent, True)
    for pause, count in ((15, 2), (30, 3), (60, 4)):
        clock.now += pause - 1
        settle()
        assert len(agent.asked) == count - 1
        clock.now += 1.1
        wait_for_states(agent, *[True] * count)
    told = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1 and "does not change this task's protection" in told[0].getMessage()
    protection.update(busy=False, drained=True)
    wait_for_states(agent, True, True, True, True, False)


def test_an_agent_that_does_not_answer_holds_nobody_up(
    protection: Protection, agent: FakeEcsAgent
) -> None:
    agent.gate.clear()
    protection.update(busy=True, drained=False)
    wait_for(lambda: agent.asked, what="the request")
    for _ in range(1000):
        protection.update(busy=False, drained=True)
        protection.update(busy=True, drained=False)
    protection.close()
    assert agent.states == [True]


def test_an_agent_that_is_gone_is_no_reason_to_end(
    protection: Protection, agent: FakeEcsAgent, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Protection("http://127.0.0.1:9/api/1")  # discard: nobody listens there
    lost.update(busy=True, drained=False)
    wait_for(lambda: "protection" in caplog.text, what="the warning")
    lost.close()


def test_outside_of_ecs_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECS_AGENT_URI", raising=False)
    threads = threading.active_count()
    protection = Protection.find()
    protection.update(busy=True, drained=False)
    protection.close()
    assert threading.active_count() <= threads


def test_after_the_end_nothing_is_asked(
    protection: Protection, agent: FakeEcsAgent, clock: Clock
) -> None:
    protection.update(busy=True, drained=False)
    wait_for_states(agent, True)
    protection.close()
    settle()
    clock.now += 10 * RENEWAL
    protection.update(busy=False, drained=True)
    settle()
    assert agent.states == [True]


def test_a_worker_has_the_name_of_its_task(
    agent: FakeEcsAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECS_CONTAINER_METADATA_URI_V4", f"{agent.url}/v4/task-1")
    assert name_task() == "task-0123456789ab"
    assert name_worker("arn:aws:ecs:eu-central-1:1:task/c/0123456789abcdef") == name_task()


def test_a_worker_elsewhere_has_another_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("ECS_CONTAINER_METADATA_URI_V4", raising=False)
    assert name_task() == ""
    monkeypatch.setenv("ECS_CONTAINER_METADATA_URI_V4", "http://127.0.0.1:9/v4/task-1")
    assert name_task() == ""
    assert "does not say which task this is" in caplog.text


def test_an_answer_that_is_cut_off_is_asked_for_again() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")

    threading.Thread(target=serve, daemon=True).start()
    protection = Protection(f"http://127.0.0.1:{server.getsockname()[1]}")
    protection._changed = QuickCondition()
    try:
        protection.update(busy=True, drained=False)
        wait_for(lambda: protection._failures > 1, what="a second try")
    finally:
        protection.close()
        server.close()
