"""Sessions on compose as a user has them: by the command line, in a folder of the test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import docker
from docker.models.containers import Container

from hosting import wait_for
from pestfleet.folder import SessionFolder
from pestfleet.journal import read_journal

SESSION, ROLE = "pestfleet.session", "pestfleet.role"
LAUNCH, END = 400.0, 900.0  # seconds; images are built on the way, on a machine that is busy
LINES, SHOWN = 25, 400  # of what a command wrote, and letters of a line, in a message


class Command:
    """A command that runs. What it writes on stdout is read as events (`--json`)."""

    def __init__(self, words: tuple[str, ...], folder: Path, log: Path, **how: Any) -> None:
        self.log = log
        self._out: TextIO = log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pestfleet", *words],
            cwd=folder,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **how,
        )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def end(self) -> str:
        """The last lines of `text`, for a message; without states, which are long."""
        lines = [line for line in self.text.splitlines() if '"event": "progress"' not in line]
        return "\n".join(line[:SHOWN] for line in lines[-LINES:])

    def events(self, name: str = "") -> list[dict[str, Any]]:
        found = []
        for line in self.text.splitlines():
            if line.startswith("{") and line.endswith("}"):
                event = json.loads(line)
                if not name or event["event"] == name:
                    found.append(event)
        return found

    def notes(self) -> str:
        return "\n".join(event.get("text", "") for event in self.events())

    def wait_for(self, condition: Callable[[], Any], what: str, timeout: float = LAUNCH) -> None:
        def look() -> bool:
            code = self.process.poll()
            assert code is None, f"ended with exit code {code} while waiting for {what}"
            return bool(condition())

        try:
            wait_for(look, timeout=timeout, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.end}") from None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, code: int = 0, timeout: float = END) -> str:
        """What it wrote, after its end with this exit code."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end:\n{self.end}") from None
        assert self.process.returncode == code, (
            f"{self.process.returncode}, not {code}:\n{self.end}"
        )
        return self.text

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self._out.close()


class Terminal:
    """Commands in `folder`, which end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._commands: list[Command] = []

    def start(self, *words: str, folder: Path | None = None, **how: Any) -> Command:
        log = self.folder / f"command-{len(self._commands)}.txt"
        command = Command(words, folder or self.folder, log, **how)
        self._commands.append(command)
        return command

    def run(self, *words: str, code: int = 0, folder: Path | None = None, **how: Any) -> str:
        """What a command writes, stdout and stderr."""
        return self.start(*words, folder=folder, **how).wait(code)

    def open_folder(self, session: str) -> SessionFolder:
        return SessionFolder(self.folder / "pestfleet-sessions" / session)

    def close(self) -> None:
        for command in self._commands:
            command.close()


class Shell(Terminal):
    """A terminal in `folder`, with a Docker engine."""

    def __init__(self, folder: Path, engine: docker.DockerClient) -> None:
        super().__init__(folder)
        self.engine = engine

    def launch(self, *words: str, runs: int, **how: Any) -> Command:
        """Run or resume a session (`--session ID`, or its id last); so many runs are finished."""
        named = "--session" in words
        session = self.open_folder(words[words.index("--session") + 1] if named else words[1])
        command = self.start(*words, "--json", **how)
        command.wait_for(lambda: count_runs(session) >= runs, f"{runs} runs")
        return command

    # -- what is on the engine -----------------------------------------------------------------

    def containers(self, session: str, role: str = "") -> list[Container]:
        labels = [f"{SESSION}={session}", *([f"{ROLE}={role}"] if role else [])]
        found = self.engine.containers.list(
            all=True, filters={"label": labels}, ignore_removed=True
        )
        return sorted(found, key=lambda container: str(container.name))

    def find_left(self, session: str) -> list[str]:
        """What has the session's label, or its name."""
        filters = {"label": f"{SESSION}={session}"}
        words = f"pestfleet-{session.lower()}"
        containers = [container.name for container in self.containers(session)]
        containers += [
            container.name
            for container in self.engine.containers.list(all=True, ignore_removed=True)
            if words in container.name
        ]
        networks = self.engine.networks.list(filters=filters)
        networks += self.engine.networks.list(names=[words])
        volumes = self.engine.volumes.list(filters=filters)
        volumes += self.engine.volumes.list(filters={"name": words})
        names = {f"container {name}" for name in containers}
        names |= {f"network {network.name}" for network in networks}
        return sorted(names | {f"volume {volume.name}" for volume in volumes})

    def check_nothing_left(self, session: str, *, but_results: bool = False) -> None:
        """No container, network, volume; nor a process of ours, or a file of compose."""
        left = self.find_left(session)
        if but_results:
            assert left and all(name.endswith("-session") for name in left), left
        else:
            assert left == []
        assert find_processes(session) == []

    def remove(self, session: str) -> None:
        """Whatever a failed test has left."""
        for container in self.containers(session):
            container.remove(force=True, v=True)
        filters = {"label": f"{SESSION}={session}"}
        for network in self.engine.networks.list(filters=filters):
            network.remove()
        for volume in self.engine.volumes.list(filters=filters):
            volume.remove(force=True)


@contextmanager
def open_shell(folder: Path, engine: docker.DockerClient) -> Iterator[Shell]:
    """A shell; its commands end with it, and what has labels of sessions is removed."""
    shell = Shell(folder, engine)
    before = list_sessions(engine)
    try:
        yield shell
    finally:
        shell.close()
        for session in list_sessions(engine) - before:
            shell.remove(session)


def count_runs(folder: SessionFolder) -> int:
    """Finished runs of the batch, as far as is known here."""
    done: int = folder.read_state().get("batch", {}).get("done", 0)
    return done


def list_sessions(engine: docker.DockerClient) -> set[str]:
    """Sessions that have a container, a network or a volume."""
    filters = {"label": SESSION}
    labels = [
        container.labels
        for container in engine.containers.list(all=True, filters=filters, ignore_removed=True)
    ]
    labels += [network.attrs["Labels"] for network in engine.networks.list(filters=filters)]
    labels += [volume.attrs["Labels"] for volume in engine.volumes.list(filters=filters)]
    return {label[SESSION] for label in labels}


def find_processes(session: str) -> list[str]:
    """Command lines of processes on this machine that name the session, but this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if session.encode() in words.split(b"\0"):
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def read_runs(session: Path) -> dict[str, str]:
    """Parameters -> observations of a session's runs, as the journal has their bits."""
    runs = [event for event in read_journal(session / "journal.jsonl") if event["event"] == "run"]
    assert all("observations" in run for run in runs), runs
    counts = Counter(run["parameters"] for run in runs)
    assert set(counts.values()) == {1}, "a run was made twice"
    return {run["parameters"]: run["observations"] for run in runs}


def read_results(session: Path, case: str) -> dict[str, bytes]:
    """The files of results that have no date in them."""
    names = [f"{case}.{kind}" for kind in ("par", "rei", "jco")]
    return {name: (session / "results" / name).read_bytes() for name in names}
