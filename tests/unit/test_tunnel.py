"""The tunnel without a server: keys, command line, what ssh's words mean, the bridge."""

from __future__ import annotations

import base64
import re
import socket
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    load_ssh_public_key,
)

from pestfleet.cli.main import cli
from pestfleet.cli.tunnel import parse_address
from pestfleet.tunnel import connection, program
from pestfleet.tunnel.bridge import Bridge
from pestfleet.tunnel.connection import Tunnel, TunnelPlace
from pestfleet.tunnel.keys import TunnelKeys, make_tunnel_keys
from pestfleet.tunnel.program import explain_ending, make_command, says_up
from pestfleet_worker.errors import ConfigurationError, TargetError
from source import ROOT

IMAGE = ROOT / "client" / "pestfleet" / "images" / "files" / "tunnel"


@pytest.fixture(scope="module")
def keys() -> TunnelKeys:
    return make_tunnel_keys()


def read_public_of(private: str) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = load_ssh_private_key(private.encode(), password=None)
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def test_keys_are_pairs_in_openssh_formats(keys: TunnelKeys) -> None:
    for private, public in (
        (keys.host_key, keys.host_public),
        (keys.user_key, keys.user_public),
    ):
        kind, blob, comment = public.split()
        assert (kind, comment) == ("ssh-ed25519", "pestfleet-tunnel")
        assert read_public_of(private) == f"{kind} {blob}".encode()
        assert load_ssh_public_key(public.encode()) is not None
        assert private.startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
        assert private.endswith("-----END OPENSSH PRIVATE KEY-----\n")
        (length,) = struct.unpack(">I", base64.b64decode(blob)[:4])
        assert length == len(kind)
    assert len({keys.host_public, keys.user_public, make_tunnel_keys().user_public}) == 3


def test_keys_do_not_show_in_a_representation(keys: TunnelKeys) -> None:
    place = TunnelPlace("tunnel", user_key=keys.user_key, host_public=keys.host_public)
    assert "PRIVATE" not in repr(keys) + repr(place)


def test_each_end_gets_its_own_files(keys: TunnelKeys) -> None:
    server, home = keys.server_files(listen=5671), keys.home_files()
    assert sorted(server) == ["authorized_keys", "host_key"]
    assert sorted(home) == ["host_key.pub", "tunnel_key"]
    assert server["host_key"] == keys.host_key and home["tunnel_key"] == keys.user_key
    assert server["authorized_keys"] == (
        'restrict,port-forwarding,permitlisten="5671",command="/bin/false" ' + keys.user_public
    )


# -- ssh's command line and words -------------------------------------------------------------


def read_options(command: list[str]) -> dict[str, str]:
    words = [word for before, word in pairwise(command) if before == "-o"]
    return dict(word.split("=", 1) for word in words)


def test_the_command_line_trusts_nothing_but_what_it_is_given() -> None:
    command = make_command("ssh", port=40000, user="tunnel", listen=4004, to=("127.0.0.1", 4711))
    options = read_options(command)
    assert command[-1] == "127.0.0.1"
    assert command[command.index("-R") + 1] == "4004:127.0.0.1:4711"
    assert command[command.index("-F") + 1] == "none"
    assert {"-N", "-T"} <= set(command)
    assert options["StrictHostKeyChecking"] == "yes"
    assert options["ExitOnForwardFailure"] == "yes"
    assert options["BatchMode"] == "yes"
    assert (options["IdentitiesOnly"], options["IdentityAgent"]) == ("yes", "none")
    assert (options["UserKnownHostsFile"], options["GlobalKnownHostsFile"]) == (
        "known_hosts",
        "none",
    )
    assert options["ControlPath"] == "none"
    assert options["UpdateHostKeys"] == "no"
    silence = int(options["ServerAliveInterval"]) * (int(options["ServerAliveCountMax"]) + 1)
    assert silence <= 15


def test_an_ipv6_address_stands_in_brackets() -> None:
    command = make_command("ssh", port=1, user="t", listen=4004, to=("::1", 4711))
    assert command[command.index("-R") + 1] == "4004:[::1]:4711"


def test_only_the_forward_counts_as_up() -> None:
    assert says_up("debug1: remote forward success for: listen 4004, connect 127.0.0.1:4711\n")
    assert not says_up('Authenticated to 127.0.0.1 ([127.0.0.1]:1) using "publickey".')
    assert not says_up("debug1: remote forward failure for: listen 4004, connect 127.0.0.1:4711")


