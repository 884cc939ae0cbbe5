"""Why EC2 starts no machine, or fewer than were asked for, and what else to try."""

from __future__ import annotations

from pestfleet.targets.ecs.access import Refused
from pestfleet_worker.errors import TargetError

# Error codes of RunInstances and StartInstances (EC2 API reference, "Error codes").
# What another zone may have.
SHORT = frozenset({
    "InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity",
    "InsufficientReservedInstanceCapacity", "UnfulfillableCapacity", "Unsupported",
    "SpotMaxPriceTooLow", "InsufficientFreeAddressesInSubnet",
})  # fmt: skip
# What the account may have in the whole region: fewer machines may do.
QUOTAS = frozenset({
    "VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded",
    "MaxSpotFleetRequestCountExceeded", "VolumeLimitExceeded",
})  # fmt: skip

_WORDS = {
    "InsufficientInstanceCapacity": "Amazon has no more machines of type {kind} there now",
    "UnfulfillableCapacity": "Amazon has no more spot machines of type {kind} there now",
    "Unsupported": "machines of type {kind} are not to be had there",
    "SpotMaxPriceTooLow": "spot machines of type {kind} cost more there than is offered",
    "InsufficientFreeAddressesInSubnet": "the subnet has no free addresses left",
    "VcpuLimitExceeded": "your account's quota of processors on demand is used up",
    "InstanceLimitExceeded": "your account's quota of machines of type {kind} is used up",
    "MaxSpotInstanceCountExceeded": "your account's quota of spot machines is used up",
    "VolumeLimitExceeded": "your account's quota of disk storage is used up",
}


class Shortage(TargetError):
    """No machine could be had. `code`: of the last refusal."""

    def __init__(self, message: str, *, code: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


def is_shortage(error: Refused) -> bool:
    """Is there a shortage of machines, rather than a mistake in the request?"""
    return error.code in SHORT or error.code in QUOTAS


def describe_refusal(error: Refused, *, kind: str, where: str) -> str:
    """One line, with EC2's own code: `eu-central-1a: Amazon has no more … (Insufficient…)`."""
    words = _WORDS.get(error.code, error.said or error.code).format(kind=kind)
    return f"{where}: {words} ({error.code})"


def propose(code: str, *, kind: str, spot: bool) -> str:
    """What else to try after a refusal of that code."""
    if code in ("VcpuLimitExceeded", "InstanceLimitExceeded"):
        return (
            "Ask for fewer or smaller machines, or for --spot, which has a quota of its own; or "
            "raise the quota (Service Quotas, Amazon EC2, running on-demand instances)."
        )
    if code in ("MaxSpotInstanceCountExceeded", "MaxSpotFleetRequestCountExceeded"):
        return (
            "Ask for fewer or smaller machines, or for --on-demand, which has a quota of its own; "
            "or raise the quota (Service Quotas, Amazon EC2, all standard spot instance requests)."
        )
    if code == "InsufficientFreeAddressesInSubnet":
        return "Name another subnet, or more of them: --subnet."
    if code == "VolumeLimitExceeded":
        return "Ask for fewer machines or a smaller --disk, or raise the quota (Amazon EBS)."
    family, _, size = kind.partition(".")
    other = "c6i" if family != "c6i" else "m6i"
    choices = [f"another type (--instances {other}.{size})", "another zone (--subnet)",
               "another --region"]  # fmt: skip
    if spot:
        choices.insert(0, "--on-demand")
    return f"Try {', '.join(choices)}, or again in some minutes."
