"""Problems of a case, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pestfleet_worker.errors import CaseError

if TYPE_CHECKING:
    from pestfleet.checks.problem import Problem


def print_problem(problem: Problem, *, err: bool = True) -> None:
    """`file:line: error: what`, and the remedy below."""
    color = "red" if problem.severity == "error" else "yellow"
    severity = click.style(problem.severity, fg=color, bold=True)
    click.echo(f"{problem.place}: {severity}: {problem.message}", err=err)
    if problem.remedy:
        click.echo(f"    {problem.remedy}", err=err)


def count_problems(problems: Sequence[Problem]) -> str:
    """`2 errors, 1 warning`."""
    counts = [
        (severity, sum(problem.severity == severity for problem in problems))
        for severity in ("error", "warning")
    ]
    return ", ".join(f"{n:,} {severity}{'s' if n != 1 else ''}" for severity, n in counts)


def refuse_case(problems: Sequence[Problem]) -> CaseError:
    """All problems on stderr; the error to end a command with."""
    for problem in problems:
        print_problem(problem)
    return CaseError(
        f"the case has {count_problems(problems)}; nothing was launched",
        remedy="Correct the errors; pestfleet check CASE shows what is left.",
    )


def problem_to_dict(problem: Problem) -> dict[str, Any]:
    """A problem for JSON."""
    return {
        "severity": problem.severity,
        "file": str(problem.place.file),
        "line": problem.place.line or None,
        "message": problem.message,
        "remedy": problem.remedy,
    }
