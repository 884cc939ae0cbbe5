"""How tests talk to a Kubernetes, ours or another."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from kubernetes_cluster import KubernetesCluster


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Kubernetes that tests use. `own`: None if it was there before.

    `registry`: HOST:PORT, without TLS, the same from this machine and from the nodes.
    """

    kubeconfig: Path
    registry: str
    own: KubernetesCluster | None
    kubectl_program: Path

    def kubectl(self, *words: str, given: str = "") -> str:
        """What kubectl writes, when it succeeds."""
        done = self.try_kubectl(*words, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def try_kubectl(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(self.kubectl_program), f"--kubeconfig={self.kubeconfig}", *words]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)
