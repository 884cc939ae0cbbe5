"""A real RabbitMQ for the tests: Debian's, on free ports, with a data folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
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


class RabbitMQ:
    """One broker. `start` and `stop` may be repeated; the data stay until `remove`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = find_free_port()
        self._environment = {
            **os.environ,
            "HOME": str(folder),  # the Erlang cookie
            # Lets us end a port mapper that still knows a killed node.
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "1",
            "ERL_EPMD_PORT": str(find_free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"pestfleet{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(find_free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
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
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(client.recv(1))
        except OSError:
            return False

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
