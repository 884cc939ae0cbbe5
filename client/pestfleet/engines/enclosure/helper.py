"""The process between the master and an engine: encloses the engine, hands out connections to it.

Run as a script by `enclosure.start_enclosed`, with `python -I -S`: standard library only.

    helper.py KIND PORT REQUESTS REPORTS -- COMMAND...

`REQUESTS` is the descriptor of a Unix socket (SOCK_SEQPACKET or SOCK_STREAM). A one-byte request
gets one answer: `c` opens a connection to the engine (`+` with a socket as ancillary data, or `-`
and an errno), `l` asks whether the engine listens (`1` or `0`), `t` ends it (`+`). When the other
end closes, the engine is killed: it never outlives the master. `REPORTS` is a pipe: a line
`started` or `failed <reason>`, and in the end `exit <code>` (negative: a signal).

KIND:
* `namespace`: a network namespace of its own with nothing but loopback (network_namespaces(7));
  for a plain user inside a user namespace that maps the user to itself (user_namespaces(7)).
* `loopback`: a seccomp filter stops the engine at each bind(), and the address 0.0.0.0 becomes
  127.0.0.1 before it goes on (seccomp_unotify(2)). Needs no privilege.
* `open`: none.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

GRACE = 2.0  # seconds between SIGTERM and SIGKILL
CONNECT_SECONDS = 5.0

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h

# linux/seccomp.h
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
_SECCOMP_RET_ALLOW, _SECCOMP_RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_NOTIFY_RECEIVE, _NOTIFY_SEND, _NOTIFY_CONTINUE = 0xC0502100, 0xC0182101, 1
# machine: (AUDIT_ARCH_..., number of seccomp(), number of bind())
_MACHINES = {"x86_64": (0xC000003E, 317, 49), "aarch64": (0xC00000B7, 277, 200)}


class EnclosureError(Exception):
    """This machine does not allow this kind of enclosure."""


# -- a network namespace ----------------------------------------------------------------------


def enter_namespace() -> None:
    """Move this process into a network namespace with loopback only. Raises EnclosureError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        raise EnclosureError("this system has no network namespaces")
    user, group = os.geteuid(), os.getegid()
    try:
        if libc.unshare(_CLONE_NEWNET) != 0:
            if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        raise_loopback()
    except OSError as error:
        raise EnclosureError(f"no network namespace of its own: {error.strerror}") from None


def raise_loopback() -> None:
    """Set the interface `lo` up. Raises OSError."""
    from fcntl import ioctl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack("16xH14x", ioctl(sock, _SIOCGIFFLAGS, request))
        ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


# -- bind() on loopback only ------------------------------------------------------------------


