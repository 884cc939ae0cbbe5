"""All kinds of resources that a session has, in the order in which they are removed.

What costs by the hour goes first, the lease when nothing is left that it could stop.
"""

from __future__ import annotations

from pestfleet.targets.ecs.resources import (
    buckets,
    clusters,
    logs,
    machines,
    names,
    repositories,
    roles,
    schedules,
    secrets,
    services,
    vpc,
)
from pestfleet.targets.ecs.resources.kinds import Kind

_MODULES = (buckets, clusters, logs, machines, names, repositories, roles, schedules, secrets,
            services, vpc)  # fmt: skip

KINDS: dict[str, Kind] = {kind.name: kind for module in _MODULES for kind in module.KINDS}

# What the lease stops, or what runs without it.
RUNNING = ("service", "auto-scaling-group", "instance")

REMOVAL = tuple(
    KINDS[name]
    for name in (
        *RUNNING,
        "vpc-endpoint",
        "capacity-provider",
        "dns-service",
        "dns-namespace",
        "cluster",
        "task-definition",
        "secret",
        "repository",
        "log-group",
        "launch-template",
        "security-group",
        "route-table",
        "subnet",
        "vpc",
        "instance-profile",
        "schedule-group",
        "role",
    )
)
