"""How many runs an engine will ask for, batch by batch, as far as that is known before.

Of the engines here, as they read their own settings; of PEST++ 5.2.23 by its manual and defaults
(pest_data_structs.cpp, `set_defaults`); of PEST by its manual, part I. Runs that the run cache
knows, and those that fail and are asked for again, are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pestfleet.control.model import ControlFile, ParameterGroup
from pestfleet.engines.base import Job

PESTPP = "PEST++ 5.2 manual"
PEST = "PEST manual, part I"
OWN = "the engine here"
_LARGEST = 10_000  # batches that are listed; NOPTMAX may be anything


@dataclass(frozen=True, slots=True)
class RunCount:
    """Sizes of an engine's batches, at the least and at the most. `formula`: in words."""

    least: tuple[int, ...]
    most: tuple[int, ...]
    formula: str
    source: str

    @property
    def range(self) -> tuple[int, int]:
        """Runs, at the least and at the most."""
        return sum(self.least), sum(self.most)


class _Quiet:
    """A report that tells nobody: the engine says it again when it runs."""

    def iteration(self, number: int, *, phi: float, **detail: float | int | str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass


def count_runs(
    control: ControlFile, engine: str, options: Mapping[str, str], *, slots: int
) -> RunCount | None:
    """The runs of an engine on a fleet with so many slots; None where nobody can know.

    Raises `CaseError` and `ConfigurationError` for settings that the engine would refuse.
    """
    count = _COUNTS.get(engine)
    if count is None:
        return None
    quiet: Any = _Quiet()
    job = Job(control, quiet, quiet, Path(), options, engine=engine)
    return count(job, max(1, slots))


def fix_count(runs: int) -> RunCount:
    """So many, because the user says so."""
    return RunCount((runs,), (runs,), f"{runs:,} runs", "you say so (--runs)")


# -- the engines here -------------------------------------------------------------------------


def _count_sweep(job: Job, slots: int) -> RunCount:
    from pestfleet.engines.sweep import CHUNK, RUNS_PER_SLOT, count_sets

    sets = count_sets(job)
    chunk = max(CHUNK, RUNS_PER_SLOT * slots)
    sizes = tuple(min(chunk, sets - done) for done in range(0, sets, chunk))
    return RunCount(sizes, sizes, f"{sets:,} parameter sets", OWN)


def _count_glm(job: Job, slots: int) -> RunCount:
    from pestfleet.engines.glm.damping import fill_batch
    from pestfleet.engines.glm.settings import read_settings

    settings = read_settings(job.control, job.options)
    if settings.noptmax == 0:
        return RunCount((1,), (1,), "1 run: NOPTMAX is 0", OWN)
    first, switched = _count_jacobian(job.control, False), _count_jacobian(job.control, True)
    if settings.noptmax < 0:
        sizes = (1 + first,)
        return RunCount(sizes, sizes, f"1 + a Jacobian of {first:,}", OWN)
    size = fill_batch(slots)
    if settings.lambdas:
        trials = len(settings.lambdas) * len(settings.scale_factors or (1.0,))
        more = 0
    elif settings.scale_factors:
        dampings = 1 if settings.rlambda1 == 0.0 else min(size, settings.numlam)
        trials = dampings * len(settings.scale_factors)
        more = settings.numlam - dampings
    else:
        trials = size
        more = 0 if settings.rlambda1 == 0.0 else max(0, settings.numlam - size)
    final = (max(first, switched),) if settings.final_jacobian else ()
    least = (1 + first, trials)
    rounds = min(settings.noptmax, _LARGEST)
    batches: list[int] = []
    for number in range(rounds):
        batches += [1 + first if number == 0 else max(first, switched), trials]
        batches += [more] if more else []
    jacobian = f"{first:,}" if first == switched else f"{first:,} (later {switched:,})"
    return RunCount(
        least,
        (*batches, *final),
        f"1 + up to {settings.noptmax} iterations × (a Jacobian of {jacobian} + up to "
        f"{trials + more} damping values){' + a last Jacobian' if final else ''}",
        OWN,
    )


def _count_jacobian(control: ControlFile, switched: bool) -> int:
    """Runs of a Jacobian, without the one in its middle."""
    from pestfleet.engines.glm.differences import count_points

    groups = {group.name: group for group in control.groups}
    return sum(
        count_points(groups.get(p.group, ParameterGroup(p.group)), switched=switched) - 1
        for p in control.parameters
        if p.transform in ("none", "log")
    )


def _count_ies(job: Job, slots: int) -> RunCount:
    from pestfleet.engines.ies.settings import read_settings

    settings = read_settings(job)
    if settings.iterations == 0:
        return RunCount((1,), (1,), "1 run: NOPTMAX is 0", OWN)
    reals = settings.realizations
    if settings.parameter_ensemble is not None:
        from pestfleet.files.ensembles import read_ensemble

        limit = reals if settings.realizations_given else None
        names = read_ensemble(settings.parameter_ensemble, limit=limit).realizations
        reals = len(names) + (settings.add_base and "base" not in names)
    if settings.iterations < 0:
        return RunCount((reals,), (reals,), f"{reals:,} realizations", OWN)
    if settings.multiple_assimilation:
        sizes = (reals,) * (1 + min(settings.iterations, _LARGEST))
        words = f"{reals:,} realizations × (1 + {settings.iterations} assimilations)"
        return RunCount(sizes, sizes, words, OWN)
    candidates = len(settings.lambda_multipliers) * len(settings.scale_factors)
    return _count_smoother(reals, settings.iterations, settings.subset_size, candidates, OWN)


def _count_smoother(
    reals: int, iterations: int, subset: int, candidates: int, source: str
) -> RunCount:
    """An iterative smoother that tests its steps on a subset, as pestpp-ies does."""
    size = subset if subset > 0 else max(math.ceil(reals * -subset / 100.0), 4)
    size = min(size, reals)
    step = (candidates * size, reals - size)
    return RunCount(
        (reals, candidates * size),
        (reals, *(runs for runs in step * min(iterations, _LARGEST) if runs)),
        f"{reals:,} realizations + up to {iterations} iterations × ({candidates} steps on "
        f"{size:,} of them + the other {reals - size:,})",
        source,
    )


# -- programs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Options:
    """Options and variables of a program: the user's win over the control file's."""

    job: Job

    def find(self, *names: str) -> str:
        user = {key.lower().replace("-", "_"): text for key, text in self.job.options.items()}
        control = self.job.control
        for source in (user, control.options, control.control_data):
            for name in names:
                if name in source:
                    return str(source[name]).strip().strip("'\"")
        return ""

    def number(self, *names: str, default: int) -> int:
        """What cannot be read is the program's to say; the default then counts."""
        try:
            return int(float(self.find(*names) or default))
        except ValueError:
            return default

    def length(self, *names: str, default: int) -> int:
        """How many values a list has."""
        return len(set(self.find(*names).replace(",", " ").split())) or default

    def flag(self, *names: str) -> bool:
        return self.find(*names).lower() in ("true", "t", "yes", "1")


def _count_pestpp_swp(job: Job, slots: int) -> RunCount:
    count = _count_sweep(job, slots)
    return RunCount(count.least, count.most, count.formula, PESTPP)


def _count_pestpp_glm(job: Job, slots: int) -> RunCount:
    options = _Options(job)
    noptmax = options.number("noptmax", default=30)
    first, switched = _count_jacobian(job.control, False), _count_jacobian(job.control, True)
    if noptmax == 0:
        return RunCount((1,), (1,), "1 run: NOPTMAX is 0", PESTPP)
    last = options.number("glm_num_reals", default=0)
    tail = (last,) if last > 0 else ()
    if noptmax < 0:
        sizes = (1 + first, *tail)
        return RunCount(sizes, sizes, f"1 + a Jacobian of {first:,}", PESTPP)
    trials = options.length("lambdas", default=5) * options.length("lambda_scale_fac", default=3)
    rounds = min(noptmax, _LARGEST)
    most = [size for _ in range(rounds) for size in (max(first, switched), trials)]
    most[0] = 1 + first
    return RunCount(
        (1 + first, trials, *tail),
        (*most, *tail),
        f"1 + up to {noptmax} iterations × (a Jacobian of {max(first, switched):,} + {trials} "
        f"lambdas and scales){f' + {last:,} realizations' if tail else ''}",
        PESTPP,
    )


def _count_pestpp_ies(job: Job, slots: int) -> RunCount:
    options = _Options(job)
    noptmax = options.number("noptmax", default=3)
    reals = options.number("ies_num_reals", default=50)
    if noptmax == 0 or noptmax == -2:
        return RunCount((1,), (1,), f"1 run: NOPTMAX is {noptmax}", PESTPP)
    if noptmax < 0:
        return RunCount((reals,), (reals,), f"{reals:,} realizations", PESTPP)
    if options.flag("ies_use_mda"):
        candidates = options.length("lambda_scale_fac", default=1)
    else:
        candidates = options.length("ies_lambda_mults", default=3)
        candidates *= options.length("lambda_scale_fac", default=3)
    subset = options.number("ies_subset_size", default=-10)
    return _count_smoother(reals, noptmax, subset, candidates, PESTPP)


def _count_pestpp_sen(job: Job, slots: int) -> RunCount:
    options = _Options(job)
    parameters = sum(p.transform in ("none", "log") for p in job.control.parameters)
    if options.find("gsa_method").lower().startswith("sobol"):
        samples = options.number("gsa_sobol_samples", default=4)
        sizes, words = (samples * (parameters + 2),), f"{samples} × ({parameters:,} parameters + 2)"
    else:
        rounds = options.number("gsa_morris_r", default=4)
        sizes, words = (rounds * (parameters + 1),), f"{rounds} × ({parameters:,} parameters + 1)"
    return RunCount(sizes, sizes, words, PESTPP)


def _count_pestpp_mou(job: Job, slots: int) -> RunCount:
    options = _Options(job)
    noptmax = options.number("noptmax", default=30)
    size = options.number("mou_population_size", default=100)
    if noptmax == 0 or noptmax == -2:
        return RunCount((1,), (1,), f"1 run: NOPTMAX is {noptmax}", PESTPP)
    sizes = (size,) * (1 + min(max(noptmax, 0), _LARGEST))
    words = f"a population of {size:,} × (1 + {max(noptmax, 0)} generations), without stacks"
    return RunCount(sizes, sizes, words, PESTPP)


def _count_pest(job: Job, slots: int) -> RunCount:
    """BEOPEST and PEST_HP; their own parallel options may try more lambdas."""
    options = _Options(job)
    noptmax = options.number("noptmax", default=30)
    first, switched = _count_jacobian(job.control, False), _count_jacobian(job.control, True)
    if noptmax == 0:
        return RunCount((1,), (1,), "1 run: NOPTMAX is 0", PEST)
    if noptmax < 0:
        sizes = (1 + first,)
        return RunCount(sizes, sizes, f"1 + a Jacobian of {first:,}", PEST)
    lambdas = max(1, abs(options.number("numlam", default=10)))
    rounds = min(noptmax, _LARGEST)
    most = [size for _ in range(rounds) for size in (max(first, switched), lambdas)]
    most[0] = 1 + first
    return RunCount(
        (1 + first, 1),
        tuple(most),
        f"1 + up to {noptmax} iterations × (a Jacobian of {max(first, switched):,} + up to "
        f"{lambdas} lambdas)",
        PEST,
    )


_COUNTS: dict[str, Callable[[Job, int], RunCount]] = {
    "sweep": _count_sweep,
    "glm": _count_glm,
    "ies": _count_ies,
    "pestpp-swp": _count_pestpp_swp,
    "pestpp-glm": _count_pestpp_glm,
    "pestpp-ies": _count_pestpp_ies,
    "pestpp-sen": _count_pestpp_sen,
    "pestpp-mou": _count_pestpp_mou,
    "beopest": _count_pest,
    "pest_hp": _count_pest,
}
