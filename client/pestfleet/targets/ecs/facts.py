"""What a plan depends on, asked from the account with few requests that change nothing."""

from __future__ import annotations

import time

from pestfleet.folder import SessionSpec
from pestfleet.targets.addresses import find_place
from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.machines import find_machine
from pestfleet.targets.ecs.network import find_network
from pestfleet.targets.ecs.planned import Facts


def gather_facts(
    cloud: Cloud,
    spec: SessionSpec,
    *,
    folder: str = "",
    broker_url: str = "",
    case_bytes: int = 0,
    launch: str = "1",
    launched: float = 0.0,
) -> Facts:
    """At most six requests. `launched`: seconds since 1970, 0 for now.

    Raises `TargetError` where the network will not do, `ConfigurationError` for wrong choices.
    """
    amazon = spec.place.amazon
    return Facts(
        account=cloud.account,
        region=cloud.region,
        partition=cloud.partition,
        network=find_network(cloud, amazon),
        caller=cloud.identity["Arn"],
        launched=launched or time.time(),
        folder=folder,
        broker_port=find_place(broker_url)[1] if broker_url else 0,
        case_bytes=case_bytes,
        launch=launch,
        machine=find_machine(cloud, amazon.instances) if amazon.instances else None,
    )
