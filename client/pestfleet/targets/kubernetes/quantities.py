"""Amounts of CPU, memory and other things, as Kubernetes writes them, and what pods ask for.

The form of a quantity: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

Object = dict[str, Any]

# Resource -> amount: cores, bytes, or a count. Exact, so that ten times 0.1 cores are one.
Amounts = dict[str, Fraction]

_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d*)?|[+-]?\.\d+)(?:([eE][+-]?\d+)|([A-Za-z]*))")
_UNITS = {
    **{"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000)},
    **{"": Fraction(1), "k": Fraction(10**3)},
    **{unit: Fraction(10 ** (3 * power)) for power, unit in enumerate("MGTPE", 2)},
    **{f"{unit}i": Fraction(2 ** (10 * power)) for power, unit in enumerate("KMGTPE", 1)},
}
_SIZES = ("memory", "ephemeral-storage", "storage")
_COUNTED = {
    "cpu": "core",
    "pods": "pod",
    "count/pods": "pod",
    "persistentvolumeclaims": "volume",
}


def parse_quantity(text: object) -> Fraction:
    """`500m`, `2Gi`, `1e3`, 4. Raises `ValueError` for what is none."""
    match = _QUANTITY.fullmatch(str(text).strip())
    if match is None or (match[3] or "") not in _UNITS:
        raise ValueError(f"{text!r} is not a quantity of Kubernetes")
    return Fraction(match[1] + (match[2] or "")) * _UNITS[match[3] or ""]


def parse_amounts(given: Mapping[str, object] | None) -> Amounts:
    return {name: parse_quantity(value) for name, value in (given or {}).items()}


def format_amount(resource: str, amount: Fraction) -> str:
    """`1 core`, `0.5 cores`, `16 GiB`, `3 pods`, `2 nvidia.com/gpu`."""
    name = resource.removeprefix("requests.").removeprefix("limits.")
    if name in _SIZES:
        return format_bytes(amount)
    number = f"{float(amount):g}"
    if name in _COUNTED:
        return f"{number} {_COUNTED[name]}{'' if amount == 1 else 's'}"
    return f"{number} {name}"


def format_bytes(amount: Fraction) -> str:
    """`512 MiB`, `1.5 GiB`."""
    size = float(amount)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def join_words(words: Iterable[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, end = list(words) or [""]
    return f"{', '.join(first)} {last} {end}" if first else end


def describe_amounts(amounts: Amounts) -> str:
    """`2 cores and 4 GiB`; how many pods, which is always one, is left out."""
    return join_words(format_amount(name, amounts[name]) for name in amounts if name != "pods")


def sum_requests(spec: Object) -> Amounts:
    """What a node must have free for a pod of this spec; `pods` is 1."""
    return {**_sum(spec, "requests"), "pods": Fraction(1)}


def sum_usage(spec: Object) -> Amounts:
    """What a pod of this spec takes from a ResourceQuota, by all names that one has there."""
    requests, limits = _sum(spec, "requests"), _sum(spec, "limits")
    usage: Amounts = {"pods": Fraction(1), "count/pods": Fraction(1)}
    usage |= requests
    usage |= {f"requests.{name}": amount for name, amount in requests.items()}
    usage |= {f"limits.{name}": amount for name, amount in limits.items()}
    return usage


def _sum(spec: Object, which: str) -> Amounts:
    """Of all containers at the same time, or of one that runs before them, whichever is more."""
    total = _add(_read(container, which) for container in spec.get("containers") or ())
    before: Amounts = {}  # what sidecars have that are started already
    peak: Amounts = {}
    for container in spec.get("initContainers") or ():
        own = _read(container, which)
        now = _add([before, own])
        peak = _max(peak, now)
        if container.get("restartPolicy") == "Always":
            before = now
    most = _max(_add([total, before]), peak)
    return _add([most, parse_amounts(spec.get("overhead"))])


def _read(container: Object, which: str) -> Amounts:
    resources = container.get("resources") or {}
    amounts = parse_amounts(resources.get(which))
    if which == "requests":  # where one is not given, the limit is asked for
        amounts = {**parse_amounts(resources.get("limits")), **amounts}
    return amounts


def _add(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, Fraction(0)) + amount
    return total


def _max(one: Amounts, other: Amounts) -> Amounts:
    zero = Fraction(0)
    return {name: max(one.get(name, zero), other.get(name, zero)) for name in {**one, **other}}
