"""Checks of observations and their groups (PEST manual, part I, chapter 4)."""

from __future__ import annotations

from collections.abc import Callable

from pestfleet.checks.problem import Problems
from pestfleet.control.model import ControlFile, Observation, Place


def check_observations(control: ControlFile, problems: Problems) -> None:
    """Names, weights and groups."""
    first: dict[str, Observation] = {}
    groups = frozenset(control.observation_groups)
    with problems.limited("observations"):
        for observation in control.observations:
            earlier = first.setdefault(observation.name, observation)
            if earlier is not observation:
                _report_twice(observation, earlier, control, problems)
                continue
            if observation.weight < 0:
                problems.error(
                    observation.place or Place(control.path),
                    f"the weight of observation '{observation.name}' is {observation.weight:g}",
                    "Weights are 0 or above.",
                )
            if observation.group not in groups and observation.group:
                problems.error(
                    observation.place or Place(control.path),
                    f"the group '{observation.group}' of observation '{observation.name}' is not "
                    "in '* observation groups'",
                    "Add the group there, or correct the name.",
                )
    report_no_weight(control, problems.warning)
    if (
        control.mode == "regularization"
        and control.observation_groups
        and not any(group.startswith("regul") for group in control.observation_groups)
    ):
        message = "PESTMODE is regularization, but no observation group begins with 'regul'"
        remedy = "Name the groups of regularization 'regul…', or set PESTMODE to estimation."
        problems.error(Place(control.path), message, remedy)


def report_no_weight(control: ControlFile, add: Callable[[Place, str, str], None]) -> bool:
    """Add a problem, and return True, if nothing has a weight: an error for some engines only."""
    weights = [o.weight for o in control.observations] + [p.weight for p in control.priors]
    # A covariance matrix stands in place of the weights of its group.
    if not control.observations or control.observation_covariances or any(weights):
        return False
    add(
        control.observations[0].place or Place(control.path),
        "all weights are 0: there is nothing to fit",
        "Give the observations that count a weight, 1 / standard deviation.",
    )
    return True


def _report_twice(
    observation: Observation, earlier: Observation, control: ControlFile, problems: Problems
) -> None:
    place = observation.place or Place(control.path)
    before = earlier.place or Place(control.path)
    where = f"line {before.line}" if before.file == place.file else str(before)
    message = f"the observation '{observation.name}' is there twice, first at {where}"
    problems.error(place, message, "Give each observation a name of its own.")
