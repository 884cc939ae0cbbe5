"""Scalar variables of a control file, by section, line and position.

Sources: PEST manual part I, chapter 4 (sections "Control data", "Singular value decomposition",
"LSQR", "Automatic user intervention", "Regularization", …), and the tables A1.1 to A1.18 of the
PEST++ users' manual, which has them in brief.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pestfleet.checks.problem import Problems
from pestfleet.control.model import Place
from pestfleet.control.tokens import read_number, split_quoted

# One string a line of the section. `name:kind`; in [ ]: optional. Kinds: i integer, r real,
# t any text, x text or number, else the words that the variable may be (`word*`: also longer
# ones). Optional words may stand anywhere after the required variables, optional numbers come
# in the order given.
CONTROL_DATA = (
    "rstfle:restart|norestart pestmode:t",
    "npar:i nobs:i npargp:i nprior:i nobsgp:i [maxcompdim:i] [derzerolim:r]",
    "ntplfle:i ninsfle:i precis:single|double dpoint:point|nopoint [numcom:i] [jacfile:i] "
    "[messfile:i] [obsreref:obsreref*|noobsreref]",
    "rlambda1:r rlamfac:r phiratsuf:r phiredlam:r numlam:i [jacupdate:i] "
    "[lamforgive:lamforgive|nolamforgive] [derforgive:derforgive|noderforgive]",
    "relparmax:r facparmax:r facorig:r [iboundstick:i] [upvecbend:i]",
    "phiredswh:r [noptswitch:i] [splitswh:r] [doaui:aui|auid|noaui] "
    "[dosenreuse:senreuse|nosenreuse] [boundscale:boundscale|noboundscale]",
    "noptmax:i phiredstp:r nphistp:i nphinored:i relparstp:r nrelpar:i [phistopthresh:r] "
    "[lastrun:i] [phiabandon:x]",
    "icov:i icor:i ieig:i [ires:i] [jcosave:jcosave|nojcosave] "
    "[verboserec:verboserec|noverboserec] [jcosaveitn:jcosaveitn|nojcosaveitn] "
    "[reisaveitn:reisaveitn|noreisaveitn] [parsaveitn:parsaveitn|noparsaveitn] "
    "[parsaverun:parsaverun|noparsaverun]",
)
SINGULAR_VALUE_DECOMPOSITION = ("svdmode:i", "maxsing:i eigthresh:r", "eigwrite:i")
LSQR = ("lsqrmode:i", "lsqr_atol:r lsqr_btol:r lsqr_conlim:r lsqr_itnlim:i", "lsqrwrite:i")
SENSITIVITY_REUSE = (
    "senrelthresh:r senmaxreuse:i",
    "senallcalcint:i senpredweight:r senpiexclude:yes|no",
)
AUTOMATIC_USER_INTERVENTION = (
    "maxaui:i auistartopt:i noauiphirat:r auirestitn:i",
    "auisensrat:r auiholdmaxchg:i auinumfree:i",
    "auiphiratsuf:r auiphirataccept:r nauinoaccept:i",
)
REGULARIZATION = (
    "phimlim:r phimaccept:r [fracphim:r] [memsave:memsave|nomemsave]",
    "wfinit:r wfmin:r wfmax:r [linreg:linreg|nonlinreg] [regcontinue:continue|nocontinue]",
    "wffac:r wftol:r [iregadj:i] [noptregadj:r] [regweightrat:r] [regsingthresh:r]",
)
PREDICTIVE_ANALYSIS = (
    "npredmaxmin:i [prednoise:i]",
    "pd0:r pd1:r pd2:r",
    "abspredlam:r relpredlam:r initschfac:r mulschfac:r nsearch:i",
    "abspredswh:r relpredswh:r",
    "nprednored:i abspredstp:r relpredstp:r npredstp:i",
)
PARETO = (
    "pareto_obsgroup:t",
    "pareto_wtfac_start:r pareto_wtfac_fin:r num_wtfac_inc:i",
    "num_iter_start:i num_iter_gen:i num_iter_fin:i",
)
# Without these variables PEST++ and the embedded engines go on; PEST itself does not.
_FORGIVEN_LINES = frozenset({CONTROL_DATA[3], CONTROL_DATA[7]})

_ABSPARMAX = re.compile(r"absparmax\((\d+)\)\s*=?\s*(\S*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Variable:
    """A scalar variable: its PEST name in lower case, and what it may be."""

    name: str
    kind: str
    words: tuple[str, ...]
    optional: bool

    @property
    def numeric(self) -> bool:
        return self.kind in "ir"


@cache
def variables_of(line: str) -> tuple[Variable, ...]:
    """The variables of one line of a table above."""
    found = []
    for token in line.split():
        name, kind = token.strip("[]").split(":")
        words = tuple(kind.split("|")) if "|" in kind else ()
        found.append(Variable(name, "w" if words else kind, words, token.startswith("[")))
    return tuple(found)


@cache
def variables_by_name() -> dict[str, Variable]:
    """Every scalar variable that may stand in `* control data keyword` of version 2."""
    tables = (
        CONTROL_DATA, SINGULAR_VALUE_DECOMPOSITION, LSQR, SENSITIVITY_REUSE,
        AUTOMATIC_USER_INTERVENTION, REGULARIZATION, PREDICTIVE_ANALYSIS, PARETO,
    )  # fmt: skip
    return {v.name: v for table in tables for line in table for v in variables_of(line)}


def convert(variable: Variable, token: str) -> float | str | None:
    """A token as value of a variable (integers as int), or None if it cannot be one."""
    if variable.numeric:
        value = read_number(token)
        if value is None or (variable.kind == "i" and value != int(value)):
            return None
        return int(value) if variable.kind == "i" else value
    if variable.kind == "x":
        value = read_number(token)
        return token if value is None else value
    word = token.lower()
    return word if not variable.words or _is_one_of(word, variable.words) else None


def _is_one_of(word: str, words: tuple[str, ...]) -> bool:
    return any(word.startswith(w[:-1]) if w.endswith("*") else word == w for w in words)


def describe_kind(variable: Variable) -> str:
    """What a variable must be, as words of a message."""
    if variable.words:
        return " or ".join(variable.words)
    return {"i": "a whole number", "r": "a number"}.get(variable.kind, "a word")


def read_variables(
    title: str,
    table: tuple[str, ...],
    lines: list[tuple[int, str]],
    *,
    path: Path,
    start: int,
    problems: Problems,
) -> dict[str, float | str]:
    """The variables of a section that is read line by line and by position.

    `lines`: number and text of its lines, without comments and empty ones; `start`: the line of
    the section's own title.
    """
    values: dict[str, float | str] = {}
    for expected, (number, text) in zip(table, lines, strict=False):
        place = Place(path, number)
        tokens = split_quoted(text)
        if expected is CONTROL_DATA[4]:
            text, found = _take_absolute_limits(text, place, problems)
            values |= found
            tokens = split_quoted(text)
        _read_line(title, variables_of(expected), tokens, values, place, problems, expected)
    if len(lines) < len(table):
        missing = [v.name.upper() for line in table[len(lines) :] for v in variables_of(line)
                   if not v.optional]  # fmt: skip
        place = Place(path, lines[-1][0] if lines else start)
        message = (
            f"section '* {title}' has {len(lines)} of {len(table)} lines: "
            f"{', '.join(missing)} missing"
        )
        forgiven = all(line in _FORGIVEN_LINES for line in table[len(lines) :])
        add = problems.warning if forgiven or table is not CONTROL_DATA else problems.error
        add(place, message, "Add the missing lines.")
    return values


def _read_line(
    title: str,
    variables: tuple[Variable, ...],
    tokens: list[str],
    values: dict[str, float | str],
    place: Place,
    problems: Problems,
    expected: str,
) -> None:
    required = [v for v in variables if not v.optional]
    for variable, token in zip(required, tokens, strict=False):
        value = convert(variable, token)
        if value is None:
            problems.error(
                place,
                f"{variable.name.upper()} is '{token}', not {describe_kind(variable)}",
                f"The line must hold {_names(variables)}.",
            )
        else:
            values[variable.name] = value
    missing = [v.name.upper() for v in required[len(tokens) :]]
    if missing:
        add = problems.warning if expected in _FORGIVEN_LINES else problems.error
        add(
            place,
            f"{', '.join(missing)} missing in section '* {title}'",
            f"The line must hold {_names(variables)}.",
        )
    optional = [v for v in variables if v.optional]
    for token in tokens[len(required) :]:
        taken = next((v for v in optional if convert(v, token) is not None), None)
        value = convert(taken, token) if taken else None
        if taken is None or value is None:
            problems.warning(
                place,
                f"'{token}' is ignored: no variable of this line of '* {title}' can be that",
                f"The line may hold {_names(variables)}.",
            )
            continue
        optional.remove(taken)
        values[taken.name] = value


def _names(variables: tuple[Variable, ...]) -> str:
    return " ".join(f"[{v.name.upper()}]" if v.optional else v.name.upper() for v in variables)


def _take_absolute_limits(
    text: str, place: Place, problems: Problems
) -> tuple[str, dict[str, float | str]]:
    """Take `absparmax(n)=value` out of a line."""
    values: dict[str, float | str] = {}
    for match in _ABSPARMAX.finditer(text):
        value = read_number(match[2])
        if value is None:
            message = f"ABSPARMAX({match[1]}) is '{match[2]}', not a number"
            problems.error(place, message, f"Write absparmax({match[1]})=value.")
        else:
            values[f"absparmax({match[1]})"] = value
    return _ABSPARMAX.sub(" ", text), values
