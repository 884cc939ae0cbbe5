"""A fake of a session's containers on a Docker engine: a list that a test changes as it likes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pestfleet.targets.compose.fleet import Container


def make_container(
    role: str, *, number: int = 1, state: str = "", exit_code: int | None = None
) -> Container:
    """`exit_code` makes it an ended one."""
    return Container(
        id=f"{role}{number}" + "0" * 60,
        role=role,
        number=number,
        state=state or ("running" if exit_code is None else "exited"),
        status="as the test says",
        exit_code=exit_code,
        labels={},
        created=0.0,
    )


class FakeClient:
    """The part of docker's client that reads logs: those of the master."""

    def __init__(self) -> None:
        self.api = self
        self.log: list[bytes] = []

    def logs(self, container: str, **how: Any) -> Iterator[bytes]:
        yield from self.log
        self.log = []


class FakeFleet:
    """In place of `ComposeFleet`: what is there is in `there`, what was asked in `asked`."""

    def __init__(self, *there: Container) -> None:
        self.client = FakeClient()
        self.there = list(there)
        self.asked: list[tuple[Any, ...]] = []
        self.state: dict[str, Any] = {}
        self.files: dict[str, str] = {}
        self.trouble: Exception | None = None
        self.lived = 60.0  # seconds, of each container that has ended
        self.starts = 0

    def containers(self, role: str = "") -> list[Container]:
        if self.trouble is not None:
            raise self.trouble
        return [container for container in self.there if not role or container.role == role]

    def find(self, role: str) -> Container | None:
        return next(iter(self.containers(role)), None)

    def read_state(self) -> dict[str, Any]:
        return self.state

    def describe_end(self, container: Container) -> str:
        return f"{container.name} ended with exit code {container.exit_code}: its log"

    def read_life(self, container: Container) -> tuple[str, float]:
        return f"start {self.starts}", self.lived

    def start(self, container: Container) -> None:
        self.starts += 1
        self.asked.append(("start", container.name))

    def stop_master(self) -> None:
        self.stop(self.containers("master"))

    def stop(self, containers: list[Container]) -> None:
        self.asked.append(("stop", *(container.name for container in containers)))
        self.end_master(0, state="stopped")

    def end_master(self, exit_code: int, *, state: str = "running") -> None:
        self.state = {"state": state}
        self.there = [make_container("master", exit_code=exit_code)]

    def fetch(self, folder: Path) -> bool:
        self.asked.append(("fetch",))
        for name, text in self.files.items():
            (folder / name).write_text(text)
        return bool(self.files)

    def down(self, *, discard_results: bool = False) -> list[str]:
        self.asked.append(("down", discard_results))
        self.there = []
        return []
