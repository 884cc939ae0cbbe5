"""What answers of Amazon's have in common: errors, and pages."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


def paginate(
    asked: Mapping[str, Any],
    answer: dict[str, Any],
    key: str,
    *,
    token: str,
    size: str,
    most: int,
    usual: int = 0,
) -> dict[str, Any]:
    """The page of `answer[key]` that was asked for, with the token of the next.

    `size`: the parameter that says how many, up to `most`; `usual`: how many without (0: most).
    """
    count = asked.get(size) or usual or most
    if not 1 <= int(count) <= most:
        raise Refusal("InvalidParameterException", f"{size} must be between 1 and {most}")
    start = 0
    if asked.get(token):
        try:
            start = int(base64.b64decode(str(asked[token])))
        except ValueError as error:
            raise Refusal("InvalidParameterException", f"Invalid token: {token}") from error
    everything = answer[key]
    end = start + int(count)
    page = {name: value for name, value in answer.items() if name != token}
    page[key] = everything[start:end]
    if end < len(everything):
        page[token] = base64.b64encode(str(end).encode()).decode()
    return page
