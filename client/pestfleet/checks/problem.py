"""A problem of a case, and a list of them.

A check never raises for what a user wrote: it adds a `Problem`, so that one reading of a case
tells all that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pestfleet.control.model import Place

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong (`message`), where (`place`) and what to do about it (`remedy`).

    With an `error` a session is not launched; a `warning` lets it go on.
    """

    severity: Severity
    place: Place
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.place}: {self.severity}: {self.message}"
        return f"{text}\n    {self.remedy}" if self.remedy else text


class Problems(list[Problem]):
    """The problems found so far, in the order in which they were found."""

    def error(self, place: Place, message: str, remedy: str = "") -> None:
        self.append(Problem("error", place, message, remedy))

    def warning(self, place: Place, message: str, remedy: str = "") -> None:
        self.append(Problem("warning", place, message, remedy))

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self if problem.severity == "error"]

    @contextmanager
    def limited(self, what: str, *, limit: int = 20) -> Iterator[None]:
        """Keep the first `limit` problems of each severity that are added inside, count the rest.

        A file of 100,000 lines that are all wrong in one way shall not give 100,000 messages.
        """
        start = len(self)
        yield
        added = self[start:]
        seen = {"error": 0, "warning": 0}
        del self[start:]
        for problem in added:
            seen[problem.severity] += 1
            if seen[problem.severity] <= limit:
                self.append(problem)
        severities: tuple[Severity, ...] = ("error", "warning")
        for severity in severities:
            more = [problem for problem in added if problem.severity == severity][limit:]
            if more:
                place = Place(more[0].place.file)
                message = f"{len(more):,} more problems like these: {what}"
                self.append(Problem(severity, place, message))


def describe_os_error(error: OSError) -> str:
    """Why a file cannot be read, in a few words and without the operating system's numbers."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied"
    return f"cannot be read: {error.strerror or error}"
