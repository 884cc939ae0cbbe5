"""When an estimation is over (PEST manual part I, "Control data", termination criteria)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pestfleet.engines.base import Vector
from pestfleet.engines.glm.objective import Objective
from pestfleet.engines.glm.regularization import Merit
from pestfleet.engines.glm.settings import Settings

if TYPE_CHECKING:
    from pestfleet.engines.glm.estimation import Place


@dataclass(slots=True)
class Termination:
    """Counts what the criteria need. In regularization mode "phi" is what counts there."""

    settings: Settings
    merit: Merit
    objective: Objective
    first: Place
    _accepted: bool = field(init=False)
    _history: list[float] = field(init=False)
    _without_reduction: int = field(init=False, default=0)
    _small_changes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        above, phi = self.merit.key(self.first.phi)
        self._accepted = not above
        self._history = [phi]

    def pardon(self) -> None:
        """Derivatives became better: what did not go down so far may now."""
        self._without_reduction = 0
        self._small_changes = 0

    def check_place(self, place: Place) -> str:
        """Why `place` alone ends it, or ''."""
        phi = place.phi.measurement
        if not self.merit.regularizing and phi <= self.objective.negligible(place.simulated):
            return "phi is zero: model outputs agree with the measurements to twelve digits"
        if 0.0 < phi <= self.settings.phistopthresh:
            return f"phi is not above PHISTOPTHRESH {self.settings.phistopthresh:g}"
        return ""

    def check(self, start: Place, end: Place, tried: Vector) -> str:
        """Why an iteration from `start` to `end` is the last, or ''.

        `tried`: values of the best trial, whether it was taken or not.
        """
        s = self.settings
        if reason := self.check_place(end):
            return reason
        above, phi = self.merit.key(end.phi)
        if self._accepted == above:  # crossed PHIMACCEPT: another phi counts from here
            self._accepted, self._history, self._without_reduction = not above, [phi], 0
        elif self.merit.key(end.phi) < self.merit.key(start.phi):
            self._without_reduction = 0
            self._history.append(phi)
        else:
            self._without_reduction += 1
        if s.phiabandon > 0.0 and end.phi.measurement > s.phiabandon:
            return f"phi is above PHIABANDON {s.phiabandon:g}"
        self._small_changes = self._small_changes + 1 if self._is_small(start, tried) else 0
        if self._without_reduction >= s.nphinored:
            return f"no lower {self.merit.name(end.phi)} in {s.nphinored} iterations (NPHINORED)"
        lowest = sorted(self._history)[: s.nphistp]
        if (
            len(lowest) == s.nphistp
            and s.nphistp > 1
            and lowest[-1] - lowest[0] <= s.phiredstp * lowest[-1]
        ):
            return (
                f"the lowest {s.nphistp} values of {self.merit.name(end.phi)} are within a "
                f"relative {s.phiredstp:g} (PHIREDSTP, NPHISTP)"
            )
        if self._small_changes >= s.nrelpar:
            return (
                f"no parameter changed by more than a relative {s.relparstp:g} in {s.nrelpar} "
                "iterations (RELPARSTP, NRELPAR)"
            )
        return ""

    def _is_small(self, start: Place, tried: Vector) -> bool:
        changed = np.abs(tried - start.values)
        return bool((changed <= self.settings.relparstp * np.abs(start.values)).all())
