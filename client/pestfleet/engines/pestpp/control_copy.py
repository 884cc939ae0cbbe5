"""The engine's own copy of the control file, with the options that a fleet needs.

The user's file is text to us here: lines are added, replaced or taken out, the rest stays as it
is. A control file is version 2 where it has `* control data keyword`: options are lines there, of
a keyword and a value. Else options are `++keyword(value)`, anywhere (PEST++ manual, "The PEST++
control file"). PEST++ refuses an option that is given twice, aliases included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pestfleet.control.model import ControlFile

NEVER = "1.0e+30"  # what PEST++ itself takes for "not at all"

# Each PANTHER option, as RunManagerPanther of 5.2.23 uses it. The defaults that the manual gives
# are not those of the programs; these are what is right where the fleet takes care of its workers.
FLEET_OPTIONS: dict[str, str] = {
    # A run that is late is the fleet's matter: it hands it to another worker, and its time limit
    # ends it. pestpp-ies, -da, -mou and -sqp give a run up after twice the average by themselves.
    "overdue_giveup_fac": NEVER,
    "overdue_giveup_minutes": NEVER,
    "overdue_resched_fac": NEVER,
    # The gateway reports a run as failed only for what the model did: it would fail again.
    "max_run_fail": "1",
    # The master's waits between and after batches, else up to 500 ms each.
    "panther_master_timeout_milliseconds": "10",
    "panther_master_echo_interval_milliseconds": "1000",
    "panther_echo": "true",
    "panther_persistent_workers": "true",
    # For the engine's own agents only; explicit, so that both modes mean the same.
    "panther_poll_interval": "0",
    "panther_agent_restart_on_error": "false",
    "panther_agent_no_ping_timeout_secs": "-1",
    "panther_agent_freeze_on_fail": "false",
    "panther_debug_loop": "false",
    # The default of 5.2.23: a repeated engine asks for the same runs.
    "rand_seed": "358183147",
}

_ALIASES = (
    frozenset(("panther_poll_interval", "yamr_poll_interval")),
    frozenset(("rand_seed", "random_seed")),
    frozenset(("sweep_parameter_csv_file", "sweep_par_csv", "sweep_parameter_file")),
    frozenset(("sweep_output_csv_file", "sweep_obs_csv", "sweep_output_file")),
    frozenset(("parcov", "parameter_covariance", "parcov_filename")),
    frozenset(("obscov", "observation_covariance", "obscov_filename")),
    frozenset(("predictions", "forecasts")),
)
_KEYWORD_SECTION = re.compile(r"\*\s*control\s+data\s+keyword\b", re.IGNORECASE)
_NOPTMAX_LINE = 7  # of `* control data` in version 1 (PEST manual part I, section 4.2)


def write_control_copy(
    control: ControlFile,
    target: Path,
    *,
    options: Mapping[str, str],
    unknown: Collection[str] = (),
) -> None:
    """Write the control file to `target` with `options` and `FLEET_OPTIONS` in it.

    `options`: the user's, which win over the file's; both win over ours. `unknown`: those of
    `FLEET_OPTIONS` that this engine does not know.
    """
    options = {key.strip().lower(): value.strip() for key, value in options.items()}
    given = {**control.options, **options}
    added = {
        key: value
        for key, value in FLEET_OPTIONS.items()
        if key not in unknown and not find_aliases(key) & given.keys()
    }
    text = control.path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    edited = edit_options(lines, {**options, **added})
    target.write_bytes(("\n".join(edited) + "\n").encode("utf-8", "surrogateescape"))


def find_aliases(key: str) -> frozenset[str]:
    """All names of an option, its own among them."""
    return next((names for names in _ALIASES if key in names), frozenset((key,)))


def edit_options(lines: list[str], options: Mapping[str, str]) -> list[str]:
    """Lines of a control file in which `options` are set; earlier settings of them are gone."""
    replaced = frozenset(name for key in options for name in find_aliases(key))
    keywords = any(_KEYWORD_SECTION.match(line.strip()) for line in lines)
    rest = dict(options)
    result: list[str] = []
    section, count, place = "", 0, 0
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("++"):
            line = _drop_options(line, replaced)
            if not line.strip("+ \t"):
                continue
        elif stripped.startswith("*"):
            section, count = " ".join(stripped.lstrip("*").lower().split()), 0
        elif stripped and not stripped.startswith("#"):
            count += 1
            if section == "control data keyword" and stripped.split()[0].lower() in replaced:
                continue
            if section == "control data" and count == _NOPTMAX_LINE and "noptmax" in rest:
                line = re.sub(r"\S+", lambda _: rest.pop("noptmax"), line, count=1)
        result.append(line)
        if section == "control data keyword" and stripped.startswith("*"):
            place = len(result)
    if keywords:
        result[place:place] = [f"{key} {value}" for key, value in rest.items()]
    else:
        result += [f"++{key}({value})" for key, value in rest.items()]
    return result


def _drop_options(line: str, names: frozenset[str]) -> str:
    """A `++` line without these options. What follows `#` stays as it is."""

    def drop(match: re.Match[str]) -> str:
        return "" if match["key"].lower() in names else match[0]

    head, mark, comment = line.partition("#")
    return re.sub(r"(?:\+\+)?\s*(?P<key>[^\s()+]+)\s*\([^()]*\)", drop, head) + mark + comment


# -- warnings ---------------------------------------------------------------------------------


def list_warnings(options: Mapping[str, str], *, agents: bool = False) -> list[str]:
    """What the user's own options cost on a fleet. `options`: lower-case key -> value.

    `agents`: the engine's own agents make the runs, and can send files.
    """
    warnings = []
    for key, (is_costly, text) in _COSTS.items():
        if agents and text == _TRANSFERS:
            continue
        for name in sorted(find_aliases(key) & options.keys()):
            if is_costly(options[name]):
                warnings.append(f"{name}({options[name]}): {text}")
    return warnings


def _is_below(limit: float) -> Callable[[str], bool]:
    return lambda text: _read_number(text) < limit


def _is_above(limit: float) -> Callable[[str], bool]:
    return lambda text: _read_number(text) > limit


def _read_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")  # the engine says what is wrong with it


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "t", "yes", "1")


def _is_false(text: str) -> bool:
    return not _is_true(text)


def _is_given(text: str) -> bool:
    return True


_GIVES_UP = (
    "the engine gives up runs that take longer, and loses their realizations; for a hanging "
    "model set a time limit for runs instead"
)
_TRANSFERS = "no files come back from the fleet's workers; run with --mode agent for that"
_COSTS: dict[str, tuple[Callable[[str], bool], str]] = {
    "overdue_giveup_fac": (_is_below(1e10), _GIVES_UP),
    "overdue_giveup_minutes": (_is_below(1e10), _GIVES_UP),
    "overdue_resched_fac": (
        _is_below(1e10),
        "the engine asks for runs that take longer once more, and the fleet's time is spent twice",
    ),
    "max_run_fail": (_is_above(1), "each run that the model fails is made as often as this"),
    "panther_persistent_workers": (
        _is_false,
        "the engine drops its connections after each batch and waits for new ones",
    ),
    "panther_echo": (_is_false, "the engine does not say how many runs are done"),
    "panther_master_timeout_milliseconds": (
        _is_above(100),
        "the engine sleeps so long between batches of runs",
    ),
    "panther_transfer_on_finish": (_is_given, _TRANSFERS),
    "panther_transfer_on_fail": (_is_given, _TRANSFERS),
    "panther_debug_loop": (_is_true, "this is for the engine's developers, and costs time"),
    "condor_submit_file": (_is_given, "the engine submits agents of its own to HTCondor"),
}
