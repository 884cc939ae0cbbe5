"""What the control file and the user say about a glm estimation.

Variables have their PEST names (PEST manual part I, chapter 4) or PEST++ names; the user's
engine options win over the case's. Where the case leaves one out, the default here is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pestfleet.control.keywords import control_variables, find_nearest
from pestfleet.control.model import ControlFile
from pestfleet_worker.errors import CaseError, ConfigurationError

# Options of pestpp-glm that would change the answer, and that this engine does not have.
_UNUSED = (
    "n_iter_base", "n_iter_super", "max_n_super", "super_eigthresh", "super_relparmax",
    "base_jacobian", "hotstart_resfile", "parcov", "glm_num_reals", "glm_normal_form",
    "glm_debug_der_fail", "de_f", "global_opt", "upgrade_augment",
)  # fmt: skip
# Variables of PEST that would, where they are above 0.
_UNUSED_ABOVE_0 = ("iregadj", "jacupdate", "jacfile", "lsqrmode", "upvecbend")


@dataclass(frozen=True, slots=True)
class Settings:
    """Variables in PEST's words; `None` or 0 where a criterion is off."""

    # Termination
    noptmax: int = 30
    phiredstp: float = 0.005
    nphistp: int = 4
    nphinored: int = 4
    relparstp: float = 0.005
    nrelpar: int = 4
    phistopthresh: float = 0.0
    phiabandon: float = 0.0
    # Damping
    rlambda1: float = 10.0
    rlamfac: float = 3.0
    phiratsuf: float = 0.3
    phiredlam: float = 0.01
    numlam: int = 10
    lambdas: tuple[float, ...] = ()
    scale_factors: tuple[float, ...] = ()
    # Change limits
    relparmax: float = 10.0
    facparmax: float = 10.0
    facorig: float = 1e-3
    absparmax: Mapping[int, float] | None = None
    # Derivatives
    phiredswh: float = 0.1
    final_jacobian: bool = True
    # Singular value decomposition
    maxsing: int | None = None
    eigthresh: float = 1e-12
    scaling: str = "auto"  # sensitivity | none | auto: see `choose_scaling`
    # Regularization
    phimlim: float = 0.0
    phimaccept: float = 0.0
    fracphim: float = 0.0
    wfinit: float = 1.0
    wfmin: float = 1e-10
    wfmax: float = 1e10
    wffac: float = 1.3
    wftol: float = 1e-2
    # Statistics and parameters
    par_sigma_range: float = 4.0
    enforce_tied_bounds: bool = False
    unused: tuple[str, ...] = ()


_INTEGERS = ("noptmax", "nphistp", "nphinored", "nrelpar", "numlam", "maxsing")
_NUMBERS = (
    "phiredstp", "relparstp", "phistopthresh", "phiabandon", "rlambda1", "rlamfac", "phiratsuf",
    "phiredlam", "relparmax", "facparmax", "facorig", "phiredswh", "eigthresh", "phimlim",
    "phimaccept", "fracphim", "wfinit", "wfmin", "wfmax", "wffac", "wftol", "par_sigma_range",
)  # fmt: skip
_OTHERS = ("lambdas", "lambda_scale_fac", "scaling", "final_jacobian", "enforce_tied_bounds")

# variable: (smallest, largest, whether the ends are allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "noptmax": (-2, math.inf, True),
    "nphistp": (1, math.inf, True),
    "nphinored": (1, math.inf, True),
    "nrelpar": (1, math.inf, True),
    "rlambda1": (0, math.inf, True),
    "relparmax": (0, math.inf, False),
    "facparmax": (1, math.inf, False),
    "facorig": (0, 1, True),
    "eigthresh": (0, 1, True),
    "wfmin": (0, math.inf, False),
    "wfmax": (0, math.inf, False),
    "wfinit": (0, math.inf, False),
    "wffac": (1, math.inf, False),
    "wftol": (0, math.inf, False),
    "fracphim": (0, 1, True),
    "maxsing": (1, math.inf, True),
    "par_sigma_range": (0, math.inf, False),
}


