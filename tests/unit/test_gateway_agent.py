"""What one agent of the gateway answers to the master, byte for byte."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pestfleet.engines.gateway.agent import ATTEMPTS, Agent, Counters
from pestfleet.engines.gateway.frames import (
    Frame,
    FrameError,
    FrameReader,
    MessageType,
    encode_frame,
    pack_names,
)
from pestfleet.engines.gateway.names import Interface, NamesError
from pestfleet.testing.run_service import make_spec
from pestfleet_worker.errors import ChannelError, PestfleetError
from pestfleet_worker.messages import Failure, Result

T = MessageType
NAN_WITH_BITS = struct.unpack("<d", bytes.fromhex("efbeaddeadbef8ff"))[0]


def pack(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


class Service:
    """A run service that answers when the test says so."""

    def __init__(self) -> None:
        self.spec = make_spec(("p1", "p2"), ("o1", "o2", "o3"))
        self.slots = 1
        self.asked: list[tuple[int, bytes, Callable[[Result], None]]] = []
        self.cancelled: list[int] = []
        self.broken: Exception | None = None
        self._numbers = itertools.count(100)

    def request(self, parameters: bytes, on_result: Callable[[Result], None]) -> int:
        if self.broken:
            raise self.broken
        number = next(self._numbers)
        self.asked.append((number, parameters, on_result))
        return number

    def cancel(self, runs: Iterable[int]) -> None:
        self.cancelled += runs

    def check_stop(self) -> None: ...

    def answer(self, observations: bytes = b"", failure: Failure | None = None) -> None:
        """Answer the latest request."""
        number, _, on_result = self.asked[-1]
        on_result(Result(number, "w1", 2, 3.0, observations, failure))


class Talk:
    """An agent with its service; `sent` has what went to the master since the last look."""

    def __init__(self, *, whole_cycles: bool = False) -> None:
        self.service = Service()
        self.counters = Counters()
        self._sent = b""
        self._posted: list[Callable[[], None]] = []
        self.agent = Agent(
            "here",
            service=self.service,
            interface=Interface(self.service.spec, whole_cycles=whole_cycles),
            counters=self.counters,
            send=self._send,
            post=self._posted.append,
        )

    def _send(self, data: bytes) -> None:
        self._sent += data

    def tell(self, kind: MessageType, **fields: object) -> None:
        self.agent.receive(Frame(kind, **fields))  # type: ignore[arg-type]

    def greet(self) -> Talk:
        """All that precedes the first run; the master's order is not the case's."""
        self.tell(T.REQ_RUNDIR, data=b"\0")
        self.tell(T.PAR_NAMES, data=pack_names(["P2", "P1"]))
        self.tell(T.OBS_NAMES, data=pack_names(["O3", "O1", "O2"]))
        self.tell(T.REQ_LINPACK, data=b"\0")
        self.sent()
        return self

    def start(self, run: int = 7, description: str = " realization:base ") -> Talk:
        self.tell(T.START_RUN, group=4, run=run, description=description, data=pack(2, 1))
        return self

    def sent(self) -> bytes:
        """What was sent, after all that was posted has been done."""
        while self._posted:
            self._posted.pop(0)()
        data, self._sent = self._sent, b""
        return data

    def sent_frames(self) -> list[Frame]:
        return list(FrameReader(lambda _: 10**6).feed(self.sent()))


READY = encode_frame(Frame(T.READY))
PING = encode_frame(Frame(T.PING))


def test_greeting() -> None:
    talk = Talk()
    talk.tell(T.REQ_RUNDIR, data=b"\0")
    assert talk.sent() == encode_frame(Frame(T.RUNDIR, data=b"here"))
    talk.tell(T.PAR_NAMES, data=pack_names(["p1", "p2"]))
    talk.tell(T.OBS_NAMES, data=pack_names(["o1", "o2", "o3"]))
    assert talk.sent() == b""
    talk.tell(T.REQ_LINPACK, data=b"\0")
    assert talk.sent() == encode_frame(Frame(T.LINPACK))


def test_a_run() -> None:
    talk = Talk().greet().start()
    assert talk.sent() == b""
    assert [vector for _, vector, _ in talk.service.asked] == [pack(1, 2)]
    talk.service.answer(pack(10, 20, 30))
    assert talk.sent() == (
        encode_frame(
            Frame(
                T.RUN_FINISHED,
                4,
                7,
                "realization:base worker:w1 slot:2 worker_time:0.05",
                pack(2, 1) + pack(30, 10, 20) + pack(3),
            )
        )
        + READY
    )
    assert talk.agent.idle
    assert (talk.counters.requested, talk.counters.finished) == (1, 1)


def test_doubles_are_bit_exact() -> None:
    talk = Talk().greet()
    strange = pack(-0.0, 5e-324)
    talk.tell(T.START_RUN, group=1, run=0, data=strange)
    assert talk.service.asked[0][1] == strange[8:] + strange[:8]
    talk.service.answer(pack(0.1 + 0.2, NAN_WITH_BITS, -1e308))
    (finished, _) = talk.sent_frames()
    assert finished.data == strange + pack(-1e308, 0.1 + 0.2, NAN_WITH_BITS) + pack(3)


def test_a_ping_during_a_run_does_not_disturb_it() -> None:
    talk = Talk().greet().start()
    talk.tell(T.PING)
    assert talk.sent() == PING
    talk.service.answer(pack(1, 2, 3))
    talk.tell(T.PING)  # between the result and its answer
    ping, finished, ready = talk.sent_frames()
    assert (finished.type, finished.group, finished.run) == (T.RUN_FINISHED, 4, 7)
    assert (ping.type, ping.group, ping.run) == (T.PING, 0, 0)
    assert ready.type is T.READY


@pytest.mark.parametrize(
    "reason",
    [
        "bad-input",
        "model-failed",
        "time-limit",
        "output-missing",
        "instruction-failed",
        "non-finite",
        "killed-worker",
    ],
)
def test_what_the_model_did_fails_the_run(reason: str) -> None:
    talk = Talk().greet().start()
    talk.service.answer(failure=Failure(reason, "no such\nthing: é", "out.dat", 3))
    assert talk.sent() == (
        encode_frame(
            Frame(
                T.RUN_FAILED,
                4,
                7,
                f"group_id:4 run_id:7 realization:base {reason}: out.dat:3: no such thing: ?",
            )
        )
        + READY
    )
    assert len(talk.service.asked) == 1
    assert talk.counters.failed == 1


def test_the_reason_is_told_also_after_a_long_description() -> None:
    talk = Talk().greet().start(description="x" * 1000)
    talk.service.answer(failure=Failure("model-failed", "exit code 3"))
    assert talk.sent_frames()[0].description.endswith("x model-failed: exit code 3")


@pytest.mark.parametrize("reason", ["worker-error", "disk-full"])
def test_a_workers_trouble_does_not_fail_the_run_at_once(reason: str) -> None:
    talk = Talk().greet().start()
    for attempt in range(1, ATTEMPTS):
        talk.service.answer(failure=Failure(reason, "trouble"))
        assert talk.sent() == b""
        assert len(talk.service.asked) == attempt + 1
    assert {vector for _, vector, _ in talk.service.asked} == {pack(1, 2)}
    talk.service.answer(pack(1, 2, 3))
    assert [frame.type for frame in talk.sent_frames()] == [T.RUN_FINISHED, T.READY]
    assert (talk.counters.asked_again, talk.counters.failed) == (ATTEMPTS - 1, 0)


def test_trouble_of_many_workers_fails_the_run() -> None:
    talk = Talk().greet().start()
    for _ in range(ATTEMPTS):
        talk.service.answer(failure=Failure("worker-error", "trouble"))
        frames = talk.sent_frames()
    assert [frame.type for frame in frames] == [T.RUN_FAILED, T.READY]
    assert len(talk.service.asked) == ATTEMPTS


def test_a_result_of_the_wrong_size_is_never_sent() -> None:
    talk = Talk().greet().start()
    for _ in range(ATTEMPTS):
        talk.service.answer(pack(1, 2))
        frames = talk.sent_frames()
    failed = frames[0]
    assert failed.type is T.RUN_FAILED
    assert "16 bytes of observations came, the case has 24" in failed.description


def test_a_run_cancelled_on_the_fleet_goes_back_to_the_master() -> None:
    talk = Talk().greet().start()
    talk.service.answer(failure=Failure("cancelled", "cancelled"))
    (farewell,) = talk.sent_frames()
    assert farewell.type is T.TERMINATE
    assert talk.agent.ended
    assert not talk.agent.terminated
    assert (talk.counters.failed, talk.counters.lost) == (0, 1)


def test_a_killed_run_is_cancelled_and_its_late_result_is_not_sent() -> None:
    talk = Talk().greet().start()
    talk.tell(T.REQ_KILL, data=b"\0")
    killed, ready = talk.sent_frames()
    assert (killed.type, killed.group, killed.run) == (T.RUN_KILLED, 4, 7)
    assert ready.type is T.READY
    assert talk.service.cancelled == [100]
    talk.service.answer(pack(1, 2, 3))
    assert talk.sent() == b""
    assert talk.counters.killed == 1


def test_a_late_result_does_not_answer_the_next_run() -> None:
    talk = Talk().greet().start(run=7)
    late = talk.service.asked[-1][2]
    talk.tell(T.REQ_KILL, data=b"\0")
    talk.sent()
    talk.start(run=8)
    late(Result(100, "w1", 1, 1.0, pack(9, 9, 9)))
    assert talk.sent() == b""
    talk.service.answer(pack(1, 2, 3))
    finished, _ = talk.sent_frames()
    assert (finished.run, finished.data[16:40]) == (8, pack(3, 1, 2))


def test_a_kill_that_comes_too_late_is_ignored() -> None:
    talk = Talk().greet().start()
    talk.service.answer(pack(1, 2, 3))
    talk.sent()
    talk.tell(T.REQ_KILL, data=b"\0")
    assert talk.sent() == b""
    assert talk.service.cancelled == []


def test_a_kill_overtakes_a_result_that_was_not_sent_yet() -> None:
    talk = Talk().greet().start()
    talk.service.answer(pack(1, 2, 3))
    talk.tell(T.REQ_KILL, data=b"\0")
    assert [frame.type for frame in talk.sent_frames()] == [T.RUN_KILLED, T.READY]


def test_the_masters_end_cancels_the_run() -> None:
    talk = Talk().greet().start()
    talk.tell(T.TERMINATE)
    assert talk.agent.ended
    assert talk.agent.terminated
    assert talk.service.cancelled == [100]
    talk.service.answer(pack(1, 2, 3))
    assert talk.sent() == b""


def test_leaving_waits_for_the_run_in_hand() -> None:
    talk = Talk().greet().start()
    talk.agent.leave()
    assert talk.sent() == b""
    talk.service.answer(pack(1, 2, 3))
    assert [frame.type for frame in talk.sent_frames()] == [T.RUN_FINISHED, T.TERMINATE]


def test_an_idle_agent_leaves_at_once() -> None:
    talk = Talk().greet()
    talk.agent.leave()
    assert [frame.type for frame in talk.sent_frames()] == [T.TERMINATE]


def test_leaving_can_be_taken_back() -> None:
    talk = Talk().greet().start()
    talk.agent.leave()
    talk.agent.stay()
    talk.service.answer(pack(1, 2, 3))
    assert [frame.type for frame in talk.sent_frames()] == [T.RUN_FINISHED, T.READY]


@pytest.mark.parametrize("kind", [*map(T, (0, 1, 2)), *map(T, range(19, 24))])
def test_frames_that_mean_nothing_to_an_agent_without_files(kind: MessageType) -> None:
    talk = Talk().greet().start()
    talk.tell(kind, data=b"abc")
    assert talk.sent() == b""
    assert not talk.agent.idle


@pytest.mark.parametrize("kind", [T.READY, T.RUNDIR, T.LINPACK, T.RUN_FINISHED, T.IO_ERROR])
def test_frames_that_only_agents_send(kind: MessageType) -> None:
    with pytest.raises(FrameError, match=f"sent a {kind.name} frame"):
        Talk().greet().tell(kind)


def test_a_second_run_at_a_time_is_refused() -> None:
    with pytest.raises(FrameError, match="run 8 while run 7 of group 4 is not answered"):
        Talk().greet().start(7).start(8)


def test_a_run_before_the_names_is_refused() -> None:
    with pytest.raises(FrameError, match="before it gave all names"):
        Talk().start()


@pytest.mark.parametrize("data", [b"", pack(1), pack(1, 2, 3), pack(1, 2)[:-1]])
def test_a_run_with_a_wrong_number_of_values_is_refused(data: bytes) -> None:
    talk = Talk().greet()
    with pytest.raises(FrameError, match=f"came with {len(data)} bytes .* the case has 16"):
        talk.tell(T.START_RUN, group=1, run=3, data=data)
    assert talk.service.asked == []


def test_another_cases_names_are_an_error() -> None:
    with pytest.raises(NamesError, match="observation names are not the case's"):
        Talk().tell(T.OBS_NAMES, data=pack_names(["o1", "o2"]))


@pytest.mark.parametrize("description", [" da_cycle:-9999 realization:1", "DA_CYCLE:", ""])
def test_no_cycle(description: str) -> None:
    talk = Talk().greet().start(description=description)
    assert talk.service.asked[0][1] == pack(1, 2)


def test_a_cycle_of_pestpp_da_is_refused_without_a_promise() -> None:
    with pytest.raises(NamesError, match="asked for runs of cycle 3") as caught:
        Talk().greet().start(description=" da_cycle:3 realization:1")
    assert "--mode agent" in caught.value.remedy


def test_in_a_cycle_the_names_are_sorted() -> None:
    talk = Talk(whole_cycles=True).greet().start(description=" da_cycle:3 ")
    assert talk.service.asked[0][1] == pack(2, 1)  # p1, p2: as the case has them
    talk.service.answer(pack(10, 20, 30))
    assert talk.sent_frames()[0].data[16:40] == pack(10, 20, 30)


def test_errors_of_the_run_service_come_through() -> None:
    talk = Talk().greet()
    talk.service.broken = ChannelError("the broker is away")
    with pytest.raises(ChannelError):
        talk.start()
    talk.agent.close()


def test_farewell_is_said_once() -> None:
    talk = Talk().greet().start()
    talk.agent.say_farewell(T.CORRUPT_MESG, "why")
    talk.agent.say_farewell()
    (frame,) = talk.sent_frames()
    assert (frame.type, frame.description) == (T.CORRUPT_MESG, "why")
    assert talk.service.cancelled == [100]


datas = st.one_of(
    st.binary(max_size=40),
    st.just(pack(2, 1)),
    st.just(pack_names(["p1", "p2"])),
    st.just(pack_names(["o1", "o2", "o3"])),
)
any_frames = st.builds(
    Frame, st.sampled_from(MessageType), st.integers(0, 3), st.integers(0, 3), st.just(""), datas
)


@given(st.lists(st.one_of(any_frames, st.booleans()), max_size=40))
def test_any_sequence_of_frames_keeps_the_dialogue_in_order(steps: list[Frame | bool]) -> None:
    """Each started run has at most one answer, then READY; nothing follows an end."""
    talk = Talk()
    started, sent = 0, []
    for step in steps:
        if isinstance(step, bool):
            if talk.service.asked:
                talk.service.answer(pack(1, 2, 3) if step else b"")
            sent += talk.sent_frames()
            continue
        try:
            talk.agent.receive(step)
        except PestfleetError:
            talk.agent.say_farewell(T.CORRUPT_MESG)
        started += step.type is T.START_RUN
        sent += talk.sent_frames()
        if talk.agent.ended:
            break
    kinds = [frame.type for frame in sent]
    answers = [k for k in kinds if k in (T.RUN_FINISHED, T.RUN_FAILED, T.RUN_KILLED)]
    assert len(answers) <= started
    assert kinds.count(T.READY) == len(answers)
    for place, kind in enumerate(kinds):
        if kind is T.READY:
            assert kinds[place - 1] in (T.RUN_FINISHED, T.RUN_FAILED, T.RUN_KILLED)