CHANGED = (
    "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed."
)
FINAL = [
    (CHANGED, "its host key differs"),
    ("No ED25519 host key is known for pestfleet-tunnel", "host key differs"),
    ("tunnel@127.0.0.1: Permission denied (publickey).", "does not know the key"),
    ('Load key "key": error\ntunnel@h: Permission denied (publickey).', "cannot be"),
    ("debug1: Remote: port forwarding refused", "does not let this key listen on its port 4004"),
    ("debug1: Remote: Server has disabled port forwarding.", "does not let this key listen"),
    ("Unable to negotiate with 127.0.0.1: no matching host key type found.", "cannot agree"),
    ("command-line: line 0: Bad configuration option: identityagent", "does not know an option"),
    ("No user exists for uid 10001", "does not run here"),
]  # fmt: skip
PASSING = [
    ("Error: remote port forwarding failed for listen port 4004", "still held"),
    ("Timeout, server 127.0.0.1 not responding.", "no answer from cloud:2222"),
    ("Connection to 127.0.0.1 closed by remote host.", "the connection to cloud:2222 was lost"),
    ("Connection reset by 127.0.0.1 port 40000", "the connection to cloud:2222 was lost"),
    ("kex_exchange_identification: Connection closed by remote host", "was lost"),
    ("client_loop: send disconnect: Broken pipe", "was lost"),
    ("some words that nobody knows", "some words that nobody knows"),
    ("debug1: chatter", "ssh ended with exit code 255"),
    ("", "ssh ended with exit code 255"),
]


@pytest.mark.parametrize(("said", "reason"), FINAL)
def test_what_never_heals_ends_the_tunnel(said: str, reason: str) -> None:
    lines = ["debug1: chatter", *said.splitlines()]
    ending = explain_ending(lines, 255, where="cloud:2222", listen=4004)
    assert ending.final
    assert reason in ending.reason
    assert ending.remedy


@pytest.mark.parametrize(("said", "reason"), PASSING)
def test_what_may_heal_is_tried_again(said: str, reason: str) -> None:
    ending = explain_ending(said.splitlines(), 255, where="cloud:2222", listen=4004)
    assert not ending.final
    assert reason in ending.reason
    assert ending.held == ("held" in reason)


def test_a_refused_port_is_not_taken_for_a_held_one() -> None:
    lines = [
        "debug1: Remote: port forwarding refused",
        "Error: remote port forwarding failed for listen port 4005",
    ]
    assert explain_ending(lines, 255, where="cloud:2222", listen=4005).final


def test_an_ssh_that_was_killed_is_told() -> None:
    ending = explain_ending(
        ['Authenticated to 127.0.0.1 using "publickey".'], -9, where="", listen=1
    )
    assert ending.reason == "ssh was ended by signal 9"


# -- place, pauses, program -------------------------------------------------------------------


def test_a_place_refuses_what_is_no_key(keys: TunnelKeys) -> None:
    good = {"user_key": keys.user_key, "host_public": keys.host_public}
    assert str(TunnelPlace("cloud", 22, **good)) == "cloud:22"
    assert str(TunnelPlace("::1", 22, **good)) == "[::1]:22"
    for bad in ("", "ssh-rsa AAAA x", keys.user_key, f"*.evil {keys.host_public}"):
        with pytest.raises(ConfigurationError, match=r"host_key\.pub"):
            TunnelPlace("cloud", user_key=keys.user_key, host_public=bad)
    for bad in ("", keys.host_public, "-----BEGIN CERTIFICATE-----\n"):
        with pytest.raises(ConfigurationError, match="no private key"):
            TunnelPlace("cloud", user_key=bad, host_public=keys.host_public)


def test_no_two_tries_are_more_than_ten_seconds_apart() -> None:
    assert connection.PAUSES[0] == 0.0
    assert list(connection.PAUSES) == sorted(connection.PAUSES)
    assert max(connection.PAUSES) <= 10.0


def test_without_ssh_it_says_what_to_install(
    keys: TunnelKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.shutil, "which", lambda name: None)
    place = TunnelPlace("cloud", user_key=keys.user_key, host_public=keys.host_public)
    with pytest.raises(TargetError, match="OpenSSH Client"):
        Tunnel(place)


# -- the bridge -------------------------------------------------------------------------------


@pytest.fixture
def listener() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(10)
    return server


def make_bridge(listener: socket.socket) -> Bridge:
    host, port = listener.getsockname()
    return Bridge(host, port, connect_timeout=5.0, dead_after=12.0)


