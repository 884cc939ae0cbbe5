"""Sessions on Kubernetes as a user has them: by the command line, in a namespace of the test's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster_access import Cluster
from compose_shell import Command, Terminal, count_runs, find_processes
from hosting import wait_for

SESSION, ROLE = "pestfleet.session", "pestfleet.role"
ON = ("--on", "kubernetes", "--no-cache", "--cpus", "0.1", "--memory", "256m")
# A node of the tests has two cores, which several tests share.
SMALL = """\
broker: {resources: {requests: {cpu: 50m, memory: 256Mi}, limits: {memory: 1Gi}}}
master: {resources: {requests: {cpu: 50m, memory: 256Mi}, limits: {memory: 2Gi}}}
tunnel: {resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 128Mi}}}
"""
# Made by the cluster for every namespace or by its administrator, or by nobody.
_CLUSTERS_OWN = ("configmap/kube-root-ca.crt", "serviceaccount/default", "event", "resourcequota/")


class ClusterShell(Terminal):
    """A terminal in `folder` whose kubeconfig names the cluster and a namespace of it."""

    def __init__(self, folder: Path, cluster: Cluster, namespace: str) -> None:
        super().__init__(folder)
        self.cluster = cluster
        self.namespace = namespace
        self._kinds = ""
        (folder / "small.yaml").write_text(SMALL)

    def list_words(self, case: Path, session: str, *more: str) -> tuple[str, ...]:
        """The words that run a case here, in pods that are small."""
        values = str(self.folder / "small.yaml")
        return ("run", str(case), "--session", session, *ON, "--values", values, *more)

    def launch(self, case: Path, session: str, *more: str, runs: int) -> Command:
        """A command that runs a case; so many runs are finished."""
        return self.follow(
            self.start(*self.list_words(case, session, *more), "--json"), session, runs
        )

    def follow(self, command: Command, session: str, runs: int) -> Command:
        folder = self.open_folder(session)
        command.wait_for(lambda: count_runs(folder) >= runs, f"{runs} runs")
        return command

    # -- what is in the cluster ----------------------------------------------------------------

    def kubectl(self, *words: str, given: str = "") -> str:
        return self.cluster.kubectl(f"--namespace={self.namespace}", *words, given=given)

    def list_pods(self, session: str, role: str = "") -> list[dict[str, Any]]:
        """The pods of a session (of one role) that are not on their way out."""
        selector = f"{SESSION}={session}" + (f",{ROLE}={role}" if role else "")
        text = self.kubectl("get", "pods", f"--selector={selector}", "--output=json")
        found: list[dict[str, Any]] = json.loads(text)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def await_pods(self, session: str, role: str, number: int) -> None:
        """Wait until so many pods of a role run."""

        def look() -> bool:
            pods = self.list_pods(session, role)
            return sum(pod["status"]["phase"] == "Running" for pod in pods) == number

        wait_for(look, timeout=400, what=f"{number} pods of {role}")

    def find_pod(self, session: str, role: str) -> str:
        """The name of a pod of a role, one that runs if there is one."""
        pods = self.list_pods(session, role)
        pods.sort(key=lambda pod: pod["status"]["phase"] == "Running")
        name: str = pods[-1]["metadata"]["name"]
        return name

    def list_objects(self) -> set[str]:
        """All objects of all kinds in the namespace, but what the cluster makes by itself."""
        if not self._kinds:
            kinds = self.cluster.kubectl(
                "api-resources", "--verbs=list", "--namespaced", "--output=name"
            ).split()
            self._kinds = ",".join(kind for kind in kinds if not kind.startswith("events"))
        names = self.kubectl("get", self._kinds, "--output=name").split()
        return {name for name in names if not name.startswith(_CLUSTERS_OWN)}

    def check_nothing_left(
        self, session: str, *, but_results: bool = False, patience: float = 240.0
    ) -> None:
        """No object of any kind; and no process of ours. What it left goes within `patience`."""

        def look() -> bool:
            left = self.list_objects()
            if but_results:
                left -= {name for name in left if name.startswith("persistentvolumeclaim/")}
            return not left

        try:
            wait_for(look, timeout=patience, what="nothing left")
        except AssertionError:
            raise AssertionError(f"left: {sorted(self.list_objects())}") from None
        claims = [name for name in self.list_objects() if name.startswith("persistentvolumeclaim/")]
        assert len(claims) == int(but_results), claims
        assert find_processes(session) == []