def install_filter() -> int:
    """Have each bind() of this process and its children wait for us; returns the listener.

    Called between fork and exec. Raises EnclosureError.
    """
    machine = _MACHINES.get(os.uname().machine)
    libc = ctypes.CDLL(None, use_errno=True)
    if machine is None or not sys.platform.startswith("linux"):
        raise EnclosureError("no filter for system calls on this kind of machine")
    arch, number, bind = machine
    steps = (
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 1, 0, arch),
        (0x06, 0, 0, _SECCOMP_RET_ALLOW),
        (0x20, 0, 0, 0),  # load the system call's number
        (0x15, 0, 1, bind),
        (0x06, 0, 0, _SECCOMP_RET_USER_NOTIF),
        (0x06, 0, 0, _SECCOMP_RET_ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(
        struct.pack("@HP", len(steps), ctypes.addressof(code)), struct.calcsize("@HP")
    )
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise EnclosureError("no filter for system calls: no_new_privs is refused")
    listener: int = libc.syscall(
        ctypes.c_long(number),
        ctypes.c_ulong(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_ulong(_SECCOMP_FILTER_FLAG_NEW_LISTENER),
        ctypes.byref(program),
    )
    if listener < 0:
        reason = os.strerror(ctypes.get_errno())
        raise EnclosureError(f"no filter for system calls: {reason}")
    return listener


def answer_bind(listener: int) -> None:
    """Let one waiting bind() go on, on loopback; refuse it where that cannot be done."""
    from fcntl import ioctl

    note = bytearray(80)
    try:
        ioctl(listener, _NOTIFY_RECEIVE, note)
    except OSError:
        return  # the caller has gone
    call, process, address, length = struct.unpack("@QI4x16x8xQQ24x", note[:80])
    flags, error = _NOTIFY_CONTINUE, 0
    try:
        with open(f"/proc/{process}/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
            memory.seek(address)
            old = memory.read(min(length, 28))
            new = move_to_loopback(old)
            if new != old:
                memory.seek(address)
                memory.write(new)
    except OSError:
        flags, error = 0, -errno.EACCES
    try:
        ioctl(listener, _NOTIFY_SEND, bytearray(struct.pack("@QqiI", call, 0, error, flags)))
    except OSError:
        return


def move_to_loopback(address: bytes) -> bytes:
    """A `struct sockaddr` where any IP address is the loopback address of its family."""
    family = struct.unpack_from("@H", address)[0] if len(address) >= 8 else -1
    if family == socket.AF_INET:
        return address[:4] + bytes((127, 0, 0, 1)) + address[8:]
    if family == socket.AF_INET6 and len(address) >= 24:
        return address[:8] + bytes(15) + b"\x01" + address[24:]
    return address


# -- the engine -------------------------------------------------------------------------------


def listening_addresses(port: int) -> list[str]:
    """Local addresses, as /proc/net has them, on which something listens on a TCP port."""
    found = []
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):
            address, _, number = words[1].rpartition(":")
            if words[3] == "0A" and int(number, 16) == port:
                found.append(address)
    return found


def is_listening(port: int) -> bool:
    if Path("/proc/self/net/tcp").exists():
        return bool(listening_addresses(port))
    try:
        open_connection(port).close()
    except OSError:
        return False
    return True


def open_connection(port: int) -> socket.socket:
    """A connection to the engine. Raises OSError."""
    return socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS)


def start_engine(kind: str, command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start the engine; returns it and the listener for its bind() calls, or -1.

    The engine dies with this process. Raises EnclosureError, OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    ours, theirs = socket.socketpair()
    helper = os.getpid()

    def prepare() -> None:
        if hasattr(libc, "prctl"):
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != helper:
                os._exit(127)
        if kind == "loopback":
            try:
                listener = install_filter()
                socket.send_fds(theirs, [b"+"], [listener])
                os.close(listener)
            except (EnclosureError, OSError) as error:
                theirs.send(f"-{error}".encode())
                os._exit(127)

    with ours, theirs:
        engine = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            preexec_fn=prepare,
            process_group=0,
        )
        if kind != "loopback":
            return engine, -1
        answer, descriptors, _, _ = socket.recv_fds(ours, 4096, 1)
        if not descriptors:
            engine.wait()
            raise EnclosureError(answer[1:].decode())
        return engine, descriptors[0]


def end_engine(engine: subprocess.Popen[bytes], *, grace: float) -> None:
    """End the engine with all of its process group."""
    if grace > 0 and engine.poll() is None:
        _signal_group(engine.pid, signal.SIGTERM)
        try:
            engine.wait(grace)
        except subprocess.TimeoutExpired:
            grace = 0.0
    _signal_group(engine.pid, signal.SIGKILL)
    engine.wait()


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def serve(kind: str, port: int, requests: socket.socket, engine: subprocess.Popen[bytes],
          listener: int) -> None:  # fmt: skip
    """Answer requests until the engine ends or nobody asks any more."""
    wake, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    watched = [requests.fileno(), wake.fileno()] + ([listener] if listener >= 0 else [])
    poll = select.poll()
    for descriptor in watched:
        poll.register(descriptor, select.POLLIN)
    checked = kind != "loopback"
    while engine.poll() is None:
        for descriptor, events in poll.poll(1000):
            if descriptor == listener:
                if events & select.POLLIN:
                    answer_bind(listener)
                else:
                    poll.unregister(listener)
            elif descriptor == wake.fileno():
                wake.recv(4096)
            elif not _answer(requests, port, engine):
                return
        if not checked and (addresses := listening_addresses(port)):
            checked = True
            if any(address.strip("0") == "" for address in addresses):
                return  # in spite of the filter: rather no engine than an open port


def _answer(requests: socket.socket, port: int, engine: subprocess.Popen[bytes]) -> bool:
    """Answer one request; False when it was the last."""
    try:
        request = requests.recv(1)
        if request == b"c":
            try:
                with open_connection(port) as connection:
                    socket.send_fds(requests, [b"+"], [connection.fileno()])
            except OSError as error:
                requests.send(b"-%d" % (error.errno or errno.ETIMEDOUT))
        elif request == b"l":
            requests.send(b"1" if is_listening(port) else b"0")
        elif request == b"t":
            end_engine(engine, grace=GRACE)
            requests.send(b"+")
        return bool(request)
    except OSError:
        return False  # the master has gone


def main(arguments: list[str]) -> int:
    os.setsid()  # Ctrl-C in the terminal is the master's matter
    kind, port, request_number, report_number = arguments[:4]
    command = arguments[arguments.index("--") + 1 :]
    requests = socket.socket(fileno=int(request_number))
    reports = int(report_number)
    for number in (requests.fileno(), reports):
        os.set_inheritable(number, False)
    for signal_number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)
    try:
        if kind == "namespace":
            enter_namespace()
        engine, listener = start_engine(kind, command)
    except (EnclosureError, OSError, subprocess.SubprocessError) as error:
        cause = "refused" if isinstance(error, EnclosureError) else "failed"
        os.write(reports, f"{cause} {error}\n".encode())
        return 1
    os.write(reports, b"started\n")
    try:
        serve(kind, int(port), requests, engine, listener)
    finally:
        signal.set_wakeup_fd(-1)
        end_engine(engine, grace=0.0)
        with contextlib.suppress(BrokenPipeError):  # the master has gone
            os.write(reports, b"exit %d\n" % engine.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
