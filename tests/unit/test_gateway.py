"""The gateway against a fake PANTHER master, over real sockets."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import pytest

from pestfleet.engines.gateway import Gateway, GatewayEvent, NamesError, connect_to
from pestfleet.engines.gateway.frames import Frame, MessageType, encode_frame
from pestfleet.testing.panther_master import FakeMaster, MasterEnd
from pestfleet.testing.run_service import FakeRunService, make_spec
from pestfleet_worker.errors import ChannelError, ConfigurationError, PestfleetError, SessionError
from pestfleet_worker.messages import Failure

T = MessageType
PARAMETERS, OBSERVATIONS = ("p1", "p2", "p3"), ("o1", "o2")
SPEC = make_spec(PARAMETERS, OBSERVATIONS)
POLL = 0.02


def model(parameters: Sequence[float]) -> list[float] | Failure:
    """In the case's order; fails for negative sums."""
    p1, p2, p3 = parameters
    if p1 + p2 + p3 < 0:
        return Failure("model-failed", "the model ended with exit code 2", exit_code=2)
    return [p1 - p2 / 3.0, p3 * 0.1]


def expect(parameters: Sequence[float]) -> tuple[float, ...]:
    """What the fake master, with its reversed order, must get for its parameters."""
    observations = model(parameters[::-1])
    assert not isinstance(observations, Failure)
    return tuple(observations[::-1])


def make_vectors(count: int) -> list[list[float]]:
    chance = random.Random(count)
    return [[chance.uniform(0.1, 9) for _ in PARAMETERS] for _ in range(count)]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.005)


@pytest.fixture
def master() -> Iterator[FakeMaster]:
    with FakeMaster(
        [name.upper() for name in PARAMETERS[::-1]], [name.upper() for name in OBSERVATIONS[::-1]]
    ) as fake:
        yield fake


@pytest.fixture
def events() -> list[GatewayEvent]:
    return []


Start = Callable[..., Gateway]


@pytest.fixture
def start(master: FakeMaster, events: list[GatewayEvent]) -> Iterator[Start]:
    """Starts gateways to the fake master; they are stopped at the end."""
    started = []

    def start(service: FakeRunService, **options: object) -> Gateway:
        options = {"connect": connect_to(master.host, master.port), "poll": POLL} | options
        gateway = Gateway(service, on_event=events.append, **options)  # type: ignore[arg-type]
        started.append(gateway)
        gateway.start()
        return gateway

    yield start
    master.close()  # so that nobody waits for it to read farewells
    for gateway in started:
        gateway.stop()


def test_runs_through_several_connections(master: FakeMaster, start: Start) -> None:
    gateway = start(FakeRunService(SPEC, model, slots=7))
    master.greet(7)
    vectors = make_vectors(300)
    answers = master.run_set(vectors, ping=True)
    assert [answer.parameters for answer in answers] == [tuple(v) for v in vectors]
    assert [answer.observations for answer in answers] == [expect(v) for v in vectors]
    assert {answer.outcome for answer in answers} == {"finished"}
    assert len({answer.agent for answer in answers}) == 7
    counters = gateway.counters
    assert (counters.connections, counters.requested, counters.finished) == (7, 300, 300)


def test_failed_runs_say_why_and_others_go_on(master: FakeMaster, start: Start) -> None:
    gateway = start(FakeRunService(SPEC, model, slots=2))
    master.greet(2)
    vectors = make_vectors(10)
    vectors[4] = [-1.0, -1.0, -1.0]
    answers = master.run_set(vectors, most_failures=3)
    assert [answer.outcome for answer in answers].count("finished") == 9
    assert answers[4].outcome == "failed"
    assert "model-failed: the model ended with exit code 2" in answers[4].description
    assert gateway.counters.failed == 3


def test_pings_are_answered_during_runs_and_kills_free_the_slot(
    master: FakeMaster, start: Start
) -> None:
    with FakeRunService(SPEC, model, slots=3, seconds=0.02) as service:
        gateway = start(service)
        master.greet(3)
        vectors = make_vectors(12)
        answers = master.run_set(vectors, ping=True, kill={0, 5, 11})
        killed = [answer.run for answer in answers if answer.outcome == "killed"]
        assert killed == [0, 5, 11]
        assert len(service.cancelled) == 3
        # The next set finds all agents; no late result disturbs it.
        again = master.run_set(vectors)
    assert [answer.observations for answer in again] == [expect(v) for v in vectors]
    assert gateway.counters.killed == 3


