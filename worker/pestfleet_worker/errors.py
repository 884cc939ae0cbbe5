"""The errors that a user can meet, each with the exit code that it ends a command with.

A message says what is wrong and where; `remedy` says what to do about it. Commands print
both and exit with `exit_code`; anything that is not a `PestfleetError` is a defect.
docs/exit-codes.md lists the codes.
"""

from __future__ import annotations


class PestfleetError(Exception):
    """Base of every error that a user's case, settings or machines can cause."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class CaseError(PestfleetError):
    """The case cannot be read, or cannot run as it is."""

    exit_code = 3


class ConfigurationError(PestfleetError):
    """A setting is wrong: on the command line, in the environment or in pestfleet.toml."""

    exit_code = 4


class RunsFailedError(PestfleetError):
    """So many runs failed that the engine could not do its job."""

    exit_code = 5


class ChannelError(PestfleetError):
    """The broker cannot be reached, or refuses us."""

    exit_code = 6


class TargetError(PestfleetError):
    """Workers could not be launched, or did not come."""

    exit_code = 7


class SessionError(PestfleetError):
    """A session is not there, is running already, or cannot be read."""

    exit_code = 8


class SentAway(PestfleetError):
    """A signal ended this process only: its session goes on with the next one."""

    exit_code = 12


class Interrupted(PestfleetError):
    """Stopped by the user; what is finished is kept and the session can be resumed."""

    exit_code = 130


class LimitReached(Interrupted):
    """Stopped by a limit of the session's own, as its user wanted it."""
