"""The `++` options that an engine honours, read one by one with clear errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pestfleet.control.keywords import control_variables
from pestfleet.engines.base import Job
from pestfleet_worker.errors import CaseError, ConfigurationError, PestfleetError

T = TypeVar("T")


class Options:
    """Options by name: the user's own (`job.options`) win over the control file's.

    Each `get_…` takes the names that PEST++ knows the option by, and a default. What cannot be
    read raises `ConfigurationError` or, with file and line, `CaseError`.
    """

    def __init__(self, job: Job) -> None:
        self._control = job.control
        self._user = {_normalise(key): value for key, value in job.options.items()}
        # A control variable counts where PEST has it, not as a `++` option.
        self._case = {
            name: value
            for name, value in job.control.options.items()
            if name not in control_variables()
        }
        self._asked: set[str] = set()

    def get_text(self, *names: str, default: str = "") -> str:
        """The value without quotes; `default` if it is absent or empty."""
        found = self._find(names)
        return (found[1].strip().strip("'\"") if found else "") or default

    def get_flag(self, *names: str, default: bool) -> bool:
        def parse(text: str) -> bool:
            known = {"true": True, "t": True, "yes": True, "1": True}
            known |= {"false": False, "f": False, "no": False, "0": False}
            return known[text.lower()]

        return self._parse(names, default, parse, "true or false")

    def get_integer(self, *names: str, default: int, least: int | None = None) -> int:
        def parse(text: str) -> int:
            value = int(text)
            if least is not None and value < least:
                raise ValueError
            return value

        wanted = "a whole number" if least is None else f"a whole number, {least} or more"
        return self._parse(names, default, parse, wanted)

    def get_number(self, *names: str, default: float, positive: bool = False) -> float:
        def parse(text: str) -> float:
            return _parse_number(text, positive)

        return self._parse(names, default, parse, "a positive number" if positive else "a number")

    def get_numbers(self, *names: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Positive numbers, separated by commas or blanks."""

        def parse(text: str) -> tuple[float, ...]:
            values = tuple(_parse_number(word, True) for word in text.replace(",", " ").split())
            if not values:
                raise ValueError
            return values

        return self._parse(names, default, parse, "positive numbers, separated by commas")

    def get_path(self, *names: str) -> Path | None:
        """A file, relative to the control file's folder; None if the option is absent."""
        text = self.get_text(*names)
        return self._control.path.parent / text.replace("\\", "/") if text else None

    def has(self, *names: str) -> bool:
        return self._find(names) is not None

    def not_asked(self) -> list[str]:
        """Options of the user that nobody asked for, and of the case that begin with `ies_`."""
        keys = [*self._user, *(key for key in self._case if key.startswith("ies_"))]
        return [key for key in dict.fromkeys(keys) if key not in self._asked]

    def make_error(self, names: tuple[str, ...], wanted: str) -> PestfleetError:
        """The error for an option whose value is not what is wanted."""
        key, value, is_user = self._find(names) or (names[0], "", True)
        remedy = f"Give {key} as {wanted}."
        if is_user:
            return ConfigurationError(f"engine option {key}: {value!r}", remedy=remedy)
        place = self._control.option_places.get(key, self._control.path)
        return CaseError(f"{place}: option {key}: {value!r}", remedy=remedy)

    def _find(self, names: tuple[str, ...]) -> tuple[str, str, bool] | None:
        self._asked.update(names)
        for source in (self._user, self._case):
            for name in names:
                if name in source:
                    return name, source[name], source is self._user
        return None

    def _parse(
        self, names: tuple[str, ...], default: T, parse: Callable[[str], T], wanted: str
    ) -> T:
        found = self._find(names)
        if found is None:
            return default
        try:
            return parse(found[1].strip())
        except (ValueError, KeyError):
            raise self.make_error(names, wanted) from None


def _normalise(key: str) -> str:
    return key.strip().lstrip("+").strip().lower()


def _parse_number(text: str, positive: bool) -> float:
    value = float(text.strip().lower().replace("d", "e"))
    if not math.isfinite(value) or (positive and value <= 0.0):
        raise ValueError
    return value
