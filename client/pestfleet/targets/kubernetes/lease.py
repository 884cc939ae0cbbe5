"""A fleet that lives only as long as the process that launched it, plus a grace.

The Job of the workers, which owns all else, has a deadline (activeDeadlineSeconds). As long as the
launching process lives it moves that deadline on. When it has died, or its machine is cut off for
longer than the grace, the cluster itself ends the Job, and then removes all of the session.
Workers cannot do that: those that wait for a node, or for their first word of the master, never
end, and a broker that is away for minutes is no reason to end a session.
"""

from __future__ import annotations

import logging
import threading
import time

from pestfleet.targets.clocks import wait_awake
from pestfleet.targets.kubernetes.access import Access, Refused
from pestfleet.targets.kubernetes.fleet import GONE
from pestfleet.targets.kubernetes.naming import Object
from pestfleet_worker.errors import TargetError

logger = logging.getLogger(__name__)

GRACE = 600.0  # seconds without the launching process after which its fleet goes
OFTEN = 5  # how often the lease is renewed in that time
RETRY = 5.0  # seconds after a renewal that failed


class Lease:
    """Renewed by a thread of its own from `start` to `stop`."""

    def __init__(self, access: Access, job: Object) -> None:
        """`job`: as it would be made without a lease; it never outlives the deadline it has."""
        self._access = access
        self._path = access.find_path("batch/v1", "jobs", job["metadata"]["name"])
        self._longest = int(job["spec"]["activeDeadlineSeconds"])
        # Not the monotonic clock, which stands still while a laptop sleeps. The Job begins later.
        self._began = time.time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def sign(self, job: Object) -> Object:
        """The Job with the first deadline."""
        return {**job, "spec": {**job["spec"], "activeDeadlineSeconds": self._find_deadline()}}

    def start(self) -> None:
        """Renew it from now on; the Job is there."""
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(RETRY)

    def _find_deadline(self) -> int:
        """Seconds after the Job's begin."""
        return min(self._longest, int(time.time() - self._began + GRACE))

    def _keep(self) -> None:
        pause = GRACE / OFTEN
        while not wait_awake(self._over, pause):
            try:
                self._access.patch(
                    self._path, {"spec": {"activeDeadlineSeconds": self._find_deadline()}}
                )
                pause = GRACE / OFTEN
            except Refused as error:
                if error.status == GONE:
                    return
                logger.warning("the fleet's lease could not be renewed: %s", error)
                pause = RETRY
            except TargetError as error:
                logger.warning("the fleet's lease could not be renewed: %s", error)
                pause = RETRY
