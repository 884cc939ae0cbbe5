"""Keeps the programs of a test's Kubernetes node together, and ends them whatever happens.

Two processes, started as `node_keeper.py FOLDER NAME NETWORK`. The inner one is the first of a PID
namespace, with network and mounts of its own, and starts what it is told to on its input. When the
tests close that input, or end in any way, it ends, and the kernel ends with it every process,
container, mount, link and packet rule of the node. The outer one then removes what is left on
the machine: control groups, and the folder.

The kubelet writes to host-wide system settings and to fixed places in /var and /run: inside, they
are files and folders of the node's own.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 60.0  # seconds
READY = "ready"
INSIDE = "inside"  # the file that says that the inner process has its mounts
ENDED = "ended"  # the folder with a file for each program that has ended: its exit status
NODE_LINK = "eth0"

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_SHIELDED = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_OWN_PLACES = ("/run", "/var/lib", "/var/log")


def list_addresses(network: ipaddress.IPv4Network) -> tuple[str, str]:
    """The addresses of this machine and of the node in the node's network."""
    machine, node, *_ = list(next(network.subnets(new_prefix=30)).hosts())
    return str(machine), str(node)


def keep_outside(folder: Path, name: str, network: ipaddress.IPv4Network) -> None:
    """Start the inner process, join it to this machine's network; clean up after it."""
    groups = [hierarchy / name for hierarchy in _list_hierarchies()]
    try:
        for group in groups:
            group.mkdir()
        with subprocess.Popen(
            [
                *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"),
                *("--mount-proc", "--", sys.executable, __file__, INSIDE, str(folder)),
            ]
        ) as inner:
            try:
                _wait_until_inside(inner, folder)
                _join_networks(inner.pid, name, network)
            except BaseException:
                inner.kill()  # and the kernel its child
                raise
            print(READY, flush=True)
    finally:
        if Path("/sys/class/net", name).exists():  # a namespace goes a moment after its processes
            subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
        for group in groups:
            remove_group(group)
        shutil.rmtree(folder)


def _list_hierarchies() -> list[Path]:
    if (_CONTROL_GROUPS / "cgroup.controllers").exists():
        return [_CONTROL_GROUPS]
    return [path for path in _CONTROL_GROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _wait_until_inside(inner: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (folder / INSIDE).exists():
        if inner.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the node's namespaces could not be made")
        time.sleep(0.01)


def _join_networks(unshare: int, name: str, network: ipaddress.IPv4Network) -> None:
    """A pair of links between machine and node; the whole network is behind the node."""
    (inner,) = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
    machine, node = list_addresses(network)
    inside = ("nsenter", "--net", "--target", inner)
    for command in (
        ("ip", "link", "add", name, "type", "veth", "peer", "name", NODE_LINK, "netns", inner),
        ("ip", "addr", "add", f"{machine}/30", "dev", name),
        ("ip", "link", "set", name, "up"),
        (*inside, "ip", "addr", "add", f"{node}/30", "dev", NODE_LINK),
        (*inside, "ip", "link", "set", "lo", "up"),
        (*inside, "ip", "link", "set", NODE_LINK, "up"),
        ("ip", "route", "add", str(network), "via", node),
    ):
        subprocess.run(command, check=True)


def remove_group(group: Path) -> None:
    """Processes that were just killed may be in it for a moment."""
    deadline = time.monotonic() + PATIENCE
    while group.exists():
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def keep_inside(folder: Path) -> None:
    """Start and signal programs, as lines of JSON on the input say, until it ends.

    `{"start": NAME, "command": [...]}` and `{"signal": NAME, "number": N}`; a program's output
    goes to FOLDER/log/NAME.
    """
    _let_go_of_others()
    _make_own_places(folder)
    (folder / ENDED).mkdir()
    (folder / "log").mkdir()
    (folder / INSIDE).touch()
    programs: dict[int, str] = {}
    unread = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.1)
        if readable:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                _obey(json.loads(line), programs, folder)
        _note_ends(programs, folder)


def _let_go_of_others() -> None:
    """Containers that run on this machine must be able to end: the node has no part in them."""
    for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()):
        _, place, kind, *_ = line.split()
        if place != "/" and kind in ("overlay", "nsfs"):
            subprocess.run(["umount", "--lazy", place], check=True)


def _make_own_places(folder: Path) -> None:
    for place in _OWN_PLACES:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "own", place], check=True)
    settings = folder / "settings"
    settings.mkdir()
    for setting in _SHIELDED:
        actual = Path("/proc/sys", setting)
        copy = settings / setting.replace("/", ".")
        copy.write_text(actual.read_text())
        subprocess.run(["mount", "--bind", str(copy), str(actual)], check=True)


def _obey(order: dict[str, object], programs: dict[int, str], folder: Path) -> None:
    if (name := order.get("start")) is not None:
        command = order["command"]
        assert isinstance(name, str) and isinstance(command, list)
        with (folder / "log" / name).open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        programs[process.pid] = name
        return
    number = order["number"]
    assert isinstance(number, int)
    for pid, name in programs.items():
        if name == order["signal"]:
            os.kill(pid, number)


def _note_ends(programs: dict[int, str], folder: Path) -> None:
    """The first process of a namespace is the parent of all orphans, too."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended
            if name := programs.pop(pid, None):
                note = folder / ENDED / name
                note.write_text(str(os.waitstatus_to_exitcode(status)))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.argv[1] == INSIDE:
        keep_inside(Path(sys.argv[2]))
    else:
        folder, name, network = sys.argv[1:]
        keep_outside(Path(folder), name, ipaddress.IPv4Network(network))


if __name__ == "__main__":
    main()
