"""Two places for the tests of the tunnel: a cloud with an sshd, and a home behind a firewall.

Each is a network namespace; a cable ties them. Home's firewall drops whatever begins outside.
Needs root, iproute2, iptables and openssh-server.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from hosting import wait_for
from pestfleet.tunnel.connection import TunnelPlace
from pestfleet.tunnel.keys import TunnelKeys, make_tunnel_keys

IMAGE = Path(__file__).resolve().parents[2] / "images" / "tunnel"
PORT = 2222
LISTEN = 4004
USER = 23456  # a user that nobody knows
PATIENCE = 60.0


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


class Place:
    """A network namespace with one address on the cable."""

    def __init__(self, name: str, address: str) -> None:
        self.name = f"pf-{os.getpid()}-{name}"
        self.address = address

    def start(
        self,
        *words: str | Path,
        stdin: int = subprocess.DEVNULL,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        output: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program here; its output goes to a file, or to a pipe."""
        with (output or Path(os.devnull)).open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *map(str, words)],
                stdin=stdin,
                stdout=file if output else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    **(environment or {}),
                },
            )

    def ask(self, *words: str | Path, timeout: float = 30.0) -> tuple[int, str]:
        """Exit code and output of a program that ends by itself."""
        with self.start(*words) as process:
            try:
                out, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, _ = process.communicate()
                return -9, out
        return process.returncode, out

    def python(self, script: str, *, timeout: float = 30.0) -> str:
        """What a script prints here."""
        return self.ask(sys.executable, "-c", script, timeout=timeout)[1].strip()


