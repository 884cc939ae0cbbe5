"""The fake PANTHER master and the fake agent understand each other."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from pestfleet.engines.gateway.frames import Frame, MessageType, encode_frame
from pestfleet.testing.panther_agent import FakeAgent, Model, ModelFailed
from pestfleet.testing.panther_master import AgentMisbehaved, Answer, FakeMaster

T = MessageType
VECTORS = [[float(row), 2.0] for row in range(20)]


def double(parameters: Sequence[float]) -> list[float]:
    if parameters[0] == 13:
        raise ModelFailed("unlucky")
    return [2 * parameters[0], parameters[1], -1.0]


def connect(master: FakeMaster) -> socket.socket:
    return socket.create_connection((master.host, master.port), timeout=10)


def make_runs(models: Sequence[tuple[Model, int | None]], *, failures: int = 1) -> list[Answer]:
    """Runs made by agents with these models and their most runs."""
    with FakeMaster(["p1", "p2"], ["o1", "o2", "o3"]) as master, ExitStack() as stack:
        for model, most in models:
            agent = FakeAgent(connect(master), model, most_runs=most)
            thread = threading.Thread(target=agent.serve)
            thread.start()
            stack.callback(thread.join)
            stack.callback(master.close)
        master.greet(len(models))
        return master.run_set(VECTORS, ping=True, most_failures=failures)


def test_runs_of_two_agents() -> None:
    answers = make_runs([(double, None), (double, None)])
    for row, answer in enumerate(answers):
        if row == 13:
            assert (answer.outcome, answer.description) == ("failed", "unlucky")
        else:
            assert answer.observations == (2.0 * row, 2.0, -1.0)
            assert answer.parameters == (row, 2.0)


def test_the_run_of_a_lost_agent_is_given_to_another() -> None:
    answers = make_runs([(double, 3), (double, None)])
    assert [answer.outcome for answer in answers].count("finished") == 19


def test_a_failed_run_is_tried_as_often_as_wanted() -> None:
    tries = []

    def count(parameters: Sequence[float]) -> list[float]:
        tries.append(parameters[0])
        return double(parameters)

    make_runs([(count, None)], failures=4)
    assert tries.count(13) == 4


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (Frame(T.RUN_FINISHED, 1, 0, data=bytes(40)), "a result with 5 values, not 6"),
        (Frame(T.RUN_FINISHED, 2, 0, data=bytes(48)), "an answer to run 0 of group 2"),
        (Frame(T.RUN_FAILED, 1, 7), "an answer to run 7 of group 1"),
        (Frame(T.READY), "ready before it had answered"),
        (Frame(T.RUNDIR), "sent RUNDIR"),
    ],
)
def test_the_master_notices_what_is_wrong(frame: Frame, message: str) -> None:
    class Wrong(FakeAgent):
        def _make_run(self, start: Frame) -> None:
            self._socket.sendall(encode_frame(frame))

    with FakeMaster(["p1", "p2"], ["o1", "o2", "o3"]) as master:
        agent = Wrong(connect(master), double)
        thread = threading.Thread(target=agent.serve)
        thread.start()
        master.greet()
        with pytest.raises(AgentMisbehaved, match=message):
            master.run_set([[1, 2]])
        master.close()
        thread.join()


def test_a_silent_agent_is_noticed() -> None:
    with FakeMaster(["p1"], ["o1"]) as master, connect(master):
        agent = master.accept()
        agent.send(T.PING)
        with pytest.raises(TimeoutError, match="said nothing"):
            agent.receive(timeout=0.05)
