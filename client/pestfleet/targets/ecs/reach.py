"""How a master on the user's machine and its tasks in ECS reach each other."""

from __future__ import annotations

import urllib.request
from dataclasses import replace
from ipaddress import ip_address

from pestfleet.folder import SessionSpec
from pestfleet.targets.choices import needs_broker
from pestfleet.targets.ecs.fleet import EcsFleet, Task
from pestfleet_worker.errors import ConfigurationError, TargetError

OWN_ADDRESS = "https://checkip.amazonaws.com"  # answers with the address that asks
ASK_SECONDS = 10.0


def choose_block(spec: SessionSpec, broker_url: str) -> SessionSpec:
    """The spec with the addresses that may come in: this machine's own, where none is set.

    Raises `ConfigurationError` where that is not to be found out.
    """
    amazon = spec.place.amazon
    if amazon.allow_from or not (needs_broker(spec, broker_url) or spec.place.tunnel):
        return spec
    own = replace(amazon, allow_from=f"{find_own_address()}/32")
    return replace(spec, place=replace(spec.place, amazon=own))


def find_own_address() -> str:
    """The address that this machine has in the internet, as Amazon sees it (IPv4)."""
    try:
        with urllib.request.urlopen(OWN_ADDRESS, timeout=ASK_SECONDS) as answer:
            text = answer.read(100).decode("ascii", "replace").strip()
        address = ip_address(text)
        if address.version == 4:
            return str(address)
        trouble = f"{text} is no address of IPv4"
    except (OSError, ValueError) as error:
        trouble = str(error)
    raise ConfigurationError(
        f"the address that this machine has in the internet is not to be found: {OWN_ADDRESS}: "
        f"{trouble}",
        remedy="Say it: amazon.allow_from, such as 203.0.113.7/32; or have the master there: "
        "--master there.",
    )


def check_public(spec: SessionSpec, broker_url: str) -> None:
    """Raises `ConfigurationError` where this machine cannot reach what its master needs."""
    reached = needs_broker(spec, broker_url) or spec.place.tunnel
    if reached and not spec.place.amazon.public:
        what = "its tunnel" if spec.place.tunnel else "its broker"
        raise ConfigurationError(
            f"a master on this machine reaches {what} at a public address only, and tasks get none",
            remedy="Set amazon.public = true: security groups then let this machine in, and "
            "nobody else; or have the master there: --master there.",
        )


def find_address(fleet: EcsFleet, role: str) -> str:
    """The public address of the task of a role. Raises `TargetError` where none runs."""
    running = [task for task in fleet.tasks(role) if task.running]
    for task in reversed(running):
        if interface := find_interface(task):
            answer = fleet.cloud.call(
                "ec2", "describe_network_interfaces", NetworkInterfaceIds=[interface]
            )
            for one in answer.get("NetworkInterfaces") or ():
                if address := one.get("Association", {}).get("PublicIp"):
                    return str(address)
    why = "has no public address" if running else "has no task that runs"
    raise TargetError(f"the {role} of session {fleet.session} {why}")


def find_interface(task: Task) -> str:
    """The id of a task's network interface; "" while it has none."""
    for attachment in task.body.get("attachments") or ():
        for detail in attachment.get("details") or ():
            if detail.get("name") == "networkInterfaceId":
                return str(detail.get("value", ""))
    return ""


def works(fleet: EcsFleet, role: str) -> bool:
    """Is there a task of a role that works?"""
    alive = [task for task in fleet.tasks(role) if task.running]
    # A container without a health check is UNKNOWN for ever.
    return any(task.body.get("healthStatus") in ("HEALTHY", None) for task in alive)