def test_a_run_under_way_does_not_hold_up_a_ping(master: FakeMaster, start: Start) -> None:
    with FakeRunService(SPEC, model, seconds=3600.0) as service:
        start(service)
        (agent,) = master.greet()
        agent.start(5, [1, 2, 3])
        agent.send(T.PING)
        ping = agent.expect(T.PING)
        assert (ping.group, ping.run, ping.data) == (0, 0, b"")
        agent.send(T.REQ_KILL, data=b"\0")
        killed = agent.expect(T.RUN_KILLED)
        assert (killed.group, killed.run) == (1, 5)
        agent.expect(T.READY)


def test_bytes_of_an_answer(master: FakeMaster, start: Start) -> None:
    start(FakeRunService(SPEC, model))
    (agent,) = master.greet()
    assert agent.directory == "pestfleet/connection-1"
    agent.start(9, [3, 2, 1], group=2, description=" run:9")
    first, last = model([1, 2, 3])  # type: ignore[misc]
    assert agent.receive() == Frame(
        T.RUN_FINISHED,
        2,
        9,
        "run:9 worker:fake slot:0 worker_time:0",
        struct.pack("<6d", 3, 2, 1, last, first, 0),
    )
    assert agent.receive() == Frame(T.READY)


def test_the_fleet_is_followed_up_and_down(master: FakeMaster, start: Start) -> None:
    service = FakeRunService(SPEC, model, slots=0)
    gateway = start(service, most=6)
    master.greet()  # one connection waits for the first worker
    assert gateway.counters.connections == 1
    service.slots = 4
    master.greet(3)
    service.slots = 2
    gone: list[MasterEnd] = []

    def look() -> bool:
        gone.extend(agent for agent in master.agents if agent not in gone and _has_left(agent))
        return len(gone) >= 2

    wait_until(look)
    assert len(gone) == 2
    for agent in gone:
        agent.close()
        master.agents.remove(agent)
    wait_until(lambda: gateway.counters.connections == 2)
    assert len(master.run_set(make_vectors(20))) == 20
    service.slots = 5
    master.greet(3)
    assert len(master.run_set(make_vectors(20))) == 20


def _has_left(agent: MasterEnd) -> bool:
    try:
        frame = agent.receive(timeout=5 * POLL)
    except TimeoutError:
        return False
    assert frame is not None
    assert frame.type is T.TERMINATE
    assert agent.receive() is None
    return True


def test_busy_connections_leave_after_their_run(master: FakeMaster, start: Start) -> None:
    with FakeRunService(SPEC, model, slots=3, seconds=3.0) as service:
        start(service)
        agents = master.greet(3)
        for run, agent in enumerate(agents):
            agent.start(run, [1, 2, 3])
        wait_until(lambda: service.busiest == 3)
        service.slots = 1
        kinds = []
        for agent in agents:
            agent.expect(T.RUN_FINISHED)
            frame = agent.receive()
            assert frame is not None
            kinds.append(frame.type)
    assert sorted(kinds) == [T.READY, T.TERMINATE, T.TERMINATE]


def test_spare_connections_and_the_most(
    master: FakeMaster, start: Start, events: list[GatewayEvent]
) -> None:
    service = FakeRunService(SPEC, model, slots=2)
    gateway = start(service, spare=2, most=5)
    master.greet(4)
    service.slots = 50
    master.greet(1)
    wait_until(lambda: bool(events))
    assert gateway.counters.connections == 5
    assert [event.kind for event in events] == ["warning"]
    assert "50 slots" in events[0].text
    assert "5 runs are made at a time" in events[0].text


@pytest.mark.parametrize("most", [0, 1001])
def test_a_master_cannot_have_so_many(most: int) -> None:
    service = FakeRunService(SPEC, model)
    with pytest.raises(ConfigurationError, match=f"cannot have {most} agents"):
        Gateway(service, connect=connect_to("127.0.0.1", 1), most=most)


def test_the_master_may_come_late(master: FakeMaster, start: Start) -> None:
    listens = threading.Event()
    tries: list[bool] = []

    def connect() -> socket.socket:
        tries.append(listens.is_set())
        if not listens.is_set():
            raise ConnectionRefusedError("nobody listens yet")
        return connect_to(master.host, master.port)()

    gateway = start(FakeRunService(SPEC, model), connect=connect)
    wait_until(lambda: len(tries) > 2)
    assert not gateway.wait(0)
    listens.set()
    master.greet()
    assert len(master.run_set(make_vectors(3))) == 3