def read_settings(control: ControlFile, options: Mapping[str, str]) -> Settings:
    """Settings of `control`, overridden by `options` (lower-case PEST or PEST++ names).

    Raises `CaseError` for a value that makes no sense in the case and for a mode that glm does
    not have, `ConfigurationError` for an engine option that is unknown or makes no sense.
    """
    if control.mode not in ("estimation", "regularization"):
        raise CaseError(
            f"{control.path}: PESTMODE is {control.mode}; the embedded engine glm has estimation "
            "and regularization only",
            remedy="Set PESTMODE to estimation. The programs of the engines pest_hp and beopest, "
            "where you have them, know the other modes.",
        )
    user = {key.lower().removeprefix("++"): value for key, value in options.items()}
    _check_names(user)
    # A control variable counts where PEST has it, not as a `++` option.
    case: dict[str, float | str] = {
        **{k: v for k, v in control.options.items() if k not in control_variables()},
        **control.control_data,
    }
    values = _Values(control, case, user)

    found: dict[str, object] = {}
    for name in _INTEGERS:
        number = values.number(name)
        if number is not None:
            found[name] = int(number)
    for name in _NUMBERS:
        if name == "phiabandon" and not values.is_number(name):
            continue  # PEST lets a file say it, iteration by iteration
        number = values.number(name)
        if number is not None:
            found[name] = number
    found["rlamfac"] = _damping_factor(values.number("rlamfac"))
    if "numlam" in found:
        found["numlam"] = max(1, abs(int(values.number("numlam") or 1)))  # < 0: beoPEST's parallel
    if (lambdas := values.numbers("lambdas")) is not None:
        found["lambdas"] = lambdas
    if (factors := values.numbers("lambda_scale_fac")) is not None:
        found["scale_factors"] = factors
    for name in ("final_jacobian", "enforce_tied_bounds"):
        flag = values.flag(name)
        if flag is not None:
            found[name] = flag
    found["absparmax"] = values.absolute_limits()
    found["scaling"] = values.scaling()
    unused = {o for o in _UNUSED if o in control.options}
    unused |= {"phiabandon"} if not values.is_number("phiabandon") else set()
    unused |= {"doaui"} if str(control.control_data.get("doaui", "noaui")) != "noaui" else set()
    unused |= {o for o in _UNUSED_ABOVE_0 if (values.number(o) or 0.0) > 0.0}
    found["unused"] = tuple(sorted(unused))
    if control.mode == "regularization":
        _complete_regularization(control, found)
    return Settings(**found)  # type: ignore[arg-type]


def _check_names(options: Mapping[str, str]) -> None:
    known = {*_INTEGERS, *_NUMBERS, *_OTHERS}
    for key in options:
        if key not in known and not key.startswith("absparmax("):
            near = find_nearest(key, known, likeness=0.7)
            raise ConfigurationError(
                f"the engine glm has no option {key!r}",
                remedy=f"Did you mean {near}?"
                if near
                else f"It has: {', '.join(sorted(known))}, absparmax(n).",
            )


def choose_scaling(settings: Settings, *, rows: int, adjustable: int) -> Settings:
    """Settings with the scaling of upgrades made definite.

    By sensitivity, as PEST++ does (its `jac_scale`), or none with fewer weighted `rows` than
    `adjustable` parameters.
    """
    if settings.scaling != "auto":
        return settings
    return replace(settings, scaling="none" if rows < adjustable else "sensitivity")


def _damping_factor(value: float | None) -> float:
    """RLAMFAC; PEST allows negative ones (a variable factor), which means their size here."""
    return abs(value) if value is not None and abs(value) > 1.0 else Settings().rlamfac


