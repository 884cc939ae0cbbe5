"""Which nodes of a cluster could take a pod, and what is in the way when none can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from pestfleet.targets.kubernetes.quantities import (
    Amounts,
    Object,
    describe_amounts,
    format_amount,
    join_words,
    parse_amounts,
    sum_requests,
)

# Taints of nodes that are away or being prepared: nobody tolerates them, and they go by themselves.
_PASSING = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/", "node.cilium.io/")
_SHOWN = 3  # names or taints in a sentence


@dataclass(frozen=True, slots=True)
class Placement:
    """`kind`: what is in the way; `why`: in words (of `causes.fill`), "" for `fits`.

    `fits`: at least one node could take the pod, if nothing else ran there. `room`: how many such
    pods all of those nodes could take together. `selector`: no node has the labels that it asks
    for; `taint`: those that have are kept for others; `size`: those are too small; `away`: those
    are not ready, or closed for new pods.
    """

    kind: Literal["fits", "selector", "taint", "size", "away"]
    why: str = ""
    room: int = 0


def find_place(spec: Object, nodes: Sequence[Object]) -> Placement:
    """Could one of these nodes take a pod of this spec, when it is idle?"""
    if not nodes:
        return Placement("away", "the cluster has no node")
    matching = [node for node in nodes if _has_labels(spec, node)]
    if not matching:
        return Placement("selector", f"no node has {describe_selection(spec)}")
    open_to_us = [node for node in matching if not _find_taints(spec, node)]
    if not open_to_us:
        taints = sorted({_name(taint) for node in matching for taint in _find_taints(spec, node)})
        shown = join_words(taints[:_SHOWN], "or")
        return Placement("taint", f"all nodes for {{them}} have the taint {shown}")
    wanted = sum_requests(spec)
    large = [node for node in open_to_us if _count_room(wanted, node)]
    if not large:
        return Placement("size", _describe_size(spec, open_to_us, matching))
    present = [node for node in large if not _is_away(node)]
    if not present:
        names = sorted(node["metadata"]["name"] for node in large)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        one = len(names) == 1
        what = "only node for {them}" if one else "nodes for {them}"
        are = "is" if one else "are"
        shown = f"{', '.join(names[:_SHOWN])}{more}"
        return Placement("away", f"the {what} ({shown}) {are} not ready, or closed for new pods")
    return Placement("fits", room=sum(_count_room(wanted, node) for node in present))


def is_ready(node: Object) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in node.get("status", {}).get("conditions") or ()
    )


def _is_away(node: Object) -> bool:
    spec = node.get("spec", {})
    passing = any(
        taint["key"].startswith(_PASSING) and taint["effect"] != "PreferNoSchedule"
        for taint in spec.get("taints") or ()
    )
    return passing or bool(spec.get("unschedulable")) or not is_ready(node)


def _count_room(wanted: Amounts, node: Object) -> int:
    """How many pods that want this an idle node can take."""
    there = parse_amounts(node.get("status", {}).get("allocatable"))
    zero = Fraction(0)
    return min(int(there.get(name, zero) / amount) for name, amount in wanted.items() if amount > 0)


def _describe_size(spec: Object, nodes: list[Object], matching: list[Object]) -> str:
    wanted = sum_requests(spec)
    there = [parse_amounts(node.get("status", {}).get("allocatable")) for node in nodes]
    zero = Fraction(0)
    largest = {name: max(one.get(name, zero) for one in there) for name in wanted}
    short = {name: amount for name, amount in wanted.items() if largest[name] < amount}
    if short:
        found = join_words(format_amount(name, largest[name]) for name in short)
        why = f"{{each}} asks for {describe_amounts(short)}, and the largest node there has {found}"
    else:
        why = f"{{each}} asks for {describe_amounts(wanted)}, and no node has all of that at once"
    closed = [node for node in matching if node not in nodes and _count_room(wanted, node)]
    if closed:
        taints = sorted({_name(taint) for node in closed for taint in _find_taints(spec, node)})
        why += f" (larger ones have the taint {join_words(taints[:_SHOWN], 'or')})"
    return why


# -- taints ------------------------------------------------------------------------------------


def _find_taints(spec: Object, node: Object) -> list[Object]:
    """The taints that keep a pod away for good."""
    return [
        taint
        for taint in node.get("spec", {}).get("taints") or ()
        if taint["effect"] != "PreferNoSchedule"
        and not taint["key"].startswith(_PASSING)
        and not any(_tolerates(toleration, taint) for toleration in spec.get("tolerations") or ())
    ]


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("key") not in (None, "", taint["key"]):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == taint.get("value", "")


def _name(taint: Object) -> str:
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint['effect']}"


# -- labels ------------------------------------------------------------------------------------


def _list_terms(spec: Object) -> list[Object]:
    """Of the required node affinity: a node must fulfil one of them."""
    affinity: Any = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return list(required.get("nodeSelectorTerms") or ())


def _has_labels(spec: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    terms = _list_terms(spec)
    return not terms or any(
        all(_matches(one, labels) for one in term.get("matchExpressions") or ())
        and all(
            _matches(one, {"metadata.name": node["metadata"]["name"]})
            for one in term.get("matchFields") or ()
        )
        for term in terms
    )


def _matches(requirement: Object, labels: dict[str, str]) -> bool:
    key, operator = requirement["key"], requirement["operator"]
    values = requirement.get("values") or []
    match operator:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    try:
        number, bound = int(labels[key]), int(values[0])
    except (KeyError, ValueError, IndexError):
        return False
    return number > bound if operator == "Gt" else number < bound


def describe_selection(spec: Object) -> str:
    """The labels of nodes that a pod asks for, in words."""
    words = [f"{key}={value}" for key, value in (spec.get("nodeSelector") or {}).items()]
    for term in _list_terms(spec)[:1]:
        for one in term.get("matchExpressions") or ():
            values = "|".join(map(str, one.get("values") or ()))
            words.append(" ".join(filter(None, (one["key"], one["operator"], values))))
    plural = "s" if len(words) > 1 else ""
    return f"the label{plural} {join_words(words)}" if words else "what they ask for"
