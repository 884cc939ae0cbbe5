"""Why a session's containers do not run, in words; the same for every platform."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from pestfleet_worker.errors import TargetError

Form = Literal["wait", "ended", "absent", "running", "lost"]

# What containers do, one and more; and the words for them that a sentence may have.
_DO = {
    "wait": ("waits", "wait"),
    "ended": ("ended", "ended"),
    "absent": ("cannot be made", "cannot be made"),
    "running": ("runs, but is not ready", "run, but are not ready"),
    "lost": ("is lost", "are lost"),
}
_PRONOUNS = {
    "{each}": ("it", "each"),
    "{they}": ("it", "they"),
    "{them}": ("it", "them"),
    "{their}": ("its", "their"),
}


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a pod or task does not run, without its name: the same cause is told once.

    `form`: what such ones do. `why` may have {each}, {they}, {them} and {their} for them.
    `hopeless`: they never run unless somebody changes something.
    """

    kind: str
    form: Form
    why: str
    remedy: str = ""
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class Trouble:
    """One cause for which pods or tasks do not run, and how many these are.

    `message`: a sentence. `hopeless`: they never run unless somebody changes something. `role`:
    worker, master, broker and so on. `pods`: their names; none for those that could not be made.
    `why`: the message without numbers, to tell news from what was told. `tail`: of a log.
    `form`: what they do (as of a `Cause`). `final`: nothing more is started of that role.
    """

    kind: str
    count: int
    message: str
    remedy: str
    hopeless: bool
    pods: tuple[str, ...]
    role: str = ""
    why: str = ""
    tail: tuple[str, ...] = ()
    form: str = ""
    final: bool = False

    def __str__(self) -> str:
        return "\n    ".join(filter(None, (self.message, *self.tail, self.remedy)))


def find_dead_end(troubles: Iterable[Trouble], *, wanted: int, least: int) -> Trouble | None:
    """The trouble for which a session can never begin; None while there is hope.

    It needs its master, its broker and `least` of the `wanted` workers.
    """
    hopeless = [trouble for trouble in troubles if trouble.hopeless]
    for trouble in hopeless:
        if trouble.role != "worker" or trouble.final or trouble.kind == "refused":
            return trouble
    lost = sum(trouble.count for trouble in hopeless)
    return hopeless[0] if hopeless and wanted - lost < max(1, least) else None


def refuse_dead_end(troubles: Iterable[Trouble], *, wanted: int, least: int) -> None:
    """Raises `TargetError` where `find_dead_end` finds one."""
    end = find_dead_end(troubles, wanted=wanted, least=least)
    if end is not None:
        raise TargetError("\n    ".join((end.message, *end.tail)), remedy=end.remedy)


class News:
    """Tells of each trouble once, for as long as it lasts."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told: set[tuple[str, str]] = set()

    def tell(self, troubles: Collection[Trouble]) -> None:
        """`troubles`: all that there are now."""
        for trouble in troubles:
            if (trouble.role, trouble.why) not in self._told:
                self._say(str(trouble))
        self._told = {(trouble.role, trouble.why) for trouble in troubles}


def tell(cause: Cause, role: str, count: int, *, of: int = 0) -> str:
    """The sentence for so many of a role, `of` all that there should be."""
    if role != "worker":
        times = f" ({count} times)" if count > 1 else ""
        return f"the {role or 'pod'} {_DO[cause.form][False]}: {fill(cause.why, False)}{times}"
    many = count > 1
    number = f"{count} of {of}" if of > count else str(count)
    plural = "" if max(count, of) == 1 else "s"
    return f"{number} worker{plural} {_DO[cause.form][many]}: {fill(cause.why, many)}"


def fill(why: str, many: bool) -> str:
    """The words for one of them, or for many."""
    for name, words in _PRONOUNS.items():
        why = why.replace(name, words[many])
    return why


def shorten(text: str, most: int = 240) -> str:
    """One line, and not a long one."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= most else f"{line[:most].rstrip()} …"
