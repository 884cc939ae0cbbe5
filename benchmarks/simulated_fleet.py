"""What a fleet in the cloud is paid for, and what of that is model time, by a simulated clock.

The policy that decides how many workers there are is that of a real session (`Elastic` and
`FleetScaler`, made as `pestfleet.watch.Watch` makes them, and stepped as often). Around it are a
queue of runs, an engine that asks for batches, workers that tell the desk what they do with every
heartbeat, and a service of ECS with Fargate Spot: tasks that are paid for by the second from the
pull of their image to their end, for one minute at least, that take a while to come and to go, and
some of which are called back.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.figure import Figure
from pestfleet.costs.plan import OVERHEAD, START_SECONDS
from pestfleet.desk import WorkerState
from pestfleet.elastic import Elastic, FleetScaler
from pestfleet.master import HEARTBEAT
from pestfleet.watch import STEP
from pestfleet_worker.messages import SlotState

LEAST, MOST = 1, 50  # --workers 1..50
RUN_SECONDS = 600.0
LEAST_PAID = 60.0  # seconds of a task: Fargate's minimum

# An ensemble of 200 that is tested on a tenth of it with 9 steps; 130 parameters with 10 lambdas.
IES = (200, 180, 180, 180, 180, 180, 180)
GLM = (131, 10, 130, 10, 130, 10, 130, 10)
# An ensemble of 50: each batch is one round of the fleet, and the last run of each is waited for.
SMALL = (50, 45, 45, 45, 45, 45, 45)


@dataclass(frozen=True, slots=True)
class World:
    """What happens around a fleet; times in seconds.

    `spread`: of the runs' times, as a part of `run_seconds` (standard deviation). `losses`: of a
    worker in an hour. `provision`: from the request for a task to the pull of its image, which is
    free; `start`: from then to its first run; `stop`: from the request to its end. `pause`: of the
    engine between two batches.
    """

    run_seconds: float = RUN_SECONDS
    spread: float = 0.05
    losses: float = 0.05
    provision: float = 15.0
    start: float = START_SECONDS
    stop: float = 10.0
    pause: float = 10.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Bill:
    """Seconds: paid, of the model (of runs that were lost, the last time only), and elapsed."""

    paid: float
    model: float
    elapsed: float
    tasks: int
    lost: int

    @property
    def ratio(self) -> float:
        return self.paid / self.model


@dataclass(slots=True)
class Run:
    number: int
    seconds: float


@dataclass(slots=True)
class Task:
    """A worker in a task of the service."""

    name: str
    pulled: float
    ready: float
    told: float  # of the next heartbeat
    run: Run | None = None
    began: float = 0.0
    draining: bool = False
    stopping: float = 0.0  # when it is gone; 0: it stays
    state: WorkerState = field(default_factory=lambda: WorkerState("", "", 0, 1, "", 0.0))

    def tell(self, now: float) -> None:
        """The heartbeat."""
        run = self.run
        slot = SlotState(run.number, now - self.began) if run is not None else SlotState()
        self.state.states = (slot,)
        self.state.draining = self.draining
        self.state.drained = self.draining and run is None
        self.told = now + HEARTBEAT


class Simulation:
    """One session. `bill` runs it to its end."""

    def __init__(self, batches: Sequence[int], world: World, *, elastic: bool = True) -> None:
        """`elastic`: `--workers LEAST..MOST`; else there are `MOST` all the time."""
        self.now = 0.0
        self._world = world
        self._random = random.Random(world.seed)
        self._batches = deque(batches)
        self._queue: deque[Run] = deque()
        self._outstanding = 0
        self._asks_at = 0.0  # when the engine asks for its next batch
        self._tasks: list[Task] = []
        self._made = self._lost = 0
        self._runs = self._finished = 0
        self._paid = self._model = 0.0
        self._wanted = LEAST if elastic else MOST
        self._scaler: FleetScaler | None = None
        if elastic:
            self._scaler = FleetScaler(
                Elastic(LEAST, MOST, clock=lambda: self.now),
                size=LEAST,
                slots=1,
                drain=self._drain,
                scale=self._scale,
            )

    def bill(self) -> Bill:
        """Step by step until the engine has all that it wants."""
        while self._batches or self._outstanding or self._asks_at > self.now:
            self._ask()
            self._move_tasks()
            self._hand_out()
            if self._scaler is not None:
                there = [task.state for task in self._tasks if self._is_there(task)]
                mean = self._model / self._finished if self._finished else 0.0
                self._scaler.step(self._outstanding, there, mean)
            self._keep_service()
            self.now += STEP
        for task in self._tasks:
            self._pay(task, task.stopping or self.now + self._world.stop)
        return Bill(self._paid, self._model, self.now, self._made, self._lost)

    # -- the engine and its runs -------------------------------------------------------------

    def _ask(self) -> None:
        if self._outstanding or not self._batches or self.now < self._asks_at:
            return
        for _ in range(self._batches.popleft()):
            spread = max(0.2, self._random.gauss(1.0, self._world.spread))
            self._runs += 1
            self._queue.append(Run(self._runs, self._world.run_seconds * spread))
            self._outstanding += 1

    def _finish(self, run: Run) -> None:
        self._model += run.seconds
        self._finished += 1
        self._outstanding -= 1
        if not self._outstanding:
            self._asks_at = self.now + self._world.pause if self._batches else self.now

    def _hand_out(self) -> None:
        for task in self._tasks:
            if not self._queue:
                return
            if self._is_there(task) and task.run is None and not task.draining:
                task.run, task.began = self._queue.popleft(), self.now

    # -- tasks ---------------------------------------------------------------------------------

    def _is_there(self, task: Task) -> bool:
        return task.ready <= self.now and not task.stopping

    def _move_tasks(self) -> None:
        chance = self._world.losses * STEP / 3600
        for task in list(self._tasks):
            if task.stopping and task.stopping <= self.now:
                self._end(task)
            elif self._is_there(task):
                if task.run is not None and self.now >= task.began + task.run.seconds:
                    run, task.run = task.run, None
                    self._finish(run)
                if task.told <= self.now:
                    task.tell(self.now)
                if self._random.random() < chance:
                    self._lose(task)

    def _lose(self, task: Task) -> None:
        """Called back: it gives its run back and goes; the service starts another."""
        if task.run is not None:
            self._queue.appendleft(task.run)
        self._lost += 1
        self._end(task)

    def _end(self, task: Task) -> None:
        self._tasks.remove(task)
        self._pay(task, self.now)

    def _pay(self, task: Task, end: float) -> None:
        if end > task.pulled:  # a task that is stopped before costs nothing
            self._paid += max(LEAST_PAID, end - task.pulled)

    # -- the service -----------------------------------------------------------------------------

    def _drain(self, names: Collection[str]) -> None:
        for task in self._tasks:
            task.draining = task.name in names
            task.state.draining = task.draining
            task.state.drained = task.state.drained and task.draining

    def _scale(self, workers: int, surplus: Collection[str]) -> None:
        self._wanted = workers
        stay = [task for task in self._tasks if not task.stopping]
        # What runs something is protected. Those that are drained are stopped, as the target sees
        # to; then the newest.
        idle = [task for task in reversed(stay) if task.run is None]
        idle.sort(key=lambda task: task.name not in surplus)
        for task in idle[: max(0, len(stay) - workers)]:
            task.stopping = self.now + self._world.stop

    def _keep_service(self) -> None:
        """Start as many tasks as are missing."""
        count = sum(not task.stopping for task in self._tasks)
        for _ in range(self._wanted - count):
            self._made += 1
            pulled = self.now + self._world.provision
            ready = pulled + self._world.start
            name = f"w{self._made:05}"
            task = Task(name, pulled, ready, ready)
            task.state = WorkerState(name, "", 0, 1, "", 0.0)
            self._tasks.append(task)


def simulate(batches: Sequence[int], world: World | None = None, *, elastic: bool = True) -> Bill:
    """One session of an engine that asks for these batches."""
    return Simulation(batches, world or World(), elastic=elastic).bill()


def measure() -> Iterator[Figure]:
    """Paid worker time / model time of elastic fleets, beside that of fixed ones."""
    for name, batches in (("ies", IES), ("glm", GLM), ("both", IES + GLM)):
        elastic, fixed = simulate(batches), simulate(batches, elastic=False)
        yield Figure(
            f"paid / model time, {LEAST}..{MOST} workers, runs of 10 min, Spot, batches of {name}",
            elastic.ratio,
            "×",
            OVERHEAD,
            detail={
                "fixed_fleet": round(fixed.ratio, 4),
                "hours": round(elastic.elapsed / 3600, 2),
                "hours_of_fixed_fleet": round(fixed.elapsed / 3600, 2),
                "model_hours": round(elastic.model / 3600, 1),
                "tasks": elastic.tasks,
                "lost": elastic.lost,
            },
        )
    elastic, fixed = simulate(SMALL), simulate(SMALL, elastic=False)
    yield Figure(
        "the same for batches that are one round of the fleet, of what a fixed one is paid for",
        elastic.ratio / fixed.ratio,
        "×",
        1.0,
        detail={"ratio": round(elastic.ratio, 4), "fixed_fleet": round(fixed.ratio, 4)},
    )