def test_the_gateway_ends_with_its_master(master: FakeMaster, start: Start) -> None:
    gateway = start(FakeRunService(SPEC, model, slots=3))
    master.greet(3)
    master.terminate()
    assert gateway.wait(5)
    gateway.check()
    assert gateway.counters.connections == 0


def test_the_gateway_ends_when_its_master_is_killed(master: FakeMaster, start: Start) -> None:
    with FakeRunService(SPEC, model, seconds=3600.0) as service:
        gateway = start(service)
        (agent,) = master.greet()
        agent.start(0, [1, 2, 3])
        wait_until(lambda: bool(service.requested))
        master.close()
        assert gateway.wait(5)
        gateway.check()
        assert service.cancelled == [1]
        assert gateway.counters.lost == 1


def test_a_lost_connection_is_made_again(master: FakeMaster, start: Start) -> None:
    gateway = start(FakeRunService(SPEC, model, slots=2))
    first = master.greet(2)[0]
    first.close()
    master.agents.remove(first)
    master.greet(1)
    assert len(master.run_set(make_vectors(10))) == 10
    assert gateway.counters.connections == 2


def test_stopping_says_farewell_and_cancels(master: FakeMaster, start: Start) -> None:
    with FakeRunService(SPEC, model, slots=2, seconds=3600.0) as service:
        gateway = start(service)
        busy, idle = master.greet(2)
        busy.start(0, [1, 2, 3])
        wait_until(lambda: bool(service.requested))
        gateway.stop()
        gateway.stop()
        for agent in (busy, idle):
            agent.expect(T.TERMINATE)
            assert agent.receive() is None
        assert service.cancelled == [1]
    assert gateway.wait(0)
    gateway.check()


def test_stopping_before_the_master_listens(start: Start) -> None:
    def connect() -> socket.socket:
        raise ConnectionRefusedError("nobody is there")

    gateway = start(FakeRunService(SPEC, model), connect=connect)
    gateway.stop()
    gateway.check()


def test_a_connect_that_cannot_work_ends_the_gateway(start: Start) -> None:
    def connect() -> socket.socket:
        raise ConfigurationError("the network namespace is gone")

    gateway = start(FakeRunService(SPEC, model), connect=connect)
    assert gateway.wait(5)
    with pytest.raises(ConfigurationError, match="namespace is gone"):
        gateway.check()


def test_another_case_at_the_master_ends_the_gateway(
    start: Start, events: list[GatewayEvent]
) -> None:
    with FakeMaster(["p1", "p2", "x"], OBSERVATIONS) as master:
        gateway = start(FakeRunService(SPEC, model), connect=connect_to(master.host, master.port))
        agent = master.accept()
        with pytest.raises(AssertionError, match="sent IO_ERROR"):
            agent.greet(master.parameters, master.observations)
        assert gateway.wait(5)
        with pytest.raises(NamesError, match=r"does not have \(x\)"):
            gateway.check()
        assert [event.kind for event in events] == ["error"]


def test_a_broken_run_service_ends_the_gateway(master: FakeMaster, start: Start) -> None:
    class Broken(FakeRunService):
        def request(self, parameters: bytes, on_result: object) -> int:
            raise ChannelError("the broker is away")

    gateway = start(Broken(SPEC, model))
    (agent,) = master.greet()
    agent.start(0, [1, 2, 3])
    assert agent.expect(T.CORRUPT_MESG).description == "the broker is away"
    assert gateway.wait(5)
    with pytest.raises(ChannelError, match="the broker is away"):
        gateway.check()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "begins with 47 45 54 20 2f"),
        (encode_frame(Frame(T.PING))[:5] + b"\xff" * 8 + bytes(4), "announces -1 bytes"),
        (encode_frame(Frame(T.PING))[:5] + (10**12).to_bytes(8, "little") + bytes(4), "10000000"),
        (encode_frame(Frame(T.PING))[:13] + b"\x63\0\0\0", "unknown type 99"),
        (encode_frame(Frame(T.PAR_NAMES, data=b"p1\0p2")), "cut off"),
        (encode_frame(Frame(T.START_RUN, data=bytes(24))), "before it gave all names"),
    ],
)
def test_malformed_frames_end_that_connection_only(
    master: FakeMaster, start: Start, events: list[GatewayEvent], wrong: bytes, message: str
) -> None:
    gateway = start(FakeRunService(SPEC, model, slots=2))
    bad = master.accept()
    bad.send_bytes(wrong)
    frame = bad.expect(T.CORRUPT_MESG)
    assert message in frame.description
    assert bad.receive() is None
    master.greet(1)
    bad.close()
    master.greet(1)  # made in place of the bad one
    assert len(master.run_set(make_vectors(10))) == 10
    assert [event.kind for event in events] == ["warning"]
    assert message in events[0].text
    gateway.check()


