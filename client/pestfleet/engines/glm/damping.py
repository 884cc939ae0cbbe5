"""Which damping values (Marquardt lambdas) and upgrade scales are tried at once.

PEST tries one lambda after the other, RLAMFAC apart; a fleet tries a batch, as wide as it has
slots. PEST++'s `lambdas` and `lambda_scale_fac` are taken as they are.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from pestfleet.engines.glm.settings import Settings

_FEWEST = 4  # trials in a batch, however few slots there are
_SCALES = (1.0, 0.5, 0.75, 1.25, 0.25)  # to fill slots that NUMLAM lambdas leave idle
_SMALLEST, _LARGEST = 1e-8, 1e12


@dataclass(frozen=True, slots=True)
class Trial:
    damping: float
    scale: float


@dataclass(slots=True)
class SlotCounts:
    """The slots that each batch was planned for, kept in a file.

    A session that is resumed may have another number of slots; it must ask for the same runs all
    the same, or it would not find them in the run cache.
    """

    path: Path
    _counts: list[int] = field(init=False)
    _next: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._counts = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row[1] for row in csv.reader(file) if len(row) == 2]
            self._counts = [int(text) for text in rows if text.isdigit() and int(text) > 0]

    def take(self, slots: int) -> int:
        """Slots for the next batch: what the file says, else `slots`, which it then says."""
        if self._next == len(self._counts):
            self._counts.append(max(slots, 1))
            lines = ["batch,slots", *(f"{i},{n}" for i, n in enumerate(self._counts, start=1))]
            self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._next += 1
        return self._counts[self._next - 1]


def fill_batch(slots: int) -> int:
    """Number of trials: as many as slots, or the least multiple of them that is at least 4."""
    return slots * max(1, -(-_FEWEST // slots))


def plan_trials(settings: Settings, base: float, *, slots: int, attempt: int) -> list[Trial]:
    """The first batch of an iteration, most wanted first.

    `base`: the damping that was best so far. `attempt` counts iterations since phi went down:
    each failed one goes on with smaller steps from the same Jacobian, by dampings above those
    tried, or where these are the user's, by scales below.
    """
    if settings.lambdas:
        shrink = 0.3**attempt
        scales = [f * shrink for f in settings.scale_factors or (1.0,)]
        return [Trial(d, s) for s in scales for d in settings.lambdas]
    size = fill_batch(slots)
    dampings = _list_dampings(settings, base, count=min(size, settings.numlam), attempt=attempt)
    shrink = 0.3**attempt if dampings == [0.0] else 1.0
    if settings.scale_factors:
        return [Trial(d, s * shrink) for s in settings.scale_factors for d in dampings]
    scales = list(_SCALES[: max(1, -(-size // len(dampings)))])
    return [Trial(d, s * shrink) for s in scales for d in dampings][:size]


def shorten_trials(trials: list[Trial], *, attempt: int) -> list[Trial]:
    """The same dampings with smaller steps, `attempt` iterations after the last better result.

    For regularization below PHIMACCEPT: measurement and regularization phi are convex along the
    undamped upgrade of a linear model, and regularization phi is lower at its end, so it is lower
    all the way. A larger damping turns the upgrade to where the sum of both goes down, which may
    mean more regularization phi.
    """
    return [Trial(t.damping, t.scale * 0.3**attempt) for t in trials]


def extend_trials(
    settings: Settings, tried: list[float], *, best: float, slots: int
) -> list[Trial]:
    """The next batch, beyond the end of the tried dampings where `best` is; none in the middle.

    NUMLAM bounds the dampings of an iteration.
    """
    positive = sorted(d for d in tried if d > 0.0)
    left = settings.numlam - len(tried)
    if (
        settings.lambdas
        or left <= 0
        or len(positive) < 2
        or best not in (positive[0], positive[-1])
    ):
        return []
    factor = settings.rlamfac if best == positive[-1] else 1.0 / settings.rlamfac
    dampings = [best * factor**k for k in range(1, min(left, fill_batch(slots)) + 1)]
    return [Trial(d, 1.0) for d in dampings if _SMALLEST <= d <= _LARGEST]


def next_base(settings: Settings, base: float, best: float | None) -> float:
    """The damping to start the next iteration from; `best` None: phi did not go down."""
    if settings.rlambda1 == 0.0:
        return 0.0
    if best is None:
        return base
    return min(max(best if best > 0.0 else base / settings.rlamfac**2, _SMALLEST), _LARGEST)


def _list_dampings(settings: Settings, base: float, *, count: int, attempt: int) -> list[float]:
    if settings.rlambda1 == 0.0:
        return [0.0]
    factor = settings.rlamfac
    if attempt:
        lowest = max(base, 1e-2) * factor ** (attempt * count)
        return [min(lowest * factor**k, _LARGEST) for k in range(count)]
    # 0 is the plain Gauss-Newton step, which ends a linear problem at once.
    found = [base, 0.0]
    for k in range(1, count):
        found += [base / factor**k, base * factor**k]
    return found[:count]
