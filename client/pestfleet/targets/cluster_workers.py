"""Workers in a Job of Kubernetes, which their master, a pod of the same cluster, scales itself.

More workers: the Job's `parallelism` is raised at once. Fewer: the Job's controller ends pods that
are not ready first, and a drained worker's pod becomes unready; so it is lowered when those that
may go have done so, and never below the number of pods that are ready.
"""

from __future__ import annotations

import logging
from typing import Any

from pestfleet.cluster_api import ClusterApi
from pestfleet.targets.base import FleetPlan
from pestfleet.targets.scaling import NumberedWorkers

logger = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds for which one request is repeated; then it is made anew
_JOB_LABEL = "job-name"  # of a Job's pods, by its controller


class ClusterWorkers(NumberedWorkers):
    """The Job, as `scale` wants it."""

    def __init__(self, plan: FleetPlan, *, job: str, api: ClusterApi | None = None) -> None:
        """Raises `ConfigurationError` where this is no pod with a service account."""
        super().__init__(plan, words=f"Job {job}")
        self._api = api or ClusterApi.find(patience=PATIENCE)
        self._name = job
        self._job = f"/apis/batch/v1/namespaces/{self._api.namespace}/jobs/{job}"
        self._pods = f"/api/v1/namespaces/{self._api.namespace}/pods"

    def _follow(self, workers: int) -> bool:
        now = int(self._api.get(self._job)["spec"]["parallelism"])
        size = workers
        if workers < now:
            size = min(now, max(workers, self._count_ready()))
        if size != now:
            self._api.patch(self._job, {"spec": {"parallelism": size}})
            logger.info("Job %s: %d workers, not %d", self._name, size, now)
        return size == workers

    def _count_ready(self) -> int:
        found = self._api.get(
            self._pods,
            labelSelector=f"{_JOB_LABEL}={self._name}",
            fieldSelector="status.phase=Running",
            resourceVersion="0",  # from the server's memory
        )
        return sum(_is_ready(pod) for pod in found["items"])


def _is_ready(pod: dict[str, Any]) -> bool:
    """Is it, and does it stay?"""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = pod["status"].get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
