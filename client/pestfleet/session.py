"""Sessions for Python users and for the command line: start, resume, look, stop.

import pestfleet

session = pestfleet.run("my-case", engine="glm", workers=4)
session.results()["parameters"]
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pestfleet import engines, targets
from pestfleet.case import check_case
from pestfleet.checks.problem import Problem
from pestfleet.folder import (
    DEFAULT_ROOT,
    SessionFolder,
    SessionSpec,
    find_session,
    list_sessions,
)
from pestfleet.journal import read_journal
from pestfleet.placement import Placement
from pestfleet.targets.base import Where
from pestfleet_worker.errors import CaseError, ConfigurationError, SessionError

if TYPE_CHECKING:
    import pandas

    from pestfleet.host import Host, OnEvent, Outcome
    from pestfleet.master import Master
    from pestfleet.settings import ImageSettings
    from pestfleet.targets.base import Site

logger = logging.getLogger(__name__)

STOP_SECONDS = 30.0  # waited for the end of a master on this machine
STOP_SECONDS_ELSEWHERE = 300.0  # where its fleet is elsewhere, and ends before it


class CaseProblems(CaseError):
    """A case with errors; `problems` has all of them, warnings too."""

    def __init__(self, problems: list[Problem]) -> None:
        errors = [problem for problem in problems if problem.severity == "error"]
        super().__init__(
            "\n".join(str(problem) for problem in errors),
            remedy="Nothing was launched.",
        )
        self.problems = problems


class Session:
    """A session on disk: running, stopped or finished."""

    def __init__(self, folder: SessionFolder) -> None:
        self.folder = folder
        self.spec = folder.read_spec()

    @classmethod
    def open(cls, name: str | None = None, *, root: Path | str = DEFAULT_ROOT) -> Session:
        """The session of that id below `root`; the newest without one."""
        return cls(find_session(Path(root), name))

    def __repr__(self) -> str:
        return f"<Session {self.name}: {self.spec.engine}, {self.status().get('state', 'new')}>"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def where(self) -> Where:
        """Which of several places of its target it is in."""
        place = self.spec.place
        return Where(place.context, place.namespace, place.amazon.region, place.amazon.profile)

    def status(self) -> dict[str, Any]:
        """How far the session is; `state` is running, finished, stopped, failed or died."""
        running = self.folder.running  # first: a master writes its last state, then it goes
        state = self.folder.read_state()
        if not running and state.get("state", "running") == "running":
            state["state"] = "died"
        return {"session": self.name, **state}

    def events(self) -> Iterator[dict[str, Any]]:
        """The journal, oldest event first."""
        return read_journal(self.folder.journal)

    def results(self) -> dict[str, pandas.DataFrame]:
        """Tables of results by name: parameters, observations, iterations, ensembles, …"""
        from pestfleet.results import read_results

        return read_results(self.folder)

    def plot(self, path: Path | None = None) -> Path:
        """Write a PNG of the fit and of phi by iteration; returns where it is."""
        from pestfleet.results import plot_results

        return plot_results(self.folder, path or self.folder.results / "fit.png")

    def runs(self, *, failed: bool | None = None) -> pandas.DataFrame:
        """One row a finished run; only the failed (True) or successful (False) ones."""
        from pestfleet.results import read_runs

        return read_runs(self.folder, failed=failed)

    def stop(self, *, timeout: float | None = None) -> bool:
        """Ask the master to stop; True when it has within `timeout` seconds.

        `timeout`: 30 without one, and 300 where a fleet elsewhere ends and files come from there.
        A master in a container that nobody follows here is stopped there, which may take longer.
        Raises `SessionError`, and `TargetError` where the target does not answer.
        """
        if not self.folder.running and targets.is_remote(self.spec.target):
            targets.open_remote_session(self.spec.target, self.name, self.where).stop()
            return True
        self.folder.request_stop()
        if timeout is None:
            remote = targets.is_remote(self.spec.target)
            timeout = STOP_SECONDS_ELSEWHERE if remote else STOP_SECONDS
        deadline = time.monotonic() + timeout
        while self.folder.running:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)  # the lock file has no event to wait for
        return True

    def find_program(self) -> Path | None:
        """The engine's program on this machine; None for a built-in engine.

        Raises `ConfigurationError` where it is not there.
        """
        return engines.find_program(self.spec.engine, self.folder.case)

    def make_host(
        self,
        *,
        broker_url: str = "",
        image: ImageSettings | None = None,
        on_event: OnEvent | None = None,
        resume: bool = False,
    ) -> Host:
        """Who brings this session to its end: a master, or what follows one in a container.

        `image`: how images are built; the settings of the case without it. `resume`: the
        session has been launched before. Raises `ConfigurationError`, `ChannelError` for a URL
        that cannot be read, and `TargetError` where the target does not answer.
        """
        if resume:
            self.folder.refuse_running()  # before what is left is removed
        if broker_url:
            from pestfleet_worker.endpoint import read_endpoint

            read_endpoint(broker_url)
        if not targets.is_remote(self.spec.target):
            return self.make_master(broker_url=broker_url, on_event=on_event)
        if image is None:
            from pestfleet.config import read_settings

            image = read_settings(Path(self.spec.control_file)).image
        launch = targets.load_launch(self.spec.target)
        host: Host = launch.make_host(
            self,
            image=image,
            broker_url=broker_url,
            on_event=on_event or (lambda event: None),
            resume=resume,
        )
        return host

    def make_master(
        self, *, broker_url: str = "", site: Site | None = None, on_event: OnEvent | None = None
    ) -> Master:
        """A master that goes on with this session; runs that are finished are not made again."""
        from pestfleet.master import Master

        if not self.spec.own_broker and not broker_url:
            raise ConfigurationError(
                f"session {self.name} used a broker of yours, and its URL is not kept",
                remedy="Give it again, with --broker or PESTFLEET_BROKER.",
            )
        return Master(self.folder, self.spec, broker_url=broker_url, site=site, on_event=on_event)


def create_session(
    case: Path | str,
    *,
    engine: str = "glm",
    on: str = "local",
    workers: int = 2,
    slots: int = 1,
    session: str = "",
    root: Path | str = DEFAULT_ROOT,
    options: Mapping[str, str] | None = None,
    run_seconds: float = 0.0,
    threads: int = 1,
    deliveries: int = 3,
    own_broker: bool = True,
    scratch: str = "",
    mode: str = "",
    arguments: Sequence[str] = (),
    cache: str = "",
    place: Placement | None = None,
    most: int = 0,
    idle_minutes: float = 0.0,
    max_hours: float = 0.0,
    budget: float = 0.0,
    prices: Mapping[str, float] | None = None,
    on_problem: Callable[[Problem], None] | None = None,
) -> Session:
    """Check the case and make the session's folder; nothing is started yet.

    `mode`: queue or agent, "" for what suits the engine. `arguments` go to an engine that is a
    program. `cache`: a folder or s3:// URL for finished runs, "" for the user's own, "none".
    `place`: how a target of containers places master and workers. `most`: workers come and go
    with the runs, from `workers` up to so many; 0: as many all the time. The session ends when it
    has wanted no run for `idle_minutes` (queue mode), after `max_hours`, and when it has cost
    `budget` US dollars by these `prices` (`pestfleet.folder.SessionSpec`); 0: never.
    `on_problem` gets the warnings. Raises `CaseProblems`, `ConfigurationError`, `SessionError`.
    """
    engines.check_name(engine)
    mode = engines.choose_mode(engine, mode)
    if arguments and not engines.is_program(engine):
        raise ConfigurationError(
            f"the engine {engine} is built in and takes no engine arguments",
            remedy="Its options are given with --option name=value.",
        )
    targets.check_name(on)
    for name, number in (("workers", workers), ("slots", slots), ("deliveries", deliveries)):
        if number < 1:
            raise ConfigurationError(f"{name} must be at least 1, not {number}")
    place = place or Placement(master="there" if targets.is_remote(on) else "here")
    if most:
        targets.check_elastic(on, there=place.master == "there", workers=workers, most=most)
        if mode == "agent":
            raise ConfigurationError(
                "in agent mode the number of workers stays: nobody knows which agents are idle",
                remedy="Ask for a number of workers, not for a range.",
            )
    _check_limits(idle_minutes=idle_minutes, max_hours=max_hours, budget=budget)
    checked, problems = check_case(
        Path(case),
        slots=max(workers, most) * slots,
        local=on == "local",
        engine=engine,
        options=options,
    )
    if checked is None or any(problem.severity == "error" for problem in problems):
        raise CaseProblems(problems)
    for problem in problems:
        if on_problem is not None:
            on_problem(problem)
    engines.find_program(engine, checked.folder)
    _refuse_root_in_case(Path(root), checked.folder)
    name = session or _make_name(checked.name, Path(root))
    folder = SessionFolder(Path(root) / name)
    folder.create(
        SessionSpec(
            session=name,
            control_file=str(checked.control.path.resolve()),
            digest=checked.digest,
            engine=engine,
            target=on,
            workers=workers,
            slots=slots,
            seconds=run_seconds,
            threads=threads,
            deliveries=deliveries,
            own_broker=own_broker,
            scratch=scratch,
            options=dict(options or {}),
            mode=mode,
            arguments=list(arguments),
            cache=cache,
            place=place,
            version=version("pestfleet"),
            most=most,
            idle_minutes=idle_minutes,
            max_hours=max_hours,
            budget=budget,
            prices=dict(prices or {}),
        )
    )
    return Session(folder)


def _check_limits(**limits: float) -> None:
    for name, limit in limits.items():
        if not 0 <= limit < math.inf:
            raise ConfigurationError(f"{name} must be 0 (no limit) or more, not {limit}")


def _make_name(case: str, root: Path) -> str:
    """An id that is free: what an id can have of the case's name, and the time."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", case).strip("-._")[:40] or "case"
    name = f"{plain}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (f"{name}-{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], others) if not (root / free).exists())


