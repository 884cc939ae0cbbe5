"""A session's secrets: what is written, for whom, and when it is kept."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import ssl
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from pestfleet.certificates import make_own_authority, make_signed_certificate
from pestfleet.cli.main import cli
from pestfleet.credentials import PARTS, Choices, write_credentials
from pestfleet.credentials.rabbitmq import CONSUMER_TIMEOUT, hash_password, make_rights
from pestfleet_worker.channel import Queues
from pestfleet_worker.endpoint import BROKER_NAME, read_endpoint
from pestfleet_worker.errors import ConfigurationError

CHOICES = Choices("a.b-1")


def read_all(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_each_part_has_what_it_needs_and_no_more(tmp_path: Path) -> None:
    assert write_credentials(tmp_path, CHOICES) == list(PARTS)
    files = set(read_all(tmp_path)) - {f"{part}/complete" for part in PARTS}
    assert files == {
        "broker/rabbitmq.conf", "broker/definitions.json", "broker/enabled_plugins",
        "broker/ca.pem", "broker/cert.pem", "broker/key.pem",
        "master/broker-url", "master/ca.pem", "worker/broker-url", "worker/ca.pem",
        "tunnel/host_key", "tunnel/authorized_keys", "home/tunnel_key", "home/host_key.pub",
    }  # fmt: skip
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_urls_are_what_a_container_needs(tmp_path: Path) -> None:
    write_credentials(tmp_path, CHOICES)
    for part in ("master", "worker"):
        url = (tmp_path / part / "broker-url").read_text().strip()
        parts = urlsplit(url)
        assert (parts.scheme, parts.username, parts.hostname, parts.port, parts.path) == (
            "amqps", part, "broker", 5671, "/a.b-1"
        )  # fmt: skip
        assert parts.query == f"cacertfile=/secrets/ca.pem&server_name_indication={BROKER_NAME}"
        assert parts.password is not None and len(parts.password) >= 40


def test_the_definitions_know_the_passwords_by_their_hashes_only(tmp_path: Path) -> None:
    write_credentials(tmp_path, CHOICES)
    definitions: dict[str, Any] = json.loads((tmp_path / "broker/definitions.json").read_text())
    assert definitions["vhosts"] == [{"name": "a.b-1"}]
    users = {user["name"]: user for user in definitions["users"]}
    assert set(users) == {"master", "worker"}
    texts = read_all(tmp_path)
    for name, user in users.items():
        assert user["tags"] == []
        password = urlsplit(texts[f"{name}/broker-url"]).password
        assert password is not None
        salt = base64.b64decode(user["password_hash"])[:4]
        assert hash_password(password, salt=salt) == user["password_hash"]
        assert [path for path, text in texts.items() if password in text] == [f"{name}/broker-url"]


def test_the_hash_is_rabbitmqs_own() -> None:
    # The example of RabbitMQ's documentation: salt 908D C60A, password test12.
    salt = bytes.fromhex("908DC60A")
    assert hash_password("test12", salt=salt) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    first, second = hash_password("x"), hash_password("x")
    assert first != second
    raw = base64.b64decode(first)
    assert raw[4:] == hashlib.sha256(raw[:4] + b"x").digest()


def test_rights_fit_the_queues_and_no_other_sessions() -> None:
    queues, other = Queues("a.b-1"), Queues("aXb-1")
    own = queues.make_worker_queue("w").name
    worker = make_rights("a.b-1")["worker"]
    names = {
        own, queues.runs.name, queues.results.name, queues.desk.name, queues.control.name,
        queues.answers.name, other.runs.name, other.control.name, "amq.default", "", "amq.topic",
        other.make_worker_queue("w").name, f"{own}.x", f"x.{own}",
    }  # fmt: skip

    def allowed(pattern: str) -> set[str]:
        return {name for name in names if re.search(pattern, name)}  # RabbitMQ searches

    assert allowed(worker.configure) == {own}
    assert allowed(worker.write) == {own, queues.answers.name}
    assert allowed(worker.read) == {own, queues.runs.name, queues.control.name}
    master = make_rights("a.b-1")["master"]
    assert allowed(master.write) == {name for name in names if "pestfleet.a.b-1." in name} - {
        f"x.{own}"
    }


def test_the_configuration_opens_tls_only(tmp_path: Path) -> None:
    write_credentials(tmp_path, Choices("s", broker_port=5999, mount="/run/pf"))
    lines = (tmp_path / "broker/rabbitmq.conf").read_text().splitlines()
    settings = dict(line.split(" = ") for line in lines if not line.startswith("#"))
    assert settings["listeners.tcp"] == "none"
    assert settings["listeners.ssl.default"] == "5999"
    assert settings["load_definitions"] == "/run/pf/definitions.json"
    assert settings["ssl_options.keyfile"] == "/run/pf/key.pem"
    assert int(settings["consumer_timeout"]) == CONSUMER_TIMEOUT > 24 * 3600 * 1000
    assert not [name for name in settings if "management" in name or "default_user" in name]
    assert (tmp_path / "broker/enabled_plugins").read_text() == "[].\n"


def test_where_they_are_written_is_where_they_are_used_without_a_mount(tmp_path: Path) -> None:
    write_credentials(tmp_path, Choices("s", mount=""))
    url = (tmp_path / "worker/broker-url").read_text().strip()
    tls = read_endpoint(url).tls
    assert tls is not None and tls["ca_certs"] == str(tmp_path / "worker/ca.pem")
    assert f"keyfile = {tmp_path}/broker/key.pem" in (tmp_path / "broker/rabbitmq.conf").read_text()


# -- what is there already ---------------------------------------------------------------------


def test_a_complete_set_is_kept(tmp_path: Path) -> None:
    write_credentials(tmp_path, CHOICES)
    before = read_all(tmp_path)
    assert write_credentials(tmp_path, CHOICES) == []
    assert read_all(tmp_path) == before


@pytest.mark.parametrize("lost", ["master/complete", "worker"])
def test_an_incomplete_set_is_made_anew_as_a_whole(tmp_path: Path, lost: str) -> None:
    write_credentials(tmp_path, CHOICES)
    before = read_all(tmp_path)
    if (tmp_path / lost).is_dir():
        shutil.rmtree(tmp_path / lost)
    else:
        (tmp_path / lost).unlink()
    assert write_credentials(tmp_path, CHOICES) == ["broker", "master", "worker"]
    after = read_all(tmp_path)
    changed = {path for path in before if before[path] != after[path]}
    assert {"broker/definitions.json", "master/broker-url", "worker/broker-url"} < changed
    assert not [path for path in changed if path.startswith(("tunnel", "home"))]


def test_secrets_of_another_session_are_not_kept(tmp_path: Path) -> None:
    write_credentials(tmp_path, CHOICES)
    assert write_credentials(tmp_path, Choices("other")) == list(PARTS)


def test_a_kill_in_between_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pestfleet.credentials import parts as module

    write = module._write_secret
    written: list[Path] = []

    def write_some(path: Path, text: str) -> None:
        if len(written) == 8:
            raise OSError("killed")
        written.append(path)
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_secret", write_some)
        with pytest.raises(ConfigurationError, match="cannot be written: killed"):
            write_credentials(tmp_path, CHOICES)
    assert not list(tmp_path.rglob("complete"))
    assert write_credentials(tmp_path, CHOICES) == list(PARTS)
    assert not list(tmp_path.rglob("*.new"))


def test_only_the_parts_that_are_asked_for(tmp_path: Path) -> None:
    parts = ("broker", "worker", "master")
    assert write_credentials(tmp_path, CHOICES, parts=parts) == ["broker", "master", "worker"]
    assert not (tmp_path / "tunnel").exists()
    assert write_credentials(tmp_path, CHOICES, parts=("worker",)) == []
    shutil.rmtree(tmp_path / "worker")
    # The broker that is there would not know the new password.
    with pytest.raises(ConfigurationError, match="would not fit new ones of worker"):
        write_credentials(tmp_path, CHOICES, parts=("worker",))


def test_folders_that_are_there_stay(tmp_path: Path) -> None:
    for part in PARTS:
        (tmp_path / part).mkdir(mode=0o755)
    inodes = {part: (tmp_path / part).stat().st_ino for part in PARTS}
    write_credentials(tmp_path, CHOICES)
    assert {part: (tmp_path / part).stat().st_ino for part in PARTS} == inodes


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"session": "a/b"}, "'a/b' is not the id of a session"),
        ({"session": "s", "broker_host": "a b"}, "not the name of a host"),
        ({"session": "s", "broker_port": 0}, "not a port"),
        ({"session": "s", "mount": "/a\nlisteners.tcp.default = 5672"}, "not an absolute path"),
        ({"session": "s", "mount": "secrets"}, "not an absolute path"),
    ],
)
def test_choices_that_will_not_do(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        Choices(**choices)


def test_the_command_prints_no_secret(tmp_path: Path) -> None:
    arguments = ["credentials", str(tmp_path), "--session", "s", "--part", "broker",
                 "--part", "master", "--part", "worker"]  # fmt: skip
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert result.output == f"made in {tmp_path}: broker, master, worker\n"
    again = CliRunner().invoke(cli, arguments)
    assert again.output == f"kept in {tmp_path}: broker, master, worker\n"
    wrong = CliRunner().invoke(cli, ["credentials", str(tmp_path), "--session", "a/b"])
    assert wrong.exit_code == 4 and "is not the id of a session" in wrong.output


# -- certificates ------------------------------------------------------------------------------


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """TLS in memory; raises what the client does not accept."""
    pipes = [ssl.MemoryBIO() for _ in range(4)]
    ends = [
        server.wrap_bio(pipes[0], pipes[1], server_side=True),
        client.wrap_bio(pipes[1], pipes[0], server_hostname=name),
    ]
    done: set[int] = set()
    while len(done) < 2:
        for number, end in enumerate(ends):
            try:
                end.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                continue


def make_client(pem: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=pem)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("name", [BROKER_NAME, "10.1.2.3", "localhost"])
def test_a_signed_certificate_stands_strict_verification(name: str) -> None:
    authority, certificate = make_signed_certificate("a", [BROKER_NAME, "10.1.2.3", "localhost"])
    shake_hands(certificate.make_context(), make_client(authority), name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(certificate.make_context(), make_client(authority), "other")
    other, _ = make_signed_certificate("a", [BROKER_NAME])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(certificate.make_context(), make_client(other), name)


def test_a_server_may_be_its_own_authority() -> None:
    certificate = make_own_authority("pestfleet-relay")
    shake_hands(certificate.make_context(), make_client(certificate.pem), "pestfleet-relay")


def test_the_key_is_not_shown() -> None:
    assert "PRIVATE" not in repr(make_own_authority("x"))
