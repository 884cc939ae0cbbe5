"""What a session on compose lets others see: no secret, no port, no right."""

from __future__ import annotations

import json
import os
import re
import signal
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from docker.models.containers import Container

from cases import make_case, write_sweep
from compose_shell import Shell

pytestmark = pytest.mark.docker

SESSION = "pf-secrets"
USER = "10001:10001"


class Running:
    """A session that runs, with its secrets: passwords and private keys."""

    def __init__(self, shell: Shell, *words: str) -> None:
        case = make_case(shell.folder / "case", seconds=0.3)
        write_sweep(case.parent, runs=5000)
        how = ("--on", "compose", "--engine", "sweep", "--no-cache", "--session", SESSION)
        self.shell = shell
        self.command = shell.launch(
            "run", str(case), *how, "--workers", "1", "--memory", "200m", "--cpus", "0.5",
            "--slots", "2", *words, runs=2,
        )  # fmt: skip
        self.secrets = set(self._find_secrets())

    def _find_secrets(self) -> Iterator[str]:
        for container in self.shell.containers(SESSION):
            for mount in container.attrs["Mounts"]:
                if not mount["Name"].endswith("-secrets"):
                    continue
                chunks, _ = container.get_archive(mount["Destination"])
                with tarfile.open(fileobj=BytesIO(b"".join(chunks))) as archive:
                    for member in archive:
                        file = archive.extractfile(member)
                        if file is not None:
                            assert member.mode & 0o077 == 0, member.name
                            assert f"{member.uid}:{member.gid}" == USER
                            yield from _pick_secrets(file.read().decode())

    def find_leaks(self, where: str, text: str) -> list[str]:
        return [where for secret in self.secrets if secret in text]

    def stop(self) -> None:
        self.command.send(signal.SIGINT)
        self.command.wait(130)


def _pick_secrets(text: str) -> Iterator[str]:
    yield from re.findall(r"amqps://\w+:([^@]+)@", text)
    if "PRIVATE KEY" in text:
        yield text.splitlines()[1]


def list_processes(shell: Shell) -> Iterator[Path]:
    """The folders in /proc of all processes in the session's containers."""
    for container in shell.containers(SESSION):
        if container.status == "running":
            for row in container.top(ps_args="-eo pid")["Processes"]:
                yield Path("/proc", row[0])


def check_container(container: Container) -> None:
    """Any user, no right, nothing to write but volumes and memory."""
    how: dict[str, Any] = container.attrs["HostConfig"]
    assert container.attrs["Config"]["User"] == USER
    assert how["ReadonlyRootfs"] is True
    assert how["CapDrop"] == ["ALL"] and not how["CapAdd"] and not how["Privileged"]
    assert how["SecurityOpt"] == ["no-new-privileges:true"]
    assert all(mount["Type"] == "volume" for mount in container.attrs["Mounts"])


def check_secrecy(running: Running) -> None:
    shell = running.shell
    assert len(running.secrets) >= 3, "nothing to look for"
    leaks = []
    for container in shell.containers(SESSION):
        check_container(container)
        leaks += running.find_leaks(f"inspect {container.name}", json.dumps(container.attrs))
        leaks += running.find_leaks(f"logs {container.name}", container.logs().decode())
        history = json.dumps(container.image.history()) + json.dumps(container.image.attrs)
        leaks += running.find_leaks(f"image of {container.name}", history)
    for network in shell.engine.networks.list(names=[f"pestfleet-{SESSION}"]):
        leaks += running.find_leaks("compose file", json.dumps(network.attrs))
    for process in list_processes(shell):
        for name in ("cmdline", "environ"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                leaks += running.find_leaks(
                    f"{process}/{name}", (process / name).read_text(errors="replace")
                )
    files = [path for path in shell.folder.rglob("*") if path.is_file()]
    for path in files:
        with suppress(FileNotFoundError):  # a state that is just written has another name
            leaks += running.find_leaks(str(path), path.read_text(errors="replace"))
    assert leaks == []


def list_ports(shell: Shell) -> list[tuple[str, str, str]]:
    """Role, port and address of all that is published."""
    return [
        (container.labels["pestfleet.role"], port, binding["HostIp"])
        for container in shell.containers(SESSION)
        for port, bindings in container.attrs["NetworkSettings"]["Ports"].items()
        for binding in bindings or ()
    ]


def list_listeners(shell: Shell, role: str) -> set[int]:
    """TCP ports beyond loopback on which a container listens."""
    process = Path("/proc", str(shell.containers(SESSION, role)[0].attrs["State"]["Pid"]), "net")
    ports = set()
    for name in ("tcp", "tcp6"):
        for line in (process / name).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            host, port = address.split(":")
            if state == "0A" and not host.endswith(("7F", "0000000001000000")):
                ports.add(int(port, 16))
    return ports


@pytest.mark.skipif(os.name != "posix", reason="reads /proc")
def test_with_its_master_there(shell: Shell, compose_v1: None) -> None:
    running = Running(shell)
    check_secrecy(running)
    assert list_ports(shell) == []
    assert list_listeners(shell, "broker") == {5671}
    (worker,) = shell.containers(SESSION, "worker")
    how = worker.attrs["HostConfig"]
    assert how["Memory"] == 400 * 1024**2
    assert how["NanoCpus"] == 10**9
    assert how["PidsLimit"] == 2 * 256 + 64
    for role in ("master", "worker"):
        (container,) = shell.containers(SESSION, role)
        policy = container.attrs["HostConfig"]["RestartPolicy"]
        assert policy["Name"] == "on-failure" and policy["MaximumRetryCount"] > 0
    running.stop()
    shell.check_nothing_left(SESSION, but_results=True)


def test_with_its_master_here(shell: Shell, compose_v1: None) -> None:
    running = Running(shell, "--master", "here")
    check_secrecy(running)
    assert list_ports(shell) == [("broker", "5671/tcp", "127.0.0.1")]
    running.stop()
    shell.check_nothing_left(SESSION)
