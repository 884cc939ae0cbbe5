"""A Kubernetes for the tests with its registry, and the programs that talk to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

import cluster_programs
from cluster_access import Cluster
from image_registry import run_registry
from kubernetes_cluster import CACHE_VARIABLE, VARIABLE, KubernetesCluster

REGISTRY_VARIABLE = "PESTFLEET_TEST_REGISTRY"  # HOST:PORT that this machine and that cluster know


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster for all tests, ours or that of PESTFLEET_TEST_KUBECONFIG."""
    given = os.environ.get(VARIABLE)
    if given:
        kubectl = shutil.which("kubectl")
        assert kubectl, f"{VARIABLE} is set, so kubectl must be on PATH"
        address = os.environ.get(REGISTRY_VARIABLE, "")
        assert address, f"with {VARIABLE}, {REGISTRY_VARIABLE}=HOST:PORT must name its registry"
        yield Cluster(Path(given), address, None, Path(kubectl))
        return
    own = KubernetesCluster()
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(own.cache)
    try:
        own.start()
        with run_registry(own.folder) as registry:
            # Once more on the node's loopback: images have the same names there.
            own.start_program("docker-registry", list(registry.command))
            kubectl_program = cluster_programs.ensure_kubernetes() / "kubectl"
            yield Cluster(own.kubeconfig, registry.address, own, kubectl_program)
    finally:
        del os.environ[CACHE_VARIABLE]
        if before is not None:
            os.environ[CACHE_VARIABLE] = before
        own.stop()


@pytest.fixture
def kubectl(cluster: Cluster) -> Callable[..., str]:
    """Runs kubectl as the cluster's administrator: `kubectl("get", "nodes")`."""
    return cluster.kubectl


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own, in which pod security "restricted" is enforced."""
    name = f"pestfleet-test-{uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    enforced = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", name, enforced)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def helm3() -> Path:
    """The program helm, version 3."""
    return cluster_programs.ensure_helm(cluster_programs.HELM_3)


@pytest.fixture(scope="session")
def helm4() -> Path:
    """The program helm, version 4."""
    return cluster_programs.ensure_helm(cluster_programs.HELM_4)


@pytest.fixture(scope="session")
def skaffold() -> Path:
    """The program skaffold."""
    return cluster_programs.ensure_skaffold()
