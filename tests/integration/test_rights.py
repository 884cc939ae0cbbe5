"""The channel over TLS with a session's own credentials: what works, and all that is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import AccessRefused, NotAllowed, ResourceLocked
from kombu import Connection
from kombu.transport.pyamqp import Channel

from cases import make_case, write_sweep
from hosting import Hosted, check_every_run_once, wait_for
from pestfleet import master as master_module
from pestfleet.certificates import make_signed_certificate
from pestfleet.credentials import Choices, write_credentials
from pestfleet.lobby import check_broker
from pestfleet.session import create_session
from pestfleet.targets.joining import JoiningTarget
from pestfleet_worker.channel import Queues
from pestfleet_worker.endpoint import BROKER_NAME, make_connection
from pestfleet_worker.errors import ChannelError
from rabbitmq import RabbitMQ, find_free_port

SESSION = "least-1.rights"


@dataclass
class Setting:
    """A broker of a session's own, and the URLs of its two users."""

    broker: RabbitMQ
    folder: Path
    master: str
    worker: str


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("secrets")
    port = find_free_port()
    choices = Choices(SESSION, broker_host="127.0.0.1", broker_port=port, mount="")
    write_credentials(folder, choices)
    broker = RabbitMQ(tmp_path_factory.mktemp("broker"), secrets=folder / "broker", port=port)
    urls = [(folder / part / "broker-url").read_text().strip() for part in ("master", "worker")]
    try:
        broker.start()
        yield Setting(broker, folder, *urls)
    finally:
        broker.remove()


@pytest.fixture
def queues(setting: Setting) -> Iterator[Queues]:
    """The session's queues, made by the master."""
    queues = Queues(SESSION, owner=True)
    with make_connection(setting.master) as connection:
        channel = connection.channel()
        for queue in (queues.results, queues.desk, queues.runs):
            queue(channel).declare()
        yield queues
        for queue in (queues.results, queues.desk, queues.runs):
            queue(channel).delete()
        for exchange in (queues.control, queues.answers):
            exchange(channel).delete()


@pytest.fixture
def worker(setting: Setting) -> Iterator[Connection]:
    with make_connection(setting.worker) as connection:
        yield connection


# -- what works --------------------------------------------------------------------------------


