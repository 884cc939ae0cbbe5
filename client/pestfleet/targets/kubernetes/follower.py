"""Follows a session whose master is in a pod."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.targets.following import FollowedMaster
from pestfleet.targets.kubernetes.access import Refused, Unreachable
from pestfleet.targets.kubernetes.diagnosis import gather
from pestfleet.targets.kubernetes.fleet import GLANCE, KubernetesFleet
from pestfleet.targets.kubernetes.naming import Object
from pestfleet.targets.kubernetes.pods import Pod, find_end
from pestfleet.targets.kubernetes.results import fetch
from pestfleet.targets.troubles import News, refuse_dead_end
from pestfleet_worker.errors import PestfleetError, TargetError

if TYPE_CHECKING:
    from pestfleet.host import OnEvent

# What it means that a pod was lost.
_GOES_ON = {
    "master": "goes on from the runs that are finished",
    "broker": "has started: runs that were on their way are asked for again",
    "tunnel": "has started",
}
DIAGNOSIS = 5.0  # seconds between two looks for what does not run, of up to 100 workers
LONGEST = 30.0  # of more: each look lists all pods
_ENDS = ("memory", "exit", "disk", "evicted")  # kinds of troubles that ended a worker


class PodMaster(FollowedMaster[KubernetesFleet]):
    """Launches a session's objects, follows its master, fetches the results, removes all."""

    trouble = (Unreachable, Refused)  # one that comes back refuses at first what it allows later
    platform = "the cluster"
    lives_alone = True

    def __init__(
        self,
        folder: SessionFolder,
        spec: SessionSpec,
        fleet: KubernetesFleet,
        *,
        launch: Callable[[Callable[[str], None]], None],
        on_event: OnEvent,
    ) -> None:
        super().__init__(folder, spec, fleet, launch=launch, on_event=on_event)
        self._diagnosed = 0.0  # when that was looked for (monotonic)
        self._servers: dict[str, str] = {}  # role -> uid of the pod that was seen last
        self._pause = min(LONGEST, DIAGNOSIS * max(1.0, max(spec.workers, spec.most) / 100))
        self._news = News(lambda text: self._tell_all([text]))

    def _begin(self) -> None:
        self._diagnosed = time.monotonic()

    def _look(self, *, stopping: bool) -> bool:
        """See `FollowedMaster`: Kubernetes itself starts again what has died."""
        job = self._fleet.find_job("master")
        if job is None:
            name = self._spec.session
            self._tell_all([f"the objects of session {name} were removed: somebody has ended it"])
            return True
        reason = find_end(job)
        if reason:
            self._tell_ends()
            if reason != "Complete":
                self._failure = self._describe_failure(job, reason)
            return True
        servers = self._fleet.find_servers()
        self._tell_all(self._compare(servers))
        master = servers.get("master")
        if master is not None and master.phase == "Running":
            self._take_state(self._fleet.read_state_of(master))
        if not stopping and time.monotonic() - self._diagnosed > self._pause:
            self._diagnose()
        return False

    def _compare(self, servers: dict[str, Pod]) -> list[str]:
        """What to say of pods that others have taken the place of."""
        said = []
        for role, pod in servers.items():
            uid = pod.body["metadata"]["uid"]
            if self._servers.setdefault(role, uid) != uid and pod.phase == "Running":
                self._servers[role] = uid
                said.append(f"the pod of the {role} was lost, and another one {_GOES_ON[role]}")
        return said

    def _diagnose(self) -> None:
        """Say what does not run, once each. Raises `TargetError` when nothing ever will."""
        self._diagnosed = time.monotonic()
        found = gather(self._fleet.access, self._spec.session)
        # With such an exit the master's Job ends, too, and its journal says more of it.
        troubles = [
            t for t in found if not (t.role == "master" and t.kind == "exit" and t.hopeless)
        ]
        self._news.tell(troubles)
        refuse_dead_end(troubles, wanted=self._spec.workers, least=self._spec.place.least)

    def _tell_ends(self) -> None:
        """Say of which workers ended since the last look, and why: runs may have failed for it."""
        if time.monotonic() - self._diagnosed > GLANCE:
            found = gather(self._fleet.access, self._spec.session)
            self._news.tell([t for t in found if t.role == "worker" and t.kind in _ENDS])

    def _describe_failure(self, job: Object, reason: str) -> PestfleetError:
        """For a master that did not say itself how it ended."""
        if reason == "DeadlineExceeded":
            hours = job["spec"]["activeDeadlineSeconds"] / 3600
            return TargetError(
                f"session {self._spec.session} has come to its limit of {hours:.1f} hours",
                remedy="Finished runs are kept: pestfleet resume goes on; --max-hours gives more.",
            )
        pods = [pod for pod in self._fleet.pods("master") if pod.exit_code]
        said = self._fleet.describe_end(pods[-1]) if pods else f"the master's Job failed: {reason}"
        return TargetError(said, remedy="See pestfleet results --fetch for what is finished.")

    def _read_log(self, since: float) -> Iterator[str]:
        master = self._fleet.find("master")
        if master is None or master.phase == "Pending":
            return
        begin = datetime.fromtimestamp(since, UTC).isoformat() if since else None
        path = f"{self._fleet.access.find_path('v1', 'pods', master.name)}/log"
        yield from self._fleet.access.stream(
            path, container="master", follow=True, sinceTime=begin and begin.replace("+00:00", "Z")
        )

    def _fetch_files(self) -> bool:
        return fetch(self._fleet, self._folder.path)

    def _explain(self, trouble: Exception) -> TargetError:
        return explain(trouble)


def explain(trouble: Exception) -> TargetError:
    """A failure of the cluster in the middle of a session."""
    return TargetError(
        f"the cluster failed: {trouble}",
        remedy="The session goes on by itself; follow it again with: pestfleet resume",
    )
