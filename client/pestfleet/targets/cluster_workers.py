"""Workers in a Job of Kubernetes, which their master, a pod of the same cluster, scales itself.

More workers: the Job's `parallelism` is raised at once. Fewer: the Job's controller ends pods that
are not ready first, and a drained worker's pod becomes unready; so it is lowered when those that
may go have done so, and never below the number of pods that are ready.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pestfleet.cluster_api import ClusterApi
from pestfleet.targets.base import FleetPlan

logger = logging.getLogger(__name__)

INTERVAL, LONGEST = 1.0, 8.0  # seconds between two looks at pods that become unready
PATIENCE = 5.0  # seconds for which one request is repeated; then it is made anew
_JOB_LABEL = "job-name"  # of a Job's pods, by its controller


class ClusterWorkers:
    """The Job, as `scale` wants it. The API server is spoken to in a thread of its own."""

    def __init__(self, plan: FleetPlan, *, job: str, api: ClusterApi | None = None) -> None:
        """Raises `ConfigurationError` where this is no pod with a service account."""
        self._plan = plan
        self._api = api or ClusterApi.find(patience=PATIENCE)
        self._name = job
        self._job = f"/apis/batch/v1/namespaces/{self._api.namespace}/jobs/{job}"
        self._pods = f"/api/v1/namespaces/{self._api.namespace}/pods"
        self._wanted = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="scaling", daemon=True)

    def describe(self) -> list[str]:
        return [f"{self._plan.workers} workers of Job {self._name} join by themselves"]

    def launch(self) -> None:
        self._thread.start()

    def check(self) -> None: ...

    def scale(self, workers: int, surplus: Collection[str] = ()) -> None:
        """The drained ones need no name here: their pods show it."""
        with self._changed:
            self._wanted = workers
            self._changed.notify()

    def replace(self, worker: str) -> None: ...

    def logs(self, worker: str) -> Path | None:
        return None

    def teardown(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(2 * INTERVAL)

    def _serve(self) -> None:
        done, pause = 0, INTERVAL
        while True:
            with self._changed:
                wanted = self._wanted
                if self._closing:
                    return
            if wanted != done and self._try(wanted):
                done = wanted
            with self._changed:
                if self._closing or self._wanted != wanted:
                    pause = INTERVAL
                    continue
                self._changed.wait(None if wanted == done else pause)
                pause = min(1.5 * pause, LONGEST)

    def _try(self, workers: int) -> bool:
        try:
            return self._follow(workers)
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Of the network, the API server, or in its answer: it may be right the next time.
            logger.warning("Job %s cannot be scaled, trying again: %s", self._name, error)
            return False

    def _follow(self, workers: int) -> bool:
        """Bring the Job nearer to what is wanted; True when it is there."""
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