def start_worker(setting: Setting, folder: Path, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pestfleet_worker", "--session", SESSION, "--name", name,
         "--scratch", str(folder / name)],
        env={**os.environ, "PESTFLEET_BROKER_FILE": str(setting.folder / "worker" / "broker-url")},
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_session_with_workers_of_the_least_rights(
    tmp_path: Path, sessions: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path / "case", seconds=0.1)
    rows = write_sweep(case.parent, runs=300)
    session = create_session(case, engine="sweep", root=sessions, session=SESSION, own_broker=False)
    monkeypatch.setattr(master_module, "make_target", lambda name, plan: JoiningTarget(plan))
    # They come before the session is open, and wait for it.
    workers = [start_worker(setting, tmp_path, name) for name in ("one", "two")]
    try:
        hosted = Hosted(session, broker_url=setting.master)
        alive = [tmp_path / name / "alive" for name in ("one", "two")]
        wait_for(lambda: hosted.done() > 10 and all(map(Path.exists, alive)), what="ten runs")
        workers[0].terminate()  # its runs in hand are given back
        assert workers[0].wait(120) == 12
        assert not (tmp_path / "one" / "alive").exists()
        workers.append(start_worker(setting, tmp_path, "three"))
        wait_for(lambda: len(hosted.workers()) == 2, what="the third worker")
        assert hosted.wait(240).error is None
        check_every_run_once(session, rows)
        assert [worker.wait(120) for worker in workers] == [12, 0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_only_the_port_for_tls_is_open(setting: Setting) -> None:
    listeners = setting.broker.find_listeners()
    assert len(listeners) >= 3  # nodes of Erlang find each other on two more, on loopback
    outside = {place for place in listeners if not place.startswith(("127.0.0.1:", "[::1]:"))}
    assert {place.rpartition(":")[2] for place in outside} == {str(setting.broker.port)}


# -- who is let in -----------------------------------------------------------------------------


def test_no_client_without_tls(setting: Setting) -> None:
    plain = setting.worker.partition("?")[0].replace("amqps://", "amqp://")
    with pytest.raises(ChannelError, match="cannot be reached"):
        check_broker(plain, SESSION)
    with socket.create_connection(("127.0.0.1", setting.broker.port), timeout=5) as client:
        client.sendall(b"AMQP\x00\x00\x09\x01")
        answer = client.recv(100)
    assert b"PLAIN" not in answer and b"RabbitMQ" not in answer  # a TLS alert, or nothing


def test_another_authority_is_not_trusted(setting: Setting, tmp_path: Path) -> None:
    other, _ = make_signed_certificate("pestfleet authority", [BROKER_NAME])
    (tmp_path / "ca.pem").write_text(other)
    ours = str(setting.folder / "master" / "ca.pem")
    with pytest.raises(ChannelError, match="the certificate of the broker is not accepted"):
        check_broker(setting.master.replace(ours, str(tmp_path / "ca.pem")), SESSION)


def test_another_name_is_not_trusted(setting: Setting) -> None:
    with pytest.raises(ChannelError, match="not valid for 'other-broker'"):
        check_broker(setting.master.replace(BROKER_NAME, "other-broker"), SESSION)


@pytest.mark.parametrize("user", ["guest:guest", "worker:wrong", "master:", "nobody:x"])
def test_no_other_user_and_no_other_password(setting: Setting, user: str) -> None:
    url = f"amqps://{user}@{setting.worker.partition('@')[2]}"
    with make_connection(url) as connection, pytest.raises(AccessRefused):
        connection.connect()


@pytest.mark.parametrize("vhost", ["%2F", "other"])
def test_no_other_virtual_host(setting: Setting, vhost: str) -> None:
    for url in (setting.worker, setting.master):
        other = url.replace(f"/{SESSION}?", f"/{vhost}?")
        assert other != url
        with make_connection(other) as connection, pytest.raises(NotAllowed):
            connection.connect()


# -- what a worker may not do ------------------------------------------------------------------

Deed = Callable[[Channel, Queues], Any]


def publish(channel: Channel, exchange: str, key: str) -> None:
    message = channel.prepare_message(b"x", properties={"delivery_mode": 2})
    channel.basic_publish_confirm(message, exchange=exchange, routing_key=key, timeout=10)


def declare_own(channel: Channel, queues: Queues, **arguments: Any) -> str:
    name = f"{queues.control.name}.0123456789ab"
    channel.queue_declare(name, exclusive=True, arguments=arguments or None)
    return name


def bind_own(channel: Channel, queues: Queues, exchange: str) -> None:
    channel.queue_bind(declare_own(channel, queues), exchange, "x")


REFUSED: dict[str, Deed] = {
    "read results": lambda c, q: c.basic_get(q.results.name),
    "consume results": lambda c, q: c.basic_consume(q.results.name),
    "read the desk": lambda c, q: c.basic_get(q.desk.name),
    "publish to the default exchange": lambda c, q: publish(c, "", q.results.name),
    "publish runs past it": lambda c, q: publish(c, "", q.runs.name),
    "publish runs": lambda c, q: publish(c, q.control.name, q.runs.routing_key),
    "command workers": lambda c, q: publish(c, q.control.name, "everybody"),
    "publish elsewhere": lambda c, q: publish(c, "amq.fanout", "x"),
    "declare runs": lambda c, q: q.runs(c).queue_declare(),
    "declare a queue": lambda c, q: c.queue_declare("other"),
    "declare a queue of the session": lambda c, q: c.queue_declare(f"pestfleet.{SESSION}.x"),
    "declare a queue without a name": lambda c, q: c.queue_declare("", exclusive=True),
    "declare an exchange": lambda c, q: c.exchange_declare("other", "direct"),
    "declare control": lambda c, q: q.control(c).declare(),
    "delete runs": lambda c, q: c.queue_delete(q.runs.name),
    "delete results": lambda c, q: c.queue_delete(q.results.name),
    "delete control": lambda c, q: c.exchange_delete(q.control.name),
    "delete answers": lambda c, q: c.exchange_delete(q.answers.name),
    "purge results": lambda c, q: c.queue_purge(q.results.name),
    "purge the desk": lambda c, q: c.queue_purge(q.desk.name),
    "listen to answers": lambda c, q: bind_own(c, q, q.answers.name),
    "listen to others": lambda c, q: bind_own(c, q, "amq.topic"),
    "listen to the log": lambda c, q: bind_own(c, q, "amq.rabbitmq.log"),
    "trace": lambda c, q: bind_own(c, q, "amq.rabbitmq.trace"),
    "unbind results": lambda c, q: c.queue_unbind(q.results.name, q.answers.name, q.results.name),
    "redirect results": lambda c, q: c.queue_bind(q.results.name, q.control.name, "x"),
    "lead answers elsewhere": lambda c, q: c.exchange_bind(
        f"{q.control.name}.0123456789ab", q.answers.name, "x"
    ),
    "lead orders back": lambda c, q: c.exchange_bind(q.control.name, q.control.name, "x"),
    "dead letters to any queue": lambda c, q: declare_own(
        c, q, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": q.runs.name}
    ),
    "dead letters to workers": lambda c, q: declare_own(
        c, q, **{"x-dead-letter-exchange": q.control.name}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_worker_is_refused(worker: Connection, queues: Queues, name: str) -> None:
    owner = Queues(SESSION, owner=True)
    with pytest.raises(AccessRefused, match="refused"):
        REFUSED[name](worker.channel(), owner)


def test_another_workers_control_queue_is_its_own(
    setting: Setting, worker: Connection, queues: Queues
) -> None:
    channel = worker.channel()
    own = Queues(SESSION).make_worker_queue("w")
    own(channel).declare()
    thief_exchange = f"{queues.control.name}.aaaaaaaaaaaa"
    deeds: list[Callable[[Channel], Any]] = [
        lambda c: c.basic_get(own.name),
        lambda c: c.basic_consume(own.name),
        lambda c: c.queue_purge(own.name),
        lambda c: c.queue_delete(own.name),
        lambda c: c.queue_declare(own.name, passive=True),
        lambda c: c.queue_bind(own.name, thief_exchange, "everybody"),
    ]
    with make_connection(setting.worker) as thief:
        thief.channel().exchange_declare(thief_exchange, "direct", auto_delete=False)
        for deed in deeds:
            with pytest.raises(ResourceLocked):
                deed(thief.channel())
        thief.channel().exchange_delete(thief_exchange)
    assert own(channel).get() is None  # it is there, and its worker may read it


def test_a_worker_of_another_authority_says_so_and_goes_on_trying(
    setting: Setting, tmp_path: Path
) -> None:
    """The broker may be replaced by the right one."""
    other, _ = make_signed_certificate("pestfleet authority", [BROKER_NAME])
    (tmp_path / "ca.pem").write_text(other)
    url = setting.worker.replace(str(setting.folder / "worker" / "ca.pem"), f"{tmp_path}/ca.pem")
    assert str(tmp_path) in url
    log = tmp_path / "log"
    with log.open("wb") as file:
        worker = subprocess.Popen(
            [sys.executable, "-m", "pestfleet_worker", "--session", SESSION, "--name", "w",
             "--scratch", str(tmp_path / "scratch")],
            env={**os.environ, "PESTFLEET_BROKER": url},
            stdin=subprocess.DEVNULL,
            stderr=file,
        )  # fmt: skip
    try:
        told = "the certificate of the broker is not accepted: "
        wait_for(lambda: log.read_text().count(told) > 3, what="several attempts")
        assert worker.poll() is None
        assert not (tmp_path / "scratch" / "alive").exists()
        assert "Traceback" not in log.read_text()
        assert "worker:" not in log.read_text(), "a password"
    finally:
        worker.terminate()
        worker.wait(120)


def test_credentials_of_another_session_are_told_at_once(setting: Setting) -> None:
    check_broker(setting.master, SESSION)
    with pytest.raises(ChannelError, match=r"refuses the user master: .*pestfleet\.other\."):
        check_broker(setting.master, "other")
    with pytest.raises(ChannelError, match="refuses the user worker"):
        check_broker(setting.worker, SESSION)


def test_the_master_has_rights_in_its_session_only(setting: Setting, queues: Queues) -> None:
    for deed in (
        lambda c: c.queue_declare("other"),
        lambda c: publish(c, "", queues.runs.name),
        lambda c: c.queue_bind(queues.desk.name, "amq.rabbitmq.log", "#"),
    ):
        with make_connection(setting.master) as connection, pytest.raises(AccessRefused):
            deed(connection.channel())
