"""The master's side of the channel, over the embedded broker, with workers played by the test."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from kombu import Connection

from pestfleet import fleet as fleet_module
from pestfleet.broker import EmbeddedBroker
from pestfleet.desk import PATIENCE, Desk, DeskEvents
from pestfleet.fleet import Fleet
from pestfleet.lobby import check_broker
from pestfleet_worker import channel
from pestfleet_worker import outbox as outbox_module
from pestfleet_worker.channel import Address, Parcel, Queues, pack
from pestfleet_worker.errors import ChannelError, SessionError
from pestfleet_worker.messages import (
    Announce,
    CaseSpec,
    Farewell,
    GivenBack,
    Heartbeat,
    Limits,
    MasterBeat,
    Refusal,
    Result,
    Run,
    RunConfig,
    SlotState,
    decode,
    pack_vector,
)
from pestfleet_worker.outbox import Outbox

SPEC = CaseSpec("case", "d" * 64, ("p",), ("o",), (), (), ("model",))
CONFIG = RunConfig("s", "queue", SPEC, Limits(), "/case", heartbeat=0.5, master_timeout=5.0)


def announce(worker: str, *, digest: str = "", slots: int = 2) -> Announce:
    return Announce(worker, "host", 7, slots, "linux/x86_64", {}, digest)


def wait_for(condition: Callable[[], Any], *, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.01)


class Told:
    """Events of a desk, in order."""

    def __init__(self) -> None:
        self.list: list[tuple[str, ...]] = []
        self.events = DeskEvents(
            lambda worker: self.list.append(("joined", worker.name)),
            lambda worker, reason: self.list.append(("left", worker.name, reason)),
            lambda worker, reason: self.list.append(("refused", worker, reason)),
        )


class Hand:
    """Plays a worker: takes runs from the channel and answers as it is told."""

    def __init__(self, url: str) -> None:
        self.queues = Queues("s")
        self.connection = Connection(url)
        self.connection.connect()
        self.channel = self.connection.channel()

    def take(self, count: int) -> list[Run]:
        runs: list[Run] = []

        def get() -> bool:
            message = self.queues.runs(self.channel).get(no_ack=True)
            if message is not None:
                runs.append(decode(msgpack.unpackb(message.body)[0][0]))
            return len(runs) == count

        wait_for(get)
        return runs

    def say(self, message: Any, *, queue: str = "results") -> None:
        parcel = pack(self.queues.address_of(getattr(self.queues, queue)), message)
        self.channel.basic_publish(
            self.channel.prepare_message(
                parcel.body,
                content_type=parcel.content_type,
                content_encoding=parcel.content_encoding,
            ),
            exchange=parcel.address.exchange,
            routing_key=parcel.address.routing_key,
        )

    def close(self) -> None:
        self.connection.connection.collect()  # without a word: the broker may be gone


def result(run: Run, value: float) -> Result:
    return Result(run.id, "w", 0, 0.1, pack_vector([value]))


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def fleet(broker: EmbeddedBroker, told: Told) -> Iterator[Fleet]:
    fleet = Fleet(broker.url, CONFIG, told.events)
    yield fleet
    fleet.close("over")


@pytest.fixture
def hand(broker: EmbeddedBroker, fleet: Fleet) -> Iterator[Hand]:
    wait_for(lambda: fleet.broker_trouble is None)
    hand = Hand(broker.url)
    yield hand
    hand.close()


# -- runs and results --------------------------------------------------------------------------


def test_the_first_of_several_answers_counts_and_only_it(fleet: Fleet, hand: Hand) -> None:
    answers: list[Result] = []
    for number in range(3):
        fleet.submit(pack_vector([number]), lambda run, result: answers.append(result))
    runs = hand.take(3)
    assert [run.id for run in runs] == [1, 2, 3]
    hand.say(result(runs[0], 1.0))
    hand.say(result(runs[0], 2.0))
    hand.say(Result(99, "stranger", 0, 0.1, b""))
    hand.say(result(runs[1], 3.0))
    hand.say(result(runs[2], 4.0))
    wait_for(lambda: fleet.outstanding == 0)
    assert [(r.id, r.observations) for r in answers] == [
        (1, pack_vector([1.0])), (2, pack_vector([3.0])), (3, pack_vector([4.0]))
    ]  # fmt: skip


def test_a_cancelled_run_gives_no_result(fleet: Fleet, hand: Hand) -> None:
    answers: list[Result] = []
    for number in range(2):
        fleet.submit(pack_vector([number]), lambda run, result: answers.append(result))
    runs = hand.take(2)
    fleet.cancel([1])
    hand.say(result(runs[0], 1.0))
    hand.say(result(runs[1], 2.0))
    wait_for(lambda: fleet.outstanding == 0)
    assert [answer.id for answer in answers] == [2]


def test_the_channel_holds_a_window_of_runs_not_all(
    fleet: Fleet, hand: Hand, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "LEAST_IN_CHANNEL", 5)
    answers: list[Result] = []
    for number in range(20):
        fleet.submit(pack_vector([number]), lambda run, result: answers.append(result))
    runs = hand.take(5)
    assert broker.stats().queues["pestfleet.s.runs"].ready == 0
    for run in runs:
        hand.say(result(run, 1.0))
    for run in hand.take(5):
        hand.say(result(run, 1.0))
    wait_for(lambda: len(answers) == 10)
    assert fleet.outstanding == 10


def test_what_an_earlier_master_left_in_the_broker_is_not_taken(broker: EmbeddedBroker) -> None:
    first = Fleet(broker.url, CONFIG, Told().events)
    wait_for(lambda: first.broker_trouble is None)
    first.submit(pack_vector([1.0]), lambda run, result: None)
    wait_for(lambda: broker.stats().queues["pestfleet.s.runs"].ready == 1)
    # It dies: nobody closes it, its connections go.
    first._closing.set()
    first._inbox._closing.set()
    first._outbox._closing.set()
    broker.drop_connections()
    answers: list[Result] = []
    second = Fleet(broker.url, CONFIG, Told().events, first_run=1_000_001)
    wait_for(lambda: second.broker_trouble is None)
    hand = Hand(broker.url)
    second.submit(pack_vector([2.0]), lambda run, result: answers.append(result))
    (run,) = hand.take(1)
    assert run == Run(1_000_001, pack_vector([2.0]))
    hand.say(result(Run(1, b""), 5.0))
    hand.say(result(run, 6.0))
    wait_for(lambda: answers)
    assert [answer.id for answer in answers] == [1_000_001]
    hand.close()
    second.close("over")


def test_a_late_answer_for_other_parameters_is_not_taken(fleet: Fleet, hand: Hand) -> None:
    """An earlier master of this id asked for it; a worker of its own had it in hand."""
    answers: list[Result] = []
    fleet.submit(pack_vector([1.0]), lambda run, result: answers.append(result))
    (run,) = hand.take(1)
    hand.say(dataclasses.replace(result(run, 777.0), parameters=pack_vector([5.0])))
    hand.say(dataclasses.replace(result(run, 2.0), parameters=run.parameters))
    wait_for(lambda: answers)
    assert [answer.observations for answer in answers] == [pack_vector([2.0])]


def test_runs_that_expired_while_no_worker_was_there_are_sent_again(
    broker: EmbeddedBroker, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "RENEWAL", 0.2)
    fleet = Fleet(broker.url, CONFIG, told.events)
    name = Queues("s").runs.name

    def count_waiting() -> int:
        queue = broker.stats().queues.get(name)
        return 0 if queue is None else queue.ready

    for number in range(3):
        fleet.submit(pack_vector([number]), lambda run, result: None)
    wait_for(lambda: count_waiting() == 3)
    with Connection(broker.url) as connection:
        connection.default_channel.queue_delete(name)
    wait_for(lambda: count_waiting() == 3)
    fleet.close("over")


def test_a_queue_is_renewed_before_it_expires(
    broker: EmbeddedBroker, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fleet_module.RENEWAL * 1000 < channel.ABANDONED / 2
    monkeypatch.setattr(fleet_module, "RENEWAL", 0.1)
    monkeypatch.setattr(channel, "ABANDONED", 3000)
    fleet = Fleet(broker.url, CONFIG, told.events)
    fleet.submit(pack_vector([1.0]), lambda run, result: None)
    time.sleep(5.0)  # the time itself is what is tested
    assert broker.stats().queues[Queues("s").runs.name].ready == 1
    fleet.close("over")


def test_a_master_that_leaves_keeps_all_for_the_next_one(broker: EmbeddedBroker) -> None:
    first = Fleet(broker.url, CONFIG, Told().events)
    wait_for(lambda: first.broker_trouble is None)
    hand = Hand(broker.url)
    mail = hand.queues.make_worker_queue("w")(hand.channel)
    mail.declare()
    for number in range(3):
        first.submit(pack_vector([number]), lambda run, result: None)
    in_hand, done = hand.take(2)
    first.leave()
    first.cancel([in_hand.id])
    first.close("nobody shall hear this")
    answer = result(done, 5.0)
    hand.say(dataclasses.replace(answer, parameters=done.parameters))

    second = Fleet(broker.url, CONFIG, Told().events, first_run=1_000_001, take_over=True)
    adopted: list[Result] = []
    wait_for(lambda: second.broker_trouble is None)
    hand.say(dataclasses.replace(result(in_hand, 6.0), parameters=in_hand.parameters))
    wait_for(lambda: broker.stats().queues["pestfleet.s.results"].ready == 0)
    second.adopt(adopted.append)
    hand.say(result(Run(3, b""), 7.0))
    wait_for(lambda: len(adopted) == 3)
    assert [one.parameters for one in adopted] == [done.parameters, in_hand.parameters, b""]
    assert hand.queues.runs(hand.channel).get() is None, "the third is asked for again, or known"
    kinds = set()
    while (message := mail.get(no_ack=True)) is not None:
        kinds.add(type(decode(message.body)))
    assert kinds == {MasterBeat}, "workers were told to stop or to end a run"
    hand.close()
    second.close("over")


def test_a_run_that_is_given_back_is_sent_afresh_if_it_is_still_wanted(
    fleet: Fleet, hand: Hand
) -> None:
    answers: list[Result] = []
    for number in range(2):
        fleet.submit(pack_vector([number]), lambda run, result: answers.append(result))
    first, second = hand.take(2)
    fleet.cancel([second.id])
    for run in (second, first, Run(99, b"")):
        hand.say(GivenBack(run.id, "w"))
    (again,) = hand.take(1)
    assert again == first
    hand.say(result(again, 1.0))
    wait_for(lambda: fleet.outstanding == 0)
    hand.say(GivenBack(first.id, "v"))  # from a worker that was slower
    hand.say(announce("w"), queue="desk")
    wait_for(lambda: fleet.slots == 2)  # the desk's message came after it
    assert hand.queues.runs(hand.channel).get() is None
    assert [answer.id for answer in answers] == [first.id]


def test_workers_make_nothing_of_the_sessions(broker: EmbeddedBroker) -> None:
    queues = Queues("s")
    with Connection(broker.url) as connection:
        channel = connection.channel()
        for thing in (queues.runs, queues.results, queues.desk, queues.control, queues.answers):
            thing(channel).declare()
        with pytest.raises(connection.channel_errors, match="NOT_FOUND"):
            queues.make_worker_queue("w")(channel).declare()
    assert not [name for name in broker.router.exchanges if name.startswith("pestfleet")]


def test_a_broker_that_forgot_everything_gets_the_runs_again(told: Told) -> None:
    old = EmbeddedBroker(password="secret")
    old.start()
    fleet = Fleet(old.url, CONFIG, told.events)
    wait_for(lambda: fleet.broker_trouble is None)
    answers: list[Result] = []
    for number in range(3):
        fleet.submit(pack_vector([number]), lambda run, result: answers.append(result))
    hand = Hand(old.url)
    done = hand.take(3)[0]
    hand.say(result(done, 1.0))
    wait_for(lambda: len(answers) == 1)
    hand.close()
    old.stop()
    wait_for(lambda: fleet.broker_trouble is not None)
    new = EmbeddedBroker(port=old.port, password="secret")
    wait_for(lambda: _starts(new))
    wait_for(lambda: fleet.broker_trouble is None)
    early = Hand(new.url)
    again = early.take(2)
    assert [run.id for run in again] == [2, 3]
    for run in again:
        early.say(result(run, 2.0))
    wait_for(lambda: len(answers) == 3)
    early.close()
    fleet.close("over")
    assert not [name for name in new.stats().queues if name.startswith("pestfleet.")]
    new.stop()


def _starts(broker: EmbeddedBroker) -> bool:
    try:
        broker.start()
    except ChannelError:
        return False
    return True


def test_an_error_in_a_thread_of_the_fleet_comes_out_of_check(fleet: Fleet, hand: Hand) -> None:
    def fail(run: Run, result: Result) -> None:
        raise RuntimeError("a defect")

    fleet.check()
    fleet.submit(pack_vector([1.0]), fail)
    hand.say(result(hand.take(1)[0], 1.0))

    def failed() -> bool:
        try:
            fleet.check()
        except RuntimeError as error:
            return str(error) == "a defect"
        return False

    wait_for(failed)


def test_a_broker_that_stays_away_ends_the_session(
    broker: EmbeddedBroker, fleet: Fleet, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.check()
    broker.stop()
    wait_for(lambda: fleet.broker_trouble is not None)
    fleet.check()  # it may come back
    monkeypatch.setattr(fleet_module, "BROKER_PATIENCE", 0.0)
    with pytest.raises(ChannelError, match="the broker has been away for 0 s"):
        fleet.check()
    broker.start()
    wait_for(lambda: fleet.broker_trouble is None)
    fleet.check()


def test_a_broker_that_refuses_the_master_ends_the_session(
    broker: EmbeddedBroker, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "REFUSAL_PATIENCE", 0.0)
    fleet = Fleet(broker.url.replace("pestfleet:", "pestfleet:x"), CONFIG, told.events)

    def is_refused() -> bool:
        try:
            fleet.check()
        except ChannelError as error:
            return "the broker refuses us" in error.message
        return False

    wait_for(is_refused)
    fleet.close("refused")


# -- workers -----------------------------------------------------------------------------------


def test_a_broker_that_is_away_does_not_make_workers_lost(
    broker: EmbeddedBroker, fleet: Fleet, hand: Hand, told: Told
) -> None:
    hand.say(announce("w"), queue="desk")
    wait_for(lambda: fleet.slots == 2)
    hand.close()
    broker.stop()
    time.sleep(2 * PATIENCE * CONFIG.heartbeat)  # the time itself is what is tested
    assert fleet.slots == 2
    broker.start()
    wait_for(lambda: fleet.slots == 0)  # now it could be heard, and is not
    assert told.list == [("joined", "w"), ("left", "w", "silent for 3 s")]


class Reception:
    """A desk, with what it sent."""

    def __init__(self) -> None:
        self.told = Told()
        self.sent: list[tuple[str, RunConfig | Refusal]] = []
        self.desk = Desk(CONFIG, lambda *letter: self.sent.append(letter), self.told.events)


def test_every_announcement_is_answered_and_joins_once() -> None:
    reception = Reception()
    reception.desk.receive(announce("w"))
    reception.desk.receive(announce("w", slots=3))  # it came back over a new connection
    assert reception.sent == [("w", CONFIG), ("w", CONFIG)]
    assert reception.told.list == [("joined", "w")]
    assert reception.desk.slots == 3


def test_another_case_in_the_image_is_refused() -> None:
    reception = Reception()
    reception.desk.receive(announce("w", digest="e" * 64))
    ((worker, answer),) = reception.sent
    assert worker == "w" and isinstance(answer, Refusal)
    assert reception.told.list[0][:2] == ("refused", "w")
    assert reception.desk.workers == []
    reception.desk.receive(announce("v", digest=SPEC.digest))
    assert reception.sent[-1] == ("v", CONFIG)


def test_silence_counts_only_while_it_could_be_heard_and_a_heartbeat_ends_it() -> None:
    reception = Reception()
    desk = reception.desk
    limit = PATIENCE * CONFIG.heartbeat
    desk.receive(announce("w"))
    desk.receive(announce("v"))
    assert desk.drop_silent(0.9 * limit) == []
    desk.receive(Heartbeat("w", (SlotState(5, 1.0), SlotState()), 4))
    (lost,) = desk.drop_silent(0.2 * limit)
    assert (lost.name, lost.lost) == ("v", True)
    (left,) = desk.workers
    assert (left.name, left.finished, left.states[0].run) == ("w", 4, 5)


def test_a_worker_that_was_given_up_or_never_announced_is_taken_by_its_heartbeat() -> None:
    reception = Reception()
    desk = reception.desk
    desk.receive(announce("w"))
    desk.drop_silent(100.0)
    assert desk.slots == 0
    desk.receive(Heartbeat("w", (SlotState(), SlotState()), 1))
    assert desk.slots == 2
    assert [event[0] for event in reception.told.list] == ["joined", "left", "joined"]


def test_who_said_farewell_does_not_come_back_by_a_late_heartbeat() -> None:
    reception = Reception()
    desk = reception.desk
    desk.receive(announce("w"))
    desk.receive(Farewell("w", "enough"))
    desk.receive(Heartbeat("w", (SlotState(),), 1))
    assert desk.workers == []
    assert reception.told.list == [("joined", "w"), ("left", "w", "enough")]
    desk.receive(announce("w"))
    assert [worker.name for worker in desk.workers] == ["w"]


def test_who_hears_of_an_event_may_look_at_the_desk_from_another_thread() -> None:
    """As the display does: its own lock is held while the other thread draws the desk."""
    seen: list[int] = []

    def look(*_: object) -> None:
        thread = threading.Thread(target=lambda: seen.append(len(desk.workers)), daemon=True)
        thread.start()
        thread.join(30)

    events = DeskEvents(look, look, look)
    desk = Desk(CONFIG, lambda *_: None, events)
    desk.receive(announce("w"))
    desk.receive(announce("x", digest="e" * 64))
    desk.receive(Farewell("w", "enough"))
    desk.receive(announce("v"))
    desk.drop_silent(100.0)
    assert seen == [1, 1, 0, 1, 0]


# -- the outbox --------------------------------------------------------------------------------


def parcel(text: str, *, queue: str = "letters") -> Parcel:
    return Parcel(Address("", queue), text.encode())


def make_letters(connection: Connection) -> None:
    channel = connection.channel()
    channel.queue_declare("letters", durable=True, auto_delete=False)
    channel.close()


def test_an_outbox_goes_on_after_any_number_of_failures(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "RETRY_LAST", 0.05)
    broker.stop()
    outbox = Outbox(broker.url, on_connect=make_letters)
    outbox._failures = 5000  # hours of a broker that is away
    ticket = outbox.publish(parcel("a"))
    wait_for(lambda: outbox._failures > 5000)
    assert outbox.trouble is not None and "refused" in outbox.trouble[1]
    broker.start()
    assert ticket.wait(120)
    assert outbox.trouble is None
    assert outbox.close()


def test_an_outbox_survives_what_it_does_not_expect(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "RETRY_FIRST", 0.01)
    calls: list[Connection] = []

    def fail_at_first(connection: Connection) -> None:
        calls.append(connection)
        if len(calls) < 3:
            raise KeyError("a defect")
        make_letters(connection)

    outbox = Outbox(broker.url, on_connect=fail_at_first)
    assert outbox.publish(parcel("a")).wait(120)
    assert len(calls) == 3
    assert outbox.close()


def test_a_refused_message_is_sent_again_after_a_pause(broker: EmbeddedBroker) -> None:
    outbox = Outbox(broker.url, on_connect=make_letters)
    assert outbox.publish(parcel("a")).wait(120)
    ticket = outbox_module.Ticket(parcel("b"))
    outbox._unconfirmed[77] = ticket
    with pytest.raises(ConnectionError, match="refused a message"):
        outbox._on_nack(77, False)
    assert list(outbox._waiting) == [ticket]
    outbox._wake()
    assert ticket.wait(120)
    assert outbox.close()


def test_a_queue_that_is_not_there_confirms_nothing(broker: EmbeddedBroker) -> None:
    outbox = Outbox(broker.url)
    ticket = outbox.publish(parcel("a", queue="nowhere"))
    assert not ticket.wait(0.5)
    with Connection(broker.url) as connection:
        connection.channel().queue_declare("nowhere", durable=True, auto_delete=False)
    assert ticket.wait(120)
    assert outbox.close()


def test_an_outbox_that_is_only_refused_says_so(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "RETRY_LAST", 0.05)
    monkeypatch.setattr(outbox_module, "REFUSAL_PATIENCE", 0.3)
    refused: list[str] = []
    outbox = Outbox(broker.url.replace("pestfleet:", "pestfleet:x"), on_refused=refused.append)
    wait_for(lambda: refused)
    assert refused[0].startswith("the broker refuses us: ")
    outbox.close(timeout=0)


def test_a_broker_that_is_away_does_not_refuse(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is replaced may refuse at first, and vanish in between."""
    monkeypatch.setattr(outbox_module, "REFUSAL_PATIENCE", 0.0)
    refused: list[str] = []
    outbox = Outbox(broker.url)
    outbox._on_refused = refused.append
    outbox._note_refusal("refused", refused=True)
    outbox._note_refusal("away", refused=False)
    outbox._note_refusal("refused", refused=True)
    assert not refused
    outbox._note_refusal("refused", refused=True)
    assert refused == ["refused"]
    assert outbox.close()


