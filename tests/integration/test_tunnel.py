"""The tunnel between network namespaces: a home that lets nothing in, and a cloud with its sshd.

sshd runs with the image's own start script and configuration, as an unknown user without
capabilities. The channel of the calibrations goes another way than the tunnel: the broker is in
the cloud, and home connects to it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from cases import make_case
from hosting import send_signal, wait_for
from pestfleet.files.parameters import read_par
from pestfleet.testing.engine_pair import write_programs
from pestfleet.tunnel.keys import make_tunnel_keys
from pestfleet_worker.processes import WORKER_MARK, find_marked, kill_marked
from tunnel_site import LISTEN, PATIENCE, PORT, USER, Site, make_site, started_by

SESSION = f"tunnel-{os.getpid()}"
RELAY = 4711  # port of the relay at home
BROKER = 5673  # port in the cloud at which home finds the broker


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with make_site(1) as made:
        yield made


def dial(host: str, port: int, send: bytes = b"") -> str:
    """A script that says what a server answers, or why it does not."""
    return f"""
import socket
try:
    with socket.create_connection(({host!r}, {port}), 10) as connection:
        connection.settimeout(10)
        connection.sendall({send!r})
        print(connection.recv(100))
except OSError as error:
    print(type(error).__name__)
"""


GREETER = """
import socket
server = socket.create_server(("0.0.0.0", {port}))
print("listens", flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"hello from home")
"""


@pytest.fixture
def greeter(site: Site) -> Iterator[None]:
    """A server at home, on every address."""
    with site.home.start(sys.executable, "-c", GREETER.format(port=RELAY)) as process:
        assert process.stdout is not None and process.stdout.readline() == "listens\n"
        yield
        process.kill()


class Client:
    """`pestfleet tunnel` at home."""

    def __init__(self, site: Site, *words: str, key: Path | None = None) -> None:
        self.site = site
        self.output = site.folder / f"client-{time.monotonic_ns()}"
        self.process = site.home.start(
            *(sys.executable, "-m", "pestfleet.cli.main", "tunnel"),
            *("--host", site.cloud.address, "--port", str(PORT)),
            *("--key", key or site.write_home(), "--to", f"127.0.0.1:{RELAY}", *words),
            output=self.output,
            environment={"TMPDIR": str(site.folder)},
        )

    def said(self) -> str:
        return self.output.read_text()

    def wait_connected(self, times: int = 1) -> None:
        wait_for(
            lambda: self.said().count(" connected: ") >= times,
            timeout=PATIENCE,
            what=f"connected {times} times",
        )

    def wait_lost(self, times: int) -> None:
        wait_for(lambda: self.said().count(" lost: ") >= times, timeout=PATIENCE, what="lost")

    def ssh(self) -> list[int]:
        return started_by(self.process.pid, "ssh")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        wait_for(lambda: not listens(self.site, LISTEN), what="the port is free")


def listens(site: Site, port: int) -> bool:
    return "ConnectionRefusedError" not in site.cloud.python(dial(site.cloud.address, port))


def folders_left(site: Site) -> list[Path]:
    return list(site.folder.glob("pestfleet-tunnel-*"))


# -- a way in, and only that --------------------------------------------------------------------


def test_a_tunnel_leads_home_through_a_firewall_that_lets_nothing_in(
    site: Site, greeter: None
) -> None:
    """The control of all tests here: the firewall shuts, and the tunnel opens."""
    assert "hello" in site.home.python(dial(site.home.address, RELAY))
    assert site.cloud.python(dial(site.home.address, RELAY)) == "TimeoutError"
    with closing(Client(site)) as client:
        client.wait_connected()
        # On the address that others in the cloud see, not on loopback alone.
        assert "hello from home" in site.cloud.python(dial(site.cloud.address, LISTEN))
        ssh = client.ssh()
        assert len(ssh) == 1
        command = Path(f"/proc/{ssh[0]}/cmdline").read_text()
        assert "PRIVATE KEY" not in command
        (folder,) = folders_left(site)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in folder.iterdir()] == ["known_hosts"]
        client.process.send_signal(signal.SIGINT)
        assert client.process.wait(PATIENCE) == 130
        assert started_by(client.process.pid, "ssh") == []
        wait_for(lambda: not Path(f"/proc/{ssh[0]}").exists(), what="ssh is gone")
    assert folders_left(site) == []
    assert re.fullmatch(
        rf"\S+ connected: {site.cloud.address}:{PORT}, port {LISTEN}, leads to 127.0.0.1:{RELAY}\n"
        "stopped\n",
        client.said(),
    )


def test_ssh_ends_when_its_pestfleet_is_killed(site: Site, greeter: None) -> None:
    with closing(Client(site)) as client:
        client.wait_connected()
        (ssh,) = client.ssh()
        client.process.kill()
        client.process.wait(PATIENCE)
        wait_for(lambda: not Path(f"/proc/{ssh}").exists(), what="ssh is gone")
    left = [path.name for folder in folders_left(site) for path in folder.iterdir()]
    assert left == ["known_hosts"], "a secret was left behind"
    for folder in folders_left(site):
        (folder / "known_hosts").unlink()
        folder.rmdir()


def test_a_second_tunnel_waits_for_the_port(site: Site, greeter: None) -> None:
    with closing(Client(site)) as first:
        first.wait_connected()
        with closing(Client(site)) as second:
            wait_for(lambda: "still held" in second.said(), timeout=PATIENCE)
            first.process.send_signal(signal.SIGTERM)
            second.wait_connected()
            assert second.said().count("still held") == 1, "the same is told once"
            assert first.process.wait(PATIENCE) == 130
            second.process.kill()
            second.process.wait(PATIENCE)
    assert first.process.returncode == 130
    for folder in folders_left(site):
        (folder / "known_hosts").unlink()
        folder.rmdir()


FAILURES = {
    "a stranger's key": "does not know the key",
    "another host key": "its host key differs",
    "another port": "does not let this key listen on its port 4005",
}


@pytest.mark.parametrize("what", FAILURES)
def test_what_never_heals_ends_the_tunnel_with_the_reason(site: Site, what: str) -> None:
    keys = {"user_key": site.keys.user_key, "host_public": site.keys.host_public}
    stranger = make_tunnel_keys()
    folder = site.folder / what.replace(" ", "-")
    folder.mkdir()
    if what == "a stranger's key":
        keys["user_key"] = stranger.user_key
    if what == "another host key":
        keys["host_public"] = stranger.host_public
    (folder / "tunnel_key").touch(mode=0o600)
    (folder / "tunnel_key").write_text(keys["user_key"])
    (folder / "host_key.pub").write_text(keys["host_public"])
    words = ["--listen", "4005"] if what == "another port" else []
    with closing(Client(site, *words, key=folder / "tunnel_key")) as client:
        assert client.process.wait(PATIENCE) == 7
        assert FAILURES[what] in client.said()
        assert client.said().startswith("error: ")
        assert "Traceback" not in client.said()
    assert folders_left(site) == []


# -- refused --------------------------------------------------------------------------------------

NO_SESSION = r"channel 0: open failed|[Ss]ession open refused|request failed on channel 0"
PROHIBITED = "administratively prohibited"
# SOCKS 5: no authentication; connect to 127.0.0.1:2222.
SOCKS = b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x08\xae"
REFUSED = {
    # what -> (words for ssh, what it then says)
    "a shell": (["-T"], NO_SESSION),
    "a terminal": (["-tt"], NO_SESSION),
    "a command": (["-T", "CLOUD", "id"], NO_SESSION),
    "sftp": (["-T", "-s", "CLOUD", "sftp"], NO_SESSION),
    "agent forwarding": (["-A", "-T"], NO_SESSION),
    "X11 forwarding": (["-Y", "-T"], NO_SESSION),
    "another destination": (["-W", "127.0.0.1:2222"], PROHIBITED),
    "the metadata of a cloud": (["-W", "169.254.169.254:80"], PROHIBITED),
    "another port": (["-N", "-R", "4005:127.0.0.1:4711"], "port forwarding refused"),
    "any port": (["-N", "-R", "0:127.0.0.1:4711"], "remote port forwarding failed"),
    "a low port": (["-N", "-R", "80:127.0.0.1:4711"], "port forwarding refused"),
    "a proxy of ours": (["-N", "-R", "4005"], "port forwarding refused"),
    "a socket file there": (["-N", "-R", "/tmp/pf-sock:127.0.0.1:4711"], "forwarding failed"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_the_key_opens_nothing_else(site: Site, what: str) -> None:
    words, said = REFUSED[what]
    command = site.ssh(*words)
    if "CLOUD" in command:  # what follows the server's name is the command
        place = command.index("CLOUD")
        command = [*command[:place], command[-1], *command[place + 1 : -1]]
    code, out = site.home.ask(*command)
    assert "Authenticated to" in out, "it did not get so far"
    assert code not in (0, -9), out
    assert re.search(said, out), out
    assert "uid=" not in out


@pytest.mark.parametrize(
    ("way", "first", "said"),
    [
        (["-L", "127.0.0.1:5000:127.0.0.1:2222"], b"", f"open failed: {PROHIBITED}"),
        (["-D", "127.0.0.1:5000"], SOCKS, f"open failed: {PROHIBITED}"),
        (["-L", "127.0.0.1:5000:/tmp/any-socket"], b"", "refused streamlocal port forward"),
    ],
    ids=["local", "dynamic", "socket file"],
)
def test_no_way_from_home_into_the_cloud(
    site: Site, way: list[str], first: bytes, said: str
) -> None:
    output = site.folder / f"way-{time.monotonic_ns()}"
    ssh = site.home.start(*site.ssh("-N", *way), output=output)
    try:
        wait_for(lambda: "Entering interactive session" in output.read_text())
        wait_for(
            lambda: site.home.python(dial("127.0.0.1", 5000, first)) != "ConnectionRefusedError"
        )
        answer = site.home.python(dial("127.0.0.1", 5000, first))
        assert "SSH-2.0" not in answer, answer
        wait_for(lambda: said in output.read_text() + site.log.read_text(), what=said)
    finally:
        ssh.kill()
        ssh.wait(PATIENCE)


def test_no_password_no_other_key_and_no_other_user(site: Site) -> None:
    ways = ["password,keyboard-interactive", "gssapi-with-mic,hostbased,none"]
    for way in ways:
        code, out = site.home.ask(*site.ssh("-N", "-o", f"PreferredAuthentications={way}"))
        assert code == 255
        assert "Authentications that can continue: publickey\n" in out
        assert "Permission denied (publickey)." in out
    stranger = site.write_home(make_tunnel_keys())
    for words in ({"key": stranger}, {"user": "root"}, {"user": "nobody"}):
        code, out = site.home.ask(*site.ssh("-N", **words))  # type: ignore[arg-type]
        assert code == 255
        assert "Permission denied (publickey)." in out
        assert "Authenticated to" not in out


def test_old_algorithms_are_not_spoken(site: Site) -> None:
    for option in ("Ciphers=aes128-ctr", "KexAlgorithms=diffie-hellman-group14-sha256"):
        code, out = site.home.ask(*site.ssh("-N", "-o", option))
        assert code == 255
        assert "Unable to negotiate" in out


def test_the_configuration_means_what_it_should(site: Site) -> None:
    """As sshd itself reads it, defaults included."""
    config = site.folder / "etc" / "sshd_config"
    words = ("/usr/sbin/sshd", "-T", "-f", config, "-o", f"PermitListen={LISTEN}")
    code, out = site.cloud.ask("setpriv", "--reuid", str(USER), "--clear-groups", *words)
    assert code == 0, out
    settings = dict(line.split(" ", 1) for line in out.splitlines() if " " in line)
    assert {name: settings[name] for name in EFFECTIVE} == EFFECTIVE
    assert "subsystem" not in settings


EFFECTIVE = {
    "allowagentforwarding": "no",
    "allowstreamlocalforwarding": "no",
    "allowtcpforwarding": "remote",
    "allowusers": "tunnel",
    "authenticationmethods": "publickey",
    "clientalivecountmax": "3",
    "clientaliveinterval": "5",
    "compression": "no",
    "forcecommand": "/bin/false",
    "gatewayports": "yes",
    "gssapiauthentication": "no",
    "hostbasedauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "kerberosauthentication": "no",
    "logingracetime": "10",
    "maxauthtries": "2",
    "maxsessions": "0",
    "passwordauthentication": "no",
    "permitlisten": f"*:{LISTEN}",
    "permitopen": "none",
    "permittty": "no",
    "permittunnel": "no",
    "permituserenvironment": "no",
    "permituserrc": "no",
    "pidfile": "none",
    "unusedconnectiontimeout": "3600",
    "usepam": "no",
    "x11forwarding": "no",
}


# -- a calibration through it ---------------------------------------------------------------------

# The broker, in the cloud: on loopback for the workers there, on the cable for home.
BROKER_SCRIPT = """
import socket, sys, threading
from pestfleet.broker import EmbeddedBroker
broker = EmbeddedBroker(port={port} + 1, password="secret")
broker.start()
server = socket.create_server(({address!r}, {port}))
print(broker.url, flush=True)
def forward(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)
def serve():
    while True:
        client, _ = server.accept()
        inner = socket.create_connection(("127.0.0.1", broker.port))
        for pair in ((client, inner), (inner, client)):
            threading.Thread(target=forward, args=pair, daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
sys.stdin.read()
"""

# The master, at home: its relay is on loopback, and known to the workers by the tunnel's address.
MASTER_SCRIPT = """
import json, sys
from pathlib import Path
from pestfleet.session import create_session
from pestfleet.targets.base import Site
from pestfleet.targets.joining import JoiningTarget
case, engine, root, url, name, relay, address, port = sys.argv[1:]
session = create_session(Path(case), engine=engine, mode="agent", root=Path(root), session=name,
                         workers=2, own_broker=False, cache="none")
place = Site(JoiningTarget, relay_port=int(relay), advertised=address, advertised_port=int(port))
master = session.make_master(broker_url=url, site=place,
    on_event=lambda event: print(json.dumps(event, default=str), flush=True))
outcome = master.host()
sys.exit(outcome.error.exit_code if outcome.error else 0)
"""


class Calibration:
    """Broker and two workers in the cloud, and a master at home."""

    def __init__(self, site: Site, stack: ExitStack, folder: Path, case: Path, engine: str) -> None:
        self.session = folder / "sessions" / SESSION
        self.events = folder / "events"
        broker = site.cloud.start(
            *(sys.executable, "-c"),
            BROKER_SCRIPT.format(address=site.cloud.address, port=BROKER),
            stdin=subprocess.PIPE,
        )
        stack.callback(end, broker)
        assert broker.stdout is not None
        url = broker.stdout.readline().strip()
        assert url.startswith("amqp://"), broker.stdout.read()
        self.master = site.home.start(
            *(sys.executable, "-c", MASTER_SCRIPT, case, engine),
            *(folder / "sessions", f"amqp://pestfleet:secret@{site.cloud.address}:{BROKER}//"),
            *(SESSION, str(RELAY), site.cloud.address, str(LISTEN)),
            output=self.events,
        )
        stack.callback(end, self.master)
        for number in (1, 2):
            worker = site.cloud.start(
                *(sys.executable, "-m", "pestfleet_worker", "--session", SESSION),
                *("--name", f"w-{number}", "--scratch", folder / f"w-{number}"),
                environment={"PESTFLEET_BROKER": url},
                output=folder / f"w-{number}.log",
            )
            stack.callback(end, worker)

    def told(self) -> list[dict[str, Any]]:
        lines = self.events.read_text().splitlines() if self.events.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def done(self) -> int:
        """Runs that have reached the engine's master, as its run record says."""
        return sum(
            len(re.findall(r"completed|run \d+ processed", path.read_text()))
            for path in (self.session / "results").glob("**/small.rmr")
        )

    def wait_done(self, count: int) -> None:
        wait_for(
            lambda: self.done() >= count or self.master.poll() is not None,
            timeout=2 * PATIENCE,
            what=f"{count} runs",
        )
        assert self.master.poll() is None, self.events.read_text()


def end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()
    kill_marked(WORKER_MARK, SESSION)


@pytest.fixture
def _programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("engine", "near"),
    [("beopest", 1e-6), pytest.param("pestpp-glm", 1e-2, marks=pytest.mark.pestpp)],
)
def test_a_calibration_outlives_three_cuts(
    site: Site, tmp_path: Path, engine: str, near: float, _programs: None
) -> None:
    case = make_case(tmp_path / "case", parameters=6, seconds=0.5)
    if engine != "beopest":  # it would go on for long after it has the answer
        case.write_text(case.read_text().replace("\n10 0.005 4 4", "\n4 0.005 4 4"))
    with ExitStack() as stack:
        client = stack.enter_context(closing(Client(site)))
        calibration = Calibration(site, stack, tmp_path, case, engine)
        calibration.wait_done(2)
        client.wait_connected()

        done = calibration.done()
        (ssh,) = client.ssh()
        send_signal(ssh, signal.SIGKILL)
        client.wait_connected(2)
        calibration.wait_done(done + 3)

        with site.packets_lost():
            client.wait_lost(2)
        client.wait_connected(3)
        done = calibration.done()
        calibration.wait_done(done + 3)

        site.stop_server()
        client.wait_lost(3)
        site.start_server()
        client.wait_connected(4)
        calibration.wait_done(calibration.done() + 1)

        assert calibration.master.wait(3 * PATIENCE) == 0, calibration.events.read_text()
        assert client.process.poll() is None
    told = calibration.told()
    assert told[-1]["event"] == "end" and told[-1]["state"] == "finished"
    assert told[-1]["summary"]["phi"] < near
    left = [event["reason"] for event in told if event["event"] == "worker-left"]
    assert set(left) <= {"the session is over"}
    values = read_par(next((calibration.session / "results").glob("small.par"))).values
    assert [value.value for value in values] == pytest.approx([10**0.5] * 6, rel=near)
    wait_for(lambda: not find_marked(WORKER_MARK, SESSION), what="no process of ours")