def test_a_frame_that_is_cut_off_ends_that_connection(
    master: FakeMaster, start: Start, events: list[GatewayEvent]
) -> None:
    start(FakeRunService(SPEC, model))
    bad = master.accept()
    bad.send_bytes(encode_frame(Frame(T.PING))[:100])
    bad.close()
    master.greet(1)
    wait_until(lambda: bool(events))
    assert "100 bytes into a frame" in events[0].text


def test_a_master_that_cannot_be_understood_ends_the_gateway(
    master: FakeMaster, start: Start
) -> None:
    gateway = start(FakeRunService(SPEC, model))
    while not gateway.wait(0):
        try:
            bad = master.accept(timeout=0.2)
        except TimeoutError:
            continue
        bad.send_bytes(b"SSH-2.0-something\r\n")
        bad.close()
    with pytest.raises(SessionError, match="given up one after the other"):
        gateway.check()


def test_random_bytes_never_crash_the_gateway(master: FakeMaster, start: Start) -> None:
    """Bytes at random, and good dialogues with bytes changed; then it still works."""
    chance = random.Random(11)
    service = FakeRunService(SPEC, model)
    gateway = start(service, poll=0.001)
    good = b"".join(
        encode_frame(frame)
        for frame in (
            Frame(T.REQ_RUNDIR, data=b"\0"),
            Frame(T.PAR_NAMES, data=b"p1\0p2\0p3\0"),
            Frame(T.OBS_NAMES, data=b"o1\0o2\0"),
            Frame(T.REQ_LINPACK, data=b"\0"),
            Frame(T.START_RUN, 1, 1, "run", bytes(24)),
            Frame(T.PING),
            Frame(T.REQ_KILL, data=b"\0"),
        )
    )
    for turn in range(60):
        if gateway.wait(0):  # it gave up that master, rightly
            with pytest.raises(PestfleetError):
                gateway.check()
            gateway = start(service, poll=0.001)
        if turn % 2:
            data = bytes(chance.randrange(256) for _ in range(chance.randrange(3000)))
        else:
            changed = bytearray(good)
            for _ in range(chance.randint(1, 20)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            data = bytes(changed[: chance.randrange(len(changed))])
        try:
            agent = master.accept(timeout=0.1)
        except TimeoutError:
            continue
        try:
            agent.send_bytes(data)
        except ConnectionError:
            continue  # refused before all was sent
        finally:
            agent.close()
    gateway.stop()
    fresh = start(service)
    while True:  # connections that the earlier gateways left in the queue
        try:
            master.greet(1)
            break
        except (AssertionError, ConnectionError):
            continue
    assert len(master.run_set(make_vectors(5))) == 5
    fresh.check()


def test_memory_with_many_connections_and_runs(master: FakeMaster, start: Start) -> None:
    """Memory follows the connections, not the number of runs that went through."""
    start(FakeRunService(SPEC, model, slots=60))
    master.greet(60)
    vectors = make_vectors(1000)
    master.run_set(vectors)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        master.run_set(vectors)
        master.run_set(vectors)
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept < 2000 * 24 * 20  # the fake service keeps each vector that was asked for


def test_quick_acknowledgement_is_asked_for_at_each_read(
    master: FakeMaster, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A master writes a frame in two pieces; the second waits for the first's acknowledgement."""
    asked = []

    def count(sock: object) -> None:
        asked.append(sock)

    monkeypatch.setattr("pestfleet.engines.gateway.link.acknowledge_quickly", count)
    start(FakeRunService(SPEC, model))
    (agent,) = master.greet(1)
    asked.clear()
    for byte in encode_frame(Frame(T.PING)):
        seen = len(asked)
        agent.send_bytes(bytes([byte]))
        wait_until(lambda seen=seen: len(asked) > seen)  # type: ignore[misc]
        if seen == 5:
            break
    assert len(asked) == 6
