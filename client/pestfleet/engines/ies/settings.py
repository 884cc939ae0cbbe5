"""What the control file and the user ask of ies, with pestpp-ies' names and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pestfleet.engines.base import Job
from pestfleet.engines.ies.options import Options
from pestfleet_worker.errors import CaseError

DEFAULT_SEED = 358183147  # PEST++'s own
DEFAULT_ITERATIONS = 3

# Options that change nothing in what is computed here; silence about them misleads nobody.
_HARMLESS = (
    "ies_verbose_level",
    "ies_num_threads",
    "ies_ordered_binary",
    "ies_upgrades_in_memory",
    "ies_save_binary",
    "ies_group_draws",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """See the PEST++ manual, "Control Variables" of PESTPP-IES, for each.

    `iterations`: NOPTMAX; 0: one run with the initial values; -1: the prior ensemble only.
    `subset_size`: negative: per cent of the ensemble. `initial_lambda` <= 0: from phi, times
    its absolute value if negative. `phi_*`, `iterations_*`: PHIREDSTP, NPHISTP, NPHINORED, None
    where the control file has none.
    """

    iterations: int
    realizations: int
    realizations_given: bool
    seed: int
    add_base: bool
    no_noise: bool
    enforce_bounds: bool
    bad_phi: float
    sigma_range: float
    prior_covariance: Path | None
    parameter_ensemble: Path | None
    observation_ensemble: Path | None
    lambda_multipliers: tuple[float, ...]
    scale_factors: tuple[float, ...]
    initial_lambda: float
    lambda_increase: float
    lambda_decrease: float
    accept_factor: float
    subset_size: int
    multiple_assimilation: bool
    assimilation_initial: float
    assimilation_decrease: float
    phi_reduction: float | None
    iterations_flat: int | None
    iterations_no_reduction: int | None


def read_settings(job: Job) -> Settings:
    """The settings of a job. Warns once of options that ies does not honour."""
    options = Options(job)
    settings = Settings(
        iterations=_read_iterations(job, options),
        realizations=options.get_integer("ies_num_reals", default=50, least=2),
        realizations_given=options.has("ies_num_reals"),
        seed=options.get_integer(
            "ies_rand_seed", "rand_seed", "random_seed", default=DEFAULT_SEED, least=0
        ),
        add_base=options.get_flag("ies_add_base", "ies_include_base", default=True),
        no_noise=options.get_flag("ies_no_noise", default=False),
        enforce_bounds=options.get_flag("ies_enforce_bounds", default=True),
        bad_phi=options.get_number("ies_bad_phi", default=1e300, positive=True),
        sigma_range=options.get_number("par_sigma_range", default=4.0, positive=True),
        prior_covariance=options.get_path("parcov", "parameter_covariance", "parcov_filename"),
        parameter_ensemble=options.get_path("ies_parameter_ensemble", "ies_par_en"),
        observation_ensemble=options.get_path("ies_observation_ensemble", "ies_obs_en"),
        lambda_multipliers=options.get_numbers("ies_lambda_mults", default=(0.1, 1.0, 10.0)),
        scale_factors=options.get_numbers("lambda_scale_fac", default=(0.75, 1.0, 1.1)),
        initial_lambda=options.get_number("ies_initial_lambda", "ies_init_lam", default=0.0),
        lambda_increase=options.get_number("ies_lambda_inc_fac", default=10.0, positive=True),
        lambda_decrease=options.get_number("ies_lambda_dec_fac", default=0.75, positive=True),
        accept_factor=options.get_number("ies_accept_phi_fac", default=1.05, positive=True),
        subset_size=options.get_integer("ies_subset_size", default=-10),
        multiple_assimilation=options.get_flag("ies_use_mda", default=False),
        assimilation_initial=options.get_number("ies_mda_init_fac", default=10.0, positive=True),
        assimilation_decrease=options.get_number("ies_mda_dec_fac", default=0.5, positive=True),
        phi_reduction=_read_control_number(job, "phiredstp"),
        iterations_flat=_read_control_count(job, "nphistp"),
        iterations_no_reduction=_read_control_count(job, "nphinored"),
    )
    # The equations here always have the prior term, so "false" is what is done anyway.
    exact = not options.get_flag("ies_use_approx", "ies_use_approximate_solution", default=False)
    by_rows = options.get_flag("ies_csv_by_reals", default=True)
    for name in _HARMLESS:
        options.has(name)
    ignored = options.not_asked()
    ignored += [] if exact else ["ies_use_approx"]
    ignored += [] if by_rows else ["ies_csv_by_reals"]
    if ignored:
        job.report.warn(f"ies does not honour these options: {', '.join(ignored)}")
    if job.control.observation_covariances:
        job.report.warn(
            "ies takes observation noise from weights and standard_deviation; it does not use "
            f"the covariance of {', '.join(job.control.observation_covariances)}"
        )
    return settings


def _read_iterations(job: Job, options: Options) -> int:
    number = _read_control_number(job, "noptmax")
    written = int(number) if number is not None else DEFAULT_ITERATIONS
    iterations = options.get_integer("noptmax", default=written)
    if iterations < -1:
        raise CaseError(
            f"{job.control.path}: NOPTMAX {iterations} means nothing to ies",
            remedy="Give the number of iterations, 0 for one run with the initial values, or -1 "
            "for the prior ensemble only.",
        )
    return iterations


def _read_control_number(job: Job, name: str) -> float | None:
    value = job.control.control_data.get(name)
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        raise CaseError(
            f"{job.control.path}: {name.upper()} is {value!r}", remedy="Write a number there."
        ) from None


def _read_control_count(job: Job, name: str) -> int | None:
    number = _read_control_number(job, name)
    return None if number is None else max(1, int(number))
