"""Sessions in Amazon's cloud as a user has them: by commands, in an account of the test's."""

from __future__ import annotations

from pathlib import Path

from compose_shell import Command, Terminal, count_runs, find_processes
from ecs_scheduler import EcsScheduler
from hosting import wait_for
from moto_server import Amazon

ON = ("--on", "ecs", "--no-cache")
LAUNCH = 900.0  # seconds; images of other sessions may be built first, on a machine that is busy
PUBLIC = {"PESTFLEET_AMAZON__PUBLIC": "true"}  # the account's own network has no other subnets


class AmazonShell(Terminal):
    """A terminal in `folder` whose environment leads to the account."""

    def __init__(self, folder: Path, amazon: Amazon, scheduler: EcsScheduler) -> None:
        super().__init__(folder)
        self.amazon = amazon
        self.scheduler = scheduler
        self.before = amazon.snapshot()

    def launch(self, case: Path, session: str, *more: str, runs: int) -> Command:
        """A command that runs a case; so many runs are finished."""
        words = ("run", str(case), "--session", session, *ON, *more, "--json")
        command = self.start(*words)
        folder = self.open_folder(session)
        command.wait_for(lambda: count_runs(folder) >= runs, f"{runs} runs", LAUNCH)
        return command

    def list_left(self, *, but_results: bool = False) -> set[str]:
        """What is in the account now and was not before."""
        left = self.amazon.snapshot() - self.before
        return {name for name in left if not (but_results and name.startswith("s3:"))}

    def check_nothing_left(
        self, session: str, *, but_results: bool = False, patience: float = 240.0
    ) -> None:
        """No resource of any kind, but results in the bucket; and no process of ours."""
        try:
            wait_for(
                lambda: not self.list_left(but_results=but_results),
                timeout=patience,
                what="nothing left",
            )
        except AssertionError:
            left = sorted(self.list_left(but_results=but_results))
            raise AssertionError(f"left: {left}") from None
        assert find_processes(session) == []
