"""The estimation: iterations of a Jacobian and a batch of trials, until a criterion ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pestfleet.engines.base import Job, Matrix, Report, Runner, RunSet, Vector
from pestfleet.engines.glm.damping import (
    SlotCounts,
    Trial,
    extend_trials,
    next_base,
    plan_trials,
    shorten_trials,
)
from pestfleet.engines.glm.jacobian import Differentiator, Jacobian
from pestfleet.engines.glm.objective import Objective, Phi
from pestfleet.engines.glm.regularization import Merit, find_target, find_weight_factor
from pestfleet.engines.glm.settings import Settings
from pestfleet.engines.glm.space import ParameterSpace
from pestfleet.engines.glm.termination import Termination
from pestfleet.engines.glm.upgrade import Upgrade, UpgradeMaker
from pestfleet_worker.errors import RunsFailedError


@dataclass(frozen=True, slots=True)
class Place:
    """Parameter values and what the model gave there. `simulated`: with prior information."""

    values: Vector
    outputs: Vector
    simulated: Vector
    phi: Phi


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial that was run; `place` None: the run failed."""

    upgrade: Upgrade
    place: Place | None


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one iteration did, for the record and the files."""

    number: int
    start: Place
    end: Place
    tried: tuple[Tried, ...]
    best: Tried | None  # the one that lowered phi
    weight_factor: float
    central: bool
    runs: int


@dataclass(slots=True)
class CountingRunner:
    """A runner that counts the runs asked of another."""

    runner: Runner
    runs: int = 0
    failed: int = 0

    @property
    def slots(self) -> int:
        return self.runner.slots

    def run(self, parameters: Matrix, *, purpose: str, names: Sequence[str] = ()) -> RunSet:
        made = self.runner.run(parameters, purpose=purpose, names=names)
        self.runs += len(parameters)
        self.failed += len(made.failures)
        return made


@dataclass(slots=True)
class Estimation:
    """An estimation in progress. `best`, `jacobian` and `weight_factor` are its result."""

    space: ParameterSpace
    objective: Objective
    settings: Settings
    merit: Merit
    runner: CountingRunner
    report: Report
    differentiator: Differentiator
    slot_counts: SlotCounts
    weight_factor: float = field(init=False)
    damping: float = field(init=False)
    best: Place = field(init=False)
    jacobian: Jacobian = field(init=False)
    central: bool = False

    def __post_init__(self) -> None:
        self.weight_factor = self.settings.wfinit if self.merit.regularizing else 1.0
        self.damping = self.settings.rlambda1

    def run_initial(self) -> Place:
        """One run, with the initial values. Raises `RunsFailedError` when it fails."""
        made = self.runner.run(
            self.space.expand(self.space.initial[np.newaxis, :]), purpose="initial values"
        )
        if made.failed[0]:
            raise RunsFailedError(
                f"the run with the initial values failed: {made.failures[0]}",
                remedy="Correct the case until one run works: pestfleet check --run.",
            )
        self.best = self._place(self.space.initial, made.observations[0])
        return self.best

    def start(self) -> Place:
        """Run the initial values and, in the same batch, what the first Jacobian needs."""
        self.jacobian = self.differentiator.differentiate(
            self.space.initial,
            None,
            central=False,
            purpose="initial values and Jacobian, iteration 1",
        )
        self.best = self._place(self.space.initial, self.jacobian.outputs)
        return self.best

    def iterate(self, tell: Callable[[Iteration], None]) -> tuple[int, str]:
        """Iterations after `start`; `tell` gets each. Returns their number and why it ended."""
        termination = Termination(self.settings, self.merit, self.objective, self.best)
        if reason := termination.check_place(self.best):
            return 0, reason
        attempt = 0
        for number in range(1, self.settings.noptmax + 1):
            self._renew_jacobian(number)
            iteration = self._iterate_once(number, attempt)
            self.best = iteration.end
            tell(iteration)
            if not iteration.tried:
                return number, (
                    "no parameter can move: the gradient is zero, or all are held at their bounds"
                )
            attempt = attempt + 1 if iteration.best is None else 0
            reduction = self.merit.reduction(iteration.start.phi, iteration.end.phi)
            if not self.central and self._can_switch() and reduction < self.settings.phiredswh:
                self.central, attempt = True, 0
                self.report.note(
                    f"iteration {number} reduced {self.merit.name(iteration.start.phi)} by less "
                    "than PHIREDSWH "
                    f"{self.settings.phiredswh:g}: central derivatives from now on"
                )
                termination.pardon()
            if reason := termination.check(
                iteration.start, iteration.end, self._nearest(iteration)
            ):
                return number, reason
        return self.settings.noptmax, f"NOPTMAX iterations done: {self.settings.noptmax}"

    def finish(self) -> None:
        """Make the Jacobian that of the best values, where it is not."""
        if self.settings.final_jacobian and (self.jacobian.values != self.best.values).any():
            self._differentiate("Jacobian of the final values")

    def weighted_jacobian(self) -> Matrix:
        """(used rows, adjustable) of `jacobian`, weighted, with prior information."""
        extended = self.objective.extend(self.jacobian.matrix, self.jacobian.values)
        return self.objective.weigh(extended)

    def _can_switch(self) -> bool:
        used = {p.group for p in self.space.parameters}
        groups = {g.name: g.central for g in self.differentiator.control.groups}
        return any(groups.get(name, "switch").startswith("switch") for name in used)

    def _renew_jacobian(self, number: int) -> None:
        moved = (self.jacobian.values != self.best.values).any()
        if moved or self.jacobian.central != self.central:
            self._differentiate(f"Jacobian, iteration {number}")

    def _differentiate(self, purpose: str) -> None:
        self.jacobian = self.differentiator.differentiate(
            self.best.values, self.best.outputs, central=self.central, purpose=purpose
        )

    def _iterate_once(self, number: int, attempt: int) -> Iteration:
        maker = self._make_maker()
        slots = self.slot_counts.take(self.runner.slots)
        tried: list[Tried] = []
        seen: set[bytes] = set()
        start = self.best
        if self.merit.accepts(start.phi):
            trials = plan_trials(self.settings, self.damping, slots=slots, attempt=0)
            trials = shorten_trials(trials, attempt=attempt)
        else:
            trials = plan_trials(self.settings, self.damping, slots=slots, attempt=attempt)
        while trials:
            made = self._try(maker, trials, seen, f"damping values, iteration {number}")
            tried += made
            best = self._pick(tried)
            if not made or best is None or best.place is None:
                break
            enough = self.merit.reduction(start.phi, best.place.phi) >= 1 - self.settings.phiratsuf
            if enough or attempt or not self._improves(tried, best):
                break
            dampings = list(dict.fromkeys(t.upgrade.damping for t in tried))
            trials = extend_trials(self.settings, dampings, best=best.upgrade.damping, slots=slots)
        best = self._pick(tried)
        if best is not None and best.place is not None:
            lower = self.merit.key(best.place.phi) < self.merit.key(start.phi)
            best = best if lower else None
        if tried and all(t.place is None for t in tried):
            self.report.warn(f"iteration {number}: the runs of all damping values failed")
        self.damping = next_base(
            self.settings, self.damping, None if best is None else best.upgrade.damping
        )
        return Iteration(
            number=number,
            start=start,
            end=best.place if best is not None and best.place is not None else start,
            tried=tuple(tried),
            best=best,
            weight_factor=self.weight_factor,
            central=self.central,
            runs=self.runner.runs,
        )

    def _make_maker(self) -> UpgradeMaker:
        jacobian = self.weighted_jacobian()
        residuals = self.objective.residuals(self.best.simulated)
        if self.merit.regularizing:
            mask = self.objective.regularizing
            self.weight_factor = find_weight_factor(
                jacobian,
                residuals,
                mask,
                target=find_target(self.settings, self.best.phi.measurement),
                start=self.weight_factor,
                settings=self.settings,
            )
            factors = np.where(mask, self.weight_factor, 1.0)
            jacobian, residuals = jacobian * factors[:, np.newaxis], residuals * factors
        return UpgradeMaker(self.space, self.settings, self.best.values, jacobian, residuals)

    def _try(
        self, maker: UpgradeMaker, trials: list[Trial], seen: set[bytes], purpose: str
    ) -> list[Tried]:
        upgrades = []
        for trial in trials:
            upgrade = maker.upgrade(trial.damping, scale=trial.scale)
            if upgrade is not None and upgrade.values.tobytes() not in seen:
                seen.add(upgrade.values.tobytes())
                upgrades.append(upgrade)
        if not upgrades:
            return []
        full = self.space.expand(np.array([u.values for u in upgrades]))
        made = self.runner.run(full, purpose=purpose)
        return [
            Tried(
                u, None if row in made.failures else self._place(u.values, made.observations[row])
            )
            for row, u in enumerate(upgrades)
        ]

    def _place(self, values: Vector, outputs: Vector) -> Place:
        full = self.space.expand(values[np.newaxis, :])[0]
        simulated = self.objective.simulate(outputs, full)
        return Place(values, outputs, simulated, self.objective.phi(simulated))

    def _pick(self, tried: list[Tried]) -> Tried | None:
        """The best of those that ran, the first of equals."""
        good = [t for t in tried if t.place is not None and np.isfinite(t.place.phi.total(1.0))]
        return min(good, key=self._key) if good else None

    def _key(self, tried: Tried) -> tuple[bool, float]:
        assert tried.place is not None
        return self.merit.key(tried.place.phi)

    def _improves(self, tried: list[Tried], best: Tried) -> bool:
        """PHIREDLAM: `best` is so much better than its neighbours that going on may pay."""
        others = [t for t in tried if t is not best and t.place is not None]
        if not others or best.place is None:
            return False
        second = min(others, key=self._key)
        assert second.place is not None
        return self.merit.reduction(second.place.phi, best.place.phi) > self.settings.phiredlam

    def _nearest(self, iteration: Iteration) -> Vector:
        """Values that the iteration would have gone to: the end, or the best that was tried."""
        if iteration.best is not None:
            return iteration.end.values
        best = self._pick(list(iteration.tried))
        return best.upgrade.values if best is not None else iteration.tried[0].upgrade.values


def build_estimation(
    job: Job, settings: Settings, space: ParameterSpace, objective: Objective
) -> Estimation:
    """An estimation of `job` that has not started."""
    runner = CountingRunner(job.runner)
    return Estimation(
        space=space,
        objective=objective,
        settings=settings,
        merit=Merit(settings, job.control.mode == "regularization"),
        runner=runner,
        report=job.report,
        differentiator=Differentiator(job.control, space, runner, job.report),
        slot_counts=SlotCounts(job.output / f"{job.control.name}.batches.csv"),
    )
