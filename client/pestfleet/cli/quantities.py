"""Sizes and times as people write them: 5GB, 30d."""

from __future__ import annotations

import re
from collections.abc import Mapping

import click

_SIZES = {
    **{"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40},
}
# No unit is no time: 30 could be days as well as seconds.
_TIMES = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_size(text: str) -> int:
    """`5GB`, `500 MB`, `1.5GiB` or bytes, in bytes. Raises `click.BadParameter`."""
    return round(_parse(text, _SIZES, "a size, such as 5GB or 500MB"))


def parse_time(text: str) -> float:
    """`30d`, `12h`, `90min`, `2w` or `45s`, in seconds. Raises `click.BadParameter`."""
    return _parse(text, _TIMES, "a time, such as 30d, 12h or 90min")


def _parse(text: str, units: Mapping[str, float], expected: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in units:
        raise click.BadParameter(f"{text!r} is not {expected}.")
    return float(match[1]) * units[match[2].lower()]


def format_size(size: float) -> str:
    """`512 B`, `3.2 kB`, `150 MB`, `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.2g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_count(count: int, what: str) -> str:
    """`1 run`, `2 runs`, `12,000 runs`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