def test_an_outbox_beats_while_it_is_connected(broker: EmbeddedBroker) -> None:
    beats: list[float] = []
    outbox = Outbox(broker.url, heartbeat=1.0, on_beat=lambda: beats.append(time.monotonic()))
    wait_for(lambda: len(beats) > 2)
    broker.stop()
    wait_for(lambda: outbox.trouble is not None)
    count = len(beats)
    time.sleep(1.0)  # the time itself is what is tested
    assert len(beats) == count
    broker.start()
    wait_for(lambda: len(beats) > count)
    assert outbox.close()


# -- a broker of the user's --------------------------------------------------------------------


def test_a_broker_that_will_do(broker: EmbeddedBroker) -> None:
    check_broker(broker.url, "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: url.replace("127.0.0.1", "nohost.invalid"), "cannot be reached"),
        (lambda url: url.replace("pestfleet:", "pestfleet:x"), "refuses the user pestfleet"),
        (lambda url: url.rstrip("/") + "/none", "refuses the virtual host none"),
        (lambda url: "amqp://user:pa/ss@host//", "the URL of the broker cannot be read"),
        (lambda url: "amqp://a:b@no-host.invalid//", "at no-host.invalid:5672 cannot be reached"),
        (lambda url: "amqps://a:b@no-host.invalid", "at no-host.invalid:5671 cannot be reached"),
        (lambda url: "redis://host", "does not start with amqp://"),
    ],
)
def test_a_broker_that_will_not_do(
    broker: EmbeddedBroker, change: Callable[[str], str], message: str
) -> None:
    with pytest.raises(ChannelError, match=message) as caught:
        check_broker(change(broker.url), "s")
    assert caught.value.exit_code == 6
    assert broker.password not in str(caught.value) and "pa" not in caught.value.message.split()


def test_what_is_no_broker_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                client, _ = server.accept()
                client.recv(100)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                client.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ChannelError, match=r"cannot be reached|no AMQP broker"):
            check_broker(f"amqp://a:b@127.0.0.1:{server.getsockname()[1]}//", "s")


def test_two_masters_of_one_session_on_one_broker(
    broker: EmbeddedBroker, fleet: Fleet, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pestfleet.lobby.OTHER_MASTER_PATIENCE", 0.3)
    wait_for(lambda: broker.stats().queues["pestfleet.s.results"].consumers == 1)
    with pytest.raises(SessionError, match="another master hosts a session s on this broker"):
        check_broker(broker.url, "s")
    check_broker(broker.url, "t")
