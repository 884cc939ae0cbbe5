"""One row of the benchmarks' output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value with its unit and limit. `at_least`: the limit is a lower one."""

    name: str
    value: float
    unit: str
    limit: float
    at_least: bool = False
    detail: dict[str, Any] = field(default_factory=dict)

    def as_row(self, benchmark: str) -> dict[str, Any]:
        holds = self.value >= self.limit if self.at_least else self.value <= self.limit
        return {
            "benchmark": benchmark,
            "figure": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "limit": self.limit,
            "limit_is": "at least" if self.at_least else "at most",
            "holds": holds,
            **self.detail,
        }
