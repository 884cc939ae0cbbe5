"""A real RabbitMQ for the tests: Debian's, on free ports, with a data folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START = 90.0  # seconds


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _session_of(process: Path) -> int:
    try:
        # proc(5): state, parent, process group and session follow the name in parentheses.
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return 0  # it has ended


class RabbitMQ:
    """One broker. `start` and `stop` may be repeated; the data stay until `remove`.

    `secrets`: folder with the files of a session's broker; then it speaks TLS on `port` only,
    and its environment is that of a container.
    """

    def __init__(self, folder: Path, *, secrets: Path | None = None, port: int = 0) -> None:
        self.folder = folder
        self.port = port or find_free_port()
        self._secrets = secrets
        self._environment = {
            **os.environ,
            "HOME": str(folder),  # the Erlang cookie
            # Lets us end a port mapper that still knows a killed node.
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "1",
            "ERL_EPMD_PORT": str(find_free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"pestfleet{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(find_free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }
        if secrets is None:
            self._environment |= {
                "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODE_PORT": str(self.port),
            }
        else:
            self._environment |= {
                "RABBITMQ_CONFIG_FILE": str(secrets / "rabbitmq.conf"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(secrets / "enabled_plugins"),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none "
                "-kernel inet_dist_use_interface {127,0,0,1}",
            }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Start and wait until it takes connections."""
        for name in ("mnesia", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text("log.file.level = warning\n")
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [PROGRAM],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + START
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "output").read_text()
            assert time.monotonic() < deadline, "RabbitMQ did not start"
            time.sleep(0.1)

    def _answers(self) -> bool:
        """Does it greet a client? (The port opens before that.)"""
        try:
            with self._open_socket() as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(client.recv(1))
        except OSError:
            return False

    def _open_socket(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=1)
        if self._secrets is None:
            return client
        context = ssl.create_default_context(cafile=str(self._secrets / "ca.pem"))
        return context.wrap_socket(client, server_hostname="pestfleet-broker")

    def find_listeners(self) -> set[str]:
        """Addresses that the broker and its port mapper listen on, as `ss` writes them."""
        assert self._process is not None
        lines = subprocess.run(
            ["ss", "-Hltnp"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        ours = {
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if _session_of(path) == self._process.pid
        }
        mapper = f":{self._environment['ERL_EPMD_PORT']}"
        return {
            line.split()[3]
            for line in lines
            if line.split()[3].endswith(mapper)
            or any(f"pid={process}," in line for process in ours)
        }

    def stop(self) -> None:
        """Stop in good order."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        # The program is a shell script around beam.smp; both are in one session of their own.
        os.killpg(self._process.pid, number)
        self._process.wait(60)
        self._process = None

    def remove(self) -> None:
        """Stop it, its port mapper too, and remove the data."""
        self.kill()
        subprocess.run(
            ["epmd", "-port", self._environment["ERL_EPMD_PORT"], "-kill"],
            env=self._environment,
            capture_output=True,
            check=False,
        )
        shutil.rmtree(self.folder, ignore_errors=True)