def test_the_bridge_takes_bytes_both_ways_and_ends_with_either_side(
    listener: socket.socket,
) -> None:
    bridge = make_bridge(listener)
    with listener:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", bridge.connect()), 5) as ssh:
                server, _ = listener.accept()
                with server:
                    ssh.sendall(b"SSH-2.0-here")
                    assert server.recv(100) == b"SSH-2.0-here"
                    server.sendall(b"SSH-2.0-there")
                    assert ssh.recv(100) == b"SSH-2.0-there"
                ssh.settimeout(5)
                assert ssh.recv(100) == b""
        bridge.close()


def test_a_bridge_that_closes_takes_ssh_with_it(listener: socket.socket) -> None:
    bridge = make_bridge(listener)
    with listener, socket.create_connection(("127.0.0.1", bridge.connect()), 5) as ssh:
        server, _ = listener.accept()
        ssh.sendall(b"x")
        assert server.recv(1) == b"x"
        bridge.close()
        ssh.settimeout(5)
        with server, pytest.raises(ConnectionResetError):
            assert ssh.recv(100) != b"", "closed in good order"
    with pytest.raises(ConnectionAbortedError):
        bridge.connect()


def test_the_bridge_has_room_for_one(listener: socket.socket) -> None:
    bridge = make_bridge(listener)
    with listener:
        port = bridge.connect()
        with socket.create_connection(("127.0.0.1", port), 5) as ssh:
            server, _ = listener.accept()
            ssh.sendall(b"x")
            assert server.recv(1) == b"x"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)
            server.close()
        bridge.close()


def test_another_users_process_gets_no_bridge(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pestfleet.tunnel.bridge.is_own_peer", lambda peer, own: False)
    bridge = make_bridge(listener)
    port = bridge.connect()
    with listener:
        with (
            pytest.raises(ConnectionResetError),  # as soon as it is connected, or a bit later
            socket.create_connection(("127.0.0.1", port), 5) as stranger,
        ):
            stranger.recv(1)
        bridge.close()


def test_a_server_that_cannot_be_reached_is_told_by_the_bridge(listener: socket.socket) -> None:
    bridge = make_bridge(listener)
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        bridge.connect()
    bridge.close()


# -- command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:4004", ("127.0.0.1", 4004)),
        ("[::1]:4004", ("::1", 4004)),
        ("4004", ("127.0.0.1", 4004)),
        (":4004", ("127.0.0.1", 4004)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "127.0.0.1", "host:", "host:0", "host:65536", "host:ssh"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigurationError, match="no address with a port"):
        parse_address(text)


def write_keys(folder: Path, keys: TunnelKeys) -> Path:
    for name, text in keys.home_files().items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return folder / "tunnel_key"


def ask(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["tunnel", "--host", "127.0.0.1", *words])
    return result.exit_code, result.output


def test_missing_and_open_key_files_are_told(tmp_path: Path, keys: TunnelKeys) -> None:
    code, said = ask("--key", str(tmp_path / "tunnel_key"))
    assert code == 4 and "cannot be read: No such file" in said and "credentials" in said
    key = write_keys(tmp_path, keys)
    key.chmod(0o644)
    code, said = ask("--key", str(key))
    assert code == 4 and "can be read by other users" in said and f"chmod 600 {key}" in said
    key.chmod(0o600)
    code, said = ask("--key", str(key), "--host-key", str(key))
    assert code == 4 and "host_key.pub" in said


def test_a_tunnel_without_ssh_ends_with_the_code_of_a_target(
    tmp_path: Path, keys: TunnelKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.shutil, "which", lambda name: None)
    code, said = ask("--key", str(write_keys(tmp_path, keys)))
    assert code == TargetError.exit_code
    assert "there is no program ssh" in said


# -- the image --------------------------------------------------------------------------------


def test_the_image_and_the_client_agree() -> None:
    config = (IMAGE / "sshd_config").read_text(encoding="utf-8")
    start = (IMAGE / "start").read_text(encoding="utf-8")
    settings = dict(
        line.split(None, 1) for line in config.splitlines() if line and not line.startswith("#")
    )
    assert settings["Port"] == str(connection.SSH_PORT)
    assert settings["AllowUsers"] == connection.USER
    assert f'"{connection.USER}:*:' in start
    assert start.startswith("#!/bin/sh\n")
    assert "${PESTFLEET_TUNNEL_PORT:-4004}" in start
    dockerfile = (IMAGE / "Dockerfile").read_text(encoding="utf-8")
    assert f":{connection.SSH_PORT:04X} " in dockerfile
    assert re.search(r"^USER 10001:10001$", dockerfile, re.MULTILINE)