def _refuse_root_in_case(root: Path, case: Path) -> None:
    """Sessions in the case folder would be copied with it into every slot, and into each other."""
    root, case = root.resolve(), case.resolve()
    if root != case and case not in root.parents:
        return
    within = root.relative_to(case).parts
    if DEFAULT_ROOT.name not in within:
        raise ConfigurationError(
            f"the folder for sessions, {root}, is in the case folder and would be part of it",
            remedy=f"Choose one outside, or one named {DEFAULT_ROOT.name}, which is left out.",
        )


def run(
    case: Path | str, *, broker_url: str = "", on_event: OnEvent | None = None, **choices: Any
) -> Session:
    """Run a case to its end; `choices` are those of `create_session`.

    Raises the `PestfleetError` that ended the session, if one did; `Session.open` still has
    what was finished until then, and `resume` goes on.
    """
    session = create_session(case, own_broker=not broker_url, **choices)
    _finish(session.make_host(broker_url=broker_url, on_event=on_event).host())
    return session


def resume(
    name: str | None = None,
    *,
    root: Path | str = DEFAULT_ROOT,
    broker_url: str = "",
    on_event: OnEvent | None = None,
) -> Session:
    """Go on with a session where it stopped. Raises as `run` does."""
    session = Session.open(name, root=root)
    _finish(session.make_host(broker_url=broker_url, on_event=on_event, resume=True).host())
    return session


def sessions(root: Path | str = DEFAULT_ROOT) -> list[Session]:
    """The sessions below `root`, newest first; one that cannot be read is logged and left out."""
    found = []
    for folder in list_sessions(Path(root)):
        try:
            found.append(Session(folder))
        except SessionError as error:
            logger.warning("%s", error)
    return found


def _finish(outcome: Outcome) -> None:
    if outcome.error is not None:
        raise outcome.error