class Site:
    """Cloud and home, and the tunnel's server in the cloud as the image starts it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.cloud = Place("cloud", f"10.214.{number}.2")
        self.home = Place("home", f"10.214.{number}.1")
        self.folder = folder  # any user may look into it
        self.keys: TunnelKeys = make_tunnel_keys()
        self.log = folder / "sshd.log"
        self._server: subprocess.Popen[str] | None = None

    def build(self) -> None:
        cloud, home = self.cloud, self.home
        for place in (cloud, home):
            run("ip", "netns", "add", place.name)
            run("ip", "-n", place.name, "link", "set", "lo", "up")
        run(
            *("ip", "-n", home.name, "link", "add", "cable", "type", "veth"),
            *("peer", "name", "cable", "netns", cloud.name),
        )
        for place in (cloud, home):
            run("ip", "-n", place.name, "addr", "add", f"{place.address}/30", "dev", "cable")
            run("ip", "-n", place.name, "link", "set", "cable", "up")
        self.iptables("-P", "INPUT", "DROP")
        self.iptables("-A", "INPUT", "-i", "lo", "-j", "ACCEPT")
        state = ("-m", "conntrack", "--ctstate", "ESTABLISHED")
        self.iptables("-A", "INPUT", *state, "-j", "ACCEPT")

    def remove(self) -> None:
        self.stop_server()
        for place in (self.cloud, self.home):
            subprocess.run(["ip", "netns", "del", place.name], check=False, capture_output=True)

    def iptables(self, *words: str) -> None:
        run("ip", "netns", "exec", self.home.name, "iptables", *words)

    @contextmanager
    def packets_lost(self) -> Iterator[None]:
        """Nothing of the tunnel's connections comes through any more, and nobody is told."""
        rules = [
            ("INPUT", "-p", "tcp", "--sport", str(PORT), "-j", "DROP"),
            ("OUTPUT", "-p", "tcp", "--dport", str(PORT), "-j", "DROP"),
        ]
        for rule in rules:
            self.iptables("-I", *rule)
        try:
            yield
        finally:
            for rule in rules:
                self.iptables("-D", *rule)

    # -- the server ----------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start sshd with the image's own files, paths apart, as a user without an account."""
        etc = self.folder / "etc"
        secrets = self.folder / "secrets"
        passwd = self.folder / "passwd"
        for folder in (etc, secrets):
            folder.mkdir(exist_ok=True)
        for name, text in self.keys.server_files(listen=LISTEN).items():
            (secrets / name).unlink(missing_ok=True)
            (secrets / name).write_text(text)
            (secrets / name).chmod(0o400)
            os.chown(secrets / name, USER, USER)
        passwd.touch()
        os.chown(passwd, USER, USER)
        paths = {
            "/etc/pestfleet": str(etc),
            "/secrets": str(secrets),
            "/dev/shm/passwd": str(passwd),
        }
        for name in ("sshd_config", "start"):
            text = (IMAGE / name).read_text()
            for inside, here in paths.items():
                assert inside in (IMAGE / "start").read_text()
                text = text.replace(inside, here)
            (etc / name).write_text(text)
        bind = f"mount --bind {passwd} /etc/passwd"  # in this program's view alone
        drop = f"setpriv --reuid {USER} --regid {USER} --clear-groups --bounding-set=-all"
        self._server = self.cloud.start(
            *("sh", "-c", f"{bind} && exec {drop} --no-new-privs sh {etc / 'start'}"),
            environment={"PESTFLEET_TUNNEL_PORT": str(LISTEN)},
            output=self.log,
        )
        wait_for(self._listens, what="sshd listens")

    def _listens(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, self.log.read_text()
        return f" {PORT:04X}" in self.cloud.ask("cat", "/proc/net/tcp")[1].replace(":", " ")

    def server_processes(self) -> list[int]:
        """Processes of the server's user: sshd and its children for connections."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if process.stat().st_uid == USER:
                    found.append(int(process.name))
            except OSError:
                continue  # it has ended
        return found

    def stop_server(self) -> None:
        """kill -9, of the processes for connections too."""
        for process in self.server_processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if self._server is not None:
            self._server.wait(PATIENCE)
            self._server = None
        wait_for(lambda: not self.server_processes(), what="sshd is gone")

    # -- the other end -------------------------------------------------------------------------

    def place(self, keys: TunnelKeys | None = None, *, listen: int = LISTEN) -> TunnelPlace:
        keys = keys or self.keys
        return TunnelPlace(
            self.cloud.address,
            PORT,
            user_key=keys.user_key,
            host_public=keys.host_public,
            listen=listen,
        )

    def write_home(self, keys: TunnelKeys | None = None) -> Path:
        """The files of the home's end; returns the key's."""
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="home-"))
        for name, text in (keys or self.keys).home_files().items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
        return folder / "tunnel_key"

    def ssh(self, *words: str, key: Path | None = None, user: str = "tunnel") -> list[str]:
        """The command line of an ssh that knows the server, with the right key or another."""
        known = self.folder / "known_hosts"
        known.write_text(f"cloud {self.keys.host_public}")
        return [
            *("ssh", "-v", "-F", "none", "-p", str(PORT), "-l", user),
            *("-i", str(key or self.write_home()), "-o", "IdentitiesOnly=yes"),
            *("-o", f"UserKnownHostsFile={known}", "-o", "HostKeyAlias=cloud"),
            *("-o", "StrictHostKeyChecking=yes", "-o", "NumberOfPasswordPrompts=1"),
            *("-o", "ExitOnForwardFailure=yes", "-o", "ConnectTimeout=10"),
            *words,
            self.cloud.address,
        ]


@contextmanager
def make_site(number: int) -> Iterator[Site]:
    """A site with a running server; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pestfleet-site-"))
    folder.chmod(0o755)
    site = Site(folder, number)
    try:
        site.build()
        site.start_server()
        yield site
    finally:
        site.remove()
        shutil.rmtree(folder)


def started_by(process: int, name: str) -> list[int]:
    """Child processes of that name."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue  # it has ended
        comm, _, rest = text.partition("(")[2].rpartition(")")
        state, parent = rest.split()[:2]
        if comm == name and int(parent) == process and state != "Z":
            found.append(int(status.parent.name))
    return found
