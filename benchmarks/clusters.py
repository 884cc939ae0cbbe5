"""A Kubernetes of its own for benchmarks, and commands of pestfleet in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from tests.containers.base_image import CERTIFICATES, ensure_base
from tests.containers.docker_engine import run_engine

from benchmarks.containers import BROKER, ROOT, make_environment
from pestfleet.images.base import ensure_image
from pestfleet.settings import ImageSettings

NAMESPACE = "bench"
PATIENCE = 400.0  # seconds
# Small enough for a node of two cores; who is alone there may use all of it. The broker and the
# master come before the workers, as they do with the chart's own values.
_TINY = {"requests": {"cpu": "10m", "memory": "48Mi"}, "limits": {"cpu": None, "memory": "256Mi"}}


def _make_size(cpu: str) -> dict[str, Any]:
    return {"requests": {"cpu": cpu, "memory": "256Mi"}, "limits": {"cpu": None, "memory": "2Gi"}}


VALUES = {
    "broker": {"resources": _make_size("500m")},
    "master": {"resources": _make_size("300m")},
    "workers": {"resources": _TINY},
}


@dataclass(frozen=True, slots=True)
class Terminal:
    """Runs commands in `folder`; `environment` names the cluster, its registry and helm."""

    folder: Path
    kubeconfig: Path
    kubectl_program: Path
    environment: dict[str, str]

    def start(self, *words: str, **how: Any) -> subprocess.Popen[str]:
        """A command of pestfleet that runs; its stdout can be read."""
        return subprocess.Popen(
            [sys.executable, "-m", "pestfleet", *words],
            cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, **how,
        )  # fmt: skip

    def run(self, *words: str, **changes: str) -> str:
        """What a command of pestfleet writes. `changes`: of the environment."""
        done = subprocess.run(
            [sys.executable, "-m", "pestfleet", *words],
            cwd=self.folder, env={**self.environment, **changes}, text=True, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def kubectl(self, *words: str) -> str:
        command = [*self.kubectl_words(), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def kubectl_words(self) -> list[str]:
        program = str(self.kubectl_program)
        return [program, f"--kubeconfig={self.kubeconfig}", f"--namespace={NAMESPACE}"]

    def write_values(self, name: str, **workers: Any) -> str:
        """A file with values of the chart."""
        path = self.folder / name
        values = {**VALUES, "workers": {**VALUES["workers"], **workers}}
        path.write_text(json.dumps(values), encoding="utf-8")
        return str(path)


@contextmanager
def start_cluster() -> Iterator[Terminal]:
    """A cluster with a registry, images of ours, and volumes; all is gone afterwards."""
    _find_test_modules()
    import cluster_programs
    from cluster_images import push
    from cluster_volumes import provision_volumes
    from image_registry import run_registry
    from kubernetes_cluster import KubernetesCluster

    cluster = KubernetesCluster()
    with ExitStack() as stack:
        engine = stack.enter_context(run_engine())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(cluster.stop)
        cluster.start()
        registry = stack.enter_context(run_registry(cluster.folder))
        stack.enter_context(provision_volumes(cluster.kubeconfig, cluster.folder / "volumes"))
        cluster.start_program("docker-registry", list(registry.command))
        settings = _make_settings(engine)
        broker = push(engine, BROKER, registry.address).reference
        cluster.kubectl("create", "namespace", NAMESPACE)
        enforced = "pod-security.kubernetes.io/enforce=restricted"
        cluster.kubectl("label", "namespace", NAMESPACE, enforced)
        kubectl = cluster_programs.ensure_kubernetes() / "kubectl"
        helm = cluster_programs.ensure_helm(cluster_programs.HELM_3)
        environment = {
            **make_environment(settings),
            "KUBECONFIG": str(cluster.kubeconfig),
            "PESTFLEET_NAMESPACE": NAMESPACE,
            "PESTFLEET_IMAGE__REGISTRY": registry.address,
            "PESTFLEET_IMAGE__BROKER": broker,
            "PATH": os.pathsep.join([str(helm.parent), os.environ["PATH"]]),
        }
        yield Terminal(folder, cluster.kubeconfig, kubectl, environment)


def _make_settings(engine: docker.DockerClient) -> ImageSettings:
    settings = ImageSettings(
        base=ensure_base(engine), network="host", ca=str(CERTIFICATES), broker=BROKER
    )
    broker = ensure_image("broker", settings, engine=engine, folder=ROOT / "images" / "broker")
    engine.images.get(broker).tag(BROKER)
    return settings


def _find_test_modules() -> None:
    """The modules of the tests with a cluster name each other as pytest has them."""
    for part in ("", "integration", "containers", "cluster"):
        place = str(ROOT / "tests" / part)
        if place not in sys.path:
            sys.path.append(place)


def wait_for(condition: Callable[[], bool], what: str, *, pause: float = 0.5) -> float:
    """Wait until it holds; returns the seconds that took."""
    began = time.perf_counter()
    while not condition():
        assert time.perf_counter() - began < PATIENCE, f"{what}: not after {PATIENCE:.0f} s"
        time.sleep(pause)
    return time.perf_counter() - began


def read_events(command: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What a command with --json tells, as it comes."""
    assert command.stdout is not None
    for line in command.stdout:
        if line.startswith("{"):
            yield json.loads(line)
