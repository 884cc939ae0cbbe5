"""A Docker engine of the tests' own, that touches nothing of one that runs here already.

Its data, sockets, bridge, networks and control groups have places of their own, and it keeps its
hands off iptables and sysctls: containers reach each other and this machine, not the world (a
build does, with the machine's network). What it left is removed when it ends.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
from docker.errors import DockerException

from node_keeper import remove_group

VARIABLE = "PESTFLEET_TEST_DOCKER"  # the URL of an engine to use in place of our own
START = 300.0  # seconds
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_NETWORKS = ipaddress.ip_network("10.192.0.0/10").subnets(new_prefix=16)


_STATES = {"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"}


@contextlib.contextmanager
def run_engine() -> Iterator[docker.DockerClient]:
    """An engine of our own, or the one of PESTFLEET_TEST_DOCKER; DOCKER_HOST names it."""
    url = os.environ.get(VARIABLE, "")
    own = None if url else DockerEngine()
    before = {name: os.environ.pop(name) for name in _STATES if name in os.environ}
    try:
        if own is not None:
            own.start()
            url = own.url
        os.environ["DOCKER_HOST"] = url
        with contextlib.closing(docker.DockerClient(base_url=url)) as client:
            yield client
    finally:
        os.environ.pop("DOCKER_HOST", None)
        os.environ.update(before)
        if own is not None:
            own.stop()


def find_reason_against() -> str:
    """Why tests with Docker cannot be run here; "" when they can."""
    if os.environ.get(VARIABLE):
        return ""
    if find_daemon() is None:
        return "dockerd is not installed"
    if os.name != "posix" or os.geteuid() != 0:
        return f"only root can start dockerd; {VARIABLE}=unix:///… names one that runs"
    return ""


def find_daemon() -> str | None:
    return shutil.which("dockerd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


class DockerEngine:
    """One dockerd, between `start` and `stop`. `url`: for DOCKER_HOST."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pestfleet-docker-"))
        self.url = f"unix://{self.folder}/docker.sock"
        self._name = f"pft{os.getpid()}"  # of its bridge and its control group
        self._network = find_free_network()
        self._process: subprocess.Popen[bytes] | None = None
        self._undo: list[list[str]] = []

    def start(self) -> None:
        """Start it and wait until it answers."""
        pools = list(self._network.subnets(new_prefix=17))
        gateway = next(pools[0].hosts())
        self._change(["ip", "link", "add", self._name, "type", "bridge"], ["ip", "link", "del"])
        _run(["ip", "addr", "add", f"{gateway}/{pools[0].prefixlen}", "dev", self._name])
        _run(["ip", "link", "set", self._name, "up"])
        # An engine that runs here already may have forbidden what it does not know.
        if "-P FORWARD DROP" in _run(["iptables", "-S", "FORWARD"]):
            own = ["-s", str(self._network), "-d", str(self._network), "-j", "ACCEPT"]
            _run(["iptables", "-I", "FORWARD", *own])
            self._undo.append(["iptables", "-D", "FORWARD", *own])
        daemon = find_daemon()
        assert daemon is not None
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    # It ends when the tests are killed.
                    *("setpriv", "--pdeathsig", "TERM", daemon),
                    *("--host", self.url),
                    *("--data-root", str(self.folder / "data")),
                    *("--exec-root", str(self.folder / "exec")),
                    *("--pidfile", str(self.folder / "pid")),
                    *("--containerd-namespace", self._name),
                    *("--containerd-plugins-namespace", f"{self._name}-plugins"),
                    *("--cgroup-parent", f"/{self._name}"),
                    *("--exec-opt", "native.cgroupdriver=cgroupfs"),
                    *("--bridge", self._name),
                    *("--default-address-pool", f"base={pools[1]},size=24"),
                    "--iptables=false",
                    "--ip6tables=false",
                    "--ip-masq=false",
                    "--ip-forward=false",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START
        while not self._answers():
            assert self._process.poll() is None, self._read_log()
            assert time.monotonic() < deadline, self._read_log()
            time.sleep(0.1)

    def stop(self) -> None:
        """End it with all that it has: containers, networks, images, volumes."""
        with contextlib.suppress(DockerException), self._connect() as client:
            for container in client.containers.list(all=True):
                container.remove(force=True, v=True)
            client.networks.prune()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(300)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for mount in reversed(_list_mounts(self.folder)):
            _run(["umount", "--lazy", mount])
        for command in reversed(self._undo):
            _run(command)
        for group in _CONTROL_GROUPS.glob(f"**/{self._name}"):
            remove_group(group)
        shutil.rmtree(self.folder)

    def _answers(self) -> bool:
        try:
            with self._connect() as client:
                return bool(client.ping())
        except DockerException:
            return False

    @contextlib.contextmanager
    def _connect(self) -> Iterator[docker.DockerClient]:
        with contextlib.closing(docker.DockerClient(base_url=self.url)) as client:
            yield client

    def _change(self, command: list[str], undo: list[str]) -> None:
        _run(command)
        self._undo.append([*undo, self._name])

    def _read_log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]


def find_free_network() -> ipaddress.IPv4Network:
    """A /16 that no route of this machine overlaps."""
    words = _run(["ip", "-4", "route", "show", "table", "all"]).split()
    taken = []
    for word in words:
        with contextlib.suppress(ValueError):
            taken.append(ipaddress.ip_network(word, strict=False))
    for network in _NETWORKS:
        assert isinstance(network, ipaddress.IPv4Network)
        if not any(network.overlaps(other) for other in taken if other.version == 4):
            return network
    raise AssertionError("no private network is free")


def _list_mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [place for line in lines if (place := line.split()[1]).startswith(f"{folder}/")]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
