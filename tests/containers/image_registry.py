"""A registry for images on this machine: Debian's docker-registry."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rabbitmq import find_free_port

START = 120.0  # seconds


@dataclass(frozen=True, slots=True)
class Registry:
    """`address`: HOST:PORT, which goes before the names of images; `folder`: has its blobs.

    `command`: what serves it; any number of processes may do so at the same time.
    """

    address: str
    folder: Path
    command: tuple[str, ...]


@contextmanager
def run_registry(folder: Path) -> Iterator[Registry]:
    """A registry while the block runs; its data are in the folder."""
    settings = folder / "registry.yml"
    command = ("docker-registry", "serve", str(settings))
    deadline = time.monotonic() + START
    while True:
        address = f"127.0.0.1:{find_free_port()}"  # engines use one on loopback without TLS
        settings.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\n"
            f"http: {{addr: {address}}}\n"
        )
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],  # it ends when the tests are killed
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if _serves(process, address, deadline):
            break
    try:
        yield Registry(address, folder / "registry", command)
    finally:
        process.terminate()
        process.wait()


def _serves(process: subprocess.Popen[bytes], address: str, deadline: float) -> bool:
    """Wait until it answers; False when it ended: another took its port meanwhile."""
    while process.poll() is None:
        if _answers(f"http://{address}/v2/"):
            return process.poll() is None
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.05)
    assert time.monotonic() < deadline, "the registry does not start"
    return False


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
