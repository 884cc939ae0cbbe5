"""Brokers' URLs, and what connections say when they fail."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from amqp.exceptions import AccessRefused, NotAllowed, NotFound

from pestfleet.certificates import make_signed_certificate
from pestfleet.lobby import check_broker
from pestfleet_worker.channel import make_app
from pestfleet_worker.endpoint import (
    BROKER_NAME,
    explain,
    is_refusal,
    make_connection,
    read_endpoint,
    read_url_file,
)
from pestfleet_worker.errors import ChannelError, ConfigurationError


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    path.write_text(make_signed_certificate("a", [BROKER_NAME])[0])
    return path


def test_a_plain_url_has_no_tls() -> None:
    endpoint = read_endpoint("amqp://u:p@host:5672//")
    assert (endpoint.url, endpoint.tls) == ("amqp://u:p@host:5672//", None)
    assert make_connection("amqp://u:p@host//").ssl is False


def test_without_a_query_the_systems_authorities_and_the_host_count() -> None:
    endpoint = read_endpoint("amqps://u:p@broker.example.org/v")
    assert endpoint.tls == {
        "cert_reqs": ssl.CERT_REQUIRED,
        "tls_minimum_version": ssl.TLSVersion.TLSv1_2,
        "server_hostname": "broker.example.org",
    }
    # kombu would take 127.0.0.1 for it.
    local = read_endpoint("amqps://u:p@localhost/v").tls
    assert local is not None and local["server_hostname"] == "localhost"


def test_the_query_of_rabbitmqs_clients(ca: Path) -> None:
    query = f"cacertfile={ca}&certfile={ca}&keyfile={ca}&server_name_indication={BROKER_NAME}"
    endpoint = read_endpoint(f"amqps://u:p@host:5671/v?{query}&verify=verify_peer")
    assert endpoint.url == "amqps://u:p@host:5671/v"
    assert endpoint.tls is not None
    assert endpoint.tls["ca_certs"] == endpoint.tls["certfile"] == str(ca)
    assert endpoint.tls["server_hostname"] == BROKER_NAME
    connection = make_connection(f"amqps://u:p@host:5671/v?{query}", connect_timeout=3)
    assert (connection.virtual_host, connection.port, connection.connect_timeout) == ("v", 5671, 3)
    app = make_app(f"amqps://u:p@host:5671/v?{query}", "s")
    assert app.connection_for_read().ssl == endpoint.tls


def test_a_broker_that_shall_not_be_verified() -> None:
    tls = read_endpoint("amqps://u:p@host/v?verify=verify_none").tls
    assert tls is not None
    assert tls["cert_reqs"] == ssl.CERT_NONE and "server_hostname" not in tls


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://host", "does not start with amqp:// or amqps://"),
        ("amqp://user:pa/ss@host//", "cannot be read"),
        ("amqps://user:my?pass=w@host//", "cannot be read"),
        ("amqps://u:pass@h/v?cacertfile=/no/such.pem", "the file /no/such.pem is not there"),
        ("amqps://u:pass@h/v?heartbeat=10", "an unknown parameter: heartbeat"),
        ("amqps://u:pass@h/v?verify=no", "verify=no"),
        ("amqp://u:pass@h/v?cacertfile=ca.pem", "starts with amqp://"),
        ("amqps://u:pass@h/v;amqps://u:pass@i/v", "no server_name_indication"),
    ],
)
def test_a_url_that_will_not_do(url: str, message: str) -> None:
    with pytest.raises(ChannelError, match=message) as caught:
        read_endpoint(url)
    assert "pass" not in caught.value.message and "pa/" not in caught.value.message


def test_several_hosts_of_one_name() -> None:
    url = f"amqps://u:p@a/v?server_name_indication={BROKER_NAME};amqps://u:p@b/v"
    assert read_endpoint(url).url == "amqps://u:p@a/v;amqps://u:p@b/v"
    assert make_connection(url).alt == ["amqps://u:p@a/v", "amqps://u:p@b/v"]


def test_refusals_are_told_from_other_errors() -> None:
    refused = AccessRefused("Login was refused", (0, 0))
    assert is_refusal(refused) and is_refusal(NotAllowed("vhost", (0, 0)))
    assert not is_refusal(NotFound("no queue", (0, 0))) and not is_refusal(OSError("gone"))
    assert explain(refused).startswith("the broker refuses us: ")
    assert explain(OSError()) == "OSError"


class Greeter:
    """Shows a certificate to whoever connects."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                self._context.wrap_socket(client, server_side=True).close()
            except OSError:
                client.close()

    def close(self) -> None:
        self._server.close()


@pytest.fixture(params=["expired", "of another name"])
def wrong_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """(URL, what is wrong with it)."""
    begin = datetime.now(UTC) - (timedelta(days=500) if request.param == "expired" else timedelta())
    name = BROKER_NAME if request.param == "expired" else "other"
    authority, certificate = make_signed_certificate("a", [name], begin=begin)
    ca = tmp_path / "ca.pem"
    ca.write_text(authority)
    greeter = Greeter(certificate.make_context())
    query = f"cacertfile={ca}&server_name_indication={BROKER_NAME}"
    reason = "certificate has expired" if request.param == "expired" else "not valid for"
    yield f"amqps://u:secret@127.0.0.1:{greeter.port}/v?{query}", reason
    greeter.close()


def test_a_certificate_that_will_not_do_is_told(wrong_server: tuple[str, str]) -> None:
    url, reason = wrong_server
    with pytest.raises(ChannelError, match=f"certificate of the broker is not accepted.*{reason}"):
        check_broker(url, "s")


def test_a_port_without_tls_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                client, _ = server.accept()
                client.recv(1000)
                client.sendall(b"AMQP\x00\x00\x09\x01")
                client.close()

        threading.Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        with pytest.raises(ChannelError, match="no TLS connection with the broker"):
            check_broker(f"amqps://u:secret@127.0.0.1:{port}/v", "s")


def test_a_url_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PESTFLEET_BROKER_FILE", raising=False)
    assert read_url_file() == ""
    path = tmp_path / "broker-url"
    monkeypatch.setenv("PESTFLEET_BROKER_FILE", str(path))
    with pytest.raises(ConfigurationError, match=r"PESTFLEET_BROKER_FILE: .*No such file"):
        read_url_file()
    path.write_text("amqp://u:p@host//\n")
    assert read_url_file() == "amqp://u:p@host//"
    path.write_bytes(b"amqp://u:geheim\xff@host")
    with pytest.raises(ConfigurationError, match="is no text") as caught:
        read_url_file()
    assert "geheim" not in str(caught.value)