def _complete_regularization(control: ControlFile, found: dict[str, object]) -> None:
    phimlim = found.get("phimlim")
    if not isinstance(phimlim, float) or phimlim <= 0.0:
        raise CaseError(
            f"{control.path}: PESTMODE is regularization, but PHIMLIM is not above 0",
            remedy='Give PHIMLIM and PHIMACCEPT in "* regularization".',
        )
    accept = found.get("phimaccept")
    if not isinstance(accept, float) or accept < phimlim:
        found["phimaccept"] = 1.05 * phimlim
    low, high = found.get("wfmin", Settings().wfmin), found.get("wfmax", Settings().wfmax)
    if isinstance(low, float) and isinstance(high, float) and low > high:
        raise CaseError(
            f"{control.path}: WFMIN {low:g} is above WFMAX {high:g}",
            remedy='Correct WFMIN and WFMAX in "* regularization".',
        )


@dataclass(frozen=True, slots=True)
class _Values:
    """Looks a variable up: the user's first, then the case's; errors name the place."""

    control: ControlFile
    case: Mapping[str, float | str]
    user: Mapping[str, str]

    def is_number(self, name: str) -> bool:
        """Whether the case's value, if there is one, is a number."""
        try:
            float(self.case.get(name, 0.0))
        except ValueError:
            return False
        return True

    def number(self, name: str) -> float | None:
        raw = self.user.get(name, self.case.get(name))
        if raw is None:
            return None
        number = self._parse(name, raw)
        low, high, ends = _RANGES.get(name, (-math.inf, math.inf, True))
        inside = low <= number <= high if ends else low < number < high
        if not inside or math.isnan(number) or (name in _INTEGERS and math.isinf(number)):
            between = f"{'from' if ends else 'above'} {low:g}"
            if math.isfinite(high):
                between += f" to {high:g}" if ends else f" and below {high:g}"
            raise self._error(name, raw, f"it must be {between}")
        return number

    def numbers(self, name: str) -> tuple[float, ...] | None:
        raw = self.user.get(name, self.case.get(name))
        if raw is None:
            return None
        numbers = tuple(self._parse(name, word) for word in str(raw).replace(",", " ").split())
        smallest = 0.0 if name == "lambdas" else math.ulp(0.0)
        if not numbers or any(not smallest <= n < math.inf for n in numbers):
            raise self._error(name, raw, "it must be numbers that are not negative")
        return tuple(dict.fromkeys(numbers))

    def flag(self, name: str) -> bool | None:
        raw = self.user.get(name, self.case.get(name))
        if raw is None:
            return None
        word = str(raw).strip().lower()
        if word in ("true", "t", "yes", "1", "1.0"):
            return True
        if word in ("false", "f", "no", "0", "0.0"):
            return False
        raise self._error(name, raw, "it must be true or false")

    def absolute_limits(self) -> dict[int, float]:
        limits: dict[int, float] = {}
        for key in (*self.case, *self.user):
            if key.startswith("absparmax(") and key.endswith(")"):
                number = self.number(key)
                index = self._parse(key, key[len("absparmax(") : -1])
                if number is None or not number > 0:
                    raise self._error(key, number or 0.0, "it must be above 0")
                limits[int(index)] = number
        return limits

    def scaling(self) -> str:
        given = self.user.get("scaling")
        if given is None:
            return "none" if self.flag("jac_scale") is False else "auto"
        if given.lower() not in ("sensitivity", "none"):
            raise self._error("scaling", given, "it must be sensitivity or none")
        return given.lower()

    def _parse(self, name: str, raw: float | str) -> float:
        try:
            return float(raw if not isinstance(raw, str) else raw.lower().replace("d", "e"))
        except ValueError as error:
            raise self._error(name, raw, "it must be a number") from error

    def _error(self, name: str, raw: float | str, rule: str) -> CaseError | ConfigurationError:
        if name in self.user:
            return ConfigurationError(
                f"engine option {name}={raw}: {rule}", remedy="Correct the option."
            )
        place = self.control.option_places.get(name, self.control.path)
        return CaseError(
            f"{place}: {name.upper()} is {raw}: {rule}", remedy="Correct it in the control file."
        )
