"""Workers in a service of Amazon ECS, whose number their master sets, wherever it is.

ECS chooses which tasks go when there are to be fewer. Those whose workers have a run are protected
(`pestfleet_worker.protection`): they stay until they have none, even where the number is lower.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pestfleet.targets.base import FleetPlan
from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.scaling import NumberedWorkers
from pestfleet_worker.errors import TargetError

logger = logging.getLogger(__name__)

# Error codes of UpdateService where there is nothing any more.
_GONE = ("ServiceNotFoundException", "ServiceNotActiveException", "ClusterNotFoundException")


class ServiceWorkers(NumberedWorkers):
    """The service, as `scale` wants it."""

    protects_runs = True

    def __init__(self, plan: FleetPlan, cloud: Cloud, *, cluster: str, service: str) -> None:
        super().__init__(plan, words=f"service {service}")
        self._cloud = cloud
        self._cluster = cluster
        self._service = service

    def _follow(self, workers: int) -> bool:
        resize(self._cloud, self._cluster, self._service, workers)
        logger.info("service %s: %d workers", self._service, workers)
        return True


def resize(cloud: Cloud, cluster: str, service: str, tasks: int) -> None:
    """Have so many tasks of a service. Raises `TargetError`."""
    cloud.call("ecs", "update_service", cluster=cluster, service=service, desiredCount=tasks)


def dismiss(cloud: Cloud, cluster: str, services: Sequence[str]) -> list[str]:
    """Have no task of these services, in this order; those that are gone are passed over.

    Returns what went wrong, a line each: it never raises, for the lease ends what is left.
    """
    problems = []
    for service in services:
        try:
            resize(cloud, cluster, service, 0)
        except Refused as error:
            if error.code not in _GONE:
                problems.append(f"service {service} goes on: {error.message}")
        except TargetError as error:
            problems.append(f"service {service} goes on: {error.message}")
    for problem in problems:
        logger.warning("%s", problem)
    return problems
