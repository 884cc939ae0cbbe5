"""Known names of control variables and of PEST++ options, and what their values may be.

Control variables are those of the tables in `variables`. PEST++ options are those that PEST++
5.2.23 knows (PEST++ users' manual, appendix "PEST++ control variables", and the program's own
list, which has more); each of its `ies_…` options is a `da_…` option too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache

from pestfleet.control.tokens import read_number
from pestfleet.control.variables import convert, describe_kind, variables_by_name

_NAMES = {
    "whole number": """
        da_hotstart_cycle da_stop_cycle de_max_gen de_pop_size ensemble_output_precision
        glm_num_reals gsa_morris_p gsa_morris_r gsa_sobol_samples ies_num_reals ies_num_threads
        ies_subset_size ies_verbose_level max_n_super max_reg_iter max_run_fail max_super_frz_iter
        mou_infill_size mou_max_archive_size mou_max_nn_search mou_population_size
        mou_resample_every mou_save_population_every mou_simplex_reflections mou_verbose_level
        n_iter_base n_iter_super num_tpl_ins_threads opt_recalc_chance_every opt_recalc_fosm_every
        opt_stack_size panther_agent_no_ping_timeout_secs
        panther_master_echo_interval_milliseconds panther_master_timeout_milliseconds rand_seed
        random_seed sqp_num_reals sweep_chunk
    """,
    "number": """
        de_cr de_f gsa_morris_delta ies_accept_phi_fac ies_autoadaloc_sigma_dist ies_bad_phi
        ies_bad_phi_sigma ies_init_lam ies_initial_lambda ies_lambda_dec_fac ies_lambda_inc_fac
        ies_mda_dec_fac ies_mda_init_fac ies_multimodal_alpha ies_pdc_sigma_distance ies_reg_fac
        ies_reg_factor mou_crossover_probability mou_de_f mou_fit_epsilon mou_fit_gamma
        mou_hypervolume_extreme mou_mutation_probability mou_ppd_beta mou_pso_alpha mou_pso_omega
        mou_pso_rfit mou_pso_rramp mou_pso_vmax_factor opt_iter_derinc_fac opt_iter_tol opt_risk
        overdue_giveup_fac overdue_giveup_minutes overdue_resched_fac panther_poll_interval
        par_sigma_range super_eigthres super_eigthresh super_relparmax yamr_poll_interval
    """,
    "numbers": """
        ies_lambda_mults ies_n_iter_mean ies_n_iter_reinflate ies_reinflate_factor
        lambda_scale_fac lambdas mou_pso_cognitive_const mou_pso_inertia mou_pso_social_const
        mou_simplex_factors sqp_scale_facs
    """,
    "flag": """
        check_tplins da_use_simulated_states de_dither_f debug_check_par_en_consistency
        debug_parse_only der_forgive enforce_tied_bounds fill_tpl_zeros forgive_unknown_args
        glm_accept_mc_phi glm_debug_der_fail glm_debug_high_2nd_iter_phi glm_debug_lamb_fail
        glm_debug_real_fail glm_iter_mc glm_rebase_super gsa_morris_obs_sen gsa_morris_pooled_obs
        ies_add_base ies_autoadaloc ies_csv_by_reals ies_debug_bad_phi ies_debug_fail_remainder
        ies_debug_fail_subset ies_debug_high_subset_phi ies_debug_high_upgrade_phi
        ies_debug_upgrade_only ies_drop_conflicts ies_enforce_bounds ies_enforce_chglim
        ies_group_draws ies_include_base ies_localizer_forgive_extra ies_localizer_forgive_missing
        ies_no_noise ies_ordered_binary ies_phi_factors_by_real ies_save_binary ies_save_lambda_en
        ies_save_lambda_ensembles ies_save_rescov ies_update_by_reals ies_upgrades_in_memory
        ies_use_approx ies_use_approximate_solution ies_use_empirical_prior ies_use_mda
        ies_use_prior_scaling iteration_summary jac_scale mou_debug_dv_handling mou_risk_objective
        mou_shuffle_fixed_pars mou_simplex_mutation mou_use_multigen_population opt_coin_log
        opt_include_bnd_pi opt_skip_final opt_std_weights panther_agent_freeze_on_fail
        panther_agent_restart_on_error panther_debug_loop panther_echo panther_persistent_workers
        parse_only save_binary save_dense sqp_update_hessian sweep_base_run sweep_forgive
        sweep_include_regul_phi tie_by_group tpl_force_decimal uncertainty
    """,
    "text": """
        additional_ins_delimiters auto_norm base_jacobian base_jacobian_filename
        condor_submit_file da_noptmax_schedule da_observation_cycle_table da_parameter_cycle_table
        da_weight_cycle_table forecasts glm_normal_form global_opt gsa_method gsa_sobol_par_dist
        hotstart_resfile ies_autoadaloc_indicator_pars ies_center_on ies_loc_type
        ies_localization_type ies_localize_how ies_localizer ies_obs_en ies_observation_ensemble
        ies_par_en ies_parameter_ensemble ies_phi_factor_file ies_restart_obs_en
        ies_restart_observation_ensemble ies_restart_par_en ies_restart_parameter_ensemble
        ies_run_realname ies_subset_how ies_weight_en ies_weight_ensemble ies_weights_en
        ies_weights_ensemble mat_inv moea_name mou_dv_population_file mou_env_selector
        mou_generator mou_mating_selector mou_objectives mou_obs_population_restart_file
        mou_outer_repo_obs_file mou_population_schedule mou_pso_dv_bound_handling
        mou_resample_command obscov obscov_filename observation_covariance opt_chance_points
        opt_chance_schedule opt_constraint_groups opt_dec_var_groups opt_decision_variable_groups
        opt_direction opt_ext_var_groups opt_external_variable_groups opt_obj_func
        opt_objective_function opt_obs_stack opt_par_stack panther_transfer_on_fail
        panther_transfer_on_finish parameter_covariance parcov parcov_filename predictions
        sqp_dv_en sqp_restart_obs_en svd_pack sweep_obs_csv sweep_output_csv_file
        sweep_output_file sweep_par_csv sweep_parameter_csv_file sweep_parameter_file
        upgrade_augment upgrade_bounds
    """,
}

# A name less like a known one than this is another word, not a slip of the pen.
_LIKENESS = 0.8


@cache
def _kinds() -> dict[str, str]:
    kinds = {name: kind for kind, names in _NAMES.items() for name in names.split()}
    aliases = {f"da_{n[4:]}": kind for n, kind in kinds.items() if n.startswith("ies_")}
    return aliases | kinds


@cache
def control_variables() -> frozenset[str]:
    """Names that belong into `* control data` and its like, lower case."""
    # PEST++ 5.2.23 spells DOSENREUSE so.
    return frozenset(variables_by_name()) | {"dosenresuse"}


@cache
def pestpp_options() -> frozenset[str]:
    """Names of all `++` options, lower case."""
    return frozenset(_kinds())


def find_nearest(name: str, known: Iterable[str], *, likeness: float = _LIKENESS) -> str:
    """The known name that `name` may be meant for; "" if none is near."""
    # Sorted: of two that are equally near it is the same one every time.
    near = difflib.get_close_matches(name.lower(), sorted(known), 1, likeness)
    return near[0] if near else ""


def describe_expected(option: str, value: str) -> str:
    """What an option must be, where `value` is not that; "" where it is, or is not known.

    `option`: a PEST++ option or a control variable.
    """
    variable = variables_by_name().get(option)
    if variable is not None:
        return "" if convert(variable, value) is not None else describe_kind(variable)
    kind, number = _kinds().get(option, "text"), read_number(value)
    if kind == "whole number":
        return "" if number is not None and number == int(number) else "a whole number"
    if kind == "number":
        return "" if number is not None else "a number"
    if kind == "numbers":
        words = value.replace(",", " ").split()
        good = bool(words) and all(read_number(word) is not None for word in words)
        return "" if good else "numbers, separated by commas"
    if kind == "flag":
        good = value.lower() in ("true", "false", "t", "f", "yes", "no", "1", "0")
        return "" if good else "true or false"
    return ""
